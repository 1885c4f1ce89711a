"""Samplers that draw fresh noise as they go: ancestral ones, and EDM's churn."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Infinite, NonNegative, Positive, Share, ordered
from lightning_cfg.diffusion.noise import karras
from lightning_cfg.diffusion.ode import per_sample
from lightning_cfg.diffusion.stepping import Trajectory, along, begin_step, derivative, resampled
from lightning_cfg.interfaces import Guided

Draw = Callable[[], Tensor]
MOST = 2**0.5 - 1  # a step of EDM's adds at most so much of its noise level (its alg. 2)


@ordered("S_min", "S_max")
@along(karras, steps=18)
def edm_stochastic(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    draw: Draw,
    *,
    S_churn: Annotated[float, NonNegative] = 40.0,
    S_min: Annotated[float, NonNegative] = 0.05,
    S_max: Annotated[float, Positive, Infinite] = 50.0,
    S_noise: Annotated[float, Positive] = 1.003,
) -> Trajectory:
    """Noise is added before every step of Heun's (Karras et al. 2022, alg. 2).

    From s to s' = (1 + gamma) s by S_noise sqrt(s'^2 - s^2) n, where gamma = min(S_churn / steps,
    sqrt(2) - 1) at S_min <= s <= S_max and 0 elsewhere; then Heun from s' to t. s' may lie above
    the first level. The defaults are the paper's for ImageNet-64 with `steps` 256. 2 steps - 1
    evaluations. Noise is drawn where it is added, as in EDM2's code; EDM's draws it at every step.

    S_churn       how much noise in all; 0: Heun
    S_min, S_max  levels between which it is added
    S_noise       its size, in units of what the level says
    """
    x, steps = noise * levels[0], len(levels) - 1
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, None, "edm_stochastic")
        gamma = min(S_churn / steps, MOST) if S_min <= s <= S_max else 0.0
        higher = s * (1 + gamma)
        if gamma > 0:
            x = x + (higher**2 - s**2) ** 0.5 * S_noise * draw()
        slope = derivative(denoise, x, higher, c)
        euler_step = x + (t - higher) * slope
        if t > 0:
            slope = (slope + derivative(denoise, euler_step, t, c)) / 2
        x = x + (t - higher) * slope
        yield t, x


@along(karras, steps=64)
def euler_ancestral(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    draw: Draw,
    *,
    eta: Annotated[float, Share] = 1.0,
) -> Trajectory:
    """Euler's step to a level below t, and noise up to t (k-diffusion's sample_euler_ancestral).

    eta  share of the ancestral noise: 0 is `euler`, 1 is `ddpm` along these levels
    """
    return ancestral(denoise, noise, c, levels, draw, eta)


def ancestral(
    denoise: Guided, noise: Tensor, c: Tensor, levels: list[float], draw: Draw, eta: float
) -> Trajectory:
    """x <- D + k (x - D) + u n from s to t, u = eta t sqrt(1 - t^2 / s^2), k = sqrt(t^2 - u^2) / s.

    It is DDIM's eq. 16 (Song et al. 2021) in these coordinates: the variance of q(x_t | x_s, y) is
    t^2 (1 - t^2 / s^2).
    """
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        up = eta * t * (1 - (t / s) ** 2) ** 0.5
        share = (t**2 - up**2) ** 0.5 / s
        begin_step(denoise, i, s, share, resamples=eta > 0)
        D = denoise(x, per_sample(s, x), c)
        x = D + share * (x - D)
        if up > 0:
            x = x + up * draw()
        x = resampled(denoise, x, s, t)
        yield t, x
