"""Images side by side, a row per class."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.latents.pictures import pictures_of
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import DPI, STYLE, Drawn, without_tex
from lightning_cfg.reports.rows import SAMPLE_KINDS, Cell
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.tensors import load_tensors

COLUMNS, ROWS = 6, 10
LEFT, TOP, GAP = 20, 20, 12  # pixels: class numbers, titles, between sheets
LETTER, LETTERS = 7, 24  # pixels of one, at most so many of a class's name


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """A sheet for every method and scale of a study, of latents as `generation.decode` has them."""
    data, shape = case.data_set, tuple(case.data_set.shape)
    pictures = pictures_of(config.get("generation", {}).get("decode"), shape)
    if not drawable(pictures.shape):
        return
    colours, own = 32 if pictures.shape[0] == 1 else 0, _shown(data)
    classes, names = len(own), data.class_names and [data.class_names[k] for k in own]
    number = torch.full((max(1, data.num_classes),), -1)
    number[own] = torch.arange(classes)
    classes = min(classes, data.num_classes)
    real = {}
    if data.has_points:
        y, c = data.real("held_out")
        real["real"] = pictures.first(y, number[c], COLUMNS, classes)
    for method, scale in dict.fromkeys((cell.method, cell.scale) for cell in case.sets):
        groups = dict(real)
        for kind, title in SAMPLE_KINDS.items():
            if (cell := Cell(method, scale, *kind)) in case.sets:
                held = load_tensors(case.sets[cell], "x", "c")
                groups[title] = pictures.first(held["x"], number[held["c"]], COLUMNS, classes)
        figure = contact_sheet(groups, classes, columns=COLUMNS, names=names)
        beside = "real images, and the" if real else "the"
        caption = (
            f"{method}, scale {scale:g}: {beside} same seeds before and after "
            "refinement; a row per class."
        )
        yield Drawn(f"images_{method}_{scale:g}", caption, figure, colours)


def _shown(data: Any) -> list[int]:
    """The classes that a study's sheets have rows of: the first ones, of those that samples are
    drawn of ten by chance, as neighbours in number are alike."""
    if data.drawn is None:
        return list(range(max(1, data.num_classes)))
    some = torch.randperm(len(data.drawn), generator=keyed("sheet"))[:ROWS]
    return data.drawn[some.sort().values].tolist()


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
    zoom = max(1, 56 // (height // rows - 1))  # a whole number, or digits look ragged
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
