"""A sample is its seed: noise, label and later noise are drawn from the sample's own generator."""

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError

SEEDS = 2**32  # a generator of the convention knows no more: the next one would repeat the first


def check_seeds(seed: int, n: int, key: str = "seed") -> None:
    """UserError unless seed, ..., seed + n - 1 are seeds that no other sample has.

    key  where the seed stands in the config
    """
    if not 0 <= seed <= SEEDS - n:
        raise UserError(
            f"{key}={seed}: the seeds of {n} samples must be within 0 ... {SEEDS - 1}, as they are "
            "taken modulo 2**32 and others would repeat these"
        )


def seeded(
    seeds: list[int],
    shape: tuple[int, ...],
    classes: int,
    class_label: int | Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, "Draw"]:
    """Noise (B, *shape) float64, labels (B,) and later noise, each from its seed alone.

    EDM's convention: a CPU generator per seed draws the noise in float32, then the label, which
    is drawn even if it is overridden, and is 0 where there are no classes.
    class_label  of all samples, or of each, (B,)
    """
    generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
    labels = torch.stack([torch.randint(max(1, classes), (), generator=g) for g in generators])
    if class_label is not None:
        labels.copy_(torch.as_tensor(class_label))
    return noise.double().to(device), labels.to(device), Draw(generators, shape, device)


class Draw:
    """Fresh normals (B, *shape) float64 at every call, each row from its sample's generator."""

    BLOCK = 32  # draws made at once per sample: part of what a seed means, so never change it

    def __init__(
        self, generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device | str
    ):
        self._generators, self._shape = generators, tuple(shape)
        self.device = torch.device(device)
        self._left: list[Tensor] = []

    def __call__(self) -> Tensor:
        if not self._left:
            block = (self.BLOCK, *self._shape)
            rows = torch.stack([torch.randn(block, generator=g) for g in self._generators], 1)
            self._left = list(rows)
        return self._left.pop(0).double().to(self.device)

    def other(self, name: str, shape: tuple[int, ...] | None = None) -> "Draw":
        """Draws of another purpose: of the same seeds, and leaving these here as they are."""
        generators = [keyed(name, g.initial_seed()) for g in self._generators]
        return Draw(generators, self._shape if shape is None else shape, self.device)

    def particles(self, n: int) -> "Draw":
        """Draws of n particles of each sample, those of sample i in rows i n ... i n + n - 1.

        The first particle draws what the sample would, the others of generators of their own.
        """
        others = [self.other(f"particle {j}")._generators for j in range(1, n)]
        each = zip(self._generators, *others, strict=True)
        return Draw([g for own in each for g in own], self._shape, self.device)
