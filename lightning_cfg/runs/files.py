"""Files that are whole or not there: written to a temporary name, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import UserError


def write(path: str | Path, save: Callable[[Path], object]) -> Path:
    """save(temporary path), then rename it to `path`: a cut-off write leaves no half a file.

    Raises UserError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} could not be written: {error}") from error
    finally:
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
        raise UserError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """A text file, whole or not at all."""
    return write(path, lambda temporary: temporary.write_text(text))


def save_tensors(path: str | Path, /, **tensors: Tensor) -> Path:
    """A safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write(path, lambda temporary: save_file(tensors, temporary))


def load_tensors(
    path: str | Path, *names: str, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, and those optional ones that it has.

    Raises UserError if it is missing, truncated, lacks one of them, or holds NaN or infinity.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            have = set(file.keys())
            missing = [name for name in names if name not in have]
            if missing:
                raise UserError(f"{path} has no {missing[0]!r}; it holds {', '.join(sorted(have))}")
            found = [*names, *(name for name in optional if name in have)]
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = (~tensor.reshape(len(tensor), -1).isfinite().all(1)).nonzero().flatten()
            raise UserError(
                f"{path}: {name} holds NaN or infinity in {len(bad)} of {len(tensor)} rows, "
                f"first in row {int(bad[0])}"
            )
    return tensors


def load_samples(path: str | Path, shape: tuple[int, ...], num_classes: int) -> dict[str, Tensor]:
    """A sample file: x (N, *shape), c (N,) and seed (N,).

    num_classes 0 is data without classes, whose c are 0. Raises UserError as `load_tensors` does,
    and if it is empty or its shapes or classes are others.
    """
    samples = load_tensors(path, "x", "c", "seed")
    x, c = samples["x"], samples["c"]
    if tuple(x.shape[1:]) != tuple(shape):
        raise UserError(
            f"{path} holds samples of shape {tuple(x.shape[1:])}, not {tuple(shape)} as here"
        )
    for name in ("c", "seed"):
        if samples[name].shape != (len(x),):
            had = tuple(samples[name].shape)
            raise UserError(f"{path}: {name} has shape {had}, not ({len(x)},), one per sample")
    if len(x) == 0:
        raise UserError(f"{path} holds no sample")
    last = max(1, num_classes) - 1
    if not 0 <= int(c.min()) <= int(c.max()) <= last:
        raise UserError(
            f"{path} holds classes {int(c.min())} ... {int(c.max())}, "
            f"only 0 ... {last} are known here"
        )
    return samples


def output_of(path: str | Path, inside: str) -> Path:
    """The file that is meant: itself, or the one at `inside` in a run directory.

    Raises UserError if there is none.
    """
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
    """Every file under a folder but hidden ones, as sorted names relative to it with slashes."""
    found = [
        Path(place, name).relative_to(folder)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
    ]
    return sorted(
        file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts)
    )


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """The content hash of named tensors, on any device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
