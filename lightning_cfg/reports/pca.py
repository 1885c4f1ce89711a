"""Images in the plane of the two directions in which real ones differ most: PCA of pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import Drawn
from lightning_cfg.reports.points import Held, points, whole
from lightning_cfg.reports.rows import REAL, Cell
from lightning_cfg.runs.pngs import drawable, signed
from lightning_cfg.runs.tensors import load_tensors

MOST = 2000  # images of a set, evenly among all: the same seeds before and after
LARGEST = 64 * 64 * 3  # numbers of an image: a decomposition of larger ones takes too long
SAYS = (
    "{}: images in the plane of the first two principal components of {:,} held-out real ones in "
    "pixels, which have {:.1%} and {:.1%} of their variance; at most {:,} images a panel. The "
    "number is the variance within classes in this plane, in per cent of the real ones'; what "
    "lies beyond the frame is not drawn."
)


@dataclass(frozen=True)
class Axes:
    """The first principal components of points.

    mean       (d,) float64
    axes       (d, k) float64, orthonormal, the one of the largest variance first; of the two signs
               that whose largest number is above 0
    explained  (k,), shares of all variance
    """

    mean: Tensor
    axes: Tensor
    explained: Tensor

    @classmethod
    def of(cls, y: Tensor, k: int = 2) -> "Axes":
        """Of points y (n, *shape): the right singular vectors of y - mean, s_i² / sum_j s_j²."""
        flat = y.flatten(1).double()
        mean = flat.mean(0)
        _, s, v = torch.linalg.svd(flat - mean, full_matrices=False)
        largest = v.gather(1, v.abs().argmax(1, keepdim=True))
        return cls(mean, (v * largest.sign())[:k].T, s[:k] ** 2 / (s**2).sum())

    def place(self, x: Tensor) -> Tensor:
        """Points (n, *shape) in this plane, (n, k) float64."""
        return (x.flatten(1).double() - self.mean) @ self.axes


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """A figure per method, where samples are images of up to LARGEST numbers with real ones."""
    data = case.data_set
    if not (drawable(tuple(data.shape)) and data.has_points and prod(data.shape) <= LARGEST):
        return
    y, c = real(data)
    if len(y) < 3:
        return
    axes = Axes.of(y)
    seen, called = axes.place(y), names.of_methods(config)
    frame = whole(seen)

    def read(file: Path) -> Held:
        held = load_tensors(file, "x", "c")
        rows = evenly(len(held["x"]))
        return axes.place(held["x"][rows]), held["c"][rows]

    def says(cell: Cell) -> str:
        own = (seen, c) if cell == REAL else read(case.sets[cell])
        return f"{within(*own) / within(seen, c):.0%}"

    first, second = axes.explained.tolist()
    for method in dict.fromkeys(cell.method for cell in case.sets):
        own = case.sets.where(method=method)
        figure = points(
            (seen, c), own, frame, first="real", says=says, read=read, classes=data.class_names
        )
        figure.axes[0].set(xlabel=f"PC 1 ({first:.1%})", ylabel=f"PC 2 ({second:.1%})")
        caption = SAYS.format(called[method], len(y), first, second, MOST)
        yield Drawn(f"pca_{method}", caption, figure, appendix=True)


def within(x: Tensor, c: Tensor) -> float:
    """Mean squared distance of points x (n, k) to the mean of their class c (n,)."""
    squares = [(own - own.mean(0)).square().sum() for own in (x[c == k] for k in c.unique())]
    return (torch.stack(squares).sum() / len(x)).item()


def real(data_set: Any) -> Held:
    """Held-out real images, at most MOST, evenly among all."""
    if data_set.rows is not None:  # images that are read from files: only those that are asked for
        y, rows, c = data_set.rows("held_out")
        some = evenly(len(rows))
        return signed(y[rows[some]]), c[some]
    y, c = data_set.real("held_out")
    some = evenly(len(y))
    return y[some], c[some]


def evenly(n: int) -> Tensor:
    """At most MOST of n rows, as far apart as they can be."""
    return torch.arange(0, n, max(1, -(-n // MOST)))
