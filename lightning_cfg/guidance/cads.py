"""Condition-annealed diffusion sampling (CADS)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import NonNegative, Share, ordered
from lightning_cfg.diffusion.trajectories import time_of
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Changed, Of
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import NULL, Denoiser, Draw, Known, as_guided


@method
@ordered("tau_1", "tau_2")
def cads(
    model: Denoiser,
    *,
    of: Of = unguided,
    noise: Annotated[float, NonNegative] = 0.25,
    tau_1: Annotated[float, NonNegative] = 0.6,
    tau_2: Annotated[float, NonNegative] = 0.9,
    psi: Annotated[float, Share] = 1.0,
) -> Denoiser:
    """Another method on the model D(x; sigma, y'), y' a noisy condition: CADS (Sadat et al. 2024).

    y' = psi rescaled(z) + (1 - psi) z, z = sqrt(g) y + noise sqrt(1 - g) n, where y is the vector
    that the network embeds the class as, n ~ N(0, I), and z is rescaled to y's mean and deviation.
    g = (tau_2 - t) / (tau_2 - tau_1), clipped to [0, 1], falls to 0 towards the noise. "No class"
    stays as it is.

    t is the DDPM's t/T of the noise level, at which the paper has it; other samplers it leaves
    open. n is drawn at every step from the samples' own generators, and both evaluations of a step
    of Heun have the same y'.

    noise         s; 0 changes nothing
    tau_1, tau_2  t at which the condition is first noisy, and pure noise
    Raises UserError for a model that embeds no classes, as one in closed form, where a sampler has
    no steps, and where all of its levels lie at t <= tau_1, so that nothing would ever be noisy.
    """
    if noise < 0 or not 0 <= tau_1 < tau_2 or not 0 <= psi <= 1:
        raise UserError(
            f"guidance: noise={noise:g} must be 0 or more, tau_1={tau_1:g} from 0 to below "
            f"tau_2={tau_2:g}, and psi={psi:g} from 0 to 1"
        )
    if noise == 0:
        return of(model)
    embed = Known(model).class_vectors
    if embed is None:
        raise UserError(
            "cads needs a network that embeds classes, whose vectors it makes noisy; models.model "
            "has none"
        )
    condition = _Annealed(embed, noise, tau_1, tau_2, psi)

    def annealed(x: Tensor, sigma: Tensor, c: Tensor, rows: Tensor | None = None) -> Tensor:
        return model(x, sigma, condition(c, rows))

    within, begun = as_guided(of(Changed(model, annealed, takes_rows=True))), False

    def take_levels(levels: list[float]) -> None:
        nonlocal begun
        t = time_of(torch.tensor(levels[:1])).item()
        if not begun and t <= tau_1:  # a trajectory that begins again may do so at low noise
            raise UserError(
                f"cads would never act: the sampler starts at sigma={levels[0]:.3g}, where t/T is "
                f"{t:.2f}, and the condition is noisy above tau_1={tau_1:g}"
            )
        begun = True
        if within.take_levels is not None:
            within.take_levels(levels)

    def draw_from(draw: Draw) -> None:
        condition.draw_from(draw)
        if within.draw_from is not None:
            within.draw_from(draw)

    def begin_step(i: int, sigma: float) -> None:
        condition.begin_step(sigma)
        if within.begin_step is not None:
            within.begin_step(i, sigma)

    return replace(within, take_levels=take_levels, draw_from=draw_from, begin_step=begin_step)


@dataclass
class _Annealed:
    """The condition y' of a step, for classes (B,): vectors (B, d), or where g = 1 the classes."""

    embed: Callable[[Tensor], Tensor]
    noise: float
    tau_1: float
    tau_2: float
    psi: float
    draw: Draw | None = None
    g: float = 1.0
    n: Tensor | None = None

    def draw_from(self, draw: Draw) -> None:
        vector = self.embed(torch.zeros(1, dtype=torch.long, device=draw.device))
        self.draw, self.n = draw.other("cads", vector.shape[1:]), None

    def begin_step(self, sigma: float) -> None:
        if self.draw is None:
            raise UserError("cads draws noise: give it the samples' own by draw_from(Draw)")
        t = time_of(torch.tensor([sigma])).item()
        self.g = min(1.0, max(0.0, (self.tau_2 - t) / (self.tau_2 - self.tau_1)))
        self.n = self.draw()

    def __call__(self, c: Tensor, rows: Tensor | None) -> Tensor:
        """y' of those samples of the batch that `rows`, (B,) bool, says c is of; None for all."""
        if self.n is None:
            raise UserError("cads draws its noise at every step of a sampler, which has none")
        if self.g == 1:
            return c
        y = self.embed(c)
        own = (self.n if rows is None else self.n[rows]).to(y)
        z = self.g**0.5 * y + self.noise * (1 - self.g) ** 0.5 * own
        mean, std = y.mean(1, keepdim=True), y.std(1, keepdim=True)
        rescaled = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) * std + mean
        noisy = self.psi * rescaled + (1 - self.psi) * z
        return torch.where(c[:, None] == NULL, y, noisy)
