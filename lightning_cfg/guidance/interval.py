"""Guidance in a limited interval of noise levels."""

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Of, pass_on, tell
from lightning_cfg.interfaces import Denoiser


def interval(model: Denoiser, *, of: Of, sigma_low: float, sigma_high: float) -> Denoiser:
    """Another method at sigma_low < sigma <= sigma_high, D_c outside (Kynkäänniemi et al. 2024).

    It is switched at step boundaries only, so that both evaluations of a step of Heun are of one
    kind, and outside no other pass is made.
    Raises UserError for an empty interval, and where a sampler has no steps.
    """
    if not 0 <= sigma_low < sigma_high:
        raise UserError(
            f"guidance.sigma_low={sigma_low:g} must be from 0 to below sigma_high={sigma_high:g}"
        )
    within, inside = of(model), None

    def begin_step(i: int, sigma: float) -> None:
        nonlocal inside
        inside = sigma_low < sigma <= sigma_high
        tell(within, "begin_step", i, sigma)

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if inside is None:
            raise UserError("interval is switched by a sampler with steps, which has not begun one")
        return within(x, sigma, c) if inside else model(x, sigma, c)

    guided.begin_step = begin_step
    return pass_on(guided, within)
