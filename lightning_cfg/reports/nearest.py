"""The images that a study shows, the first of each class, each with the nearest real one."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.latents.pictures import pictures_of
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import Cell
from lightning_cfg.runs.pngs import drawable, signed
from lightning_cfg.runs.tensors import load_tensors

PER_CLASS = 6
CLASSES = 10
MOST = 50_000  # real points among which the nearest is looked for, evenly of more
CHUNK = 4096  # of them in memory at once


class Shown(NamedTuple):
    """Some samples of a set as images in [-1, 1], (n, C, H, W)."""

    x: Tensor
    c: Tensor  # (n,)
    nearest: Tensor | None  # the nearest real image of each; None where there are no real ones


def shown(case: Case, config: dict) -> dict[Cell, Shown]:
    """The images of every set of a study; nothing where samples are none. Made once for a case.

    Of the same seeds before and after refinement. Latents become images as `generation.decode` has
    them, and are compared as latents.
    """
    if case.images is None:
        case.images = _shown(case, config)
    return case.images


def _shown(case: Case, config: dict) -> dict[Cell, Shown]:
    data = case.data_set
    pictures = pictures_of(config.get("generation", {}).get("decode"), tuple(data.shape))
    if not drawable(pictures.shape):
        return {}
    own = classes_shown(data)
    chosen: dict[Cell, tuple[Tensor, Tensor]] = {}
    for cell, file in case.sets.items():
        held = load_tensors(file, "x", "c")
        rows = first_of_each(held["c"], own)
        chosen[cell] = held["x"][rows], held["c"][rows]
    real: list[Tensor | None] = [None] * len(chosen)
    if data.has_points and chosen:
        found = nearest(torch.cat([x for x, _ in chosen.values()]), data)
        real = list(found.split([len(x) for x, _ in chosen.values()]))

    def images(x: Tensor) -> Tensor:
        return x if pictures.decoder is None else signed(pictures.bytes(x))

    return {
        cell: Shown(images(x), c, None if y is None else images(y))
        for (cell, (x, c)), y in zip(chosen.items(), real, strict=True)
    }


def classes_shown(data_set: Any) -> list[int]:
    """The first 10 classes, or of those that samples are drawn of 10 by chance.

    As prompts that are neighbours in number are alike.
    """
    if data_set.drawn is None:
        return list(range(max(1, data_set.num_classes)))[:CLASSES]
    some = torch.randperm(len(data_set.drawn), generator=keyed("sheet"))[:CLASSES]
    return data_set.drawn[some.sort().values].tolist()


def first_of_each(c: Tensor, classes: Sequence[int], most: int = PER_CLASS) -> Tensor:
    """Rows of the first `most` of each of these classes; 10 times as many of one class."""
    if len(classes) < 2:
        return torch.arange(min(len(c), CLASSES * most))
    return torch.cat([(c == k).nonzero()[:most, 0] for k in classes])


def nearest(x: Tensor, data_set: Any, most: int = MOST) -> Tensor:
    """The real points of the bank, of `most` evenly, with the smallest |x - y|: (n, *shape)."""
    flat = x.flatten(1).double()
    least, found = torch.full((len(x),), torch.inf, dtype=torch.float64), torch.empty_like(x)
    for y in _real(data_set, most):
        points = y.flatten(1).double()
        # |x - y|² without |x|², which is the same for all y
        squares = (points**2).sum(1) - 2 * flat @ points.T
        best, where = squares.min(1)
        closer = best < least
        least[closer], found[closer] = best[closer], y[where[closer]].to(found.dtype)
    return found


def _real(data_set: Any, most: int) -> Iterator[Tensor]:
    """The bank in pieces: of images that are read from files only those that are asked for."""
    if data_set.rows is not None:
        y, rows, _ = data_set.rows("bank")
        for part in rows[:: -(-len(rows) // most)].split(CHUNK):
            yield signed(y[part])
    else:
        y = data_set.real("bank")[0]
        yield from y[:: -(-len(y) // most)].split(CHUNK)
