"""Samplers: generators of a trajectory, (sigma, x) at the start and after every step.

A sampler gets a finished denoiser, unit normal noise and classes, and knows nothing of guidance:
`*path, (sigma, sample) = heun(denoise, noise, c)`, where the last sigma is 0. The solver runs in
the dtype of `noise`. Limits left out are 0.002 and 80; `generate` passes those of the model.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from lightning_cfg.diffusion.models import ddpm_time, linear_beta_sigmas, velocity_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Velocity  # and what a denoiser may ask: HOOKS

__all__ = ["ddim", "ddpm", "dopri5", "euler", "heun"]  # what a config can name

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0

Trajectory = Iterator[tuple[float, Tensor]]  # (sigma, x (B, *shape)), sigma falling to 0


def karras_levels(
    steps: int, sigma_min: float | None, sigma_max: float | None, rho: float = 7.0
) -> Tensor:
    """Falling noise levels, evenly spaced in sigma^(1/rho), then 0 (Karras et al. 2022, eq. 5).

    (steps + 1,) float64. Raises UserError for fewer than 2 steps.
    """
    low = (SIGMA_MIN if sigma_min is None else sigma_min) ** (1 / rho)
    high = (SIGMA_MAX if sigma_max is None else sigma_max) ** (1 / rho)
    if steps < 2:
        raise UserError(f"sampler.steps must be at least 2, not {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def linear_beta_levels(steps: int, sigma_min: float | None, sigma_max: float | None) -> Tensor:
    """Falling noise levels, evenly spaced in the DDPM's t with linear betas, then 0.

    (steps + 1,) float64; with 1000 steps and the DDPM's limits, its own levels. Limits outside
    0.01 ... 157 are clipped to them. Raises UserError for fewer than 2 or more than 1000 steps.
    """
    table = linear_beta_sigmas()
    if not 2 <= steps <= len(table):
        raise UserError(f"sampler.steps must be from 2 to {len(table)}, not {steps}")
    limits = torch.tensor(
        [
            SIGMA_MAX if sigma_max is None else sigma_max,
            SIGMA_MIN if sigma_min is None else sigma_min,
        ],
        dtype=torch.float64,
    )
    first, last = ddpm_time(limits.clamp(table[0], table[-1]), table)
    t = torch.linspace(first.item(), last.item(), steps, dtype=torch.float64)
    below = t.floor().long().clamp(0, len(table) - 2)
    logs = table.log()
    levels = (logs[below] + (t - below) * (logs[below + 1] - logs[below])).exp()
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


def euler(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    *,
    steps: int = 64,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Trajectory:
    """First-order steps of dx/dsigma = (x - D) / sigma."""
    yield from _euler_along(denoise, noise, c, karras_levels(steps, sigma_min, sigma_max, rho))


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    *,
    steps: int = 50,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Trajectory:
    """Deterministic DDIM (Song et al. 2021): in these coordinates Euler along the DDPM's levels."""
    yield from _euler_along(denoise, noise, c, linear_beta_levels(steps, sigma_min, sigma_max))


def heun(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    *,
    steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Trajectory:
    """Second-order steps of dx/dsigma = (x - D) / sigma (Karras et al. 2022, alg. 1).

    2 steps - 1 evaluations: the last step, to 0, is an Euler step.
    """
    levels = karras_levels(steps, sigma_min, sigma_max, rho).tolist()
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        _begin_step(denoise, i, s, None)
        slope = (x - denoise(x, _full(s, x), c)) / s
        euler_step = x + (t - s) * slope
        if t > 0:
            slope_t = (euler_step - denoise(euler_step, _full(t, x), c)) / t
            x = x + (t - s) * (slope + slope_t) / 2
        else:
            x = euler_step
        yield t, x


def ddpm(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    draw: Callable[[], Tensor],
    *,
    steps: int = 1000,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Trajectory:
    """Ancestral sampling (Ho et al. 2020): x_t ~ q(x_t | x_s, y = D), along the DDPM's levels.

    Mean (t/s)^2 x + (1 - (t/s)^2) D, variance t^2 (s^2 - t^2) / s^2 for noise level s -> t.
    draw  gives fresh standard normals like noise, from the samples' own generators
    """
    levels = linear_beta_levels(steps, sigma_min, sigma_max).tolist()
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        ratio = (t / s) ** 2
        _begin_step(denoise, i, s, ratio)
        x = ratio * x + (1 - ratio) * denoise(x, _full(s, x), c)
        if t > 0:
            x = x + t * (1 - ratio) ** 0.5 * draw()
        yield t, x


def dopri5(
    denoise: Denoiser,
    noise: Tensor,
    c: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 2000,
    points: int = 1,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Trajectory:
    """Adaptive Runge-Kutta 5(4) on the flow of the denoiser, then one denoising.

    Integrates v = (D - x_t) / (1 - t) in t = 1 / (1 + sigma), x_t = t x: the ends t = 0 and 1 are
    singular. The step is shared by the batch.
    points  noise levels after the start at which the trajectory is given, evenly spaced in
            sigma^(1/7); those before the last are interpolated and cost no evaluation
    Raises UserError past max_evaluations, and for a guidance that must know the step.
    """
    for hook in ("begin_step", "keep_noise"):
        if hasattr(denoise, hook):
            raise UserError(
                f"{_method(denoise, hook)} must know the sampler's steps, and dopri5 tries and "
                "repeats its own: sampler euler, ddim or ddpm, or heun where no step is renoised"
            )
    low = SIGMA_MIN if sigma_min is None else sigma_min
    high = SIGMA_MAX if sigma_max is None else sigma_max
    if low <= 0:
        raise UserError(f"sampler.sigma_min must be above 0 for dopri5, not {low}")
    if points < 1:
        raise UserError(f"sampler.points must be at least 1, not {points}")
    levels = karras_levels(points + 1, low, high)[:-1]
    levels[0], levels[-1] = high, low  # which rounding has moved
    times = 1 / (1 + levels)
    x_t = integrate_through(
        velocity_of(denoise), noise * high * times[0].item(), c, times, rtol, atol, max_evaluations
    )
    for sigma, t, x in zip(levels.tolist(), times.tolist(), x_t, strict=True):
        yield sigma, x / t
    yield 0.0, denoise(x_t[-1] / t, _full(low, x), c)


def integrate_in_steps(
    velocity: Velocity, x: Tensor, c: Tensor, t0: float, t1: float, steps: int, order: int
) -> Tensor:
    """x at t1 of dx/dt = v(x, t, c) from x at t0, in equal steps of Euler (order 1) or Heun (2).

    steps * order evaluations. Heun: x + h (v(x, t) + v(x + h v(x, t), t + h)) / 2.
    """
    h = (t1 - t0) / steps
    for i in range(steps):
        slope = velocity(x, _full(t0 + i * h, x), c)
        if order == 2:
            slope = (slope + velocity(x + h * slope, _full(t0 + (i + 1) * h, x), c)) / 2
        x = x + h * slope
    return x


def integrate(
    velocity: Velocity,
    x: Tensor,
    c: Tensor,
    t0: float,
    t1: float,
    rtol: float,
    atol: float,
    max_evaluations: int,
) -> Tensor:
    """x at t1 of dx/dt = v(x, t, c) from x at t0, by torchdiffeq's dopri5.

    Raises UserError as `integrate_through` does.
    """
    times = torch.tensor([t0, t1], dtype=torch.float64)
    return integrate_through(velocity, x, c, times, rtol, atol, max_evaluations)[-1]


def integrate_through(
    velocity: Velocity,
    x: Tensor,
    c: Tensor,
    times: Tensor,
    rtol: float,
    atol: float,
    max_evaluations: int,
) -> Tensor:
    """x at every one of `times` (n,), rising: (n, B, *shape), the first of them x itself.

    Raises UserError past max_evaluations, and where no step is short enough: the tolerance is too
    tight or the field too rough.
    """
    from torchdiffeq import odeint

    evaluations = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > max_evaluations:
            raise UserError(
                f"dopri5 needed more than max_evaluations={max_evaluations} from t={times[0]:.4g} "
                f"(stopped at t={float(t):.4g}): raise it, or rtol={rtol} and atol={atol}"
            )
        return velocity(x, t.to(x).expand(len(x)), c)

    times = times.to(x.device)
    if x.dtype == torch.float32:
        times = times.float()
    # A step ends at t1 and is not interpolated back to it: beyond it the field need not exist.
    options = {"step_t": times[-1:]}
    try:
        return odeint(field, x, times, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # torchdiffeq's word for a step of length 0, or for NaN
        raise UserError(f"dopri5 stopped after {evaluations} evaluations: {error}") from error


def _euler_along(denoise: Denoiser, noise: Tensor, c: Tensor, levels: Tensor) -> Trajectory:
    levels = levels.tolist()
    x = noise * levels[0]
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        _begin_step(denoise, i, s, t / s)
        x = x + (t - s) * (x - denoise(x, _full(s, x), c)) / s
        yield t, x


def _begin_step(denoise: Denoiser, i: int, sigma: float, share: float | None) -> None:
    """Tell a denoiser that asks for it which step starts, and what it keeps of the noise x - D."""
    if hasattr(denoise, "keep_noise"):
        if share is None:
            raise UserError(
                f"{_method(denoise, 'keep_noise')} is for steps of the form x <- D + k (x - D), "
                "which heun's are not: sampler euler, ddim or ddpm"
            )
        denoise.keep_noise(share)
    if hasattr(denoise, "begin_step"):
        denoise.begin_step(i, sigma)


def _method(denoise: Denoiser, hook: str) -> str:
    """The name of the function, or class, in which this hook of a denoiser was written."""
    name = getattr(getattr(denoise, hook), "__qualname__", type(denoise).__name__)
    return name.partition(".")[0]


def _full(sigma: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
