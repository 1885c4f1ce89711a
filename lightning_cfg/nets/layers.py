"""Layers that several networks begin or end with."""

import math
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """Eight groups, or as many as divide both 8 and the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zeroed(layer: M) -> M:
    """The layer, which answers 0 until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
