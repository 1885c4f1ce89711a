"""Pairs of generated samples and their nearest real neighbours, as `pair` wrote them."""

import json
from functools import cached_property

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.refinement.neighbours import nearest_in_class
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import PAIRS
from lightning_cfg.runs.tensors import load_tensors

DIRECTION = "generated to real"  # in which a refinement goes (Zhao & Schwing 2025, eq. 12)
QUARTERS = (0.25, 0.5, 0.75)  # of the sources, by their distance to the data


class Pairs:
    """Sources x0 and, drawn afresh each time, one of the k real neighbours of each.

    path  a run directory of `pair`, or its pairs.safetensors: x (N, *shape), c (N,), neighbours
          (N, k) long into targets (M, *shape), weights (N, k) by which they are drawn, left out:
          equally often
    Of pairs with a condition (see `pair`) the classes are c + K bin: each of the K classes once for
    every value of the condition.
    UserError where the run's manifest says that these pairs lead the other way.
    """

    truth = None
    has_sources = True  # its batches have x0

    def __init__(self, *, path: str):
        self.path = output_of(path, PAIRS)
        manifest = self.path.parent.parent / "manifest.json"
        told = json.loads(manifest.read_text()) if manifest.is_file() else {}
        direction = told.get("direction", DIRECTION)
        if direction != DIRECTION:
            raise UserError(f"{path}: its pairs lead from {direction}, not from {DIRECTION}")

    @cached_property
    def _file(self) -> dict[str, Tensor]:
        names = "x", "c", "neighbours", "targets", "num_classes"
        others = "weights", "bin", "scales", "edges", "targets_c"
        return load_tensors(self.path, *names, optional=others)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._file["x"].shape[1:])

    @property
    def num_classes(self) -> int:
        """Those of the samples, times the values of a condition."""
        return int(self._file["num_classes"]) * bins(self.condition)

    @cached_property
    def condition(self) -> dict[str, list[float]] | None:
        """What the flow is told beside the class: {scales: those of the sources}, or {edges: the
        distances between the quarters}; None: nothing."""
        known = {key: self._file[key].tolist() for key in ("scales", "edges") if key in self._file}
        return known or None

    def conditioned(self, x: Tensor, c: Tensor, scale: float | None) -> Tensor:
        """The classes (b,) by which the flow moves samples x (b, *shape) of classes c.

        scale  at which they were generated: the nearest of the sources' scales counts
        """
        if self.condition is None:
            return c
        if "scales" in self.condition:
            gaps = [abs(known - scale) for known in self.condition["scales"]]
            return c + int(self._file["num_classes"]) * gaps.index(min(gaps))
        targets, of = self._file["targets"], self._file["targets_c"]
        distance = _to_the_data(x.to(targets), c, targets[: len(of)], of)
        edges = self._file["edges"].to(distance)
        return c + int(self._file["num_classes"]) * torch.bucketize(distance, edges)

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """x0 (b, *shape), y (b, *shape) one of its neighbours, c (b,)."""
        file = self._file
        i, k = draws.permuted(len(file["x"])), file["neighbours"].shape[1]
        if "weights" in file:
            below = file["weights"][i].double().cumsum(1)
            u = draws.uniform()[:, None] * below[:, -1:]
            j = torch.searchsorted(below, u, right=True)[:, 0].clamp(max=k - 1)
        else:
            j = draws.integers(k)
        c = file["c"][i]
        if self.condition is not None:
            c = c + int(file["num_classes"]) * file["bin"][i]
        return {"x0": file["x"][i], "y": file["targets"][file["neighbours"][i, j]], "c": c}

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """The real points that are somebody's target, whatever `split` says."""
        targets = self._file["targets"]
        return targets, torch.full((len(targets),), -1)


def bins(condition: dict[str, list[float]] | None) -> int:
    """The number of values of a condition; 1 for none."""
    if condition is None:
        return 1
    return len(condition["scales"]) if "scales" in condition else len(condition["edges"]) + 1


def scale_condition(scales: list[float], source: Tensor) -> dict[str, Tensor]:
    """What a pairs file holds of the condition on the scale: its values, and each sample's bin.

    scales  of the sources; source (N,) the number of each sample's
    """
    values, number = torch.tensor(scales, dtype=torch.float64).unique(return_inverse=True)
    return {"scales": values, "bin": number[source]}


def distance_condition(x: Tensor, c: Tensor, targets: Tensor, of: Tensor) -> dict[str, Tensor]:
    """What a pairs file holds of the condition on the distance: edges, and each sample's bin.

    x (N, *shape) of classes c, targets (M, *shape) of classes `of`. Distances are in plain
    coordinates, to the nearest target of the sample's class.
    """
    distance = _to_the_data(x, c, targets, of)
    edges = distance.quantile(torch.tensor(QUARTERS, dtype=distance.dtype))
    return {"edges": edges, "bin": torch.bucketize(distance, edges), "targets_c": of}


def _to_the_data(x: Tensor, c: Tensor, targets: Tensor, of: Tensor) -> Tensor:
    squared, _ = nearest_in_class(x, c, targets, of, k=1)
    return squared[:, 0].sqrt()
