"""A bar that shows how far a training is."""

import sys

import lightning as L
from tqdm import tqdm


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
