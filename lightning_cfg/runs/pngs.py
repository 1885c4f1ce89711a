"""Samples as 8-bit PNGs, in a folder or a zip that other people's tools read."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write, write_folder

AsBytes = Callable[[Tensor], Tensor]  # samples as images of 8 bits, (n, 1 or 3, H, W)
THREADS = min(8, os.cpu_count() or 1)
ROWS = 256  # images that are in memory at once
IMAGES = {"folder": "samples/images", "zip": "samples/images.zip"}


def signed(y: Tensor) -> Tensor:
    """Bytes 0 ... 255 as float32 in [-1, 1]."""
    return y.float() / 127.5 - 1


def quantised(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes: x * 127.5 + 128, clipped to 0 ... 255 and cut (as EDM's are)."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


def drawable(shape: tuple[int, ...]) -> bool:
    """Whether these are grey or RGB images, (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def check_images(images: str | None, shape: tuple[int, ...]) -> None:
    """UserError where images are asked for of samples that are none."""
    if images is not None and not drawable(shape):
        raise UserError(
            f"images={images} needs samples that are grey or RGB images, of shape (1 or 3, H, W), "
            f"not {shape}: of latents `decode` makes images"
        )


def _png(y: Tensor) -> bytes:
    """The file of an image (1 or 3, H, W) uint8."""
    pixels, file = y.permute(1, 2, 0).squeeze(2).numpy(), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save_images(
    path: Path, *, x: Tensor, c: Tensor, seed: Tensor, labelled: bool, as_bytes: AsBytes = quantised
) -> Path:
    """Images as 8-bit PNGs, in the layout that EDM's dataset_tool.py and our ImageZip read.

    000000/000000.png and so on by seed, and dataset.json: {"labels": [[file, class], ...]}, or null
    if they are not `labelled`. x (N, 1 or 3, H, W) in [-1, 1] becomes x * 127.5 + 128, clipped to
    0 ... 255 and cut to integers. A zip if `path` ends in .zip, otherwise a folder.
    as_bytes  makes images of x otherwise, so many at a time: of latents
    """
    names = [f"{s - s % 1000:06d}/{s:06d}.png" for s in seed.tolist()]
    return _save(path, names, x, c if labelled else None, as_bytes)


def save_flat(
    path: Path, *, x: Tensor, c: Tensor, seed: Tensor, labelled: bool, as_bytes: AsBytes = quantised
) -> Path:
    """`save_images` without folders, 000000.png and so on, which torch-fidelity reads."""
    names = [f"{s:06d}.png" for s in seed.tolist()]
    return _save(path, names, x, c if labelled else None, as_bytes)


def _save(path: Path, names: list[str], x: Tensor, c: Tensor | None, as_bytes: AsBytes) -> Path:
    labels = None if c is None else list(zip(names, c.tolist(), strict=True))

    def contents() -> Iterator[tuple[str, bytes]]:
        with ThreadPoolExecutor(THREADS) as pool:  # compressing takes longer than all else
            for some in torch.arange(len(x)).split(ROWS):
                pngs = pool.map(_png, as_bytes(x[some]))
                yield from zip(names[some[0] : some[-1] + 1], pngs, strict=True)
        yield "dataset.json", json.dumps({"labels": labels}).encode()

    def packed(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as file:  # stored: a PNG is compressed
            for name, content in contents():
                file.writestr(zipfile.ZipInfo(name), content)  # no date: the same zip every time

    def loose(temporary: Path) -> None:
        for name, content in contents():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)

    return write(path, packed) if path.suffix == ".zip" else write_folder(path, loose)
