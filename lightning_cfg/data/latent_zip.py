"""A data set of latents in a zip, as EDM2's dataset_tool.py and the verb `encode` write it."""

import io
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import Count, Free, Infinite, Input, NonNegative
from lightning_cfg.data.dataset_json import class_names_in
from lightning_cfg.data.image_files import UNREADABLE, Zip
from lightning_cfg.data.image_zip import ImageZip
from lightning_cfg.data.images import Half
from lightning_cfg.data.split import Labels
from lightning_cfg.diffusion.draws import Draws, keyed, onto
from lightning_cfg.errors import UserError
from lightning_cfg.latents.vae import EDM2_BIAS, EDM2_SCALE, Bias, Scale, per_channel
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LATENTS


class LatentFiles(Zip):
    """Arrays (2 c, h, w) float32 in .npy files of a zip, mean then deviation, and their classes.

    The zip is laid out as one of images, see `image_files`; it must have a dataset.json. Numbers
    are read as they are, nothing is unpickled.
    """

    what, endings, dtype = "array of latents", (".npy",), np.float32

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of the first array, which all others must have."""
        self._check_labelled()
        shape = self._array(self.names[0]).shape
        if len(shape) != 3 or shape[0] % 2:
            raise UserError(
                f"{self.path}: {self.names[0]} has shape {shape}, not (2 c, h, w): mean and "
                "deviation of c channels"
            )
        return shape

    @cached_property
    def labels(self) -> Labels:
        """Classes, and their names where `encode` knew them."""
        labels = super().labels[0]
        names = class_names_in(self.path, self._read("dataset.json"))
        return labels, None if labels is None else names

    def _check_labelled(self) -> None:
        if "dataset.json" not in self.listing():
            raise UserError(
                f"{self.path} has no dataset.json at the top, which latents need: "
                '{"labels": [[file, class], ...]} or {"labels": null}'
            )

    def _pixels(self, name: str) -> np.ndarray:
        found = self._array(name)
        if found.shape != self.shape:
            raise UserError(
                f"{self.path}: {name} has shape {found.shape}, but {self.names[0]} has "
                f"{self.shape}; all latents must be alike"
            )
        if not np.isfinite(found).all() or found[len(found) // 2 :].min() < 0:
            raise UserError(f"{self.path}: {name} holds NaN, infinity or a deviation below 0")
        return found

    def _array(self, name: str) -> np.ndarray:
        """The numbers of a file, whose header is not believed beyond what the file holds."""
        content = self._read(name)
        file = io.BytesIO(content)
        try:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = header(file)
            if dtype != np.float32 or fortran:
                raise ValueError(f"it is {dtype}{', in Fortran order' * fortran}, not float32")
            return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape)
        except UNREADABLE as error:
            raise self._unreadable(name, error) from error


def latents_of(text: str) -> Path:
    """The zip, or that in a run directory of `encode`."""
    return output_of(text, LATENTS)


class LatentZip(ImageZip):
    """Latents z = scale (mean + deviation n) + bias, n ~ N(0, 1), of a zip of `LatentFiles`.

    n is drawn afresh at every step of a training; what is evaluated or paired has one n for each
    latent, which is that of the file's place in the zip.
    path         the zip to train on, the "bank"; or a run directory of `encode`
    held_out     a zip of latents that are never trained on
    scale, bias  of each channel; the defaults are EDM2's for ImageNet-512
    memory       GiB that a split may take to be kept in each process; a larger one is read batch by
                 batch
    limit        only the first so many latents of each class are there to train on
    half         first or second: only every other of each class, from that one on, is there
    UserError where a file is absent, damaged, not as described, or unlike the others.
    """

    _files = LatentFiles

    def __init__(
        self,
        *,
        path: Annotated[str, Input(latents_of)],
        held_out: Annotated[str | None, Input(latents_of)] = None,
        scale: Scale = EDM2_SCALE,
        bias: Bias = EDM2_BIAS,
        memory: Annotated[float, NonNegative, Infinite, Free] = 2.0,
        limit: Count | None = None,
        half: Half = None,
    ):
        super().__init__(
            path=str(latents_of(path)),
            held_out=None if held_out is None else str(latents_of(held_out)),
            memory=memory,
            limit=limit,
            half=half,
        )
        channels = self.shape[0]
        self.scale = per_channel("data.scale", scale, channels)
        self.bias = per_channel("data.bias", bias, channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._training.shape
        return channels // 2, height, width

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """This process' rows of a training batch: y (b, *shape) float32, c (b,) long."""
        held, c = self._bank
        rows = self._chosen(draws, c)
        raw = held[rows]
        return {"y": self.final(raw, onto(draws.normal(*self.shape), raw.device)), "c": c[rows]}

    def rows(self, split: str, per_class: int | None = None) -> tuple["Drawn", Tensor, Tensor]:
        """Latents that rows (N,) index, with one n for each, as `Images.rows` has bytes."""
        raw, rows, c = super().rows(split, per_class)
        return Drawn(self, raw), rows, c

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """Latents y (N, *shape) float32 and labels c (N,) long, as `rows` chooses them."""
        y, rows, c = self.rows(split, per_class)
        return y[rows], c

    def final(self, raw: Tensor, n: Tensor) -> Tensor:
        """Latents (b, *shape) of mean and deviation (b, 2 c, h, w) and normals n."""
        mean, std = raw.chunk(2, 1)
        return (mean + std * n) * self.scale.to(raw) + self.bias.to(raw)


class Drawn:
    """Latents of a split, each with its own n: drawn[rows] is (b, *shape) float32."""

    def __init__(self, data: LatentZip, raw: Any):
        self._data, self._raw = data, raw

    def __getitem__(self, rows: Tensor) -> Tensor:
        raw, shape = self._raw[rows], self._data.shape
        n = [torch.randn(shape, generator=keyed("latent", row)) for row in rows.tolist()]
        return self._data.final(raw, torch.stack(n).to(raw))
