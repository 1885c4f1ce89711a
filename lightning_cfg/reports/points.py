"""Points in the plane, in the manner of Figs. 4 and 5 of Zhao & Schwing (2025)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import COLOURS, TEN, Drawn, add_legend, few, framed, shown
from lightning_cfg.reports.rows import REAL, SAMPLE_KINDS, Cell, Cells
from lightning_cfg.runs.tensors import load_tensors

MOST_POINTS = 10_000  # in a panel
Frame = tuple[float, float, float, float]  # left, right, bottom, top
Held = tuple[Tensor, Tensor]  # points (n, 2), classes (n,)


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """Two figures per method, of all points and of where classes are most entangled."""
    if tuple(case.data_set.shape) != (2,):
        return
    real = case.data_set.real("held_out")
    frame, zoom = whole(real[0]), most_entangled(*real)
    called = names.of_methods(config)
    borders = [boundary(case.data_set.truth, some) for some in (frame, zoom)]

    def says(cell: Cell) -> str:
        share = case.averages.get(cell, {}).get("outliers")
        return "" if share is None else f"{100 * share:.2g} %"

    for method in dict.fromkeys(cell.method for cell in case.sets):
        own = case.sets.where(method=method)
        figure = points(real, own, frame, borders[0], says=says)
        left, right, bottom, top = zoom
        corners = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        figure.axes[0].plot(*corners, color="black", lw=0.8)
        caption = (
            f"{called[method]}: ground truth and samples, at most {MOST_POINTS:,} a panel, "
            "with the exact decision boundary; the number is the share of outliers, the rectangle "
            "what the next figure shows."
        )
        yield Drawn(f"points_{method}", caption, figure, appendix=True)
        figure = points(real, own, zoom, borders[1])
        caption = f"{called[method]}: the same where the classes are most entangled."
        yield Drawn(f"points_{method}_zoom", caption, figure, appendix=True)


def read(file: Path) -> Held:
    """Samples in the plane and their classes."""
    held = load_tensors(file, "x", "c")
    return held["x"], held["c"]


def points(
    real: Held,
    sets: Cells[Path],
    frame: Frame,
    border: Any = None,
    *,
    first: str = "ground truth",
    says: Callable[[Cell], str] = lambda cell: "",
    read: Callable[[Path], Held] = read,
    classes: list[str] | None = None,
) -> Any:
    """Panels of one method: real points and scales across, before and after refinement down.

    border   of `boundary` in this frame
    first    what real points are called
    says     what stands in the corner of a panel
    read     points of a file of samples
    classes  their names
    """
    kinds = [kind for kind in SAMPLE_KINDS if any(cell.kind == kind for cell in sets)]
    scales, method = few(sets.scales()), next(iter(sets)).method
    across, down = 1 + len(scales), len(kinds)
    size = 1.85 * across + 0.25, 1.85 * down + (0.6 if down == 1 else 0.35)  # a legend below
    with framed(down, across, size) as (figure, panels):
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        classes = classes or [f"class {k}" for k in range(int(real[1].max()) + 1)]
        scatter(panels[0, 0], *real, frame, border, len(classes))
        panels[0, 0].set_title(first)
        _note(panels[0, 0], says(REAL))
        for panel in panels[1:, 0]:
            panel.axis("off")
        for row, kind in zip(panels, kinds, strict=True):
            row[1].set_ylabel(SAMPLE_KINDS[kind] if len(kinds) > 1 else "samples")
            for panel, scale in zip(row[1:], scales, strict=True):
                cell = Cell(method, scale, *kind)
                if kind == kinds[0]:
                    panel.set_title(f"scale {scale:g}")
                if cell not in sets:
                    panel.set(xticks=[], yticks=[], frame_on=False)
                    panel.text(0.5, 0.5, "no flow\nof its own", color="#999999", ha="center")
                    continue
                scatter(panel, *read(sets[cell]), frame, border, len(classes))
                _note(panel, says(cell))
        handles, labels = _legend(panels[0, 0], classes, border is not None)
        if down > 1:
            panels[1, 0].legend(handles, labels, loc="center", frameon=False)
        else:  # no room among the panels
            add_legend(figure, handles, labels, loc="outside lower left", ncols=len(labels))
    return figure


def whole(y: Tensor) -> Frame:
    """The square around all points, with a margin of 5 %."""
    low, high = y.min(0).values, y.max(0).values
    centre, half = (low + high) / 2, 0.55 * (high - low).max()
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    return left, right, bottom, top


def most_entangled(y: Tensor, c: Tensor, *, cells: int = 48, side: int = 10) -> Frame:
    """The square window with the most points in cells that two classes or more share."""
    left, right, bottom, top = whole(y)
    across, up = np.linspace(left, right, cells + 1), np.linspace(bottom, top, cells + 1)
    bins = [across, up]
    counts = [np.histogram2d(*y[c == k].T.numpy(), bins=bins)[0] for k in range(int(c.max()) + 1)]
    shared = np.sort(counts, axis=0)[-2] if len(counts) > 1 else counts[0]
    weight = np.minimum(np.arange(side) + 1, side - np.arange(side))  # highest in the middle
    windows = np.lib.stride_tricks.sliding_window_view(shared, (side, side)) @ weight @ weight
    i, j = np.unravel_index(windows.argmax(), windows.shape)
    return float(across[i]), float(across[i + side]), float(up[j]), float(up[j + side])


def boundary(truth: Any, frame: Frame, *, cells: int = 200) -> tuple | None:
    """Grid and margin of each class over the best other one, (K, cells, cells): zero is the border.

    log p(c, x) - max over k != c of log p(k, x), without noise. None if the truth is not known.
    """
    if truth is None or truth.num_classes < 2:
        return None
    left, right, bottom, top = frame
    xs, ys = np.linspace(left, right, cells), np.linspace(bottom, top, cells)
    grid = torch.tensor(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
    logits = truth.logits(grid, 0.0)
    best = logits.topk(2, dim=1).values
    others = torch.where(logits == best[:, :1], best[:, 1:], best[:, :1])
    margins = (logits - others).T.reshape(-1, cells, cells).numpy()
    return xs, ys, margins[:1] if len(margins) == 2 else margins  # of two classes one is enough


def scatter(
    panel: Any, x: Tensor, c: Tensor, frame: Frame, border: Any = None, classes: int | None = None
) -> None:
    """Points x (n, 2) in the colours of their classes, those that lie within the frame.

    classes  how many there are; left out, as many as c says
    """
    left, right, bottom, top = frame
    inside = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)
    # evenly among all, in an order that lets no class cover another one
    chosen = torch.arange(len(x))[:: max(1, -(-len(x) // MOST_POINTS))]
    chosen = chosen[inside[chosen]]
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    colours = colours_of(c[chosen].tolist(), classes or int(c.max()) + 1)
    size = 0.7 if len(chosen) > 3000 else 2.0
    panel.scatter(*x[chosen].T.numpy(), s=size, c=colours, alpha=0.5, lw=0, rasterized=True)
    if border is not None:
        for margin in border[2]:
            lines = panel.contour(*border[:2], margin, [0.0], colors="black", linewidths=0.4)
            lines.set_rasterized(True)  # thousands of corners otherwise
    panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def colours_of(classes: list[int], most: int) -> list[str]:
    """The colours of classes, of which there are `most`: each its own up to ten, beyond one."""
    own = COLOURS if most <= len(COLOURS) else TEN if most <= len(TEN) else COLOURS[:1]
    return [own[k % len(own)] for k in classes]


def _note(panel: Any, says: str) -> None:
    if says:
        box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
        panel.text(0.03, 0.03, says, transform=panel.transAxes, bbox=box)


def _legend(panel: Any, classes: list[str], border: bool) -> tuple[list, list[str]]:
    """Handles and labels of the classes, where they have colours of their own, and the boundary."""
    for k, name in enumerate(classes if len(classes) <= len(TEN) else ()):
        (colour,) = colours_of([k], len(classes))
        panel.plot([], [], "o", ms=4, color=colour, label=shown(name))
    if border:
        panel.plot([], [], color="black", lw=0.6, label="posterior 1/2")
    return panel.get_legend_handles_labels()
