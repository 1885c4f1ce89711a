"""Guidance in a limited interval of noise levels."""

from dataclasses import replace
from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Infinite, NonNegative, Positive, ordered
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Of
from lightning_cfg.guidance.method import method
from lightning_cfg.interfaces import Denoiser, as_guided


@method
@ordered("sigma_low", "sigma_high")
def interval(
    model: Denoiser,
    *,
    of: Of,
    sigma_low: Annotated[float, NonNegative],
    sigma_high: Annotated[float, Positive, Infinite],
) -> Denoiser:
    """Another method at sigma_low < sigma <= sigma_high, D_c outside (Kynkäänniemi et al. 2024).

    It is switched at step boundaries only, so that both evaluations of a step of Heun are of one
    kind, and outside no other pass is made.
    Raises UserError for an empty interval, and where a sampler has no steps.
    """
    if not 0 <= sigma_low < sigma_high:
        raise UserError(
            f"guidance.sigma_low={sigma_low:g} must be from 0 to below sigma_high={sigma_high:g}"
        )
    within, inside = as_guided(of(model)), None

    def begin_step(i: int, sigma: float) -> None:
        nonlocal inside
        inside = sigma_low < sigma <= sigma_high
        if within.begin_step is not None:
            within.begin_step(i, sigma)

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if inside is None:
            raise UserError("interval is switched by a sampler with steps, which has not begun one")
        return within(x, sigma, c) if inside else model(x, sigma, c)

    return replace(within, denoise=guided, begin_step=begin_step)
