"""Images in one array: .npz as Dhariwal & Nichol's evaluations exchange them (2021), or .npy."""

import struct
import sys
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.data.alike import Alike
from lightning_cfg.data.image_files import UNREADABLE
from lightning_cfg.data.split import Labels, Split
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.ranks import launched

IMAGES, LABELS = "arr_0", "arr_1"
MOST_BYTES = 2**36  # of an array that has to be inflated into memory

_told: set[tuple[Path, str]] = set()  # by this process


class Arrays(Split):
    """arr_0 of an .npz, (N, H, W, C) or (N, H, W) uint8, and arr_1, (N,) classes, if it is there.

    Of an .npy the images alone. What is not compressed stays on the disk until it is asked for.
    UserError where there is none, or it is damaged or something else; nothing is unpickled.
    """

    def __init__(self, path: str | Path, alike: Alike | None = None):
        super().__init__(path, alike)
        if self.path.is_dir():
            raise UserError(f"{path} is a folder: data.name=ImageFolder reads it")
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        if self.path.suffix.lower() not in (".npz", ".npy"):
            raise UserError(f"{path} ends neither in .npz nor in .npy")

    @cached_property
    def _images(self) -> np.ndarray:
        """(N, H, W, C), on the disk where it can be."""
        name = f"{IMAGES} is" if self._is_npz else "it is"
        y = self._array(IMAGES)
        if (
            y.dtype != np.uint8
            or y.ndim not in (3, 4)
            or (y.ndim == 4 and y.shape[3] not in (1, 3))
        ):
            raise UserError(
                f"{self.path}: {name} {y.dtype} {y.shape}, not bytes 0 ... 255 as uint8 "
                "(N, H, W, C) with 1 or 3 channels, the last axis, or (N, H, W)"
            )
        if 0 in y.shape:
            raise UserError(f"{self.path}: {name} {y.shape}, which holds no image")
        self._say()
        return y if y.ndim == 4 else y[..., None]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self._shape[2], *self._shape[:2])

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image once it is as it is asked for."""
        _, height, width, channels = self._images.shape
        mode, width, height = self.alike.form(
            ("RGB" if channels == 3 else "L", width, height), f"{self.path}: each of its images"
        )
        return height, width, 3 if mode == "RGB" else 1

    @cached_property
    def labels(self) -> Labels:
        if not self._is_npz or LABELS not in self._names:
            return None, None
        c = self._array(LABELS)
        if c.dtype.kind not in "iu" or c.shape != self._images.shape[:1]:
            raise UserError(
                f"{self.path}: {LABELS} is {c.dtype} {c.shape}, not a whole number for each of "
                f"the {len(self)} images"
            )
        if c.min() < 0:
            raise UserError(f"{self.path}: {LABELS} has class {c.min()}, which is below 0")
        return c.tolist(), None

    @property
    def left_out(self) -> str:
        """The names of further arrays, such as the statistics in ADM's reference batches."""
        return ", ".join(n for n in self._names if n not in (IMAGES, LABELS))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        y = self._images[rows.numpy()]
        if self._shape != y.shape[1:] or self.alike.size is not None:
            made = [self.alike.pixels(Image.fromarray(one.squeeze())) for one in y]
            return torch.from_numpy(np.stack(made).reshape(len(y), *self.shape))
        return torch.from_numpy(np.ascontiguousarray(y.transpose(0, 3, 1, 2)))

    @property
    def _is_npz(self) -> bool:
        return self.path.suffix.lower() == ".npz"

    @cached_property
    def _names(self) -> list[str]:
        """Of the arrays in it."""
        if not self._is_npz:
            return [IMAGES]
        try:
            with zipfile.ZipFile(self.path) as file:
                names = [name.removesuffix(".npy") for name in file.namelist()]
        except UNREADABLE as error:
            raise UserError(
                f"{self.path} is truncated or not an .npz: {one_line(error)}"
            ) from error
        if IMAGES not in names:
            raise UserError(
                f"{self.path} has no {IMAGES}, the images, only {', '.join(names) or 'nothing'}"
            )
        return names

    def _array(self, name: str) -> np.ndarray:
        try:
            if name not in self._names:
                raise ValueError(f"it has no {name}")
            if not self._is_npz:
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            with zipfile.ZipFile(self.path) as file:
                entry = file.getinfo(f"{name}.npy")
                if entry.compress_type == zipfile.ZIP_STORED:
                    return _mapped(self.path, file, entry)
                if entry.file_size > MOST_BYTES:
                    raise ValueError(f"{name} is inflated to {entry.file_size} bytes")
                with file.open(entry) as inside:
                    return np.lib.format.read_array(inside, allow_pickle=False)
        except (*UNREADABLE, MemoryError) as error:
            raise UserError(
                f"{self.path} is damaged or cannot be read: {one_line(error)}"
            ) from error

    def _say(self) -> None:
        """One line on standard error of what is not read, once, by the first rank."""
        if self.left_out and (self.path, self.left_out) not in _told and launched().rank == 0:
            _told.add((self.path, self.left_out))
            text = f"arrays that are not {IMAGES} or {LABELS} were left out: {self.left_out}"
            print(f"lightning_cfg: {self.path}: {text}", file=sys.stderr)


def _mapped(path: Path, file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array that lies in a zip as it is, left on the disk."""
    with file.open(entry) as inside:
        version = np.lib.format.read_magic(inside)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(inside)
        header = inside.tell()
    with open(path, "rb") as raw:
        raw.seek(entry.header_offset + 26)
        lengths = struct.unpack("<HH", raw.read(4))  # of the name and of what is beside it
    if dtype.hasobject:
        raise ValueError("it holds objects, which would have to be unpickled")
    start = entry.header_offset + 30 + sum(lengths) + header
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
