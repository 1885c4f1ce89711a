"""Data sets of images in a zip or a folder, in the layout that `image_files` describes."""

import math
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import Count, Free, Infinite, Input, NonNegative, Share
from lightning_cfg.data.image_files import Files, Folder, Zip
from lightning_cfg.data.images import Half, Images
from lightning_cfg.errors import UserError


class ImageZip(Images):
    """Images and their classes in a zip, in the layout described at the top of this file.

    path      the zip with the images to train on, the "bank"
    held_out  a zip with images that are never trained on, of the same shape and classes
    flip      mirror each training image with probability 1/2
    augment   probability of EDM's non-leaking augmentation, 0.12 as they have it; 0: none
    memory    GiB that a split may take as bytes to be decoded once and kept in each process;
              a larger one is decoded batch by batch, in threads and without reading ahead
    limit     only the first so many images of each class are there to train on
    half      first or second: only every other image of each class, from that one on, is there
    UserError where a file is absent, damaged, not as described, or unlike the others.
    """

    _files = Zip

    def __init__(
        self,
        *,
        path: Annotated[str, Input()],
        held_out: Annotated[str | None, Input()] = None,
        flip: bool = False,
        augment: Annotated[float, Share] = 0.0,
        memory: Annotated[float, NonNegative, Infinite, Free] = 2.0,
        limit: Count | None = None,
        half: Half = None,
    ):
        self._training = self._files(path)
        self._other = None if held_out is None else self._files(held_out)
        self.path, self.flip, self.memory = self._training.path, flip, memory
        self.limit, self.half = limit, half
        self.augmented(augment)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._training.shape

    @property
    def num_classes(self) -> int:
        return self._training.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """The folders that are the classes, None where numbers are."""
        return self._training.class_names

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

    def _read(self, files: Files) -> tuple[Any, Tensor]:
        each = math.prod(files.shape) * np.dtype(files.dtype).itemsize
        fits = len(files) * each <= self.memory * 2**30
        return (files[torch.arange(len(files))] if fits else files), files.c


class ImageFolder(ImageZip):
    """`ImageZip` for a folder: path and held_out are folders."""

    _files = Folder
