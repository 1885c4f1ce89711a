"""Samplers: generators of a trajectory, (sigma, x) at the start and after every step.

A sampler gets a finished denoiser, unit normal noise and classes, and knows nothing of guidance:
`*path, (sigma, sample) = heun(denoise, noise, c)`, where the last sigma is 0. Along which noise
levels it steps is an argument (`along`, noise.py). The solver runs in the dtype of `noise`.
Limits left out are 0.002 and 80; `generate` passes those of the model.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, NonNegative, Positive, Sigma, Steps, ordered
from lightning_cfg.diffusion.models import velocity_of
from lightning_cfg.diffusion.noise import (
    SIGMA_MAX,
    SIGMA_MIN,
    Levels,
    Schedule,
    check_beside,
    karras,
    linear_betas,
    noise_levels,
)
from lightning_cfg.diffusion.ode import integrate, per_sample
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Guided, as_guided

__all__ = ["ddim", "ddpm", "dopri5", "euler", "heun"]  # what a config can name

Trajectory = Iterator[tuple[float, Tensor]]  # (sigma, x (B, *shape)), sigma falling to 0
Sampler = Callable[..., Trajectory]  # (denoise, noise, c, [draw,] **keys of the config)


def along(schedule: Schedule, *, steps: int) -> Callable[[Sampler], Sampler]:
    """Declares the keys of a sampler's noise levels: how many `steps`, and along which schedule.

    The function is (denoise, noise, c, levels, ...), of levels that fall to 0. The sampler has in
    their place the keys levels, steps, sigma_min and sigma_max, and the keywords of its own
    schedule, which it follows where no other `levels` are named; see `noise_levels`.
    """

    def declare(function: Sampler) -> Sampler:
        of = (inspect.signature(f).parameters.values() for f in (noise_levels, schedule))
        keys = [key for both in of for key in both if key.kind is key.KEYWORD_ONLY]
        usual = {key.name: key.default for key in keys} | {"steps": steps}
        keys = [key.replace(default=usual[key.name]) for key in keys]

        @wraps(function)
        def sampler(denoise: Denoiser, noise: Tensor, c: Tensor, *draw: object, **given):
            named = {name: given.pop(name, default) for name, default in usual.items()}
            check_beside(named["levels"], named, usual)
            levels = noise_levels(schedule, **named)
            yield from function(as_guided(denoise), noise, c, levels, *draw, **given)

        parameters = inspect.signature(function).parameters.values()
        parameters = [*(p for p in parameters if p.name != "levels"), *keys]
        # what a config may say, which is read off signature and annotations
        sampler.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        sampler.__annotations__ = {p.name: p.annotation for p in parameters}
        return ordered("sigma_min", "sigma_max")(sampler)

    return declare


@along(karras, steps=64)
def euler(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    """First-order steps of dx/dsigma = (x - D) / sigma."""
    return _euler(denoise, noise, c, levels)


@along(linear_betas, steps=50)
def ddim(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    """Deterministic DDIM (Song et al. 2021): in these coordinates Euler along the DDPM's levels."""
    return _euler(denoise, noise, c, levels)


def _euler(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, t / s)
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
        begin_step(denoise, i, s, None)
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
    draw  gives fresh standard normals like noise, from the samples' own generators
    """
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        ratio = (t / s) ** 2
        begin_step(denoise, i, s, ratio)
        x = ratio * x + (1 - ratio) * denoise(x, per_sample(s, x), c)
        if t > 0:
            x = x + t * (1 - ratio) ** 0.5 * draw()
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
    for hook in (denoise.begin_step, denoise.keep_noise):
        if hook is not None:
            raise UserError(
                f"{_method(hook)} must know the sampler's steps, and dopri5 tries and "
                "repeats its own: sampler euler, ddim or ddpm, or heun where no step is renoised"
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


def derivative(denoise: Denoiser, x: Tensor, sigma: float, c: Tensor) -> Tensor:
    """dx/dsigma = (x - D(x; sigma, c)) / sigma (Karras et al. 2022, eqs. 1 and 3), (B, *shape)."""
    return (x - denoise(x, per_sample(sigma, x), c)) / sigma


def begin_step(denoise: Guided, i: int, sigma: float, share: float | None) -> None:
    """Tell a denoiser that asks for it which step starts, and what it keeps of the noise x - D.

    share  None where the step is not of the form x <- D + share (x - D): a UserError if it is asked
    """
    if denoise.keep_noise is not None:
        if share is None:
            raise UserError(
                f"{_method(denoise.keep_noise)} is for steps of the form x <- D + k (x - D), "
                "which heun's are not: sampler euler, ddim or ddpm"
            )
        denoise.keep_noise(share)
    if denoise.begin_step is not None:
        denoise.begin_step(i, sigma)


def _method(hook: Callable) -> str:
    """The name of the function, or class, in which this hook of a denoiser was written."""
    return getattr(hook, "__qualname__", type(hook).__name__).partition(".")[0]
