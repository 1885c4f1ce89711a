"""How networks are told the noise level and the class."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import Between
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL

TimeScale = Annotated[float, Between(0, 1e6, above=True)]


def timesteps(noise: Tensor, half: int) -> Tensor:
    """cos and sin of noise (B,) at `half` frequencies from 1 to 1 / 10,000 (Ho et al. 2020).

    (B, 2 half) float32.
    """
    steps = torch.arange(half, dtype=torch.float32, device=noise.device)
    phase = noise.float()[:, None] * torch.exp(-math.log(10_000) / half * steps)
    return torch.cat([phase.cos(), phase.sin()], 1)


class NoiseEmbedding(nn.Module):
    """cos and sin(pi f noise) for 16 geometric frequencies f from 0.25 to 64, and one layer."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", 0.25 * 2 ** torch.linspace(0, 8, 16), persistent=False)
        self.linear = nn.Linear(32, width)

    def forward(self, noise: Tensor) -> Tensor:
        phase = math.pi * noise[:, None] * self.frequencies
        return self.linear(torch.cat([phase.cos(), phase.sin()], 1))


class ClassEmbedding(nn.Embedding):
    """Vectors (B, d) of classes (B,); NULL = -1 is the last one."""

    def forward(self, c: Tensor) -> Tensor:
        return super().forward(c % self.num_embeddings)


def no_classes(net: nn.Module, why: str = "") -> UserError:
    """What a network built for data without classes answers who asks for vectors of them."""
    name = type(net).__name__
    return UserError(f"{name}: a network without classes has no vectors of them{why}")


def embedded(c: Tensor | None, x: Tensor, class_vectors: Callable[[Tensor], Tensor]) -> Tensor:
    """The vectors (B, d) of classes c (B,), of NULL for None; c itself where it is vectors."""
    if c is None:
        c = torch.full((len(x),), NULL, device=x.device)
    return c.to(x) if c.is_floating_point() else class_vectors(c)
