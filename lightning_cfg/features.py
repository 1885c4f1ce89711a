"""Feature spaces: x in [-1, 1] -> (B, d) float32, for neighbours and for Frechet distances."""

import torch
from torch import Tensor

from lightning_cfg import checkpoints
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Features

__all__ = ["classifier", "pixels"]  # what a config can name


def pixels() -> Features:
    """x itself, flattened: coordinates or raw pixels."""
    return lambda x: x.flatten(1).float()


def classifier(*, path: str) -> Features:
    """The penultimate layer of a trained classifier of clean samples.

    path  its run directory or checkpoint
    Raises UserError if its network has no such layer (`features`), or for x of another shape.
    """
    model = checkpoints.restore(path)
    if not hasattr(getattr(model, "net", None), "features"):
        raise UserError(f"{path}: its network has no `features`, as net ConvNet has")

    def extract(x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != model.shape:
            raise UserError(f"{path} reads shape {model.shape}, not {tuple(x.shape[1:])}")
        with torch.no_grad():
            return torch.cat([model.features(some).float() for some in x.split(512)])

    return extract
