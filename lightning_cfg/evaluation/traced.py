"""Trajectories measured against a classifier: rows of tables, class by class."""

import torch
from torch import Tensor

from lightning_cfg.diffusion.trajectories import (
    Along,
    along,
    closest,
    over_time,
    straightness,
    time_of,
)
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Classifier, Known

Rows = list[dict]


def traced(
    reader: Classifier,
    path: Tensor,
    sigma: Tensor,
    c: Tensor,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Rows, Rows, Rows]:
    """Rows of each class; of each class and noise level; and of every zero of the margin.

    path (n, levels, *shape), sigma (levels,) falling to 0, c (n,). What is in them is told by the
    verb `trace`.
    """
    rows, curves, boundaries = [], [], []
    sigma = sigma.to(device)
    for k in c.unique().tolist():
        own, front = path[c == k].to(device), {"class": k}
        seen = along(reader, own, sigma, k)
        rows.append({**front, "n": len(own), **_summary(own, sigma, seen)})
        curves += [front | row for row in _curve(sigma, seen)]
        levels = zip(sigma.tolist(), time_of(sigma).tolist(), seen.zeros, strict=False)
        boundaries += [
            {**front, "sigma": s, "t": t, "u": u} for s, t, zeros in levels for u in zeros.tolist()
        ]
    return rows, curves, boundaries


def _summary(path: Tensor, sigma: Tensor, seen: Along) -> dict[str, float | None]:
    wrong = (seen.margin < 0).double()
    return {
        "straightness": straightness(path, sigma).mean().item(),
        "closest": _number(closest(seen.distance, sigma).nanmean()),
        "distance": _number(over_time(seen.distance, sigma).nanmean()),
        "wrong_time": over_time(wrong, sigma).mean().item(),
        "wrong_end": wrong[:, -1].mean().item(),
        "confidence": seen.confidence[:, -1].mean().item(),
    }


def _curve(sigma: Tensor, seen: Along) -> list[dict[str, float | None]]:
    quantiles = seen.distance.nanquantile(seen.distance.new_tensor([0.1, 0.5, 0.9]), 0)
    columns = {
        "sigma": sigma.double(),
        "t": time_of(sigma),
        "distance": seen.distance.nanmean(0),
        "distance_10": quantiles[0],
        "distance_50": quantiles[1],
        "distance_90": quantiles[2],
        "wrong": (seen.margin < 0).double().mean(0),
        "confidence": seen.confidence.mean(0),
    }
    return [
        {name: _number(column[i]) for name, column in columns.items()} for i in range(len(sigma))
    ]


def _number(value: Tensor) -> float | None:
    """None where no trajectory meets a boundary: JSON has no NaN."""
    return None if value.isnan() else value.item()


def check_noisy(name: str, reader: Classifier) -> None:
    """UserError for a classifier that was trained on clean samples."""
    if Known(reader).clean:
        raise UserError(f"{name} reads finished samples only (model.clean), not noisy ones")


def check_fits(
    file: str, name: str, reader: Classifier, path: Tensor, sigma: Tensor, c: Tensor
) -> None:
    """UserError unless these are trajectories that the classifier can read.

    file, name  what both are called
    """
    known = Known(reader)
    if path.ndim < 3 or sigma.shape != path.shape[1:2] or c.shape != path.shape[:1]:
        raise UserError(
            f"{file}: path {tuple(path.shape)}, sigma {tuple(sigma.shape)} and c {tuple(c.shape)} "
            "are not (n, levels, *shape), (levels,) and (n,)"
        )
    if not (sigma.diff() < 0).all() or sigma[-1] != 0:
        raise UserError(f"{file}: sigma does not fall to 0")
    if len(path) < 1 or len(sigma) < 2:
        raise UserError(f"{file} holds {len(path)} trajectories of {len(sigma)} noise levels")
    if known.num_classes is not None and known.num_classes < 2:
        raise UserError(f"{name} knows one class only, so it has no boundary")
    if known.shape is not None and tuple(path.shape[2:]) != tuple(known.shape):
        raise UserError(
            f"{file} holds trajectories of shape {tuple(path.shape[2:])}, but {name} "
            f"reads {tuple(known.shape)}"
        )
    last = int(c.max()) if known.num_classes is None else known.num_classes - 1
    if not 0 <= int(c.min()) <= int(c.max()) <= last:
        raise UserError(
            f"{file} holds classes {int(c.min())} ... {int(c.max())}, {name} knows 0 ... {last}"
        )
