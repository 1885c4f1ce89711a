"""Samples as 8-bit PNGs, in a folder or a zip that other people's tools read."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write, write_folder

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
            f"not {shape}"
        )


def save_images(path: Path, *, x: Tensor, c: Tensor, seed: Tensor, labelled: bool) -> Path:
    """Images as 8-bit PNGs, in the layout that EDM's dataset_tool.py and our ImageZip read.

    000000/000000.png and so on by seed, and dataset.json: {"labels": [[file, class], ...]}, or null
    if they are not `labelled`. x (N, 1 or 3, H, W) in [-1, 1] becomes x * 127.5 + 128, clipped to
    0 ... 255 and cut to integers. A zip if `path` ends in .zip, otherwise a folder.
    """
    y = quantised(x)
    y = y.permute(0, 2, 3, 1).numpy() if x.shape[1] == 3 else y[:, 0].numpy()
    names = [f"{s - s % 1000:06d}/{s:06d}.png" for s in seed.tolist()]
    labels = list(zip(names, c.tolist(), strict=True)) if labelled else None

    def contents() -> Iterator[tuple[str, bytes]]:
        for name, pixels in zip(names, y, strict=True):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            yield name, png.getvalue()
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
