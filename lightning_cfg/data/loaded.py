"""Anyone's LightningDataModule as a data set: the batches of its train_dataloader, step by step."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import Draws, key
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet, complete


class Loaded(DataSet):
    """Batches (x, c) of a module that tells `shape` and `num_classes`, x (B, *shape), c (B,).

    Step k trains on its k-th batch, so these have to be as large as the run's batch_size; a smaller
    one at the end of an epoch is left out. Every rank reads them all and takes its rows. What the
    loader draws from torch's generator, such as its order, follows from the seed, the epoch and the
    number of the batch. A run that goes on reads the batches of its epoch again up to where it was;
    of a loader that does not say its length those of all epochs. Where the module has `real`,
    samples can be paired and compared with its points.
    """

    def __init__(self, module: Any, name: str):
        module.prepare_data()
        module.setup("fit")
        complete(module, DataSet, f"data {name}", "shape", "num_classes")
        self.shape, self.num_classes = tuple(module.shape), module.num_classes
        self.class_names, self.real = module.class_names, module.real
        self._name, self._loader = f"data {name}", module.train_dataloader()
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._seed, self._step = -1, -1  # of what is held
        self._held: tuple[Tensor, Tensor] | None = None

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        if (self._seed, self._step + 1) != (draws.seed, draws.step):
            if self._held is None or (self._seed, self._step) != (draws.seed, draws.step):
                self._go_to(draws.seed, draws.step)
                self._held = next(self._batches)
        else:
            self._held = next(self._batches)
        self._seed, self._step = draws.seed, draws.step
        y, c = self._held
        if len(y) != draws.batch_size and draws.batch_size > 1:  # of 1 the first one is tried
            raise UserError(
                f"{self._name}: its train_dataloader gives batches of {len(y)}, and batch_size is "
                f"{draws.batch_size}: they have to be the same"
            )
        return {"y": y[draws.rows], "c": c[draws.rows]}

    def _go_to(self, seed: int, step: int) -> None:
        """The next batch is that of this step."""
        size = self._whole_batches()
        epoch, before = divmod(step, size) if size else (0, step)
        self._batches = self._from(seed, epoch)
        for _ in range(before):
            next(self._batches)

    def _whole_batches(self) -> int:
        """Of an epoch; 0 where that is not known."""
        loader = self._loader
        try:
            n, rest = len(loader), len(loader.dataset) % loader.batch_size
        except (TypeError, AttributeError):
            return 0
        return n if loader.drop_last or not rest else n - 1

    def _from(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for now in itertools.count(epoch):
            batches, size = None, 0
            for number in itertools.count():
                with torch.random.fork_rng([]):
                    torch.manual_seed(key("loader", seed, now, number))
                    batches = iter(self._loader) if batches is None else batches
                    batch = next(batches, None)
                if batch is None:
                    break
                x, c = self._checked(batch)
                size = size or len(x)
                if len(x) == size:
                    yield x, c
            if size == 0:
                raise UserError(f"{self._name}: its train_dataloader has no batch")

    def _checked(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            kind = type(batch).__name__
            raise UserError(
                f"{self._name}: a batch of its train_dataloader is a {kind}, not (x, c)"
            )
        x, c = batch
        if tuple(x.shape[1:]) != self.shape or c.shape != x.shape[:1]:
            raise UserError(
                f"{self._name}: a batch of its train_dataloader has x of {tuple(x.shape)} and c of "
                f"{tuple(c.shape)}, not (B, {', '.join(map(str, self.shape))}) and (B,)"
            )
        return x.float(), c.long()
