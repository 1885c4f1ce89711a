"""Noise levels: schedules along which a sampler steps, and the DDPM's own levels.

A schedule is a function (steps, sigma_min, sigma_max) -> falling levels (steps,), with a 0 at their
end or without; its keyword-only parameters are keys of the config, as in
{name: karras, rho: 5}. Anyone's function is one by its dotted path.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Between, Choice, NonNegative, Sigma, Steps, resolve
from lightning_cfg.errors import UserError

__all__ = ["karras", "linear_betas", "model", "uniform_t"]  # what a config can name

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # where neither a config nor a model names limits

Schedule = Callable[..., Tensor]
# In a config a name, a section {name: karras, rho: 5} of this module, or a list of levels
Levels = (
    Annotated[Schedule, Choice("lightning_cfg.diffusion.noise")]
    | list[Annotated[float, NonNegative]]
)


def karras(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: Annotated[float, Between(0.1, 1000)] = 7.0,
) -> Tensor:
    """Evenly spaced in sigma^(1/rho) between the limits, then 0 (Karras et al. 2022, eq. 5).

    (steps + 1,) float64. rho = 7 is theirs; a larger one has more of its steps at low noise.
    Raises UserError for fewer than 2 steps.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    if steps < 2:
        raise UserError(
            f"sampler.steps must be at least 2, not {steps}: one step of a flow is "
            "levels=uniform_t, one denoising a list of one level"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def linear_betas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in t of a DDPM with linear betas, then 0 (Ho et al. 2020, sec. 4).

    (steps + 1,) float64; with 1000 steps and the DDPM's limits, its own levels. Limits outside
    0.01 ... 157 are clipped to them. Raises UserError for fewer than 2 or more than 1000 steps.
    """
    table = linear_beta_sigmas()
    if not 2 <= steps <= len(table):
        raise UserError(f"sampler.steps must be from 2 to {len(table)}, not {steps}")
    limits = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    first, last = ddpm_time(limits.clamp(table[0], table[-1]), table)
    t = torch.linspace(first.item(), last.item(), steps, dtype=torch.float64)
    below = t.floor().long().clamp(0, len(table) - 2)
    logs = table.log()
    levels = (logs[below] + (t - below) * (logs[below + 1] - logs[below])).exp()
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


def uniform_t(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equal steps of a flow's time t = 1 / (1 + sigma), from sigma_max to t = 1, which is sigma 0.

    (steps + 1,) float64. Euler's steps along them are those of dx_t/dt = v with x_t = t x, so
    this is how rectified flows are usually sampled (Liu et al. 2023, alg. 1). The last level above
    0 follows from the number of steps; sigma_min is a bound on it. Raises UserError for no steps.
    """
    if steps < 1:
        raise UserError(f"sampler.steps must be at least 1, not {steps}")
    t = torch.linspace(1 / (1 + sigma_max), 1, steps + 1, dtype=torch.float64)
    return (1 - t) / t


def model(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The levels of the model's own pipeline, where it has one: of diffusers, its scheduler's.

    With its start too, and with its end where that is above 0. Whoever samples takes them from the
    model (`interfaces.Along`); a sampler by itself knows no model, which is a UserError.
    """
    raise UserError("sampler.levels=model: the model has no levels of its own; name others")


def noise_levels(
    schedule: Schedule,
    *,
    levels: Levels | None = None,
    steps: Steps,
    sigma_min: Annotated[float, NonNegative] | None = None,
    sigma_max: Sigma | None = None,
    **own: float,
) -> list[float]:
    """The levels of a sampler, falling to 0: those of its key `levels`, or else of its `schedule`.

    levels  a schedule, its name, a section that names one, or the levels, with their 0 or without
    steps   and limits, of a schedule; limits left out are 0.002 and 80
    own     keywords of `schedule`
    Raises UserError unless they are finite, above 0, falling, and a schedule's within the limits,
    of which sigma_min is below sigma_max.
    """
    low = SIGMA_MIN if sigma_min is None else sigma_min
    high = SIGMA_MAX if sigma_max is None else sigma_max
    if not isinstance(levels, (list, tuple, Tensor)) and not low < high:
        raise UserError(f"sampler.sigma_min={low:g} must be below sampler.sigma_max={high:g}")
    if levels is None:
        return checked(schedule(steps, low, high, **own), low, high)
    if isinstance(levels, str):
        levels = resolve(__name__, levels)
    if isinstance(levels, dict):
        numbers = {key: value for key, value in levels.items() if key != "name"}
        levels = partial(resolve(__name__, levels["name"]), **numbers)
    if callable(levels):
        return checked(levels(steps, low, high), low, high)
    return checked(levels)


def check_beside(levels: Levels | None, keys: dict, usual: dict) -> None:
    """UserError for keys of a sampler, other than as usual, that do not count beside its `levels`.

    Beside a list none does, and beside a schedule those do not that are of the sampler's own one.
    """
    if levels is None:
        return
    schedule = callable(levels) or isinstance(levels, (str, dict))
    common = ("levels", "steps", "points", "sigma_min", "sigma_max") if schedule else ("levels",)
    for name, value in keys.items():
        if name not in common and value != usual.get(name):
            hint = f"write sampler.levels.{name}" if schedule else "a list says all itself"
            raise UserError(f"sampler.{name}={value} does not count beside sampler.levels: {hint}")


def checked(
    levels: Sequence[float] | Tensor, sigma_min: float = 0.0, sigma_max: float = math.inf
) -> list[float]:
    """Levels as floats with the 0 at their end; UserError for what cannot be stepped along."""
    try:
        found = [float(level) for level in levels]
    except (TypeError, ValueError):
        raise UserError(f"sampler.levels must be a list of numbers, not {levels!r:.60}") from None
    above = found[:-1] if found[-1:] == [0] else found
    falling = all(s > t for s, t in pairwise(above))
    if not above or not falling or not all(0 < s < math.inf for s in above):
        text = ", ".join(f"{s:.4g}" for s in found)
        raise UserError(
            "sampler.levels must be finite noise levels above 0, each below the one before it, "
            f"not [{text if len(text) <= 60 else text[:57] + '...'}]"
        )
    low, high = sigma_min * (1 - 1e-6), sigma_max * (1 + 1e-6)  # but for rounding
    if above[-1] < low or above[0] > high:
        raise UserError(
            f"sampler.levels reach from {above[0]:.4g} to {above[-1]:.4g}, outside the noise "
            f"levels {sigma_min:.4g} ... {sigma_max:.4g}: fewer steps, or other levels"
        )
    return [*above, 0.0]


def steps_of(sampler: dict) -> int:
    """How many steps a sampler section with `steps` takes: a list of levels says it itself."""
    levels = sampler.get("levels")
    return len(checked(levels)) - 1 if isinstance(levels, list) else sampler["steps"]


def linear_beta_sigmas(T: int = 1000) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t) for betas from 1e-4 to 0.02, (T,) float64, rising."""
    return _sigmas(torch.linspace(1e-4, 0.02, T, dtype=torch.float64, device="cpu"))


def cosine_sigmas(T: int = 1000) -> Tensor:
    """The same for abar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + 0.008) / 1.008), betas to 0.999.

    (Nichol & Dhariwal 2021, eq. 17); from 0.0064 to 20,291, (T,) float64, rising.
    """
    t = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    f = (math.pi / 2 * (t + 0.008) / 1.008).cos() ** 2
    return _sigmas((1 - f[1:] / f[:-1]).clamp(max=0.999))


def _sigmas(betas: Tensor) -> Tensor:
    abar = (1 - betas).cumprod(0)
    return ((1 - abar) / abar).sqrt()


DDPM_SIGMAS = {"linear": linear_beta_sigmas, "cosine": cosine_sigmas}  # of a DDPM's levels
DDPMSchedule = Literal["linear", "cosine"]


def ddpm_time(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """t in [0, T - 1] with sigma_t = sigma, (B,), by interpolation in log sigma."""
    log, logs = sigma.double().log(), sigmas.log()
    above = torch.searchsorted(logs, log.contiguous()).clamp(1, len(logs) - 1)
    low, high = logs[above - 1], logs[above]
    return (above - 1 + ((log - low) / (high - low)).clamp(0, 1)).to(sigma.dtype)
