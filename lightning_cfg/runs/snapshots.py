"""Averages that a training has kept along its way, and any other average made of them afterwards.

A snapshot lies beside the checkpoints and holds the averages by a power of time (`ema_std`) of one
step in float32: what is made of them has coefficients of up to 2 of both signs, and weights may be
below what float16 tells apart. A checkpoint knows the snapshots before it by their hashes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.manifests import content_hash
from lightning_cfg.runs.power_ema import solved
from lightning_cfg.runs.ranks import launched
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.runs.to_come import ToCome

FEW = 4  # so many times at least
MISSED = 0.1  # of the profile, from where on a line says so; errors were of the same size
ILL = 1e10  # the condition number from which on coefficients are of rounding


def place(folder: Path, step: int) -> Path:
    """The file of a step, in the folder of the checkpoints."""
    return folder / f"snapshot_{step:07d}.safetensors"


def save(folder: Path, step: int, averages: dict) -> str:
    """Write the averages {std: {name: tensor}} of a step; half-lives among them are left out.

    The file's hash.
    """
    held = {
        f"{std!r}/{name}": tensor.float()
        for std, tensors in averages.items()
        if isinstance(std, float)
        for name, tensor in tensors.items()
    }
    return sha256(save_tensors(place(folder, step), **held))


def average_of(
    path: Path, checkpoint: dict, std: float, step: int | None = None
) -> tuple[dict[str, Tensor], int]:
    """The average of relative width std, by name, at a snapshot's step, and that step.

    path  of the checkpoint, which is read already
    step  left out, the last snapshot's, or where this very average was followed the checkpoint's
    Where it was not followed itself it is made of the snapshots up to there (`power_ema.solved`),
    and a line warns where those are few or too far apart. UserError where there are none.
    """
    now, followed = checkpoint["global_step"], checkpoint["ema"]
    if std in followed and step in (None, now):
        return followed[std], now
    kept = checkpoint.get("snapshots") or {}
    stds = [key for key in followed if isinstance(key, float)]
    if not kept or not stds:
        raise UserError(
            f"{path} knows no snapshots, of which an average of std {std:g} would be made: a `fit` "
            "with learner.ema_std and snapshots, steps between them, keeps some"
        )
    step = max(kept) if step is None else step
    if step not in kept:
        have = ", ".join(map(str, sorted(kept)))
        raise UserError(f"{path} has no snapshot of step {step}; it has those of {have}")
    if isinstance(path, ToCome):
        return followed[stds[0]], step
    used = sorted(n for n in kept if n <= step)
    times, widths = np.repeat(used, len(stds)), np.tile(stds, len(used))
    shares, missed, condition = solved(times, widths, step, std)
    _warn(path, std, used, stds, missed, condition)
    found: dict[str, Tensor] = {}
    for n, own in zip(used, shares.reshape(len(used), len(stds)).tolist(), strict=True):
        _add(found, _read(path, n, kept[n]), followed[stds[0]], dict(zip(stds, own, strict=True)))
    return found, step


def _read(path: Path, step: int, digest: str) -> Path:
    """The file of a snapshot; UserError where it is not there or not as it was written."""
    file = place(path.parent, step)
    if not file.is_file():
        raise UserError(f"{file} is missing, which an average is to be made of (moved away?)")
    if content_hash(file) != digest:
        raise UserError(f"{file} is damaged, or was changed: {path} has another hash")
    return file


def _add(
    found: dict[str, Tensor], file: Path, names: dict[str, Tensor], shares: dict[float, float]
) -> None:
    """Add what a snapshot's averages give, in float32."""
    held = load_tensors(file, *(f"{std!r}/{name}" for std in shares for name in names))
    for std, share in shares.items():
        for name, tensor in names.items():
            part = held[f"{std!r}/{name}"]
            if part.shape != tensor.shape:
                raise UserError(
                    f"{file}: {name} has shape {tuple(part.shape)}, not {tuple(tensor.shape)}"
                )
            total = found.setdefault(name, torch.zeros_like(part))
            total.add_(part, alpha=share)


def _warn(
    path: Path, std: float, used: list[int], stds: list[float], missed: float, condition: float
) -> None:
    """A line where the average is not what was asked for."""
    if (len(used) >= FEW and missed <= MISSED and condition <= ILL) or launched().rank != 0:
        return
    apart = max(b - a for a, b in zip([0, *used], used, strict=False))
    also = ", ".join(f"{own:g}" for own in stds)
    print(
        f"lightning_cfg: {path}: an average of std {std:g} made of {len(used)} snapshots, up to "
        f"{apart} steps apart, misses {missed:.0%} of it (condition number {condition:.0f}): keep "
        f"more of them (fit snapshots), or ask for a std nearer to {also}",
        file=sys.stderr,
    )
