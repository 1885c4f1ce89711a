"""What runs have written of themselves, and whether their files are still as they wrote them."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.to_come import ToCome

MANIFEST, IDENTITY = "manifest.json", "identity.json"
KINDS = {  # of what these files hold, by key
    "format": int, "verb": str, "settings": dict, "inputs": dict, "free": dict, "outputs": dict,
    "seconds": (int, float), "step": int, "evaluations": dict, "packages": dict, "stages": list,
    "ended": dict,
}  # fmt: skip


def read_json(file: Path, kind: type = dict) -> Any:
    """What a json file of ours holds; UserError, in one line, where it is not whole or not ours."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        state = "empty" if file.stat().st_size == 0 else "cut off or damaged"
        raise UserError(f"{file} is {state}: it is no json") from None
    if not isinstance(content, kind) or (not content and kind is dict):
        held = "nothing" if content in ({}, None) else f"a {type(content).__name__}"
        raise UserError(f"{file} is damaged or not of ours: it holds {held}")
    return content


def read_record(file: Path, *needed: str) -> dict:
    """A manifest.json, identity.json or study.json that has these keys; UserError otherwise."""
    content = read_json(file)
    for key in needed:
        if key not in content:
            raise UserError(f"{file} is damaged or not of ours: it has no {key}")
    for key in content.keys() & KINDS.keys():
        wrong = not isinstance(content[key], KINDS[key])
        if wrong and not (content[key] is None and key not in needed):
            found = type(content[key]).__name__
            raise UserError(f"{file} is damaged or not of ours: its {key} is a {found}")
    return content


def read_manifest(directory: Path, *needed: str) -> dict:
    """The manifest of a finished run, with these keys; empty where there is none."""
    file = directory / MANIFEST
    return read_record(file, *needed) if file.is_file() else {}


def trained(manifest: dict, max_steps: int | None) -> bool:
    """Whether a training has all its steps, or as many as a callback wanted it to have of them."""
    ended = manifest.get("ended") or {}
    return manifest.get("step") == max_steps or ended.get("of", -1) == max_steps


def read_table(file: Path) -> list[dict]:
    """The rows of a table that a run has written; UserError where they are not as it wrote them."""
    content_hash(file)
    rows = read_json(file, list)
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is damaged or not of ours: it holds no rows")
    return rows


@contextmanager
def as_written(file: Path) -> Iterator[None]:
    """UserError in place of what a value of another kind, in a file of ours, would raise."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{file} is damaged or not of ours ({said})") from error


def fault_of(directory: Path) -> str:
    """Which file of a finished run is not as it was written, in words; "" where all are."""
    for name, digest in read_manifest(directory, "outputs").get("outputs", {}).items():
        file = directory / name
        if not file.exists():
            return f"{name} is missing"
        if hash_of(file) != digest:
            return f"{name} is damaged, or was changed: {MANIFEST} has another hash"
    return ""


def content_hash(path: Path | ToCome) -> str:
    """The hash of a file's or folder's content; of a file that has not changed it is remembered.

    Raises UserError where it lies in the directory of a run whose manifest has another hash of it.
    """
    if isinstance(path, ToCome):
        return ""  # there is none yet
    digest, known = hash_of(path), written_hash(path)
    if known not in (None, digest):
        raise UserError(
            f"{path} is damaged, or was changed: it is not as its run wrote it, by the hash in "
            f"{MANIFEST}; make it again (force=true), or bring back a whole copy"
        )
    return digest


def written_hash(path: Path) -> str | None:
    """The hash of a file of a run's, by the manifest of the run; None where none names it."""
    path = Path(path).absolute()
    if len(path.parents) < 2:
        return None
    run = path.parents[1]  # where all outputs lie in a folder each, see `names`
    return _outputs(run).get(path.relative_to(run).as_posix())


def hash_of(path: Path) -> str:
    """`content_hash`, compared with nothing."""
    if path.is_dir():
        return sha256(path)
    facts = path.stat()
    return _hash_of(path.absolute(), facts.st_size, facts.st_mtime_ns, facts.st_ino)


@functools.lru_cache(maxsize=1024)
def _hash_of(path: Path, *facts: int) -> str:
    return sha256(path)


def _outputs(run: Path) -> dict[str, str]:
    """The hashes in the manifest of a run; none where it is no directory of ours."""
    if not (run / IDENTITY).is_file():  # somebody's manifest.json, or a copy of a part
        try:
            return read_manifest(run).get("outputs", {})
        except UserError:
            return {}
    return read_manifest(run, "outputs").get("outputs", {})
