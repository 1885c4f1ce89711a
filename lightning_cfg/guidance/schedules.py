"""Schedules of the scale: w(sigma) = 1 + (scale - 1) s(p), s from 0 to 1.

p is the position of ln sigma between sigma_low and sigma_high, clipped: 1 at the end where the
guidance is `full`, "low" noise or "high" noise, 0 at the other. Where s is 0 the extra pass is
skipped. Wang et al. (2024) compare such schedules over the DDPM's t and normalise their mean; the
coordinate ln sigma and the peak as the number that is named are our choice. Anyone's function
from sigma (B,) to w (B,) is a schedule; one for the config takes keywords and returns it.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Infinite, NonNegative, Positive, Real, ordered
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.scales import Schedule

__all__ = ["constant", "cosine", "exponential", "knots", "linear", "step"]  # what a config can name

End = Literal["low", "high"]


def constant(*, scale: Annotated[float, Real] = 2.0) -> Schedule:
    """s = 1: the number itself, for a comparison of schedules."""
    return lambda sigma: torch.full_like(sigma, scale)


@ordered("sigma_low", "sigma_high")
def linear(
    *,
    scale: Annotated[float, Real] = 2.0,
    full: End = "low",
    sigma_low: Annotated[float, Positive] = 0.01,
    sigma_high: Annotated[float, Positive] = 80.0,
) -> Schedule:
    """s = p."""
    position = _position(full, sigma_low, sigma_high)
    return lambda sigma: 1 + (scale - 1) * position(sigma)


@ordered("sigma_low", "sigma_high")
def cosine(
    *,
    scale: Annotated[float, Real] = 2.0,
    full: End = "low",
    sigma_low: Annotated[float, Positive] = 0.01,
    sigma_high: Annotated[float, Positive] = 80.0,
) -> Schedule:
    """s = (1 - cos(pi p)) / 2."""
    position = _position(full, sigma_low, sigma_high)
    return lambda sigma: 1 + (scale - 1) * (1 - (math.pi * position(sigma)).cos()) / 2


@ordered("sigma_low", "sigma_high")
def exponential(
    *,
    scale: Annotated[float, Real] = 2.0,
    rate: Annotated[float, NonNegative] = 5.0,
    full: End = "low",
    sigma_low: Annotated[float, Positive] = 0.01,
    sigma_high: Annotated[float, Positive] = 80.0,
) -> Schedule:
    """s = exp(-rate (1 - p)): decays from the full end, and is nowhere quite 0."""
    position = _position(full, sigma_low, sigma_high)
    return lambda sigma: 1 + (scale - 1) * (-rate * (1 - position(sigma))).exp()


@ordered("sigma_low", "sigma_high")
def step(
    *,
    scale: Annotated[float, Real] = 2.0,
    sigma_low: Annotated[float, Positive] = 0.01,
    sigma_high: Annotated[float, Positive, Infinite] = 80.0,
) -> Schedule:
    """s = 1 for sigma_low < sigma <= sigma_high, else 0, at every evaluation by itself.

    The limited interval of Kynkäänniemi et al. (2024) switches at step boundaries: `interval`.
    """
    _check(sigma_low, sigma_high)

    def w(sigma: Tensor) -> Tensor:
        inside = (sigma > sigma_low) & (sigma <= sigma_high)
        return torch.where(inside, torch.full_like(sigma, scale), 1.0)

    return w


def knots(
    *,
    sigmas: list[Annotated[float, Positive]],
    heights: list[Annotated[float, Real]],
    scale: Annotated[float, Real] = 2.0,
) -> Schedule:
    """s = heights at the noise levels sigmas, straight in ln sigma between and level beyond.

    sigmas   rising
    heights  as many; at scale 2 they are w - 1
    Raises UserError for other numbers of them, or sigmas that do not rise.
    """
    if len(sigmas) != len(heights) or not sigmas:
        raise UserError(
            f"guidance.scale: {len(sigmas)} sigmas for {len(heights)} heights: one for each"
        )
    if any(a >= b for a, b in pairwise(sigmas)):
        raise UserError(f"guidance.scale.sigmas={sigmas} must rise")

    def w(sigma: Tensor) -> Tensor:
        at, s = (torch.as_tensor(v).to(sigma) for v in (sigmas, heights))
        return 1 + (scale - 1) * _straight(sigma.log(), at.log(), s)

    return w


def _straight(x: Tensor, at: Tensor, height: Tensor) -> Tensor:
    """The line through (at, height) at x, (B,), level beyond its ends."""
    if len(at) == 1:
        return height.expand_as(x)
    i = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    share = ((x - at[i - 1]) / (at[i] - at[i - 1])).clamp(0, 1)
    return height[i - 1] + share * (height[i] - height[i - 1])


def _position(full: End, low: float, high: float) -> Schedule:
    _check(low, high)
    if full not in ("low", "high"):
        raise UserError(f"guidance.scale.full={full} must be low or high, a noise level")
    span = math.log(high / low)

    def p(sigma: Tensor) -> Tensor:
        from_low = ((sigma / low).log() / span).clamp(0, 1)
        return from_low if full == "high" else 1 - from_low

    return p


def _check(low: float, high: float) -> None:
    if not 0 < low < high:
        raise UserError(
            f"guidance.scale: 0 < sigma_low={low:g} < sigma_high={high:g} does not hold"
        )
