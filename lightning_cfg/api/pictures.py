"""Samples as pictures, which a notebook shows where they are the last line of a cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import framed, png_of, save
from lightning_cfg.reports.points import scatter, whole
from lightning_cfg.runs.pngs import drawable

Held = tuple[Tensor, Tensor]  # x (n, *shape), c (n,)


class Pictures:
    """A figure that a notebook shows.

    figure  of matplotlib
    """

    def __init__(self, figure: Any):
        self.figure = figure

    def _repr_png_(self) -> bytes:
        return png_of(self.figure)

    def save(self, path: str | Path) -> Path:
        """Write it to PATH.png and PATH.pdf; the PNG's path."""
        place = Path(path).with_suffix("")
        save(self.figure, place, colours=0)
        return place.with_suffix(".png")


def pictured(sets: Mapping[str, Held], columns: int) -> Pictures:
    """Images side by side, a row per class; points of the plane in the colours of their classes."""
    shapes = {tuple(x.shape[1:]) for x, _ in sets.values()}
    if len(shapes) != 1:
        raise UserError(f"pictures are of samples of one shape, not of {len(shapes)}")
    shape = shapes.pop()
    if drawable(shape):
        held = {title: (x.float().cpu(), c.cpu()) for title, (x, c) in sets.items()}
        classes = max(int(c.max()) for _, c in held.values()) + 1
        return Pictures(contact_sheet(held, classes, columns=columns))
    if shape != (2,):
        raise UserError(f"samples of shape {shape} have no picture: images and points of the plane")
    frame = whole(torch.cat([x.float().cpu() for x, _ in sets.values()]))
    classes = max(int(c.max()) for _, c in sets.values()) + 1
    with framed(1, len(sets), (2.4 * len(sets) + 0.2, 2.6)) as (figure, panels):
        for panel, (title, (x, c)) in zip(panels[0], sets.items(), strict=True):
            scatter(panel, x.float().cpu(), c.cpu(), frame, classes=classes)
            panel.set_title(title)
    return Pictures(figure)
