"""Samplers: generators of a trajectory, (sigma, x) at the start and after every step.

A sampler gets a finished denoiser, unit normal noise and classes, and knows nothing of guidance:
`*path, (sigma, sample) = heun(denoise, noise, c)`, where the last sigma is 0. Along which noise
levels it steps is an argument (`along`, noise.py). The solver runs in the dtype of `noise`.
Limits left out are 0.002 and 80; `generate` passes those of the model. A parameter `draw` is fresh
standard normals like noise, from the samples' own generators. docs/samplers.md compares them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Newer,
    NonNegative,
    Positive,
    Share,
    Sigma,
    Steps,
    ordered,
)
from lightning_cfg.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms
from lightning_cfg.diffusion.noise import (
    SIGMA_MAX,
    SIGMA_MIN,
    Levels,
    check_beside,
    karras,
    linear_betas,
    noise_levels,
)
from lightning_cfg.diffusion.ode import integrate, per_sample
from lightning_cfg.diffusion.ode_methods import fixed_step
from lightning_cfg.diffusion.rectified_flow import velocity_of
from lightning_cfg.diffusion.stepping import (
    SIMPLE,
    Trajectory,
    along,
    begin_step,
    derivative,
    method_of,
    resampled,
)
from lightning_cfg.diffusion.stochastic import ancestral, edm_stochastic, euler_ancestral
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Guided, as_guided

__all__ = [
    "ddim",
    "ddpm",
    "dopri5",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "edm_stochastic",
    "euler",
    "euler_ancestral",
    "fixed_step",
    "heun",
    "lms",
]  # what a config can name


@along(karras, steps=64)
def euler(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    """First-order steps of dx/dsigma = (x - D) / sigma."""
    return _euler(denoise, noise, c, levels)


@along(linear_betas, steps=50)
def ddim(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    draw: Callable[[], Tensor] | None = None,
    *,
    eta: Annotated[Annotated[float, Share] | None, Newer] = None,
) -> Trajectory:
    """DDIM (Song et al. 2021): in these coordinates Euler along the DDPM's levels.

    eta  of its eq. 16, how much of the ancestral noise is drawn: 1 is `ddpm`, 0 or left out none
    """
    if not eta or draw is None:
        return _euler(denoise, noise, c, levels)
    return ancestral(denoise, noise, c, levels, draw, eta)


def _euler(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, t / s, "euler")
        x = x + (t - s) * (x - denoise(x, per_sample(s, x), c)) / s  # (t - s) derivative
        yield t, x


@along(karras, steps=18)
def heun(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    """Second-order steps of dx/dsigma = (x - D) / sigma (Karras et al. 2022, alg. 1).

    2 steps - 1 evaluations: the last step, to 0, is an Euler step.
    """
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, None, "heun")
        slope = derivative(denoise, x, s, c)
        euler_step = x + (t - s) * slope
        if t > 0:
            slope_t = derivative(denoise, euler_step, t, c)
            x = x + (t - s) * (slope + slope_t) / 2
        else:
            x = euler_step
        yield t, x


@along(linear_betas, steps=1000)
def ddpm(
    denoise: Guided, noise: Tensor, c: Tensor, levels: list[float], draw: Callable[[], Tensor]
) -> Trajectory:
    """Ancestral sampling (Ho et al. 2020): x_t ~ q(x_t | x_s, y = D), along the DDPM's levels.

    Mean (t/s)^2 x + (1 - (t/s)^2) D, variance t^2 (s^2 - t^2) / s^2 for noise level s -> t.
    """
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        ratio = (t / s) ** 2
        begin_step(denoise, i, s, ratio, resamples=True)
        x = ratio * x + (1 - ratio) * denoise(x, per_sample(s, x), c)
        if t > 0:
            x = x + t * (1 - ratio) ** 0.5 * draw()
        x = resampled(denoise, x, s, t)
        yield t, x


@ordered("sigma_min", "sigma_max")
def dopri5(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    *,
    rtol: Annotated[float, NonNegative] = 1e-5,
    atol: Annotated[float, Positive] = 1e-5,
    max_evaluations: Annotated[int, AtLeast(1)] = 2000,
    points: Steps = 1,
    levels: Levels | None = None,
    sigma_min: Sigma | None = None,
    sigma_max: Sigma | None = None,
) -> Trajectory:
    """Adaptive Runge-Kutta 5(4) on the flow of the denoiser, then one denoising.

    Integrates v = (D - x_t) / (1 - t) in t = 1 / (1 + sigma), x_t = t x: the ends t = 0 and 1 are
    singular. The step is shared by the batch, and chosen by the tolerances alone.
    points  noise levels after the start at which the trajectory is given, evenly spaced in
            sigma^(1/7); those before the last are interpolated and cost no evaluation
    levels  others instead, of which the first and the last are its limits
    Raises UserError past max_evaluations, and for a guidance that must know the step.
    """
    denoise = as_guided(denoise)
    for hook in (denoise.take_levels, denoise.begin_step, denoise.keep_noise, denoise.resample):
        if hook is not None:
            raise UserError(
                f"{method_of(hook)} must know the sampler's steps, and dopri5 tries and "
                f"repeats its own: sampler {SIMPLE}, or another one with steps"
            )
    if sigma_min is not None and sigma_min <= 0:
        raise UserError(f"sampler.sigma_min must be above 0 for dopri5, not {sigma_min}")
    if points < 1:
        raise UserError(f"sampler.points must be at least 1, not {points}")
    keys = {"points": points, "sigma_min": sigma_min, "sigma_max": sigma_max}
    check_beside(levels, keys, {"points": 1})
    sigmas = noise_levels(
        karras, levels=levels, steps=points + 1, sigma_min=sigma_min, sigma_max=sigma_max
    )[:-1]
    if levels is None:  # rounding has moved the ends
        sigmas[0] = SIGMA_MAX if sigma_max is None else sigma_max
        sigmas[-1] = SIGMA_MIN if sigma_min is None else sigma_min
    times = 1 / (1 + torch.tensor(sigmas, dtype=torch.float64))
    x_t = integrate(
        velocity_of(denoise), noise * sigmas[0] * times[0].item(), c, times,
        rtol=rtol, atol=atol, max_evaluations=max_evaluations,
    )  # fmt: skip
    for sigma, t, x in zip(sigmas, times.tolist(), x_t, strict=True):
        yield sigma, x / t
    yield 0.0, denoise(x_t[-1] / times[-1].item(), per_sample(sigmas[-1], noise), c)
