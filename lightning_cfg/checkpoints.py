"""Checkpoints: written whole or not at all, and restored from the config inside."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from lightning_cfg.config import build
from lightning_cfg.errors import UserError
from lightning_cfg.files import output_of, write

LAST = "checkpoints/last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, by a temporary name beside the final one and a rename.

    Lightning's own goes through the system's temporary folder, from where a rename is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        write(path, lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict, path: Path) -> None:
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error


def load(path: str | Path) -> dict:
    """The content of a checkpoint of ours, by its own path or its run directory's.

    Raises UserError if there is none, or it is truncated or somebody else's.
    """
    path = output_of(path, LAST)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is truncated or not a checkpoint of ours: {reason}") from error
    if not isinstance(checkpoint, dict) or "config" not in checkpoint or "ema" not in checkpoint:
        raise UserError(f"{path} is a checkpoint, but not one that `fit` here has written")
    return checkpoint


def build_model(config: dict, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model of a run's config, untrained."""
    net = build("lightning_cfg.nets", config["net"], shape, num_classes)
    return build("lightning_cfg.models", config["model"], net)


def restore(path: str | Path, *, weights: str | int = "ema") -> nn.Module:
    """The model of a checkpoint, frozen, in evaluation mode, with `.shape` and `.num_classes`.

    weights  "ema": the average of the first half-life; a number: that of this half-life in
             images; "raw": no average
    Raises UserError if the file is not ours, does not fit its own config or lacks the average.
    """
    checkpoint = load(path)
    shape = tuple(checkpoint["shape"])
    model = build_model(checkpoint["config"], shape, checkpoint["num_classes"])
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    averages = checkpoint["ema"]
    if weights != "raw":
        half_life = next(iter(averages)) if weights == "ema" else weights
        if half_life not in averages:
            have = ", ".join(map(str, averages))
            raise UserError(f"{path} has no average of half-life {weights}; it has {have}, or raw")
        state.update(averages[half_life])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} does not fit the network of its config: {reason}") from error
    model.shape, model.num_classes = shape, checkpoint["num_classes"]
    return model.eval().requires_grad_(False)
