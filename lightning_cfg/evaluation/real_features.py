"""Features of real points by their numbers, embedded once: from disk, from memory, or anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.gather import ALL
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import SampleSet, all_of
from lightning_cfg.refinement.neighbours import nearest_in_shards
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.run import content_of


@dataclass(frozen=True)
class RealFeatures:
    """Of these points, class after class, in a space.

    known  of all points, in the order of their files, which `place` (n,) says of each; None where
           they are cheap, or too many to be kept: then they are computed where they are asked for
    held   bytes that they take in memory; what is mapped from disk takes none
    """

    points: SampleSet
    space: Space
    known: Tensor | None = None
    place: Tensor | None = None
    held: int = 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Of the points of these numbers, (len(rows), d)."""
        if self.known is None or self.place is None:
            return self.space(all_of(self.points.chosen(rows)))
        return self.known[self.place[rows]]


def real_features(
    data: Any,
    points: SampleSet,
    space: Space,
    d: int,
    *,
    split: str,
    per_class: int | None,
    section: dict,
    room: float,
    cache: bool,
    ranks: Ranks,
) -> RealFeatures:
    """Those of a split of a data set, (n, d), embedded by all ranks together if by a network.

    section  of the config, by which they are kept and found again, as `evaluate` keeps them
    room     bytes that they may take in memory, where they cannot be kept on disk
    """
    if space.free:
        return RealFeatures(points, space)
    about = {"section": section, "content": content_of(section)[1]}
    real = Real(data, **about, per_class={split: per_class}, groups=[ALL])
    how = {"ranks": ranks, "device": space.device}
    known, mapped = real.features(split, space, d, room=room, cache=cache, **how)
    place = torch.arange(len(points))
    if data.rows is not None:
        place = data.rows(split, per_class)[1].argsort().argsort()
    held = 0 if mapped or known is None else known.nbytes
    return RealFeatures(points, space, known, place, held)


def shards(
    features: RealFeatures, rows: int, progress: Callable = lambda features: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and classes of the real points, so many at a time."""
    for some in torch.arange(len(features)).split(rows):
        part = features[some]
        yield part, features.points.c[some]
        progress(part)


def own_reach(features: RealFeatures, rows: int, share: float) -> Tensor:
    """By class, the distance below which this share of real points lies to another one, (K,).

    Of 1,000 of them, evenly spaced.
    """
    c = features.points.c
    limits = torch.zeros(int(c.max()) + 1, dtype=torch.float64)
    chosen = [(c == label).nonzero()[:, 0] for label in range(len(limits))]
    chosen = torch.cat([own[:: max(1, len(own) // 1000)] for own in chosen])
    distance, _ = nearest_in_shards(features[chosen], shards(features, rows), k=2, c=c[chosen])
    for label in range(len(limits)):
        own = distance[c[chosen] == label, 1]  # the first is the point itself
        limits[label] = own.sqrt().quantile(share) if len(own) else 0.0
    return limits
