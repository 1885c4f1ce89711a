"""Samples and trajectories for a study's page: points as integers of 16 bits, images as PNGs."""

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.diffusion.trajectories import scaled, time_of
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.nearest import Shown, classes_shown, first_of_each, shown
from lightning_cfg.reports.points import whole
from lightning_cfg.reports.rows import Cell
from lightning_cfg.runs.names import TRAJECTORIES
from lightning_cfg.runs.pngs import quantised
from lightning_cfg.runs.tensors import load_tensors

MOST_POINTS = 500  # of a set
MOST_PATHS = 60
MOST_LEVELS = 48
WIDE = 64  # pixels of an image, at most
OUTSIDE = -32768  # in the place of a coordinate beyond the frame
STEPS = 32767  # from the middle of the frame to its edge


def samples_of(case: Case, config: dict, room: int) -> dict[str, Any] | None:
    """Samples of every set, in about `room` bytes; None of data that no page can show."""
    shape = tuple(case.data_set.shape)
    if shape in ((1,), (2,)):
        return _points(case, shape[0], room)
    images = shown(case, config)
    return _images(images, room) if images else None


def _points(case: Case, dimension: int, room: int) -> dict[str, Any] | None:
    """The same seeds of each set, as many of each class, in one frame."""
    if not case.sets:
        return None
    most = min(MOST_POINTS, max(20, room // (3 * dimension * (len(case.sets) + 1))))
    each = max(1, most // max(1, case.data_set.num_classes))
    held, entries, own = {}, {}, classes_shown(case.data_set)
    for cell, file in case.sets.items():
        found = load_tensors(file, "x", "c")
        rows = first_of_each(found["c"], own, each)
        held[cell] = found["x"][rows].reshape(len(rows), -1), found["c"][rows]
    real = None
    if case.data_set.has_points:
        y, c = case.data_set.real("held_out")
        rows = first_of_each(c, own, each)
        real = y[rows].reshape(len(rows), -1), c[rows]
    low, high = _frame([x for x, _ in (*held.values(), *([real] if real else []))])
    for cell, (x, c) in held.items():
        entry = entries.setdefault((cell.method, cell.scale), _entry(cell, c))
        entry["sets"][cell.flow] = packed(x, low, high)
    return {
        "kind": "points",
        "dimension": dimension,
        "low": low.tolist(),
        "high": high.tolist(),
        "real": None if real is None else {"x": packed(real[0], low, high), "c": real[1].tolist()},
        "entries": list(entries.values()),
    }


def _entry(cell: Cell, c: Tensor) -> dict[str, Any]:
    return {"method": cell.method, "scale": cell.scale, "c": c.tolist(), "sets": {}}


def _frame(some: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Of each coordinate, the ends of nearly all; of a plane a square, as `points.whole` has it."""
    x = torch.cat(some).double()
    ends = torch.quantile(x, torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    if x.shape[1] == 2:
        left, right, bottom, top = whole(ends)
        return np.array([left, bottom]), np.array([right, top])
    margin = 0.05 * (ends[1] - ends[0]).clamp(min=1e-6)
    return (ends[0] - margin).numpy(), (ends[1] + margin).numpy()


def packed(x: Tensor, low: np.ndarray, high: np.ndarray) -> str:
    """Coordinates (..., d) as 16 bits each, little-endian, in base64; those beyond are OUTSIDE."""
    place = (2 * x.double().numpy() - (low + high)) / (high - low)  # -1 ... 1
    steps = np.where(np.abs(place) <= 1, np.round(place * STEPS), OUTSIDE)
    return base64.b64encode(steps.astype("<i2").tobytes()).decode()


def _images(images: dict[Cell, Shown], room: int) -> dict[str, Any] | None:
    """A sheet for each set and one of its nearest real images: fewer where room lacks."""
    for per_class in (6, 4, 2, 1):
        entries = _sheets(images, per_class)
        if _length(entries) <= room:
            break
    while entries and _length(entries) > room:
        entries.pop()  # of the last methods; the page says what it does not have
    first = next(iter(images.values())).x
    height, width = first.shape[-2:]
    shrunk = max(1, -(-max(height, width) // WIDE))
    size = {"width": -(-width // shrunk), "height": -(-height // shrunk)}
    return {"kind": "images", **size, "entries": entries}


def _sheets(images: dict[Cell, Shown], per_class: int) -> list[dict[str, Any]]:
    entries: dict[tuple, dict[str, Any]] = {}
    for cell, some in images.items():
        rows = first_of_each(some.c, some.c.unique().tolist(), per_class)
        entry = entries.setdefault((cell.method, cell.scale), _entry(cell, some.c[rows]))
        entry["sets"][cell.flow] = sheet(some.x[rows])
        if some.nearest is not None:
            entry.setdefault("nearest", {})[cell.flow] = sheet(some.nearest[rows])
    return list(entries.values())


def sheet(x: Tensor) -> str:
    """Images (n, C, H, W) in [-1, 1] side by side in one PNG, as an address; each at most WIDE."""
    shrunk = max(1, -(-max(x.shape[-2:]) // WIDE))
    if shrunk > 1:
        x = torch.nn.functional.avg_pool2d(x.float(), shrunk, ceil_mode=True)
    row = torch.cat(list(quantised(x)), 2)  # (C, H, n W)
    file = io.BytesIO()
    Image.fromarray(row.permute(1, 2, 0).squeeze(2).numpy()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _length(entries: list[dict[str, Any]]) -> int:
    return sum(
        len(text) for entry in entries for key in ("sets", "nearest")
        for text in entry.get(key, {}).values()
    )  # fmt: skip


def trajectories_of(case: Case, room: int) -> dict[str, Any] | None:
    """Trajectories in one and two dimensions, in u over noise level, in about `room` bytes."""
    files = {}
    for cell, file in case.sets.items():
        beside = file.parent.parent / TRAJECTORIES  # of the same run
        if cell.stage == "before" and beside.is_file():
            files[cell.method, cell.scale] = beside
    dimension = int(np.prod(case.data_set.shape))
    if not files or dimension > 2:
        return None
    paths = max(4, min(MOST_PATHS, room // (len(files) * MOST_LEVELS * dimension * 3)))
    each, held = max(1, paths // max(1, case.data_set.num_classes)), {}
    own = classes_shown(case.data_set)
    for key, file in files.items():
        found = load_tensors(file, "path", "sigma", "c")
        rows = first_of_each(found["c"], own, each)
        levels = torch.linspace(0, len(found["sigma"]) - 1, min(MOST_LEVELS, len(found["sigma"])))
        levels = levels.round().long()
        sigma = found["sigma"][levels]
        held[key] = scaled(found["path"][rows][:, levels], sigma), sigma, found["c"][rows]
    low, high = _frame([u.flatten(0, 1) for u, _, _ in held.values()])
    entries = []
    for (method, scale), (u, sigma, c) in held.items():
        entry = {"method": method, "scale": scale, "c": c.tolist(), "u": packed(u, low, high)}
        entry["sigma"] = [float(f"{s:.4g}") for s in sigma.tolist()]
        entry["t"] = [float(f"{t:.4g}") for t in time_of(sigma).tolist()]
        entries.append(entry | _boundary(case, method, scale))
    return {
        "dimension": dimension,
        "low": low.tolist(),
        "high": high.tolist(),
        "entries": entries,
    }


def _boundary(case: Case, method: str, scale: float) -> dict[str, Any]:
    """In one dimension: t/T and u of the boundary of the classifier by which it is measured."""
    one = case.traced.get((method, scale))
    if one is None or not one.boundaries:
        return {}
    zeros = [
        [float(f"{row['t']:.4g}"), float(f"{row['u']:.4g}")]
        for row in one.boundaries
        if row["classifier"] == one.guide
    ]
    return {"boundary": [list(zero) for zero in dict.fromkeys(map(tuple, zeros))], "by": one.guide}
