"""Data of which nothing is here but what they are: samples are compared with statistics alone."""

from typing import Annotated

from lightning_cfg.config import AtLeast, Between, Filled
from lightning_cfg.interfaces import DataSet


class Described(DataSet):
    """A shape and a number of classes, in the place of data too large to be here.

    shape        of a sample
    num_classes  0: none

    A study of published networks has such data where `evaluation.statistics` are all that samples
    are compared with, as of EDM2's ImageNet-512: then no real points are scored beside them.
    """

    has_points = False

    def __init__(
        self,
        *,
        shape: Annotated[list[Annotated[int, Between(1, 16_384)]], Filled],
        num_classes: Annotated[int, AtLeast(0)] = 0,
    ):
        self.shape, self.num_classes = tuple(shape), num_classes
