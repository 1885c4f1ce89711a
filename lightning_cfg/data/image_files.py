"""Images in a zip or a folder, as EDM's dataset_tool.py lays them out (Karras et al. 2022).

PNG, JPEG, WebP, BMP or TIFF files anywhere inside, in the order of their names, and at the top
    dataset.json   {"labels": [[file, class], ...]}, or {"labels": null} for images without classes
Where there is no dataset.json, the folders at the top are the classes, in alphabetical order, and
images outside any folder have none. A folder that all others lie in, as in mydata/cat, mydata/dog,
is no class. Other files are left out, which is said. Bounds: images of `alike.MOST_PIXELS`, files
that take MOST_BYTES, also once they are decompressed.
"""

import os
import struct
import zipfile
import zlib
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.data.alike import CHANNELS, ENDINGS, Alike, Form, form_of, opened
from lightning_cfg.data.dataset_json import (
    by_dataset_json,
    by_folder,
    doubts_about,
    refuse_splits,
    tidy,
)
from lightning_cfg.data.left_out import counted, say
from lightning_cfg.data.split import Labels, Split
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.files import listing

THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8)
CHUNK = 16  # images per task: a task of its own costs as much as decoding a small image
MOST_BYTES = 2**28  # of a file: room for such an image, or a dataset.json of five million
UNREADABLE = (  # what zipfile and PIL answer to damaged files
    OSError,
    EOFError,
    IndexError,
    RuntimeError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class Files(Split):
    """The images and classes of one zip or folder, decoded in threads."""

    what, endings = "image", ENDINGS

    @abstractmethod
    def listing(self) -> list[str]:
        """Every file's name relative to the top, with slashes, sorted."""

    @abstractmethod
    def size(self, name: str) -> int:
        """How many bytes `read` would give."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content."""

    @cached_property
    def names(self) -> list[str]:
        """The images' names."""
        found = [name for name in self.listing() if name.lower().endswith(self.endings)]
        if not found:
            others = f", only {self.left_out}" if self.left_out else ""
            raise UserError(f"{self.path} holds no {self.what} ({', '.join(self.endings)}){others}")
        say(self.path, self.left_out, self.endings)
        return found

    @cached_property
    def left_out(self) -> str:
        """How many files of which endings are not read; "" where there are none."""
        read = (*self.endings, "dataset.json")
        return counted([n for n in self.listing() if not n.lower().endswith(read)])

    @cached_property
    def form(self) -> Form:
        """Mode, width and height of what the first image becomes, which all others must have."""
        return self._open(self.names[0])[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        mode, width, height = self.form
        return CHANNELS[mode], height, width

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> Tensor:
        y = np.empty((len(rows), *self.shape), self.dtype)

        def fill(start: int) -> None:
            for i, row in enumerate(rows[start : start + CHUNK].tolist(), start):
                y[i] = self._pixels(self.names[row])

        # threads of this call alone: none are idle or left over, and starting them costs little
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(fill, range(0, len(rows), CHUNK)):
                pass  # an error in a thread is raised here
        return torch.from_numpy(y)

    def _pixels(self, name: str) -> np.ndarray:
        """An image's bytes, (C, H, W) or, for C = 1, (H, W)."""
        own, form, image = self._open(name)
        if form != self.form:
            first = self._open(self.names[0])[0]
            raise self.alike.unlike(f"{self.path}: {name}", own, self.names[0], first)
        try:
            return self.alike.pixels(image)
        except UNREADABLE as error:
            raise self._unreadable(name, error) from error

    def _open(self, name: str) -> tuple[Form, Form, Image.Image]:
        """What the image is, what becomes of it, and itself, its pixels not decoded yet."""
        data = self._read(name)
        try:
            image = opened(data)
            form = form_of(image, data)
        except UNREADABLE as error:
            raise self._unreadable(name, error) from error
        return form, self.alike.form(form, f"{self.path}: {name}"), image

    def _read(self, name: str) -> bytes:
        """A file's content; UserError where it is damaged or too large."""
        try:
            size = self.size(name)
            data = b"" if size > MOST_BYTES else self.read(name)
        except UNREADABLE as error:
            raise self._unreadable(name, error) from error
        if size > MOST_BYTES:
            raise UserError(
                f"{self.path}: {name} takes {size} bytes, more than the {MOST_BYTES} that a file "
                "in it may have"
            )
        return data

    def _unreadable(self, name: str, error: Exception | str) -> UserError:
        cause = one_line(error)
        return UserError(f"{self.path}: {name} is damaged or cannot be read: {cause}")

    @cached_property
    def labels(self) -> Labels:
        """A class for each image, if they have any, and the classes' names where these are folders.

        Generated images may lack some of the classes, which only data to train on must have all.
        """
        json_names = [n for n in self.listing() if PurePosixPath(n).name == "dataset.json"]
        if "dataset.json" in json_names:
            return by_dataset_json(self.path, self.names, self._read("dataset.json")), None
        if json_names:
            raise UserError(f"{self.path}: {json_names[0]} must lie at the top to be read")
        return by_folder(self.path, self.names)

    @cached_property
    def _classes(self) -> tuple[Tensor, int, list[str] | None]:
        if self.labels[1] is not None:
            refuse_splits(self.path, self.names, self.labels[1])
        return super()._classes

    @property
    def doubts(self) -> tuple[str, ...]:
        folders = self.labels[1]
        return () if folders is None else doubts_about(self.path, self.names, folders)


class Zip(Files):
    """A zip; UserError where there is none, or it is cut off."""

    def __init__(self, path: str | Path, alike: Alike | None = None):
        super().__init__(path, alike)
        if self.path.is_dir():
            raise UserError(f"{path} is a folder: data.name=ImageFolder reads it")
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        # one for all threads: its table of contents takes 0.6 kB of memory for each image, and a
        # ZipFile locks around reading, not around decompressing
        try:
            return zipfile.ZipFile(self.path)
        except UNREADABLE as error:
            raise UserError(f"{self.path} is truncated or not a zip: {error}") from error

    @cached_property
    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = {tidy(i.filename): i for i in self._zip.infolist() if not i.is_dir()}
        hidden = [n for n in entries if any(part.startswith(".") for part in n.split("/"))]
        for name in hidden:
            if ".." in name.split("/"):
                raise UserError(f"{self.path}: {name} would lie outside of it")
            del entries[name]
        return entries

    def listing(self) -> list[str]:
        return sorted(self._entries)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        return self._zip.read(self._entries[name])


class Folder(Files):
    """A folder; UserError where there is none."""

    def __init__(self, path: str | Path, alike: Alike | None = None):
        super().__init__(path, alike)
        if self.path.is_file():
            raise UserError(f"{path} is a file: data.name=ImageZip reads it if it is a zip")
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder")

    def listing(self) -> list[str]:
        return listing(self.path)

    def size(self, name: str) -> int:
        return Path(self.path, name).stat().st_size

    def read(self, name: str) -> bytes:
        return Path(self.path, name).read_bytes()
