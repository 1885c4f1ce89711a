"""Feedback guidance (FBG)."""

import math
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Between, Newer, Share
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.knock_outs import PerSample, knocked_out
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, Guided

REFERENCE, ALPHA, MOST = 3.0, 10.0, 3.0  # lambda_ref, alpha and the bound on log p of the code


@method
def feedback(
    model: Denoiser,
    *,
    scale: Scale = 10.0,
    pi: Annotated[float, Share] = 0.999,
    t_0: Annotated[float, Between(0, 1, below=True)] = 0.556,
    t_1: Annotated[float, Between(0, 1, below=True)] = 0.429,
    strength: Annotated[PerSample, Newer] = "own",
) -> Denoiser:
    """D_u + w (D_c - D_u), w = p / (p - (1 - pi)): feedback guidance (Koulischer et al. 2025).

    p is an estimate of p(c | x) / p(c) that each sample carries along: a step that took it to x'
    is compared with the means that the conditional and the unconditional model had for it,
    log p <- log p - tau / (2 v) (|x' - m_c|^2 - |x' - m_u|^2) + delta, where m = k x + (1 - k) D,
    k = t^2 / s^2 and v = t^2 (1 - k). So a sample that shows its class is guided less. It needs no
    classifier: that of GFCG's idea is the model itself. p starts at 1; both evaluations of a step
    of Heun have the same w. delta and tau are the code's: delta takes p to where w = 3 in
    (1 - t_0) N steps, tau = 2 v(t_1) |delta| / 10.

    scale     the largest w, lambda_max; 1 is the conditional model
    pi        1 less the share of the unconditional in what the model has learned; 1 changes nothing
    t_0, t_1  when w rises and when p is felt, as shares of the steps left: the code's for EDM2-XS
    strength  own, or a knock-out in the place of w, while p goes on as it would: that of another
              sample of the batch (permuted) or the batch's mean (level_mean), see `knock_outs`.
              One number for all is CFG
    Written from the paper's abstract and the authors' code; the derivation we have not read.
    Raises UserError for a model without classes or label dropout, and where a sampler has no steps.
    """
    if not isinstance(scale, Tensor) and not callable(scale) and scale < 1:
        raise UserError(f"guidance.scale={scale:g} of feedback is the largest w: at least 1")
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "feedback")
    tau = delta = step = 0.0
    last: tuple[Tensor, float, Tensor, Tensor] | None = None  # x, s, D_c, D_u of the step before
    now: tuple[Tensor, float, Tensor, Tensor] | None = None
    log_p: Tensor | None = None

    def take_levels(levels: list[float]) -> None:
        nonlocal tau, delta
        if pi < 1:
            tau, delta = rates(levels[:-1], pi, t_0, t_1)

    def begin_step(i: int, sigma: float) -> None:
        nonlocal last, now, log_p, step
        last, now, step = (now if i else None), None, sigma
        log_p = log_p if i else None

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal now, log_p
        most = scale_at(scale, sigma)
        D_c, D_u = two_passes(model, x, sigma, c, True, most != 1 if pi < 1 else False)
        if pi == 1 or (not isinstance(most, Tensor) and most == 1):
            return D_c
        if step == 0:
            raise UserError("feedback is for a sampler with steps, which has not begun one")
        if log_p is None:
            log_p = x.new_zeros(len(x))
        most = torch.as_tensor(most, dtype=x.dtype, device=x.device)
        if now is None and last is not None:
            log_p = log_p - tau * misfit(last, x, step) + delta
            least = ((1 - pi) * most / (most - 1)).log()
            log_p = log_p.maximum(least).clamp(max=MOST)
        now = (x, step, D_c, D_u) if now is None else now
        p = log_p.exp()
        w = torch.where(most == 1, 1.0, p / (p - (1 - pi)))
        return between(D_u, D_c, knocked_out(w, strength))

    return Guided(guided, take_levels=take_levels, begin_step=begin_step)


def misfit(last: tuple[Tensor, float, Tensor, Tensor], x: Tensor, t: float) -> Tensor:
    """(|x - m_c|^2 - |x - m_u|^2) / (2 v) of the step that has led to x at t, (B,)."""
    before, s, D_c, D_u = last
    k = t**2 / s**2
    errors = [(x - k * before - (1 - k) * D).flatten(1).square().sum(1) for D in (D_c, D_u)]
    return (errors[0] - errors[1]) / (2 * t**2 * (1 - k))


def rates(levels: list[float], pi: float, t_0: float, t_1: float) -> tuple[float, float]:
    """tau and delta for these falling levels above 0, as the authors' code has them."""
    N = len(levels)
    delta = math.log((1 - pi) * REFERENCE / (REFERENCE - 1)) / ((1 - t_0) * N)
    variances = [0.0] + [
        (s**2 - t**2) * t**2 / s**2 for t, s in zip(levels[:0:-1], levels[-2::-1], strict=True)
    ]  # of the steps, the last one first
    below = min(int(t_1 * N), N - 1)
    above = min(below + 1, N - 1)
    v = variances[below] + (t_1 * N - below) * (variances[above] - variances[below])
    return 2 * v * abs(delta) / ALPHA, delta
