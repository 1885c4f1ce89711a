"""Momentum guidance."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Between, Share, ordered
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Of
from lightning_cfg.guidance.history import History
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, scale_at
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import Denoiser, as_guided, expand_like


@method
@ordered("from_t", "to_t")
def momentum(
    model: Denoiser,
    *,
    of: Of = unguided,
    scale: Scale = 1.5,
    beta: Annotated[float, Between(0, 1, below=True)] = 0.6,
    from_t: Annotated[float, Share] = 0.05,
    to_t: Annotated[float, Share] = 0.7,
) -> Denoiser:
    """v + (scale - 1) (v - m), m an average of v over the steps before: Liao et al. (2026).

    m <- (1 - beta) v + beta m of the unchanged v, and m = v in the first step (eqs. 12, 13). v is
    the flow's velocity of any denoiser, v = (D - x_t) / (1 - t) with t = 1 / (1 + sigma) and
    x_t = t x, D another method's. No further pass. Of a step of Heun both evaluations have the m of
    the steps before, and the first one is remembered.

    scale         1 plus the paper's alpha, 0.5 with CFG and 1 to 1.5 without; 1 changes nothing
    beta          share of what m was before in m
    from_t, to_t  t of the flow where v is changed; outside m goes on
    The window is the paper's as an implementation quotes it; the paper itself was read up to its
    algorithm. UserError where a sampler has no steps.
    """
    if not from_t < to_t:
        raise UserError(f"guidance.from_t={from_t:g} must be below to_t={to_t:g}")
    within = as_guided(of(model))
    history = History("momentum", within)

    def begin_step(i: int, sigma: float) -> None:
        history.begin_step(i, sigma)

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w, D = scale_at(scale, sigma), within(x, sigma, c)
        if not isinstance(w, Tensor) and w == 1:
            return D
        t = 1 / (1 + sigma)
        v = (D - expand_like(t, x) * x) / expand_like(1 - t, x)
        m = history.remember(lambda m: v if m is None else (1 - beta) * v + beta * m)
        if m is None:
            return D
        weight = expand_like((w - 1) * (1 - t) * ((t >= from_t) & (t <= to_t)), x)
        return torch.where(weight == 0, D, D + weight * (v - m))

    return replace(within, denoise=guided, begin_step=begin_step)
