"""The LightningDataModule that every learner shares: any data set, in keyed global batches."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import lightning as L
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.errors import UserError

AHEAD = 2  # batches that are being made, or wait, while a step runs
T = TypeVar("T")


class KeyedBatches(L.LightningDataModule):
    """This process's rows of the global batch of every step, from the run's current step on.

    batch_size  over all ranks and micro-batches
    """

    def __init__(self, data, *, seed: int, batch_size: int):
        super().__init__()
        self.data, self.seed, self.batch_size = data, seed, batch_size

    def rows_per_batch(self, trainer: L.Trainer) -> int:
        """Rows of one rank's micro-batch; UserError where batch_size does not divide."""
        ranks, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        size, rest = divmod(self.batch_size, ranks * micro_batches)
        if rest or size < 1:
            raise UserError(
                f"batch_size={self.batch_size} does not divide by {ranks} ranks x "
                f"{micro_batches} accumulated batches"
            )
        return size

    def train_dataloader(self) -> "KeyedBatches":
        return self

    def __iter__(self) -> Iterator[dict]:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        jobs = self._jobs()
        # what decodes files does it while a step runs; the order is the same, and so each batch,
        # since all that is random in it is its own
        made = ahead(jobs) if self.data.reads_files else (job() for job in jobs)
        for batch in made:
            yield {
                name: onto(value, device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }

    def _jobs(self) -> Iterator[Callable[[], dict]]:
        """What makes this process' batches, one after another."""
        trainer = self.trainer
        assert trainer is not None
        ranks, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        size, step = self.rows_per_batch(trainer), trainer.global_step
        while True:
            for micro in range(micro_batches):
                start = (micro * ranks + trainer.global_rank) * size
                draws = Draws(
                    seed=self.seed,
                    step=step,
                    batch_size=self.batch_size,
                    rows=slice(start, start + size),
                )
                yield partial(self._batch, draws)
            step += 1

    def _batch(self, draws: Draws) -> dict:
        return {**self.data.batch(draws), "draws": draws}


def ahead(jobs: Iterator[Callable[[], T]], n: int = AHEAD) -> Iterator[T]:
    """What the jobs give, in order; n of them are done beside whoever uses it, one after another.

    An error of a job is raised where its result would have come. Jobs that have not begun when
    nothing more is asked for are not done.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting = deque(thread.submit(job) for job in islice(jobs, n))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(job) for job in islice(jobs, 1))
                yield result
        finally:
            for one in waiting:
                one.cancel()
