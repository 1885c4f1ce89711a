"""Files that are whole or not there: written to a temporary name, then renamed.

Imports nothing heavy; tensors in files are in `tensors`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from lightning_cfg.errors import NotWritten, UserError
from lightning_cfg.runs.to_come import ToCome

LOCK = ".lock"  # of `lock`, in a directory that somebody writes
PARTS = ".parts"  # of `parts`, what an unfinished run has made
TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.[^.]+)?")  # as `write` and `write_folder` name them


def write(path: str | Path, save: Callable[[Path], object]) -> Path:
    """save(temporary path), then rename it to `path`: a cut-off write leaves no half a file.

    Raises NotWritten when the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"{path} could not be written: {error}") from error
    finally:
        with suppress(OSError):  # of the place itself, which has been told
            temporary.unlink(missing_ok=True)
    return path


def write_folder(path: str | Path, save: Callable[[Path], object]) -> Path:
    """`write` for a folder, which replaces the one that was there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
    try:
        temporary.mkdir(parents=True)
        save(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """A text file, whole or not at all."""
    return write(path, lambda temporary: temporary.write_text(text))


def is_empty(directory: Path) -> bool:
    """Whether a folder holds nothing but what a process of ours leaves that is killed at once.

    That is a lock, parts, temporary files, and folders of such.
    """
    try:
        inside = list(directory.iterdir())
    except FileNotFoundError:  # its owner has just removed it
        return True
    return all(
        _is_ours(path.name) or (path.is_dir() and not path.is_symlink() and is_empty(path))
        for path in inside
    )


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the innermost one above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def remove_temporaries(directory: Path) -> None:
    """Remove what killed processes have left half written in a directory that is one's own.

    Not in the directories of other runs, as a study's has.
    """
    for place, folders, names in os.walk(directory):
        here = Path(place)
        for name in filter(TEMPORARY.fullmatch, [*folders, *names]):
            path = here / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        folders[:] = [
            name for name in folders if not TEMPORARY.fullmatch(name) and not _of_a_run(here / name)
        ]


def _is_ours(name: str) -> bool:
    return name in (LOCK, PARTS) or TEMPORARY.fullmatch(name) is not None


def _of_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LOCK, "identity.json"))


def output_of(path: str | Path, inside: str) -> Path:
    """The file that is meant: itself, or the one at `inside` in a run directory.

    Raises UserError if there is none.
    """
    if isinstance(path, ToCome):
        return cast(Path, path.inside(inside))
    path = Path(path)
    file = path / inside if path.is_dir() else path
    if not file.is_file():
        what = f"{path} holds no {inside}" if path.is_dir() else f"{path}: no such file"
        raise UserError(f"{what} (a run that has not finished, or of another verb?)")
    return file


def sha256(path: str | Path) -> str:
    """The content hash of a file; of a folder, that of its files' names and contents."""
    if Path(path).is_dir():
        files = {name: sha256(Path(path, name)) for name in listing(path)}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: str | Path) -> list[str]:
    """Every file under a folder but hidden ones, as sorted names relative to it with slashes.

    Links are followed, but a file counts once, however many links lead to it or to a folder above
    it: by its own name, or else by the first. UserError for what is neither file nor folder, such
    as a pipe or a link to nothing, and for a folder that cannot be read.
    """
    top, names, seen = Path(folder), {}, set()  # names by where the files really lie
    links = [""]
    while links:  # what lies here itself comes first, then what links lead to
        further: list[str] = []
        for link in links:
            _follow(top, link, names, seen, further)
        links = sorted(further)
    return sorted(names.values())


def _follow(top: Path, name: str, names: dict[str, str], seen: set[str], links: list[str]) -> None:
    """Note the file of this name, or all files below it, and the links among them for later."""
    real = os.path.realpath(top / name)
    if os.path.isfile(real):
        names.setdefault(real, name)
        return
    if not os.path.isdir(real):
        raise UserError(
            f"{top}: {name} is neither a file nor a folder (a pipe, or a link to nothing?)"
        )
    if real in seen:
        return
    seen.add(real)
    try:
        entries = [entry for entry in os.scandir(real) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{top / name} cannot be read: {error.strerror}") from error
    for entry in entries:
        below = f"{name}/{entry.name}" if name else entry.name
        if entry.is_symlink():
            links.append(below)
        elif entry.is_file():
            names.setdefault(entry.path, below)
        else:
            _follow(top, below, names, seen, links)
