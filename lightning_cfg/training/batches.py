"""The LightningDataModule that every learner shares: any data set, in keyed global batches."""

from collections.abc import Iterator

import lightning as L
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.errors import UserError


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
        trainer = self.trainer
        assert trainer is not None
        ranks, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        size, step = self.rows_per_batch(trainer), trainer.global_step
        device = trainer.strategy.root_device
        while True:
            for micro in range(micro_batches):
                start = (micro * ranks + trainer.global_rank) * size
                draws = Draws(
                    seed=self.seed,
                    step=step,
                    batch_size=self.batch_size,
                    rows=slice(start, start + size),
                )
                batch = {
                    name: onto(value, device) if isinstance(value, Tensor) else value
                    for name, value in self.data.batch(draws).items()
                }
                yield {**batch, "draws": draws}
            step += 1
