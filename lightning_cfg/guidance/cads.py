"""Condition-annealed diffusion sampling (CADS)."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cfg.diffusion.trajectories import time_of
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Changed, Of, pass_on, tell
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import NULL, Denoiser


def cads(
    model: Denoiser,
    *,
    of: Of = unguided,
    noise: float = 0.25,
    tau_1: float = 0.6,
    tau_2: float = 0.9,
    psi: float = 1.0,
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
    Raises UserError for a model that embeds no classes, as one in closed form, and where a sampler
    has no steps.
    """
    if noise < 0 or not 0 <= tau_1 < tau_2 or not 0 <= psi <= 1:
        raise UserError(
            f"guidance: noise={noise:g} must be 0 or more, tau_1={tau_1:g} from 0 to below "
            f"tau_2={tau_2:g}, and psi={psi:g} from 0 to 1"
        )
    if noise == 0:
        return of(model)
    if getattr(model, "class_vectors", None) is None:
        raise UserError(
            "cads needs a network that embeds classes, whose vectors it makes noisy; models.model "
            "has none"
        )
    draw: Callable[[], Tensor] | None = None
    g, n = 1.0, None

    def draw_from(own: "Callable[[], Tensor]") -> None:
        nonlocal draw, n
        vector = model.class_vectors(torch.zeros(1, dtype=torch.long, device=own.device))
        draw, n = own.other("cads", vector.shape[1:]), None
        tell(within, "draw_from", own)

    def begin_step(i: int, sigma: float) -> None:
        nonlocal g, n
        if draw is None:
            raise UserError("cads draws noise: give it the samples' own by draw_from(Draw)")
        t = time_of(torch.tensor([sigma])).item()
        g, n = min(1.0, max(0.0, (tau_2 - t) / (tau_2 - tau_1))), draw()
        tell(within, "begin_step", i, sigma)

    def annealed(x: Tensor, sigma: Tensor, c: Tensor, rows: Tensor | None = None) -> Tensor:
        if n is None:
            raise UserError("cads draws its noise at every step of a sampler, which has none")
        if g == 1:
            return model(x, sigma, c)
        y = model.class_vectors(c)  # (B, d)
        own = (n if rows is None else n[rows]).to(y)
        z = g**0.5 * y + noise * (1 - g) ** 0.5 * own
        mean, std = y.mean(1, keepdim=True), y.std(1, keepdim=True)
        rescaled = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) * std + mean
        noisy = psi * rescaled + (1 - psi) * z
        return model(x, sigma, torch.where(c[:, None] == NULL, y, noisy))

    changed = Changed(model, annealed)
    changed.takes_rows = True
    within = of(changed)

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return within(x, sigma, c)

    guided.begin_step, guided.draw_from = begin_step, draw_from
    return pass_on(guided, within)
