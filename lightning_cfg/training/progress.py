"""A bar that shows how far a training is."""

from typing import Any

import lightning as L

from lightning_cfg.runs.progress import progress
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner


class Progress(EachStep):
    """A bar of images with their speed, the remaining time and the loss; or lines, in a log.

    It stands back for Lightning's own, trainer.enable_progress_bar.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.images = trainer.datamodule.batch_size  # a step
        shown = trainer.is_global_zero and trainer.progress_bar_callback is None
        self.bar = progress(
            trainer.max_steps * self.images,
            " images",
            shown=shown,
            initial=trainer.global_step * self.images,
            unit_scale=True,
        )

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if self.bar.disable:
            return
        if "loss" in learner.logged:
            shown = {"loss": f"{learner.logged['loss']:.4g}", "step": step}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(step * self.images - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.bar.close()
