"""Seeds become samples, a batch at a time, and what is kept of their trajectories."""

import itertools

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.progress import progress
from lightning_cfg.sampling.prepared import Prepared
from lightning_cfg.sampling.sample import check_finite


@torch.no_grad()
def one_batch(
    ready: Prepared, seeds: Tensor, rows: int | None = None, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """{x, c} of these seeds on the device; path and sigma too of the first `rows`, None for none.

    labels  (B,) their classes, in place of those that the seeds draw
    """
    c, steps = ready.start(seeds, rows or 0, labels)
    path, sigmas = [], []
    for sigma, x in steps:
        if rows is not None:
            path.append(x[:rows].float().cpu())
            sigmas.append(sigma)
    check_finite(x, seeds)
    found = {"x": x.float(), "c": c}
    if rows is not None:
        found |= {"path": torch.stack(path, 1)}
        found |= {"sigma": torch.tensor(sigmas, dtype=torch.float64)}
    return found


def made(
    ready: Prepared,
    seeds: Tensor,
    *,
    batch_size: int,
    trajectories: bool = False,
    labels: Tensor | None = None,
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """{x, c} of these seeds on the CPU; with `trajectories` their paths, and each batch's levels.

    labels  (n,) the samples' classes, in place of those that their seeds draw
    """
    parts, levels = [], []
    with progress(len(seeds), " samples") as bar:
        for chosen in torch.arange(len(seeds)).split(batch_size):
            told = None if labels is None else labels[chosen]
            rows = len(chosen) if trajectories else None
            found = one_batch(ready, seeds[chosen], rows, told)
            if rows is not None:
                levels.append(found.pop("sigma").tolist())
            parts.append({name: held.cpu() for name, held in found.items()})
            bar.update(len(chosen))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, levels


def levels_of(of_ranks: list, sampler: str, trajectories: int) -> list[float]:
    """The noise levels of all batches with trajectories, which have to be the same."""
    levels = list(itertools.chain(*of_ranks))
    if any(sigmas != levels[0] for sigmas in levels):
        raise UserError(
            f"sampler {sampler} takes other steps in each batch, so its trajectories "
            f"must be of one: batch_size={trajectories} or more, and one process"
        )
    return levels[0] if levels else []
