"""Layers that several networks begin or end with."""

import math
from typing import Annotated, TypeVar

from torch import nn

from lightning_cfg.config import Between, Filled

M = TypeVar("M", bound=nn.Module)


# Of every level, over the width of the first one
ChannelMult = Annotated[tuple[Annotated[int, Between(1, 64)], ...], Filled]
Dropout = Annotated[float, Between(0, 1, below=True)]


def group_norm(channels: int) -> nn.GroupNorm:
    """Eight groups, or as many as divide both 8 and the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zeroed(layer: M) -> M:
    """The layer, which answers 0 until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
