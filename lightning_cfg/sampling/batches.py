"""Seeds become samples, a batch at a time, and what is kept of their trajectories."""

import itertools

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.sampling.prepared import Prepared
from lightning_cfg.sampling.sample import check_finite

ALONE = Ranks()


@torch.no_grad()
def made(
    ready: Prepared,
    seeds: Tensor,
    *,
    batch_size: int,
    trajectories: int = 0,
    labels: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """This rank's samples and classes; its wanted trajectories' paths and each batch's levels.

    trajectories  so many are wanted of all seeds, the first ones
    labels        (n,) the samples' classes, in place of those that their seeds draw
    """
    xs, cs, paths, levels = [], [], [], []
    own, wanted = ranks.share(torch.arange(len(seeds))), len(ranks.share(seeds[:trajectories]))
    with progress(len(seeds), "sample", shown=ranks.first) as bar:
        for chosen in own.split(batch_size):
            some, told = seeds[chosen], None if labels is None else labels[chosen]
            rows = min(max(0, wanted - sum(map(len, xs))), len(some))
            c, steps = ready.start(some, rows, told)
            path, sigmas = [], []
            for sigma, x in steps:
                if trajectories:
                    path.append(x[:rows].float().cpu())
                    sigmas.append(sigma)
            check_finite(x, some)
            xs.append(x.float().cpu())
            cs.append(c.cpu())
            if trajectories and (rows or not paths):
                paths.append(torch.stack(path, 1))
                levels.append(sigmas)
            bar.update(len(some) * ranks.size)
    path = torch.cat(paths) if trajectories else torch.zeros(len(own), 0)
    return torch.cat(xs), torch.cat(cs), path, levels


def levels_of(of_ranks: list, sampler: str, trajectories: int) -> list[float]:
    """The noise levels of all batches with trajectories, which have to be the same."""
    levels = list(itertools.chain(*of_ranks))
    if any(sigmas != levels[0] for sigmas in levels):
        raise UserError(
            f"sampler {sampler} takes other steps in each batch, so its trajectories "
            f"must be of one: batch_size={trajectories} or more, and one process"
        )
    return levels[0] if levels else []
