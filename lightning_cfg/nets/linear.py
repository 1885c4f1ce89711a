"""The linear classifier on (x, noise level) of Zhao & Schwing (2025, sec. C.3)."""

import math

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """logits = A [x, noise] + b, x flattened."""

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.linear = nn.Linear(math.prod(shape) + 1, num_classes)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, *shape), noise (B,) -> logits (B, num_classes)."""
        return self.linear(torch.cat([x.flatten(1), noise[:, None]], 1))
