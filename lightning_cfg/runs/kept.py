"""What is kept between runs, in the user's cache: files that end with the hash of the rest."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import TEMPORARY, write

FORGOTTEN = 86_400.0  # seconds after which a half written file is no process's any more


def cache_folder() -> Path:
    """Where reference statistics are kept: $LIGHTNING_CFG_CACHE, otherwise in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    chosen = Path(os.environ.get("LIGHTNING_CFG_CACHE") or home / "lightning_cfg/statistics")
    return chosen.expanduser()


def seal(path: Path) -> None:
    """Append the hash of a file's content, 32 bytes, which numpy does not mind."""
    digest = hashlib.sha256(np.memmap(path, np.uint8, "r").data).digest()
    with open(path, "ab") as file:
        file.write(digest)


def check_sealed(path: Path) -> None:
    """UserError for a file that is not as it was when it was sealed."""
    content = np.memmap(path, np.uint8, "r")
    if hashlib.sha256(content[:-32].data).digest() != content[-32:].tobytes():
        raise UserError(f"{path} is damaged, or of an older version: its hash is another")


def read_rows(path: Path, *, mapped: bool = False) -> Tensor:
    """The array of a sealed .npy, in memory or mapped; UserError or ValueError if it is damaged."""
    check_sealed(path)  # "c": torch wants what could be written, and nothing of it reaches the file
    return torch.from_numpy(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))


def write_rows(path: Path, shape: tuple[int, int], blocks: Iterable[Tensor]) -> None:
    """A sealed .npy (n, d) float32 of rows that come in blocks, all of which are taken.

    UserError, from an OSError, where it cannot be written, only after the last one: other ranks
    share in making them.
    """

    def save(temporary: Path) -> None:
        trouble = None
        with open(temporary, "wb") as file:
            about = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, about)
            for block in blocks:
                try:
                    if trouble is None:
                        file.write(block.contiguous().numpy().data)
                except OSError as error:
                    trouble = error
        if trouble is not None:
            raise trouble
        seal(temporary)

    write(path, save)


def check_keeps(path: Path, size: int) -> Path:
    """An empty file beside it, by which others know whether they see what will be written.

    UserError, from an OSError, where a file of so many bytes can be seen not to be written.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget(folder)
        probe = folder / f".{path.name}.{os.getpid()}.tmp"
        probe.write_bytes(b"")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error
    if size > 0.9 * free:
        probe.unlink(missing_ok=True)
        full = OSError(f"{size / 2**30:.2g} GiB of {free / 2**30:.2g} that are free")
        raise UserError(f"{path} would take {full}") from full
    return probe


def _forget(folder: Path) -> None:
    """Remove what killed processes have left half written, a day ago or longer."""
    for file in folder.iterdir():
        with suppress(OSError):  # another process removes it too
            if TEMPORARY.fullmatch(file.name) and file.stat().st_mtime < time.time() - FORGOTTEN:
                file.unlink()
