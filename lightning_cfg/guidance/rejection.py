"""Rejection sampling by a classifier."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Between
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Of
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import Classifier, Denoiser, as_guided


@method
def rejection(
    model: Denoiser,
    classifier: Classifier,
    *,
    of: Of = unguided,
    candidates: Annotated[int, Between(1, 10_000)] = 4,
) -> Denoiser:
    """Of several samples of another method the one with the largest p(c|x) (Razavi et al. 2019).

    The paper keeps the share of all samples of a class that is most probable. Here each sample is
    the most probable of its own candidates, whose noise comes from its seed, so that it does not
    depend on which others are made; the share kept is 1 / candidates.

    classifier  of finished samples: it reads them at sigma 0
    candidates  1 changes nothing
    Raises UserError for rejection of what is rejected already.
    """
    if candidates < 1:
        raise UserError(f"guidance.candidates={candidates} must be at least 1")
    within = as_guided(of(model))
    if within.candidates > 1:
        raise UserError("rejection within rejection: name all candidates once, in the outer one")
    if candidates == 1:
        return within

    def log_p(x: Tensor, c: Tensor) -> Tensor:
        logits = classifier(x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
        return logits.log_softmax(1).gather(1, c[:, None])[:, 0]

    return replace(within, candidates=candidates, log_p=log_p)
