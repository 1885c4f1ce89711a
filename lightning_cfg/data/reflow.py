"""Pairs whose ends are where a trained flow takes their sources, for a flow that is straight."""

from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import Between
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.diffusion.ode import integrate_in_steps
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.inputs import Checkpoint, PairFile
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import launched

ROWS = 4096  # taken along the flow at once


class Reflow(Pairs):
    """Sources x0 of pairs, each with the end of a flow that was trained on them.

        y = x0 + int_0^1 v(x_t, t, c) dt        (Liu et al. 2023, sec. 2.2)

    A flow on matched points crosses itself, so that one Euler step ends in the mean of what it may
    become; these ends are a function of their sources. A model `Flow` learns from them to be
    straight (reflow), a model `OneStep` to be one step (distillation).

    path   a run directory of `pair`, as of `Pairs`; only its sources are read
    flow   a run of `fit` with learner Refinement, told the same of them
    steps  of Heun's method on it, two evaluations each, in float32
    told   where the pairs are told scales between: ends of each source, each told another
    Ends are found once, before the first step, and kept: k of them take k N numbers a dimension.
    UserError where the flow is of other samples: another shape, other classes or scales.
    """

    def __init__(
        self,
        *,
        path: PairFile,
        flow: Checkpoint,
        steps: Annotated[int, Between(1, 1000)] = 8,
        told: Annotated[int, Between(1, 1000)] = 4,
    ):
        super().__init__(path=path)
        self.flow, self.steps, self.told = flow, steps, told
        self._device = torch.device("cpu")

    def to(self, device: Any) -> None:
        """The flow works where the training does."""
        super().to(device)
        self._device = torch.device(device)

    @cached_property
    def _ends(self) -> dict[str, Tensor]:
        """Of every source k ends (N, k, *shape), and what the flow was told for each (N, k)."""
        told, n, k = {}, len(self._file["x"]), self.told if self._between else 1
        of = torch.arange(n).repeat_interleave(k)
        if self._between:
            told = self._beside(of, torch.rand(n * k, generator=keyed("reflow", k)))
        asked = [self._classes(of), *told.values()]
        ends, teacher = [], _teacher(self).to(self._device)
        with torch.no_grad(), progress(n * k, " ends", shown=launched().rank == 0) as bar:
            for rows in torch.arange(n * k).split(ROWS):
                some = [self._file["x"][of[rows]], *(part[rows] for part in asked)]
                some = [part.to(self._device) for part in some]
                ends.append(self._moved(teacher, *some).cpu())
                bar.update(len(rows))
        found = {"y": torch.cat(ends), **told}
        return {name: value.unflatten(0, (n, k)) for name, value in found.items()}

    def _moved(self, teacher: Flow, x: Tensor, c: Tensor, *between: Tensor) -> Tensor:
        told, steps = teacher.told(c, *between), {"steps": self.steps, "order": 2}
        return integrate_in_steps(teacher.velocity, x, told, 0.0, 1.0, **steps)

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """As of `Pairs`, y (b, *shape) the flow's end."""
        i, ends = draws.permuted(len(self._file["x"])), self._ends
        j = draws.integers(ends["y"].shape[1])
        batch = {"x0": self._file["x"][i], "c": self._classes(i)}
        return batch | {name: value[i, j] for name, value in ends.items()}


def _teacher(data: Reflow) -> Flow:
    """The flow; UserError if it is not one of these pairs' sources."""
    teacher = restore(data.flow)
    if not teacher.refines or not isinstance(teacher, Flow):
        raise UserError(f"data.flow: {data.flow} is no refinement flow")
    condition = None if data.condition is None else data.condition.state()
    classes = data.num_classes // (1 if data.condition is None else data.condition.values)
    asked = (data.shape, classes, _scales(condition))
    known = (tuple(teacher.shape), teacher.num_classes, _scales(teacher.conditioned))
    if asked != known:
        raise UserError(
            f"data.flow: {data.flow} is a flow of samples of {_words(*known)}, and these pairs are "
            f"of {_words(*asked)}"
        )
    return teacher


def _scales(told: dict | None) -> list[float] | None:
    """The guidance scales of a condition."""
    return None if told is None else list(told.get("scales", []))


def _words(shape: tuple[int, ...], classes: int, scales: list[float] | None) -> str:
    told = "" if scales is None else f", told the scales {scales}"
    return f"shape {shape} and {classes} classes{told}"
