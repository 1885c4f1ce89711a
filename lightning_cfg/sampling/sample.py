"""One batch of trajectories by the sampler of a section, and the best of several candidates."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cfg.config import build, resolve
from lightning_cfg.diffusion.samplers import Trajectory
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Draw, as_guided
from lightning_cfg.sampling.particles import of_particles
from lightning_cfg.sampling.restarts import restarted


def check_finite(x: Tensor, seeds: Tensor) -> None:
    """UserError, naming the seeds, where samples have diverged."""
    if not x.isfinite().all():
        raise UserError(
            f"the samples of seeds {int(seeds[0])} ... {int(seeds[-1])} are not finite: "
            "a smaller guidance.scale or more sampler.steps may help; nothing was written"
        )


def sample(
    sampler: dict, denoise: Denoiser, noise: Tensor, c: Tensor, draw: Draw, rows: int = 0
) -> Trajectory:
    """The generator of a sampler section, with the samples' own noise if it is stochastic.

    rows  of how many samples, the first, the trajectory is wanted: where several candidates are
          made of each, only these have one
    """
    guided = as_guided(denoise)
    function = resolve("lightning_cfg.diffusion.samplers", sampler["name"])
    parameters = inspect.signature(function).parameters
    stochastic = "draw" in parameters
    if guided.restarts and ("steps" not in parameters or isinstance(sampler.get("levels"), list)):
        raise UserError(
            f"{sampler['name']} cannot begin again at another noise level, which the guidance asks "
            "for: a sampler with steps, along a schedule and not a list of levels"
        )

    def run(denoise: Denoiser, start: Tensor, c: Tensor, own: Draw, **changed: float) -> Trajectory:
        if guided.draw_from is not None:
            guided.draw_from(own)
        section = {**sampler, **changed}
        return build(
            "lightning_cfg.diffusion.samplers", section, denoise, start, c, *[own] * stochastic
        )

    def steps(candidate: int) -> Trajectory:
        """Of the first candidate, the sample that there would be without the others."""
        own = draw if candidate == 0 else draw.other(f"candidate {candidate}")
        start = noise if candidate == 0 else own()
        if guided.particles > 1:
            return of_particles(run, guided, start, c, own, rows)
        if guided.restarts:
            return restarted(run, guided, start, c, own)
        return run(guided, start, c, own)

    if guided.log_p is None or guided.candidates == 1:
        return steps(0)
    return _most_probable(steps, guided.candidates, guided.log_p, c, rows)


def evaluations_of(sampler: dict) -> int | None:
    """How often a sampler with steps asks its denoiser, by asking it; None of one without."""
    function = resolve("lightning_cfg.diffusion.samplers", sampler["name"])
    if "steps" not in inspect.signature(function).parameters:
        return None
    asked, noise = 0, torch.zeros(1, 1, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.zeros_like(x)

    for _ in sample(sampler, denoise, noise, torch.zeros(1, dtype=torch.long), lambda: noise):  # type: ignore[arg-type]
        pass
    return asked


def _most_probable(
    steps: Callable[[int], Trajectory],
    candidates: int,
    log_p: Callable[[Tensor, Tensor], Tensor],
    c: Tensor,
    rows: int,
) -> Trajectory:
    """The trajectory of each sample whose end is the most probable of its candidates."""
    path, end = _kept(steps(0), rows)
    best = log_p(end, c)
    for j in range(1, candidates):
        new, x = _kept(steps(j), rows)
        own = log_p(x, c)
        better = own > best
        best = torch.where(better, own, best)
        end = _chosen(better, x, end)
        path = [
            (sigma, _chosen(better[:rows], y, x))
            for (sigma, x), (_, y) in zip(path, new, strict=True)
        ]
    yield from path[:-1]
    yield path[-1][0], end


def _kept(steps: Trajectory, rows: int) -> tuple[list[tuple[float, Tensor]], Tensor]:
    """The trajectory of the first samples, and the end of all."""
    path, x = [], torch.empty(0)
    for sigma, x in steps:
        path.append((sigma, x[:rows]))
    return path, x


def _chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
