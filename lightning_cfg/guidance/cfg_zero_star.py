"""CFG-Zero*."""

from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import AtLeast
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, evaluate_where, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, Guided, expand_like


@method
def cfg_zero_star(
    model: Denoiser, *, scale: Scale = 2.0, zero_steps: Annotated[int, AtLeast(0)] = 1
) -> Denoiser:
    """v_w = s v_u + w (v_c - s v_u), s = <v_c, v_u> / |v_u|^2: CFG-Zero* (Fan et al. 2025).

    On the velocity of the flow, (1 - t) v = D - x_t with t = 1 / (1 + sigma) and x_t = t x, so
    that D_w = U + w (D_c - U) with U = x_t + s (D_u - x_t). In the first zero_steps steps v = 0,
    D = x_t, and no network is evaluated.

    scale       w; 1 is the conditional model, also in the first steps: that is our convention
    zero_steps  first steps in which nothing moves
    Raises UserError for a model without classes, or trained without label dropout, and, unless
    zero_steps is 0, where a sampler has no steps.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "cfg_zero_star")
    if zero_steps < 0:
        raise UserError(f"guidance.zero_steps={zero_steps} must be 0 or more")
    zero = None if zero_steps else False

    def begin_step(i: int, sigma: float) -> None:
        nonlocal zero
        zero = i < zero_steps

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if zero is None:
            raise UserError("cfg_zero_star with zero_steps is for a sampler with steps")
        w = scale_at(scale, sigma)
        x_t = expand_like(1 / (1 + sigma), x) * x
        if zero:
            return between(x_t, evaluate_where(w == 1, model, x, sigma, c), 1.0 * (w == 1))
        D_c, D_u = two_passes(model, x, sigma, c, True, w != 1)
        v_c, v_u = (D_c - x_t).flatten(1), (D_u - x_t).flatten(1)  # times 1 - t, which cancels
        s = (v_c * v_u).sum(1) / v_u.square().sum(1).clamp(min=torch.finfo(v_u.dtype).tiny)
        return between(x_t + expand_like(s, x) * (D_u - x_t), D_c, w)

    return Guided(guided, begin_step=begin_step) if zero_steps else guided
