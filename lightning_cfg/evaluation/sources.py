"""What `pair` reads: sources with their classes, and real points a part at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import SampleSet, all_of, read_set


@dataclass(frozen=True)
class Sources:
    """Samples of several sources, one after another.

    x (N, *shape), c (N,), number (N,) of its source; names and sets by source
    """

    x: Tensor
    c: Tensor
    number: Tensor
    names: list[str]
    sets: list[SampleSet]

    @classmethod
    def read(cls, paths: list[str], real: object, n: int | None) -> "Sources":
        """Their samples; UserError as `choose_sources` raises it."""
        sets = choose_sources(paths, real, n)
        names = [
            some.about.get("guidance", str(path)) for some, path in zip(sets, paths, strict=True)
        ]
        x, c = (torch.cat(parts) for parts in zip(*((all_of(s), s.c) for s in sets), strict=True))
        return cls(x, c, numbers_of(sets), names, sets)


def numbers_of(sets: list[SampleSet]) -> Tensor:
    """Of each sample the number of its source, (N,)."""
    return torch.cat([torch.full((len(some),), i) for i, some in enumerate(sets)])


def known_scales(paths: list[str], sets: list[SampleSet], key: str) -> list[float]:
    """The sources' guidance scales, which the key asks for.

    UserError where one is not known, or where they are not all one method's: the same number means
    another thing to another method.
    """
    for path, some in zip(paths, sets, strict=True):
        if some.scale is None:
            raise UserError(
                f"{key}: {path} does not say its guidance scale, as runs of `generate` do"
            )
        if some.method != sets[0].method:
            raise UserError(
                f"{key}: {path} was guided by {some.method}, and {paths[0]} by {sets[0].method}: "
                "their scales are not the same thing, so each method needs pairs of its own"
            )
    return [some.scale for some in sets if some.scale is not None]


def choose_sources(paths: list[str], real: object, n: int | None) -> list[SampleSet]:
    """Of every source its share of n; UserError where it has not so many, or no classes."""
    chosen = []
    for i, path in enumerate(paths):
        held = read_set(path, real, as_bytes=False)
        if not held.labelled:
            raise UserError(f"{path} says no classes, and a flow is trained by class")
        share = None if n is None else n * (i + 1) // len(paths) - n * i // len(paths)
        if share is not None and share > len(held):
            raise UserError(f"{path} holds {len(held)} samples, not the {share} wanted")
        chosen.append(held.chosen(torch.arange(len(held) if share is None else share)))
    return chosen
