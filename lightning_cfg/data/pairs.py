"""Pairs of generated samples and their nearest real neighbours, as `pair` wrote them."""

import json
from functools import cached_property

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.refinement.condition import ByDistance, ByScale, Condition
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.inputs import PairFile
from lightning_cfg.runs.names import PAIRS
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.runs.to_come import ToCome

DIRECTION = "generated to real"  # in which a refinement goes (Zhao & Schwing 2025, eq. 12)


class Pairs(DataSet):
    """Sources x0 and, drawn afresh each time, one of the k real neighbours of each.

    path  a run directory of `pair`, or its pairs.safetensors: x (N, *shape), c (N,), neighbours
          (N, k) long into targets (M, *shape), weights (N, k) by which they are drawn, left out:
          equally often
    Of pairs with a condition (see `pair`) the classes are c + K bin: each of the K classes once for
    every value of the condition.
    UserError where the run's manifest says that these pairs lead the other way.
    """

    has_sources = True  # its batches have x0

    def __init__(self, *, path: PairFile):
        self.path = file = output_of(path, PAIRS)
        manifest = None if isinstance(file, ToCome) else file.parent.parent / "manifest.json"
        told = json.loads(manifest.read_text()) if manifest and manifest.is_file() else {}
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
        return int(self._file["num_classes"]) * (self.condition.values if self.condition else 1)

    @cached_property
    def condition(self) -> Condition | None:
        """What the flow is told beside the class; None: nothing."""
        file, classes = self._file, int(self._file["num_classes"])
        if "scales" in file:
            return ByScale(classes, file["scales"].tolist())
        if "edges" not in file:
            return None
        of = file["targets_c"]
        return ByDistance(classes, file["edges"], file["targets"][: len(of)], of)

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
