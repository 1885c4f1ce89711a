"""A training that is asked to end early: all ranks stop after the same step, which is saved."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import distributed

from lightning_cfg.runs.waiting import Waiting
from lightning_cfg.training import preemption
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner


class StopWhenAsked(EachStep):
    """Ends the training at the end of a step after a signal to any rank; see `preemption`.

    It comes after all other callbacks, so that the step is complete when `save` has its state. All
    ranks hear of it in one exchange on the CPU at every step: it costs less than a millisecond,
    waits for no GPU, and tells at once where a rank has ended. For whom a rank waits there or in a
    pass through the network is told and limited (`runs.waiting`).
    """

    def __init__(self, save: SaveLast):
        self.save = save
        self.signal = ""  # that ended the training, as one rank heard of it
        self.met: Callable[[], object] = lambda: None  # called when all ranks have met
        self._group: Any = None
        self._waiting: Waiting | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self.met()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        preemption.watch((signal.SIGINT,))
        if trainer.world_size > 1:
            # the first rank may be scoring samples alone for longer than the usual half an hour
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(days=1))
            tell = partial(_all_say, group=self._group, size=trainer.world_size)
            address = os.environ["MASTER_ADDR"]  # as Lightning has set it, whoever launched
            self._waiting = Waiting(trainer.global_rank, trainer.world_size, address, tell)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._waiting is not None:
            self._waiting.come()  # where buffers are made equal

    def on_before_backward(self, *_: Any) -> None:
        if self._waiting is not None:
            self._waiting.leave()
            self._waiting.come()  # where gradients are summed

    def on_after_backward(self, *_: Any) -> None:
        if self._waiting is not None:
            self._waiting.leave()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self._waiting is not None:
            self._waiting.close()

    def broadcast(self, value: Any) -> Any:
        """What the first rank says, on all ranks; they wait for it as `after_step` does."""
        held = [value]
        distributed.broadcast_object_list(held, group=self._group)
        return held[0]

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        names = ["", *(number.name for number in preemption.SIGNALS)]
        heard = torch.tensor(names.index(preemption.asked()))
        if self._group is not None:
            with self._waiting.meeting() if self._waiting is not None else nullcontext():
                distributed.all_reduce(heard, distributed.ReduceOp.MAX, group=self._group)
        if not heard or step >= trainer.max_steps:
            return
        self.signal = names[int(heard)]
        self.save.save(trainer)
        trainer.should_stop = True


def _all_say(value: Any, group: Any, size: int) -> list:
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value, group=group)
    return values
