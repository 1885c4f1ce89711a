"""What a training does beside learning: saving whole files, showing how far it is."""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from lightning_cfg.checkpoints import LAST
from lightning_cfg.files import write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, by a temporary name beside the final one and a rename.

    Lightning's own goes through the system's temporary folder, from where a rename is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        write(path, lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict, path: Path) -> None:
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error


class SaveLast(L.Callback):
    """Writes checkpoints/last.ckpt every `every` optimiser steps and after the last one."""

    def __init__(self, directory: Path, *, every: int):
        self.path, self.every = directory / LAST, every
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        # A step that was resumed from is saved already; doing so again after the first of several
        # accumulated micro-batches would save the middle of the next step.
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if due and step != self._saved and step > 0:
            trainer.save_checkpoint(self.path)
            self._saved = step


class Progress(L.Callback):
    """A bar of optimiser steps with speed, remaining time and loss; nothing off a terminal."""

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if "loss" in trainer.logged_metrics and trainer.global_step % 50 == 0:
            self.bar.set_postfix(loss=f"{float(trainer.logged_metrics['loss']):.4g}")

    def on_train_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.bar.close()
