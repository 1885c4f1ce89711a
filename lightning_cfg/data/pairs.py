"""Pairs of generated samples and their nearest real neighbours, as `pair` wrote them."""

import json
from functools import cached_property

import torch
from torch import Tensor

from lightning_cfg.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.files import load_tensors, output_of

DIRECTION = "generated to real"  # in which a refinement goes (Zhao & Schwing 2025, eq. 12)


class Pairs:
    """Sources x0 and, drawn afresh each time, one of the k real neighbours of each.

    path  a run directory of `pair`, or its pairs.safetensors: x (N, *shape), c (N,), neighbours
          (N, k) long into targets (M, *shape)
    UserError where the run's manifest says that these pairs lead the other way.
    """

    truth = None
    has_sources = True  # its batches have x0

    def __init__(self, *, path: str):
        self.path = output_of(path, "pairs/pairs.safetensors")
        manifest = self.path.parent.parent / "manifest.json"
        told = json.loads(manifest.read_text()) if manifest.is_file() else {}
        direction = told.get("direction", DIRECTION)
        if direction != DIRECTION:
            raise UserError(f"{path}: its pairs lead from {direction}, not from {DIRECTION}")

    @cached_property
    def _file(self) -> dict[str, Tensor]:
        return load_tensors(self.path, "x", "c", "neighbours", "targets", "num_classes")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._file["x"].shape[1:])

    @property
    def num_classes(self) -> int:
        return int(self._file["num_classes"])

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """x0 (b, *shape), y (b, *shape) one of its neighbours, c (b,)."""
        file = self._file
        i = draws.permuted(len(file["x"]))
        j = draws.integers(file["neighbours"].shape[1])
        y = file["targets"][file["neighbours"][i, j]]
        return {"x0": file["x"][i], "y": y, "c": file["c"][i]}

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """The real points that are somebody's target, whatever `split` says."""
        targets = self._file["targets"]
        return targets, torch.full((len(targets),), -1)
