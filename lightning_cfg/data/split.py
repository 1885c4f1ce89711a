"""The images of one split and their classes, wherever they lie; data sets made of two of them."""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.data.alike import Alike
from lightning_cfg.data.images import Images
from lightning_cfg.errors import UserError

Labels = tuple[list[int] | None, list[str] | None]


class Split(ABC):
    """Images that are alike, (N, *shape), and their classes; nothing is read before it is needed.

    split[rows] is the images of rows (b,) as bytes, (b, *shape) uint8.
    path      of the file or folder
    labels    a class for each image, if they have any, and the classes' names, if those have
    left_out  what lies beside them and is not read, in words
    doubts    what is odd about them
    alike     what is done to each image, so that all have one shape
    """

    dtype: type = np.uint8
    left_out: str = ""
    doubts: tuple[str, ...] = ()

    def __init__(self, path: str | Path, alike: Alike | None = None):
        self.path, self.alike = Path(path), alike or Alike()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""

    @property
    @abstractmethod
    def labels(self) -> Labels: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, rows: Tensor) -> Tensor: ...

    @property
    def num_classes(self) -> int:
        return self._classes[1]

    @property
    def class_names(self) -> list[str] | None:
        """None where numbers are all that is known."""
        return self._classes[2]

    @property
    def c(self) -> Tensor:
        """The images' classes, (N,) long; all 0 where there are none."""
        return self._classes[0]

    @cached_property
    def _classes(self) -> tuple[Tensor, int, list[str] | None]:
        """Classes (N,), how many there are, and their names."""
        classes, class_names = self.labels
        if classes is None:
            return torch.zeros(len(self), dtype=torch.long), 0, None
        present = sorted(set(classes))
        absent = next((k for k, c in enumerate(present) if k != c), None)
        if absent is not None:
            raise UserError(
                f"{self.path}: class {absent} of the classes 0 ... {present[-1]} has no image"
            )
        if class_names is not None and len(class_names) != len(present):
            told = f"{len(present)} classes have images, and {len(class_names)} have names"
            raise UserError(f"{self.path}: {told}")
        return torch.tensor(classes), len(present), class_names


class OfSplits(Images):
    """Images of which a split is decoded once and kept where it fits in `memory` GiB."""

    _training: Split
    _other: Split | None
    memory: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._training.shape

    @property
    def num_classes(self) -> int:
        return self._training.num_classes

    @property
    def class_names(self) -> list[str] | None:
        return self._training.class_names

    @property
    def doubts(self) -> tuple[str, ...]:
        return self._training.doubts

    @cached_property
    def _bank(self) -> tuple[Any, Tensor]:
        return self._read(self._training)

    @cached_property
    def _held_out(self) -> tuple[Any, Tensor]:
        ours, other = self._training, self._other
        if other is None:
            raise UserError(f"{type(self).__name__}: data.held_out is needed for held-out images")
        for what, theirs, own in (
            ("shape", other.shape, ours.shape),
            ("num classes", other.num_classes, ours.num_classes),
            ("class names", other.class_names, ours.class_names),
        ):
            if theirs != own:
                raise UserError(f"{other.path} has {what} {theirs}, {ours.path} has {own}")
        return self._read(other)

    def _read(self, split: Split) -> tuple[Any, Tensor]:
        each = math.prod(split.shape) * np.dtype(split.dtype).itemsize
        fits = len(split) * each <= self.memory * 2**30
        return (split[torch.arange(len(split))] if fits else split), split.c
