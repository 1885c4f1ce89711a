"""Images side by side, a row per class."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.reports.case import Case
from lightning_cfg.reports.names import of_methods
from lightning_cfg.reports.nearest import PER_CLASS, Shown, classes_shown, shown
from lightning_cfg.reports.panels import DPI, STYLE, WIDEST, Drawn, without_tex
from lightning_cfg.reports.rows import SAMPLE_KINDS, Cell

COLUMNS = PER_CLASS
LEFT, TOP, GAP = 20, 20, 12  # pixels: class numbers, titles, between sheets
LETTER, LETTERS = 7, 24  # pixels of one, at most so many of a class's name


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """A sheet for every method and scale of a study: before, after, and the nearest real images."""
    data, called = case.data_set, of_methods(config)
    own = classes_shown(data)
    names = data.class_names and [data.class_names[k] for k in own]
    row = torch.zeros(max(1, data.num_classes), dtype=torch.long)
    row[own] = torch.arange(len(own))
    classes = min(len(own), data.num_classes)
    for (method, scale), sets in beside(shown(case, config)).items():
        groups, last = {}, None
        for kind, title in SAMPLE_KINDS.items():
            if kind in sets:
                last = sets[kind]
                groups[title] = last.x, row[last.c]
        if last is None:
            continue
        refined = len(groups) > 1
        groups = groups if refined else {"samples": next(iter(groups.values()))}
        what = "the same seeds before and after refinement" if refined else "samples"
        if last.nearest is not None:
            groups["the nearest real image"] = last.nearest, row[last.c]
            what += ", and the real images that are nearest"
            what += " to those after it in |x - y|" if refined else " to them in |x - y|"
        caption = f"{called[method]}, scale {scale:g}: {what}; a row per class."
        shape = last.x.shape
        columns = fitting(len(groups), shape[-2], shape[-1])
        figure = contact_sheet(groups, classes, columns=columns, names=names)
        colours = 32 if shape[1] == 1 else 0
        yield Drawn(f"images_{method}_{scale:g}", caption, figure, colours, appendix=True)


def beside(images: dict[Cell, Shown]) -> dict[tuple, dict[tuple, Shown]]:
    """{(method, scale): {(stage, flow): images}}."""
    out: dict[tuple, dict[tuple, Shown]] = {}
    for cell, some in images.items():
        out.setdefault((cell.method, cell.scale), {})[cell.kind] = some
    return out


def fitting(sheets: int, height: int, width: int) -> int:
    """Columns with which so many sheets beside each other are no wider than a page."""
    room = WIDEST * DPI - LETTER * (LETTERS + 1)
    columns = int((room / sheets - GAP) // (_zoom(height) * (width + 1)))
    return max(1, min(COLUMNS, columns))


def contact_sheet(
    groups: dict[str, tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    columns: int = COLUMNS,
    names: list[str] | None = None,
) -> Any:
    """Images in [-1, 1] side by side, {title: (x (N, C, H, W), c (N,))}; a row per class, by name.

    The first 10 classes; of fewer than 2 classes, rows that are filled in order, 10 at most.
    """
    import matplotlib
    from matplotlib.figure import Figure

    of_classes = num_classes > 1
    if not of_classes:
        groups = {title: (x, torch.arange(len(x)) // columns) for title, (x, _) in groups.items()}
        num_classes = -(-max(len(x) for x, _ in groups.values()) // columns)
    rows = min(num_classes, 10)
    sheets = {title: _sheet(x, c, rows, columns) for title, (x, c) in groups.items()}
    height, width = next(iter(sheets.values())).shape[:2]
    zoom = _zoom(height // rows - 1)
    beside = _beside(rows, names)
    left = max(LEFT, LETTER * (1 + max(map(len, beside)))) if of_classes else LEFT
    size = left + len(sheets) * (zoom * width + GAP), TOP + zoom * height
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
        for i, (title, sheet) in enumerate(sheets.items()):
            x0 = left + i * (zoom * width + GAP)
            place = x0 / size[0], 0, zoom * width / size[0], zoom * height / size[1]
            panel = figure.add_axes(place)
            colours = {"cmap": "gray", "vmin": 0, "vmax": 1} if sheet.shape[2] == 1 else {}
            panel.imshow(sheet.squeeze(), interpolation="none", aspect="auto", **colours)
            panel.set_title(title, pad=3)
            panel.set_axis_off()
        for i in range(rows) if of_classes else ():
            y = 1 - (TOP + zoom * (i + 0.5) * height / rows) / size[1]
            figure.text(0.5 * left / size[0], y, beside[i], ha="center", va="center")
        without_tex(figure)
    return figure


def _zoom(height: int) -> int:
    """How much larger an image is drawn: a whole number, or digits look ragged."""
    return max(1, 56 // height)


def _beside(rows: int, names: list[str] | None) -> list[str]:
    """What stands beside the rows: numbers of classes, or names, of which long ones are cut."""
    if names is None:
        return [str(i) for i in range(rows)]
    return [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names[:rows]]


def _sheet(x: Tensor, c: Tensor, rows: int, columns: int) -> Any:
    """The first images of each class in a row, a white pixel apart: numpy (., ., C) in [0, 1]."""
    _, depth, h, w = x.shape
    sheet = torch.ones(depth, rows * (h + 1), columns * (w + 1))
    for i in range(rows):
        for j, image in enumerate(x[(c == i).nonzero()[:columns, 0]]):
            top, left = i * (h + 1), j * (w + 1)
            sheet[:, top : top + h, left : left + w] = image.clamp(-1, 1)
    return ((sheet + 1) / 2).permute(1, 2, 0).numpy()
