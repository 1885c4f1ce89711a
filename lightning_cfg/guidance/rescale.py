"""Guidance rescale."""

from dataclasses import replace
from math import prod
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Share
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Changed, Of
from lightning_cfg.guidance.method import method
from lightning_cfg.interfaces import Denoiser, Known, as_guided, expand_like

LEAST = 16  # dimensions of which a deviation is taken: its own error is then below a fifth


@method
def rescale(model: Denoiser, *, of: Of, phi: Annotated[float, Share] = 0.7) -> Denoiser:
    """D = (phi std(D_c) / std(D_w) + 1 - phi) D_w: rescaled guidance (Lin et al. 2024, sec. 3.4).

    The deviations are over all dimensions of a sample, and D_w is another method's. The D_c that
    it has evaluated is used again, so nothing is added to its passes. The paper rescales what its
    network predicts, v or eps; here it is always D.

    phi  0 is the other method as it is
    Raises UserError for a method that returns no estimate of the clean signal, and for a model of
    fewer than 16 dimensions: of two coordinates the deviation is |a - b| and says nothing of how
    bright a sample is.
    """
    if not 0 <= phi <= 1:
        raise UserError(f"guidance.phi={phi:g} must be from 0 to 1")
    labels = D_c = None

    def remembered(x: Tensor, sigma: Tensor, c: Tensor, **rows: Tensor) -> Tensor:
        nonlocal D_c
        D = model(x, sigma, c, **rows)
        D_c = D if c is labels else D_c
        return D

    within = as_guided(of(Changed(model, remembered)))
    if within.keep_noise is not None:
        raise UserError(
            "rescale cannot take cfg_plus_plus as `of`: what that returns stands for a whole step "
            "and is no estimate of the clean signal, whose deviation could be compared"
        )

    shape = Known(model).shape
    if phi > 0 and shape is not None and prod(shape) < LEAST:
        raise UserError(
            f"rescale needs samples of {LEAST} dimensions or more, and these have {prod(shape)}: "
            "the deviation over the dimensions of a sample, which it restores, means nothing of so "
            "few"
        )

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal labels, D_c
        labels, D_c = c, None
        D_w = within(x, sigma, c)
        if phi == 0 or D_w is D_c:
            return D_w
        D_c = model(x, sigma, c) if D_c is None else D_c
        std_c, std_w = (D.flatten(1).std(1) for D in (D_c, D_w))
        ratio = torch.where(std_w > 0, std_c / std_w, 1.0)
        return D_w * expand_like(1 + phi * (ratio - 1), x)

    return replace(within, denoise=guided)
