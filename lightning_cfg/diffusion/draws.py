"""A training step is its number: all that is random in it is keyed by (seed, step).

Data order, noise, times and label dropout are drawn for the whole global batch on the CPU, and
each rank and micro-batch keeps its own rows. So a run that was killed and resumed equals one that
was not, and one process equals several.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed from anything with a stable repr, such as ("noise", seed, step)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `key(*parts)`."""
    return torch.Generator().manual_seed(key(*parts))


def onto(x: Tensor, device: torch.device) -> Tensor:
    """x on this device; what was drawn on the CPU goes to a GPU without waiting for it.

    A plain copy would wait until the GPU has done all that it was given before, the last step.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that a network on this device draws from, the CPU's with them.

    As torch.manual_seed does, which seeds those of every kind of device there could be, and takes
    longer than a small network's forward pass for it.
    """
    known = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_initialized())
    if not known:
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


class Draws:
    """The random numbers of one training step, of which this process keeps its `rows`.

    seed, step   what the draws are keyed by
    batch_size   the global batch, over all ranks and micro-batches
    rows         the slice of it that is this process's own; b below is its length
    """

    def __init__(self, *, seed: int, step: int, batch_size: int, rows: slice | None = None):
        self.seed, self.step, self.batch_size = seed, step, batch_size
        self.rows = slice(0, batch_size) if rows is None else rows
        self._generator = keyed("step", seed, step)
        # (name, (b,)) of the noise levels that a loss has drawn: the loss is logged by them
        self.level: tuple[str, Tensor] | None = None

    def normal(self, *shape: int) -> Tensor:
        """Standard normals, (b, *shape)."""
        return torch.randn(self.batch_size, *shape, generator=self._generator)[self.rows]

    def uniform(self) -> Tensor:
        """Uniform numbers in [0, 1), (b,)."""
        return torch.rand(self.batch_size, generator=self._generator)[self.rows]

    def integers(self, high: int) -> Tensor:
        """Integers in 0 ... high - 1, (b,)."""
        shape = (self.batch_size,)
        return torch.randint(high, shape, generator=self._generator)[self.rows]

    def permuted(self, n: int) -> Tensor:
        """Indices into n items, (b,): this step's part of the epochs' permutations in a row."""
        start = self.step * self.batch_size
        epochs = range(start // n, (start + self.batch_size - 1) // n + 1)
        order = torch.cat([_permutation(self.seed, epoch, n) for epoch in epochs])
        return order[start % n :][: self.batch_size][self.rows]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=keyed("epoch", seed, epoch))
