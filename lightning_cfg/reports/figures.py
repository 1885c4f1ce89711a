"""The figures of a study's report, in the manner of Figs. 4, 5 and S1 of Zhao & Schwing (2025).

One function per figure; each returns a matplotlib Figure and leaves global settings alone.
`averages` is {(method, scale, stage, flow): {metric: number}}, as `report.averaged` makes it;
`sets` is {(method, scale, stage, flow): sample file}.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.runs.files import write
from lightning_cfg.runs.tensors import load_tensors

STAGES = {  # (stage, flow): the name of a sample set, in the order of the papers' figures
    ("before", ""): "before",
    ("after", "dedicated"): "after, own flow",
    ("after", "all"): "after, one for all",
}
REAL = ("real", None, "real", "")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito (2008)
LINES = {
    "before": ("#777777", "o"),
    "after, own flow": ("#D55E00", "D"),
    "after, one for all": ("#0072B2", "o"),
}
AGAINST_SCALE = {  # metric: axis label
    "wasserstein": "Wasserstein-1",
    "outliers": "outliers",
    "nll_mean": "mean -log p / nats",
    "nearest_real": "nearest real point",
    "wrong_class": "wrong class",
    "class_accuracy": "read as their class",
    "frechet": "Fréchet distance",
    "energy_distance": "energy distance",
    "fd_classifier": "Fréchet d., features",
    "recall": "recall",
}
DPI = 110
MOST_POINTS = 10_000  # in a panel
MOST_SCALES = 5  # in a row of panels, beside the ground truth
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.5, "pdf.compression": 9}


def draw(
    directory: Path,
    *,
    data_set: Any,
    averages: dict[tuple, dict],
    sets: dict[tuple, Path],
    trained_on: list[float],
    sections: dict[str, dict],
) -> list[tuple[str, str]]:
    """Write every figure that the data allow; (caption, file name without ending) of each.

    trained_on  scales of the sources of the flow that is one for all
    sections    of the methods in the study's config: {name: {models, guidance}}
    """
    methods = list(dict.fromkeys(key[0] for key in sets))
    drawn = []

    def keep(caption: str, name: str, figure: Any, colours: int = 64) -> None:
        save(figure, directory / name, colours)
        drawn.append((caption, name))

    if not any(stage == "after" for _, _, stage, _ in sets):
        keep(
            "Metrics against the guidance scale, classes averaged. A colour per guidance and "
            "classifier, dashed on the exact denoiser; black, dotted: a fresh draw of real data.",
            "against_scale",
            compared(averages, {name: sections[name] for name in methods}),
        )
    else:
        hollow = " Hollow circles are scales that the flow for all scales was not trained on."
        keep(
            "Metrics against the guidance scale, classes averaged; dashed: a fresh draw of real "
            "data." + (hollow if trained_on else ""),
            "against_scale",
            against_scale(averages, methods, trained_on),
        )
    if tuple(data_set.shape) == (2,):
        real = data_set.real("held_out")
        frames = {"": whole(real[0]), "_zoom": most_entangled(*real)}
        borders = {name: boundary(data_set.truth, frame) for name, frame in frames.items()}
        for method in methods:
            figure = points(real, sets, averages, method, frames[""], borders[""])
            left, right, bottom, top = frames["_zoom"]
            corners = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
            figure.axes[0].plot(*corners, color="black", lw=0.8)
            keep(
                f"{method}: ground truth and samples, with the exact decision boundary; "
                "the number is the share of outliers, the rectangle what the next figure shows.",
                f"points_{method}",
                figure,
            )
            figure = points(real, sets, None, method, frames["_zoom"], borders["_zoom"])
            keep(
                f"{method}: the same where the classes are most entangled.",
                f"points_{method}_zoom",
                figure,
            )
    elif len(data_set.shape) == 3:
        real = data_set.real("held_out")
        for method, scale in dict.fromkeys(key[:2] for key in sets):
            groups = {"real": real}
            for kind, title in STAGES.items():
                if (method, scale, *kind) in sets:
                    held = load_tensors(sets[method, scale, *kind], "x", "c")
                    groups[title] = held["x"], held["c"]
            keep(
                f"{method}, scale {scale:g}: real images, and the same seeds before and after "
                "refinement; a row per class.",
                f"images_{method}_{scale:g}",
                contact_sheet(groups, data_set.num_classes),
                colours=32 if data_set.shape[0] == 1 else 0,
            )
    return drawn


def points(
    real: tuple[Tensor, Tensor],
    sets: dict[tuple, Path],
    averages: dict[tuple, dict] | None,
    method: str,
    frame: tuple[float, float, float, float],
    border: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> Any:
    """Panels of 2-D points: ground truth and scales across, before and after refinement down."""
    import matplotlib
    from matplotlib.figure import Figure

    kinds = [k for k in STAGES if any((m, *q) == (method, *k) for m, _, *q in sets)]
    scales = few(sorted({scale for m, scale, *_ in sets if m == method}))
    across, down = 1 + len(scales), len(kinds)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.85 * across + 0.25, 1.85 * down + 0.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        panels = figure.subplots(down, across, squeeze=False)
        _scatter(panels[0, 0], *real, frame, border)
        panels[0, 0].set_title("ground truth")
        _note(panels[0, 0], averages, REAL)
        for panel in panels[1:, 0]:
            panel.axis("off")
        for row, kind in zip(panels, kinds, strict=True):
            row[1].set_ylabel(STAGES[kind])
            for panel, scale in zip(row[1:], scales, strict=True):
                if kind == kinds[0]:
                    panel.set_title(f"scale {scale:g}")
                if (method, scale, *kind) not in sets:
                    panel.set(xticks=[], yticks=[], frame_on=False)
                    panel.text(0.5, 0.5, "no flow\nof its own", color="#999999", ha="center")
                    continue
                held = load_tensors(sets[method, scale, *kind], "x", "c")
                _scatter(panel, held["x"], held["c"], frame, border)
                _note(panel, averages, (method, scale, *kind))
        _legend(panels[min(1, down - 1), 0], int(real[1].max()) + 1, border is not None)
    return figure


def against_scale(averages: dict[tuple, dict], methods: list[str], trained_on: list[float]) -> Any:
    """Metrics down, methods across: before and after refinement over the scale, real dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    metrics = [m for m in AGAINST_SCALE if any(m in row for row in averages.values())]
    down, across = max(1, len(metrics)), max(1, len(methods))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * across + 0.6, 1.35 * down + 0.6), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey="row")
        for row, metric in zip(panels, metrics, strict=False):
            values = [average[metric] for average in averages.values() if metric in average]
            row[0].set_ylabel(AGAINST_SCALE[metric])
            if min(values) > 0 and max(values) > 5 * min(values):
                row[0].set_yscale("log")
            for panel, method in zip(row, methods, strict=True):
                for kind, title in STAGES.items():
                    line = sorted(
                        (key[1], average[metric])
                        for key, average in averages.items()
                        if key[0] == method and key[2:] == kind and metric in average
                    )
                    if not line:
                        continue
                    colour, mark = LINES[title]
                    panel.plot(
                        *zip(*line, strict=True), color=colour, marker=mark, lw=1, ms=4, label=title
                    )
                    if kind == ("after", "all"):
                        new = [point for point in line if point[0] not in trained_on]
                        if new:
                            panel.plot(*zip(*new, strict=True), "o", ms=4, mfc="white", mec=colour)
                if metric in averages.get(REAL, {}):
                    floor = averages[REAL][metric]
                    panel.axhline(floor, color="black", lw=0.8, ls="--", label="real")
                panel.grid(alpha=0.3, lw=0.4)
        for panel, method in zip(panels[0], methods, strict=True):
            panel.set_title(method)
        for panel in panels[-1]:
            panel.set_xlabel("guidance scale")
            panel.set_xticks(sorted({key[1] for key in averages if key[1] is not None}))
        handles = {
            label: handle
            for panel in panels.flat
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        columns = 4 if across > 1 else 2
        figure.legend(
            handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False
        )
        figure.align_ylabels()
    return figure


def compared(averages: dict[tuple, dict], sections: dict[str, dict]) -> Any:
    """A panel per metric, a line per method over the scale, real dotted: nothing was refined."""
    import matplotlib
    from matplotlib.figure import Figure

    metrics = [m for m in AGAINST_SCALE if any(m in row for row in averages.values())]
    kinds = {
        name: (_apart_from_scale(section["guidance"]), section["models"].get("classifier"))
        for name, section in sections.items()
    }
    colours = {
        kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(dict.fromkeys(kinds.values()))
    }
    across = min(4, max(1, len(metrics)))
    down = -(-max(1, len(metrics)) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * across + 1.7, 2.2 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True)
        for panel in panels.flat[len(metrics) :]:
            panel.axis("off")
        for panel, metric in zip(panels.flat, metrics, strict=False):
            for name, kind in kinds.items():
                line = sorted(
                    (key[1], average[metric])
                    for key, average in averages.items()
                    if key[0] == name and metric in average
                )
                exact = sections[name]["models"].get("model") == "exact"
                style = {"ls": "--", "marker": "x"} if exact else {"ls": "-", "marker": "o"}
                if line:
                    x, y = zip(*line, strict=True)
                    panel.plot(x, y, color=colours[kind], lw=1, ms=3, label=name, **style)
            if metric in averages.get(REAL, {}):
                panel.axhline(averages[REAL][metric], color="black", lw=0.8, ls=":", label="real")
            panel.set(title=AGAINST_SCALE[metric], xlabel="guidance scale")
            panel.grid(alpha=0.3, lw=0.4)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _apart_from_scale(guidance: dict) -> str:
    """What makes a method another one, all that its section says but the scale."""
    return json.dumps({k: v for k, v in guidance.items() if k != "scale"}, sort_keys=True)


def contact_sheet(
    groups: dict[str, tuple[Tensor, Tensor]], num_classes: int, *, columns: int = 6
) -> Any:
    """Images in [-1, 1] side by side, {title: (x (N, C, H, W), c (N,))}; a row per class.

    The first 10 classes; of fewer than 2 classes, rows that are filled in order, 10 at most.
    """
    import matplotlib
    from matplotlib.figure import Figure

    of_classes = num_classes > 1
    if not of_classes:
        groups = {title: (x, torch.arange(len(x)) // columns) for title, (x, _) in groups.items()}
        num_classes = -(-max(len(x) for x, _ in groups.values()) // columns)
    rows = range(min(num_classes, 10))
    sheets = {}
    for title, (x, c) in groups.items():
        _, depth, h, w = x.shape
        sheet = torch.ones(depth, len(rows) * (h + 1), columns * (w + 1))
        for i in rows:
            for j, image in enumerate(x[(c == i).nonzero()[:columns, 0]]):
                top, left = i * (h + 1), j * (w + 1)
                sheet[:, top : top + h, left : left + w] = image.clamp(-1, 1)
        sheets[title] = ((sheet + 1) / 2).permute(1, 2, 0).numpy()
    height, width = next(iter(sheets.values())).shape[:2]
    zoom = max(1, 56 // h)  # screen pixels per pixel: a whole number, or digits look ragged
    left, top, gap = 20, 20, 12
    size = left + len(sheets) * (zoom * width + gap), top + zoom * height
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
        for i, (title, sheet) in enumerate(sheets.items()):
            x0 = left + i * (zoom * width + gap)
            place = x0 / size[0], 0, zoom * width / size[0], zoom * height / size[1]
            panel = figure.add_axes(place)
            colours = {"cmap": "gray", "vmin": 0, "vmax": 1} if sheet.shape[2] == 1 else {}
            panel.imshow(sheet.squeeze(), interpolation="none", aspect="auto", **colours)
            panel.set_title(title, pad=3)
            panel.set_axis_off()
        for i in rows if of_classes else ():
            y = 1 - (top + zoom * (i + 0.5) * height / len(rows)) / size[1]
            figure.text(0.5 * left / size[0], y, str(i), ha="center", va="center")
    return figure


def save(figure: Any, stem: Path, colours: int = 64) -> None:
    """stem.png and stem.pdf, small; the PNG with a palette of so many colours (0: all)."""
    import matplotlib
    from PIL import Image

    def png(path: Path) -> None:
        pixels = io.BytesIO()
        figure.savefig(pixels, format="png", dpi=DPI)
        image = Image.open(pixels).convert("RGB")
        if colours:  # this way of choosing keeps the rare ones, of thin lines
            image = image.quantize(colours, method=Image.Quantize.MAXCOVERAGE)
        image.save(path, optimize=True)

    def pdf(path: Path) -> None:  # no date, so that the same figure is the same file
        figure.savefig(path, format="pdf", dpi=80, metadata={"CreationDate": None})

    with matplotlib.rc_context(STYLE):
        write(stem.with_name(f"{stem.name}.png"), png)
        write(stem.with_name(f"{stem.name}.pdf"), pdf)


def whole(y: Tensor) -> tuple[float, float, float, float]:
    """The square (left, right, bottom, top) around all points, with a margin of 5 %."""
    low, high = y.min(0).values, y.max(0).values
    centre, half = (low + high) / 2, 0.55 * (high - low).max()
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    return left, right, bottom, top


def most_entangled(
    y: Tensor, c: Tensor, *, cells: int = 48, side: int = 10
) -> tuple[float, float, float, float]:
    """The square window with the most points in cells that two classes or more share."""
    left, right, bottom, top = whole(y)
    edges = np.linspace(left, right, cells + 1), np.linspace(bottom, top, cells + 1)
    counts = [np.histogram2d(*y[c == k].T.numpy(), bins=edges)[0] for k in range(int(c.max()) + 1)]
    shared = np.sort(counts, axis=0)[-2] if len(counts) > 1 else counts[0]
    weight = np.minimum(np.arange(side) + 1, side - np.arange(side))  # highest in the middle
    windows = np.lib.stride_tricks.sliding_window_view(shared, (side, side)) @ weight @ weight
    i, j = np.unravel_index(windows.argmax(), windows.shape)
    return tuple(map(float, (edges[0][i], edges[0][i + side], edges[1][j], edges[1][j + side])))


def boundary(truth: Any, frame: tuple, *, cells: int = 200) -> tuple | None:
    """Grid and margin of each class over the best other one, (K, cells, cells): zero is the border.

    log p(c, x) - max over k != c of log p(k, x), without noise. None if the truth is not known.
    """
    if truth is None or truth.num_classes < 2:
        return None
    xs, ys = np.linspace(*frame[:2], cells), np.linspace(*frame[2:], cells)
    grid = torch.tensor(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
    logits = truth.logits(grid, 0.0)
    best = logits.topk(2, dim=1).values
    others = torch.where(logits == best[:, :1], best[:, 1:], best[:, :1])
    margins = (logits - others).T.reshape(-1, cells, cells).numpy()
    return xs, ys, margins[:1] if len(margins) == 2 else margins  # of two classes one is enough


def few(scales: list[float]) -> list[float]:
    """At most as many as fit into a row, evenly among them, the first and the last with them."""
    if len(scales) <= MOST_SCALES:
        return scales
    return [scales[round(i * (len(scales) - 1) / (MOST_SCALES - 1))] for i in range(MOST_SCALES)]


def _scatter(panel: Any, x: Tensor, c: Tensor, frame: tuple, border: tuple | None) -> None:
    left, right, bottom, top = frame
    inside = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)
    # evenly among all, in an order that lets no class cover another one
    chosen = torch.arange(len(x))[:: max(1, -(-len(x) // MOST_POINTS))]
    chosen = chosen[inside[chosen]]
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    colours = [COLOURS[k % len(COLOURS)] for k in c[chosen].tolist()]
    size = 0.7 if len(chosen) > 3000 else 2.0
    panel.scatter(*x[chosen].T.numpy(), s=size, c=colours, alpha=0.5, lw=0, rasterized=True)
    if border is not None:
        for margin in border[2]:
            lines = panel.contour(*border[:2], margin, [0.0], colors="black", linewidths=0.4)
            lines.set_rasterized(True)  # thousands of corners otherwise
    panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def _note(panel: Any, averages: dict | None, key: tuple) -> None:
    share = (averages or {}).get(key, {}).get("outliers")
    if share is not None:
        box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
        panel.text(0.03, 0.03, f"{100 * share:.2g} %", transform=panel.transAxes, bbox=box)


def _legend(panel: Any, classes: int, border: bool) -> None:
    for k in range(classes):
        panel.plot([], [], "o", ms=4, color=COLOURS[k % len(COLOURS)], label=f"class {k}")
    if border:
        panel.plot([], [], color="black", lw=0.6, label="posterior 1/2")
    panel.legend(loc="upper left" if panel.axison else "center", frameon=False)
