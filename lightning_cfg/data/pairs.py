"""Pairs of generated samples and their nearest real neighbours, as `pair` wrote them."""

from functools import cached_property

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.refinement.condition import ByDistance, ByScale, Condition
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.inputs import PairFile
from lightning_cfg.runs.manifests import read_manifest
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
        told = {} if isinstance(file, ToCome) else read_manifest(file.absolute().parents[1])
        self.method = told.get("method")  # of guidance, whose samples its sources are
        self.class_names = told.get("class_names")
        direction = told.get("direction", DIRECTION)
        if direction != DIRECTION:
            raise UserError(f"{path}: its pairs lead from {direction}, not from {DIRECTION}")

    @cached_property
    def _file(self) -> dict[str, Tensor]:
        names = "x", "c", "neighbours", "targets", "num_classes"
        others = "weights", "bin", "scales", "edges", "targets_c", "between"
        held = load_tensors(self.path, *names, optional=others)
        fault = _fault(held)
        if fault:
            raise UserError(f"{self.path} holds no pairs: {fault}")
        return held

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._file["x"].shape[1:])

    @property
    def num_classes(self) -> int:
        """Those of the samples, times the values of a condition."""
        return self._of_classes * (self.condition.values if self.condition else 1)

    @property
    def _of_classes(self) -> int:
        """K, of the samples."""
        return int(self._file["num_classes"])

    @cached_property
    def condition(self) -> Condition | None:
        """What the flow is told beside the class; None: nothing."""
        file, classes = self._file, self._of_classes
        if "scales" in file:
            return ByScale(classes, file["scales"].tolist(), self.method)
        if "edges" not in file:
            return None
        of = file["targets_c"]
        return ByDistance(classes, file["edges"], file["targets"][: len(of)], of)

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """x0 (b, *shape), y (b, *shape) one of its neighbours, c (b,).

        Where pairs are told scales between, also toward (b,) and share (b,); see `ByScale.beside`.
        """
        file = self._file
        i, k = draws.permuted(len(file["x"])), file["neighbours"].shape[1]
        if "weights" in file:
            below = file["weights"][i].double().cumsum(1)
            u = draws.uniform()[:, None] * below[:, -1:]
            j = torch.searchsorted(below, u, right=True)[:, 0].clamp(max=k - 1)
        else:
            j = draws.integers(k)
        batch = {"x0": file["x"][i], "y": file["targets"][file["neighbours"][i, j]]}
        told = self._beside(i, draws.uniform()) if self._between else {}
        return {**batch, "c": self._classes(i), **told}

    @property
    def _between(self) -> bool:
        """Whether training is told scales between those of the sources."""
        return "between" in self._file and isinstance(self.condition, ByScale)

    def _classes(self, i: Tensor | slice) -> Tensor:
        """Of sources by number, the classes c + K bin."""
        c = self._file["c"][i]
        return c if self.condition is None else c + self._of_classes * self._file["bin"][i]

    def _beside(self, i: Tensor, u: Tensor) -> dict[str, Tensor]:
        """Toward which classes (b,) and what share (b,) of the way, by u (b,) uniform."""
        assert isinstance(self.condition, ByScale)
        beside, share = self.condition.beside(self._file["bin"][i], u)
        return {"toward": self._file["c"][i] + self._of_classes * beside, "share": share}

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """The real points that are somebody's target, whatever `split` says."""
        targets = self._file["targets"]
        return targets, torch.full((len(targets),), -1)


def _fault(held: dict[str, Tensor]) -> str:
    """What of a file of pairs is not as `Pairs` says; "" where all is."""
    x, c, rows, targets = (held[name] for name in ("x", "c", "neighbours", "targets"))
    n, whole = len(x) if x.ndim else 0, ("c", "neighbours", "num_classes", "bin", "targets_c")
    if x.ndim < 2 or n == 0 or targets.shape[1:] != x.shape[1:]:
        return f"x {tuple(x.shape)} and targets {tuple(targets.shape)} are no samples of one shape"
    if not (x.is_floating_point() and targets.is_floating_point()):
        return f"x and targets are {x.dtype} and {targets.dtype}, not real numbers"
    if odd := [name for name in whole if name in held and held[name].dtype != torch.long]:
        return f"{odd[0]} is {held[odd[0]].dtype}, not int64"
    if c.shape != (n,) or rows.ndim != 2 or len(rows) != n or rows.shape[1] == 0:
        return f"c {tuple(c.shape)} and neighbours {tuple(rows.shape)} are not (N,) and (N, k)"
    if held["num_classes"].numel() != 1:
        return "num_classes is no number"
    for name, values, last in (
        ("neighbours", rows, len(targets) - 1),
        ("c", c, max(1, int(held["num_classes"])) - 1),
    ):
        if int(values.min()) < 0 or int(values.max()) > last:
            return f"{name} {int(values.min())} ... {int(values.max())} are not in 0 ... {last}"
    return _fault_of_options(held)


def _fault_of_options(held: dict[str, Tensor]) -> str:
    """The same of what only some of the files hold."""
    weights, bins = held.get("weights"), held.get("bin")
    if weights is not None and (
        weights.shape != held["neighbours"].shape
        or not ((weights >= 0).all() and (weights.sum(1) > 0).all())
    ):
        return "weights are not (N, k), none below 0 and some above it in each row"
    if "between" in held and "scales" not in held:
        return "between is of a condition on the scale, and there is none"
    if not held.keys() & {"scales", "edges"}:
        return ""
    last = len(held["scales"]) - 1 if "scales" in held else len(held["edges"])
    if bins is None or bins.shape != held["c"].shape or not 0 <= int(bins.min()):
        return "bin is not (N,), the value of the condition on each sample"
    if int(bins.max()) > last:
        return f"bin reaches {int(bins.max())}, and the condition has the values 0 ... {last}"
    if "edges" in held and (
        "targets_c" not in held or len(held["targets_c"]) > len(held["targets"])
    ):
        return "targets_c are not the classes of targets"
    return ""
