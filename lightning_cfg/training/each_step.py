"""What the callbacks of a training share: they act after a step, not after a micro-batch of it."""

from typing import Any

import lightning as L

from lightning_cfg.training.learners import Learner


class EachStep(L.Callback):
    """A callback that acts once after every optimiser step, however many micro-batches make it."""

    _last = -1  # the step after which it has acted

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._last = trainer.global_step  # after the one that was resumed from it has acted before

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            self.after_step(trainer, pl_module, self._last)

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        """What it does; step 1 is the first."""
        raise NotImplementedError
