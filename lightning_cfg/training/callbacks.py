"""What a training does beside learning: saving whole files, showing how far it is, drawing."""

import os
import shutil
import sys
from datetime import timedelta
from inspect import signature
from math import isfinite
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image
from torch import distributed
from tqdm import tqdm

from lightning_cfg.config import Choice, Sampler
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import classifier_free
from lightning_cfg.metrics.meaning import meaning
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import DPI
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.files import write
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.sampling.prepared import within_limits
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.training import preemption


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

    def load_state_dict(self, state: dict) -> None:
        # values of something else, if `by` has changed, say nothing
        self.best = state["best"] if state.get("by", "loss") == self.by else {}

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        # A step that was resumed from is saved already; doing so again after the first of several
        # accumulated micro-batches would save the middle of the next step.
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

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, *args: object
    ) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or step == self._saved or step == 0:
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

    def _value(self, learner: L.LightningModule, step: int) -> float:
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


class StopWhenAsked(L.Callback):
    """Ends the training at the end of a step after a signal to any rank; see `preemption`.

    It comes after all other callbacks, so that the step is complete when `save` has its state. All
    ranks hear of it in one exchange on the CPU at every step: it costs less than a millisecond,
    waits for no GPU, and tells at once where a rank has ended.
    """

    def __init__(self, save: SaveLast):
        self.save = save
        self.signal = ""  # that ended the training, as one rank heard of it
        self._group = None
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        self._step = trainer.global_step
        if trainer.world_size > 1:
            # the first rank may be scoring samples alone for longer than the usual half an hour
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(days=1))

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, *args: object
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # within an accumulated step
            return
        self._step = step
        names = ["", *(number.name for number in preemption.SIGNALS)]
        heard = torch.tensor(names.index(preemption.asked()))
        if self._group is not None:
            distributed.all_reduce(heard, distributed.ReduceOp.MAX, group=self._group)
        if not heard or step >= trainer.max_steps:
            return
        self.signal = names[int(heard)]
        self.save.save(trainer)
        trainer.should_stop = True


class Progress(L.Callback):
    """A bar of images with their speed, the remaining time and the loss; nothing off a terminal."""

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.images = trainer.datamodule.batch_size  # a step
        self.bar = tqdm(
            total=trainer.max_steps * self.images,
            initial=trainer.global_step * self.images,
            unit=" images",
            unit_scale=True,
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, *args: object
    ) -> None:
        if self.bar.disable:
            return
        step = trainer.global_step
        if "loss" in learner.logged:
            shown = {"loss": f"{learner.logged['loss']:.4g}", "step": step}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(step * self.images - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.bar.close()


class Grids(L.Callback):
    """Writes samples of the averaged weights every `every` steps: figures/grid_<step>.png.

    The logger gets it too where it takes images. A row per class (the first 10), and the same
    noise, of the seeds 0, 1, ..., in every row and every grid. Training is not touched: the
    samples are drawn from a copy of the model, without the global generators.

    scales   of classifier-free guidance, side by side; 1 is unguided
    columns  samples per class and scale
    """

    def __init__(
        self,
        directory: Path,
        /,
        *,
        every: int = 1000,
        scales: list[float] = (1.0, 2.0),
        columns: int = 8,
        sampler: Sampler = {"name": "heun", "steps": 18},  # noqa: B006
    ):
        if every < 1 or columns < 1 or not scales:
            raise UserError(
                f"grids.every={every} and grids.columns={columns} must be at least 1, "
                "and grids.scales name one scale"
            )
        self.directory, self.every, self.columns = directory / "figures", every, columns
        self.scales = list(scales)
        # with the keys that were left out, or the limits of the model would not be put in
        self.sampler = Choice("lightning_cfg.diffusion.samplers").check(sampler, "grids.sampler")
        self._drawn = -1

    def check(self, learner: L.LightningModule, data: Any) -> None:
        """UserError if these samples cannot be drawn, before anything is trained."""
        shape = tuple(data.shape)
        if not drawable(shape):
            raise UserError(f"grids needs grey or RGB images, (1 or 3, H, W), not {shape}")
        check_generation("grids", learner, data, self.scales, self.sampler)

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        self._drawn = trainer.global_step  # before it was resumed from

    def on_train_batch_end(
        self, trainer: L.Trainer, learner: L.LightningModule, *args: object
    ) -> None:
        step = trainer.global_step
        if step % self.every or step == self._drawn or not trainer.is_global_zero:
            return
        self._drawn = step
        figure = self.draw(learner, trainer.datamodule.data)
        show(figure, self.directory / f"grid_{step:06d}.png", "samples", trainer)

    @torch.no_grad()
    def draw(self, learner: L.LightningModule, data: Any) -> Any:
        """The contact sheet, a matplotlib Figure."""
        model, shape = learner.averaged(), tuple(data.shape)
        classes = max(1, min(data.num_classes, 10))
        c = torch.arange(classes).repeat_interleave(self.columns)
        limited, groups = within_limits(self.sampler, model), {}
        for scale in self.scales:
            seeds = [*range(self.columns)] * classes
            noise, _, draw = seeded(seeds, shape, classes, device=learner.device)
            denoise = classifier_free(model, scale=scale)
            *_, (_, x) = sample(limited, denoise, noise, c.to(learner.device), draw)
            groups[f"scale {scale:g}"] = x.float().cpu(), c
        return contact_sheet(groups, data.num_classes, columns=self.columns)


def check_generation(
    who: str, learner: L.LightningModule, data: Any, scales: list[float], sampler: dict
) -> None:
    """UserError, in the name of a section, if the model in training cannot generate like this."""
    model, shape = learner.model, tuple(data.shape)
    if getattr(data, "has_sources", False) or len(signature(model.forward).parameters) < 3:
        raise UserError(
            f"{who} needs a model that makes images of noise, not {type(model).__name__} "
            f"with learner {type(learner).__name__}"
        )
    for scale in scales:
        classifier_free(model, scale=scale)
    limited, noise = within_limits(sampler, model), torch.zeros(1, *shape)
    for _ in sample(limited, lambda x, sigma, c: x, noise, torch.zeros(1), lambda: noise):
        pass  # the sampler checks its own numbers


def show(figure: Any, path: Path, name: str, trainer: L.Trainer) -> None:
    """Write a figure, and hand it to the loggers that take images."""
    write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
