"""Pairs whose ends are where a trained flow takes their sources, for a flow that is straight."""

import hashlib
import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import Between, Free
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.ode import integrate_in_steps
from lightning_cfg.diffusion.rectified_flow import Flow
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.inputs import Checkpoint, PairFile, checkpoint_of
from lightning_cfg.runs.kept import cache_folder, read_rows, write_rows
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import launched
from lightning_cfg.runs.to_come import ToCome

ROWS = 512  # taken along the flow at once


class Reflow(Pairs):
    """Sources x0 of pairs, each with the end of a flow that was trained on them.

        y = x0 + int_0^1 v(x_t, t, c) dt        (Liu et al. 2023, sec. 2.2)

    A flow on matched points crosses itself, so that one Euler step ends in the mean of what it may
    become; these ends are a function of their sources. A model `Flow` learns from them to be
    straight (reflow), a model `OneStep` or `FewSteps` to be one step or a few (distillation).

    path   a run directory of `pair`, as of `Pairs`; only its sources are read
    flow   a run of `fit` with learner Refinement, told the same of them
    steps  of Heun's method on it, two evaluations each, in float32
    told   where the pairs are told scales between: ends of each source, each told another
    cache  keep all ends in the user's cache, for the run that goes on and for others of this flow
    Ends are found once, as they are first asked for, so most of them at the first step, and stay:
    k of them take k N numbers a dimension, in every process and in the cache.
    UserError where the flow is of other samples: another shape, other classes or scales.
    """

    def __init__(
        self,
        *,
        path: PairFile,
        flow: Checkpoint,
        steps: Annotated[int, Between(1, 1000)] = 8,
        told: Annotated[int, Between(1, 1000)] = 4,
        cache: Annotated[bool, Free] = True,
    ):
        super().__init__(path=path)
        self.flow, self.steps, self.told, self._cache = flow, steps, told, cache
        self._device, self._known = torch.device("cpu"), set[int]()

    def to(self, device: Any) -> None:
        """The flow works where the training does."""
        super().to(device)
        self._device = torch.device(device)

    @cached_property
    def _asked(self) -> dict[str, Tensor]:
        """Of every end, (N k,): which source it is of, its class, and what the flow is told."""
        n, k = len(self._file["x"]), self._ends_each
        of = torch.arange(n).repeat_interleave(k)
        told = {}
        if self._between:
            told = self._beside(of, torch.rand(n * k, generator=keyed("reflow", k)))
        return {"of": of, "c": self._classes(of), **told}

    @property
    def _ends_each(self) -> int:
        return self.told if self._between else 1

    @cached_property
    def _ends(self) -> Tensor:
        """Every end, (N k, *shape), of those blocks of ROWS that are in `_known`: all, where they
        are in the cache."""
        if self._kept is not None and self._kept.is_file():
            try:
                ends = read_rows(self._kept).reshape(-1, *self.shape)
                self._known.update(range(self._blocks))
                return ends
            except (UserError, OSError, ValueError) as error:
                print(f"lightning_cfg: found again: {one_line(error)}", file=sys.stderr)
        return torch.empty(len(self._asked["of"]), *self.shape)

    @property
    def _blocks(self) -> int:
        return -(-len(self._asked["of"]) // ROWS)

    @cached_property
    def _kept(self) -> Path | None:
        """The file of all ends in the cache: of this flow, these sources, and this kind of device,
        as another rounds otherwise; None where it is not asked for, or an input is yet to come."""
        files = [file for file in (self.path, checkpoint_of(self.flow)) if file is not None]
        if not self._cache or any(isinstance(file, ToCome) for file in files):
            return None
        inputs = [sha256(file) for file in files]
        about = (*inputs, self.steps, self._ends_each, ROWS, self._device.type)
        name = hashlib.sha256(repr(about).encode()).hexdigest()[:24]
        return cache_folder() / f"ends-{name}.npy"

    def _keep(self, path: Path) -> None:
        """All ends into the cache; where that cannot be, it is told and costs nothing else."""
        ends = self._ends.flatten(1)
        try:
            write_rows(path, (len(ends), ends.shape[1]), [ends])
        except UserError as error:
            print(f"lightning_cfg: ends of the flow are not kept: {error}", file=sys.stderr)

    @cached_property
    def _flow(self) -> Flow:
        return _teacher(self)

    def _found(self, ends: Tensor) -> Tensor:
        """These ends (b,), (b, *shape): their blocks are taken along the flow where they are new.

        Always in the same blocks, as a row's last bits depend on the others beside it: so a run
        that goes on trains on the very ends of one that was not cut off.
        """
        held, blocks = self._ends, set((ends // ROWS).unique().tolist())
        new = sorted(blocks - self._known)
        shown = len(new) > 1 and launched().rank == 0
        with progress(ROWS * len(new), " ends of the flow", shown=shown, leave=False) as bar:
            for block in new:
                rows = slice(block * ROWS, (block + 1) * ROWS)
                of, c, *between = (part[rows] for part in self._asked.values())
                some = (part.to(self._device) for part in (self._file["x"][of], c, *between))
                held[rows] = _moved(self._flow.to(self._device), self.steps, *some).cpu()
                self._known.add(block)
                bar.update(ROWS)
        known = new and len(self._known) == self._blocks
        if known and self._kept is not None and launched().rank == 0:
            self._keep(self._kept)
        return held[ends]

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """As of `Pairs`, y (b, *shape) the flow's end."""
        i, k = draws.permuted(len(self._file["x"])), self._ends_each
        chosen = i * k + draws.integers(k)
        asked = {name: part[chosen] for name, part in self._asked.items() if name != "of"}
        return {"x0": self._file["x"][i], "y": self._found(chosen), **asked}


@torch.no_grad()
def _moved(flow: Flow, steps: int, x: Tensor, c: Tensor, *between: Tensor) -> Tensor:
    told = flow.told(c, *between)
    return integrate_in_steps(flow.velocity, x, told, 0.0, 1.0, steps=steps, order=2)


def _teacher(data: Reflow) -> Flow:
    """The flow; UserError if it is not one of these pairs' sources."""
    teacher = restore(data.flow)
    if not teacher.refines or not isinstance(teacher, Flow):
        raise UserError(f"data.flow: {data.flow} is no refinement flow")
    if (known := teacher.known_steps) is not None:
        raise UserError(
            f"data.flow: {data.flow} is of {'one step' if known == 1 else f'{known} steps'} (model "
            f"{type(teacher).__name__}), with no way to go"
        )
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
