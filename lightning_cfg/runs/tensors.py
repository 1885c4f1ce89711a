"""Named tensors in files, with every mistake in them told in one line."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write
from lightning_cfg.runs.to_come import ToCome


def save_tensors(path: str | Path, /, **tensors: Tensor) -> Path:
    """A safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    return write(path, save)


def load_tensors(
    path: str | Path, *names: str, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, and those optional ones that it has.

    Raises UserError if it is missing, truncated, lacks one of them, or holds NaN or infinity.
    """
    if isinstance(path, ToCome):
        return {n: path.content[n] for n in (*names, *optional) if n in path.content}
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


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """The content hash of named tensors, on any device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
