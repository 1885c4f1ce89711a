"""One batch of trajectories by the sampler of a section, and the best of several candidates."""

import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_cfg.config import build, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser
from lightning_cfg.sampling.seeds import Draw


def check_finite(x: Tensor, seeds: Tensor) -> None:
    """UserError, naming the seeds, where samples have diverged."""
    if not x.isfinite().all():
        raise UserError(
            f"the samples of seeds {int(seeds[0])} ... {int(seeds[-1])} are not finite: "
            "a smaller guidance.scale or more sampler.steps may help; nothing was written"
        )


def sample(
    sampler: dict, denoise: Denoiser, noise: Tensor, c: Tensor, draw: Draw, rows: int = 0
) -> Iterator[tuple[float, Tensor]]:
    """The generator of a sampler section, with the samples' own noise if it is stochastic.

    rows  of how many samples, the first, the trajectory is wanted: where several candidates are
          made of each, only these have one
    """
    function = resolve("lightning_cfg.diffusion.samplers", sampler["name"])
    stochastic = "draw" in inspect.signature(function).parameters

    def steps(noise: Tensor, draw: Draw) -> Iterator[tuple[float, Tensor]]:
        if hasattr(denoise, "draw_from"):
            denoise.draw_from(draw)
        return build(
            "lightning_cfg.diffusion.samplers", sampler, denoise, noise, c, *[draw] * stochastic
        )

    if hasattr(denoise, "candidates"):
        return _most_probable(denoise, steps, noise, c, draw, rows)
    return steps(noise, draw)


def _most_probable(
    denoise: Denoiser, steps: Callable, noise: Tensor, c: Tensor, draw: Draw, rows: int
) -> Iterator[tuple[float, Tensor]]:
    """The trajectory of each sample whose end is the most probable of its candidates.

    The first candidate is the sample that there would be without the others.
    """
    path, best = [], None
    for j in range(denoise.candidates):
        own = draw if j == 0 else draw.other(f"candidate {j}")
        new = []
        for sigma, x in steps(noise if j == 0 else own(), own):
            new.append((sigma, x[:rows]))
        log_p = denoise.log_p(x, c)
        if best is None:
            path, end, best = new, x, log_p
            continue
        better = log_p > best
        best = torch.where(better, log_p, best)
        end = _chosen(better, x, end)
        path = [
            (sigma, _chosen(better[:rows], y, x))
            for (sigma, x), (_, y) in zip(path, new, strict=True)
        ]
    yield from path[:-1]
    yield path[-1][0], end


def _chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
