"""A bar that shows how far a training is."""

import lightning as L
from tqdm import tqdm

from lightning_cfg.runs.ranks import Ranks


class Progress(L.Callback):
    """A bar of images with their speed, the remaining time and the loss; nothing off a terminal.

    It stands back for Lightning's own, trainer.enable_progress_bar.
    """

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.images = trainer.datamodule.batch_size  # a step
        if trainer.progress_bar_callback is not None:
            self.bar = tqdm(disable=True)  # Lightning's own was asked for
            return
        self.bar = Ranks(trainer.global_rank, trainer.world_size).progress(
            trainer.max_steps * self.images,
            " images",
            initial=trainer.global_step * self.images,
            unit_scale=True,
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
