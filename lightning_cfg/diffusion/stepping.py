"""What samplers share: their noise levels as keys, and what they tell the guidance.

A sampler gets a finished denoiser, unit normal noise and classes, and is a generator of (sigma, x),
the start first and the sample last; see samplers.py.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps

from torch import Tensor

from lightning_cfg.config import ordered
from lightning_cfg.diffusion.noise import Schedule, check_beside, noise_levels
from lightning_cfg.diffusion.ode import per_sample
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Guided, as_guided

Trajectory = Iterator[tuple[float, Tensor]]  # (sigma, x (B, *shape)), sigma falling to 0
Sampler = Callable[..., Trajectory]  # (denoise, noise, c, [draw,] **keys of the config)

SIMPLE = "euler, ddim, ddpm or euler_ancestral"  # whose steps are x <- D + k (x - D), plus noise


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
            levels, guided = noise_levels(schedule, **named), as_guided(denoise)
            if guided.take_levels is not None:
                guided.take_levels(levels)
            yield from function(guided, noise, c, levels, *draw, **given)

        parameters = inspect.signature(function).parameters.values()
        parameters = [*(p for p in parameters if p.name != "levels"), *keys]
        # what a config may say, which is read off signature and annotations
        sampler.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        sampler.__annotations__ = {p.name: p.annotation for p in parameters}
        return ordered("sigma_min", "sigma_max")(sampler)

    return declare


def derivative(denoise: Denoiser, x: Tensor, sigma: float, c: Tensor) -> Tensor:
    """dx/dsigma = (x - D(x; sigma, c)) / sigma (Karras et al. 2022, eqs. 1 and 3), (B, *shape)."""
    return (x - denoise(x, per_sample(sigma, x), c)) / sigma


def begin_step(
    denoise: Guided,
    i: int,
    sigma: float,
    share: float | None,
    who: str = "this sampler",
    *,
    resamples: bool = False,
) -> None:
    """Tell a denoiser that asks for it which step starts, and what it keeps of the noise x - D.

    share      None where the step is not of the form x <- D + share (x - D): a UserError if it is
               asked
    who        the sampler, for that error
    resamples  whether it calls `resampled` after the step; a UserError if that is asked otherwise
    """
    if denoise.keep_noise is not None:
        if share is None:
            raise UserError(
                f"{method_of(denoise.keep_noise)} is for steps of the form x <- D + k (x - D), "
                f"which {who}'s are not: sampler {SIMPLE}"
            )
        denoise.keep_noise(share)
    if denoise.resample is not None and not resamples:
        raise UserError(
            f"{method_of(denoise.resample)} weighs particles that fresh noise moves apart, and "
            f"{who}'s steps have none: sampler ddpm, euler_ancestral, or ddim with eta above 0"
        )
    if denoise.begin_step is not None:
        denoise.begin_step(i, sigma)


def resampled(denoise: Guided, x: Tensor, s: float, t: float) -> Tensor:
    """The particles that go on after a step from noise level s to t, (B, *shape)."""
    rows = None if denoise.resample is None else denoise.resample(s, t)
    return x if rows is None else x[rows]


def method_of(hook: Callable) -> str:
    """The name of the function, or class, in which this hook of a denoiser was written."""
    return getattr(hook, "__qualname__", type(hook).__name__).partition(".")[0]
