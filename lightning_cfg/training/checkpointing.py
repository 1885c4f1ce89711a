"""What a training keeps of itself: its last checkpoint, and the best ones."""

import os
import shutil
from math import isfinite
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_cfg.errors import UserError
from lightning_cfg.metrics.meaning import meaning
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.files import write
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, by a temporary name beside the final one and a rename.

    Lightning's own goes through the system's temporary folder, from where a rename is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        write(Path(path), lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict, path: Path) -> None:
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error


class SaveLast(EachStep):
    """Writes checkpoints/last.ckpt every `every` optimiser steps and after the last one.

    keep  so many of these are kept besides as checkpoints/best_<step>.ckpt: the best ones
    by    what that is decided by: the loss, as it was logged last, or a score that EvaluateSamples
          has found at the very step
    Raises UserError for a score of which no end is the best, as of a density, or is not declared.
    """

    def __init__(self, directory: Path, *, every: int, keep: int = 0, by: str = "loss"):
        better = "lower" if by == "loss" else meaning(by.partition("/")[0]).better
        if better == "real":
            raise UserError(f"keep_by={by}: the best is what real data have, not less or more")
        if better is None:
            raise UserError(
                f'keep_by={by}: nothing says which way is better: put @better("lower", ...) or '
                '"higher" of lightning_cfg.metrics.meaning above the metric'
            )
        self._sign = -1 if better == "higher" else 1
        self.path, self.every, self.keep, self.by = directory / LAST, every, keep, by
        self.best: dict[int, float] = {}  # by step; of what is better higher, the negative
        self._saved = -1

    def state_dict(self) -> dict:
        return {"best": self.best, "by": self.by}

    def load_state_dict(self, state_dict: dict) -> None:
        # values of something else, if `by` has changed, say nothing
        self.best = state_dict["best"] if state_dict.get("by", "loss") == self.by else {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._resumed(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._saved < 0:  # it was killed after its last step, and Lightning has not started
            self._resumed(trainer)

    def _resumed(self, trainer: L.Trainer) -> None:
        """The files become what the checkpoint that was gone on from says of them."""
        self._saved = trainer.global_step
        if self.keep and trainer.is_global_zero:
            # a run that was killed may have saved this step and not yet copied it; one that goes
            # on from elsewhere has none of the files
            self.best = {
                step: loss
                for step, loss in self.best.items()
                if self.place(step).is_file() or (step == self._saved and self.path.is_file())
            }
            self._copy()

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if step % self.every and step != trainer.max_steps:
            return
        value = self._value(learner, step)
        if self.keep and isfinite(value):
            # before saving, so that the checkpoint knows of itself
            among = sorted({**self.best, step: value}.items(), key=lambda item: item[1])
            self.best = dict(among[: self.keep])
        self.save(trainer)
        if self.keep and trainer.is_global_zero:
            self._copy()

    def save(self, trainer: L.Trainer) -> None:
        """Write last.ckpt, unless it is of this step; every rank has to join."""
        if self._saved != trainer.global_step:
            trainer.save_checkpoint(self.path)
            self._saved = trainer.global_step

    def _value(self, learner: Learner, step: int) -> float:
        if self.by == "loss":
            return learner.logged.get("loss", float("nan"))
        if learner.scored_at != step:
            return float("nan")
        # a set may have been left out
        return self._sign * learner.scores.get(self.by, float("nan"))

    def place(self, step: int) -> Path:
        return self.path.with_name(f"best_{step:06d}.ckpt")

    def _copy(self) -> None:
        """The files become what `best` says; one that is no longer among them goes last."""
        new = self.place(self._saved)
        if self._saved in self.best and not new.is_file():
            write(new, lambda temporary: shutil.copyfile(self.path, temporary))
        wanted = {self.place(step) for step in self.best}
        for file in self.path.parent.glob("best_*.ckpt"):
            if file not in wanted:
                file.unlink()
