"""The methods of torchdiffeq with fixed steps, by their names."""

from typing import Literal

import torch
from torch import Tensor

from lightning_cfg.diffusion.noise import karras
from lightning_cfg.diffusion.ode import integrate_along, per_sample
from lightning_cfg.diffusion.rectified_flow import velocity_of
from lightning_cfg.diffusion.stepping import Trajectory, along, begin_step
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Guided

Method = Literal["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]


@along(karras, steps=18)
def fixed_step(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    *,
    method: Method = "rk4",
) -> Trajectory:
    """A method of torchdiffeq along the levels, then one denoising from the last above 0.

    Integrates v = (D - x_t) / (1 - t) in t = 1 / (1 + sigma), x_t = t x, as `dopri5` does.
    method  midpoint and heun2 take 2 evaluations a step, heun3 3, rk4 4; explicit_adams starts
            with rk4 and then takes 1, implicit_adams more, until a batch agrees
    Raises UserError for a method of Adams along levels that are not equally spaced in t, for which
    its weights are; `lms` is for others.
    """
    sigmas = levels[:-1]
    times = 1 / (1 + torch.tensor(sigmas, dtype=torch.float64))
    if method.endswith("adams") and len(sigmas) > 2:
        steps = times.diff()
        if (steps - steps.mean()).abs().max() > 1e-6 * steps.mean():
            raise UserError(
                f"sampler.method={method} needs equal steps of t: sampler.levels=uniform_t; the "
                "sampler lms is for others"
            )

    def tell(i: int) -> None:
        begin_step(denoise, i, sigmas[i], None, "fixed_step")

    x = noise * sigmas[0]
    path = integrate_along(
        velocity_of(denoise), x * times[0].item(), c, times, method=method, each=tell
    )
    yield sigmas[0], x
    for sigma, t, x_t in zip(sigmas[1:], times[1:].tolist(), path[1:], strict=True):
        yield sigma, x_t / t
    tell(len(sigmas) - 1)
    yield 0.0, denoise(path[-1] / times[-1].item(), per_sample(sigmas[-1], noise), c)
