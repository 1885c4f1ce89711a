"""A training that is asked to end early: all ranks stop after the same step, which is saved."""

from datetime import timedelta

import lightning as L
import torch
from torch import distributed

from lightning_cfg.training import preemption
from lightning_cfg.training.checkpointing import SaveLast


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
