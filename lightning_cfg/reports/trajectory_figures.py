"""Figures of trajectories, in the manner of Figs. 1-3 of Zhao & Schwing (2025).

In all of them t/T of the DDPM runs from 1 (noise) at the left to 0 (data) at the right, and up
stands u = x / sqrt(1 + sigma^2). `traced` is {(method, scale): Traced}.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_cfg.diffusion.trajectories import scaled, time_of
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case, Traced
from lightning_cfg.reports.panels import COLOURS, Drawn, add_legend, few, framed
from lightning_cfg.reports.rows import Cell, Cells, mean
from lightning_cfg.reports.trajectories import ROUGH
from lightning_cfg.runs.tensors import load_tensors

# at scale 1 the conditional model itself
PLAIN = ("classifier_free", "autoguidance", "apg", "cfg_zero_star")
PER_CLASS = 20  # trajectories drawn: more make the files large
OF_ROUGH = 4  # of those that the sampler's noise makes rough
SIMPLER = 0.5  # pixels by which their lines may differ from all levels joined: smaller files
MOST_ROWS = 6  # methods in one grid
MOST_COLUMNS = 5  # methods in one row of curves
BINS = 80
AT: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
BELOW = {"loc": "outside lower center"}
APART = 1e-4  # zeros closer in u are one: `trace` looks for them class by class
JUMP = 0.5  # zeros of neighbouring levels farther apart in u are not on one line
GRID = (
    f"Trajectories with the {{}} denoiser, {PER_CLASS} of each class at most, {OF_ROUGH} of those "
    "to which the sampler adds noise all the way, from noise (left) to data (right): a row per "
    "method, a column per guidance scale. Black: a classifier's decision boundary at every noise "
    "level, in dots where a level has several. Beside each panel the finished samples and, as "
    "lines, the true density of each class; peaks higher than twice the true one are cut off. "
    "Straightness is arc over chord, 1 for a straight line; distance is the mean signed one to the "
    "boundary of the method's own classifier, or to the dashed one where it has none, above 0 on "
    "the class's own side."
)
EACH = "a panel per method, a line per guidance scale, classes averaged."
DISTANCE = (
    f"Mean signed distance to the decision boundary in u, from noise to data: {EACH} Above 0 is "
    "the class's own side. Dashed: the 10 % and the 90 % quantile over trajectories, at the "
    "smallest and the largest scale."
)
CONFIDENCE = (
    "Mean probability that the classifier gives the class asked for, from noise to data: "
    f"{EACH} Dotted: all classes alike."
)
DASHES = ("-", (0, (3, 1.5)), (0, (1, 1)))  # the own classifier's boundary, others'


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """Grids in one dimension, and everywhere the curves of all methods."""
    data_set, traced = case.data_set, case.traced
    called, methods = names.of_methods(config), {}
    for method, about in config["methods"].items():
        if any(method == name for name, _ in traced):
            methods[method] = {**about, "called": called[method]}
    if not methods:
        return
    formula = data_set.formula
    name = (f", {case.name}" if case.name else "") + (f" ({formula})" if formula else "")
    for group, part in grouped(methods).items() if tuple(data_set.shape) == (1,) else ():
        kind = group.partition("_")[0]
        figure = grid(data_set, f"Trajectories, {kind} denoiser{name}", part, traced, case.sets)
        yield Drawn(f"trajectories_{group}", GRID.format(kind), figure, 32)
    first = next(iter(traced.values()))
    n = sum(row["n"] for row in first.of(first.guide))
    name += f"; N = {n:,.0f} a line"
    title = f"Distance to the decision boundary{name}"
    yield Drawn("distance", DISTANCE, curves(title, methods, traced, "distance"))
    chance, title = 1 / data_set.num_classes, f"Probability of the class asked for{name}"
    figure = curves(title, methods, traced, "confidence", level=chance)
    yield Drawn("confidence", CONFIDENCE, figure)


def grouped(methods: dict) -> dict[str, dict]:
    """Methods with a learned and with an exact denoiser, in grids of at most MOST_ROWS rows."""
    groups = {}
    for kind in ("learned", "exact"):
        exact = {m for m in methods if methods[m]["models"]["model"] == "exact"}
        own = [m for m in methods if (m in exact) == (kind == "exact")]
        for first in range(0, len(own), MOST_ROWS):
            group = kind if len(own) <= MOST_ROWS else f"{kind}_{first // MOST_ROWS + 1}"
            groups[group] = {m: methods[m] for m in own[first : first + MOST_ROWS]}
    return groups


def grid(
    data_set: Any, title: str, methods: dict, traced: dict[tuple, Traced], sets: Cells[Path]
) -> Any:
    """Panels of 1-D trajectories, methods down and scales across, each with its final histogram."""
    scales = few(sorted({scale for _, scale in traced}))
    down, across = len(methods), len(scales)
    boundaries = _dashes([one for (method, _), one in traced.items() if method in methods])
    limits = _limits([one for (_, scale), one in traced.items() if scale in scales])
    size = max(7.0, 2.5 * across + 1.75), 1.5 * down + 1
    with framed(down, across, size, sharex=True, sharey=True) as (figure, panels):
        figure.get_layout_engine().set(rect=(0, 0, 0.995, 1))  # or the last frame is cut
        _time(panels[0, 0], traced)
        panels[0, 0].set_ylim(limits)
        for row, (method, about) in zip(panels, methods.items(), strict=True):
            _name(row[0], about.get("called", method), about)
            for panel, scale in zip(row, scales, strict=True):
                if (method, scale) not in traced:
                    panel.set_frame_on(False)
                    panel.tick_params(left=False, bottom=False)
                    continue
                _trajectories(panel, traced[method, scale], boundaries)
                if scale == 1 and about["guidance"]["name"] in PLAIN:
                    box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5}
                    place = {"transform": panel.transAxes, "ha": "right", "va": "top"}
                    panel.text(0.97, 0.95, "the plain conditional model", **place, bbox=box)
                beside = panel.inset_axes([1.02, 0, 0.24, 1], sharey=panel)
                _finals(beside, data_set, sets.get(Cell(method, scale, "before", "")), limits)
                if row[0] is panels[-1, 0]:
                    beside.set_xlabel("density", labelpad=15)  # beside the other labels
        for panel, scale in zip(panels[0], scales, strict=True):
            panel.annotate(f"scale {scale:g}", (0.5, 1), (0, 15), **AT, ha="center", fontsize=9)
        for panel in panels[-1]:
            panel.set_xlabel("t/T (1: noise, 0: data)")
        _legend(figure, data_set, boundaries, columns=4 if across < 3 else 7)
        figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def _time(panel: Any, traced: dict[tuple, Traced]) -> None:
    """The axis of t/T, from the highest noise level that any trajectory has."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(max(row["t"] for one in traced.values() for row in one.curves), 0)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _name(panel: Any, called: str, about: dict) -> None:
    """At the left of a row: the method, its guidance and its networks."""
    lines = [told for told in (names.usual(about["guidance"]["name"]),) if told != called]
    for role, path in about["models"].items():
        lines.append(f"{'denoiser' if role == 'model' else role}: {Path(path).name}")
    name = textwrap.fill(called, 22)
    panel.annotate(name, (0, 0.5), (-42, 4), **AT, ha="right", va="bottom", fontsize=9)
    panel.annotate("\n".join(lines), (0, 0.5), (-42, 1), **AT, ha="right", va="top")
    panel.set_ylabel("u = x / √(1 + σ²)")


def curves(
    title: str, methods: dict, traced: dict[tuple, Traced], quantity: str, *, level: float = 0.0
) -> Any:
    """A panel per method: the mean of a column of curves.csv against t/T, a line per scale.

    level  where the dotted line is
    """
    import matplotlib

    scales = sorted({s for m in methods for s in few(sorted(s for n, s in traced if n == m))})
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1, len(scales)))
    shades = dict(zip(scales, colours, strict=True))
    across = min(MOST_COLUMNS, len(methods))
    down = -(-len(methods) // across)
    size, legend = (max(5.0, 1.9 * across + 0.5), 1.75 * down + 0.8), {**BELOW, "ncols": 8}
    with framed(down, across, size, legend, sharex=True, sharey=True) as (figure, panels):
        _time(panels[0, 0], traced)
        for panel, (method, about) in zip(panels.flat, methods.items(), strict=False):
            tried = few(sorted(scale for name, scale in traced if name == method))
            own = {scale: traced[method, scale] for scale in tried}
            _curves(panel, own, shades, quantity)
            guide = own[max(own)].guide
            classifier = Path(about["models"].get("classifier", "")).name
            whose = f"its classifier: {classifier}" if guide == "own" else f"read by: {guide}"
            panel.set_title(f"{about.get('called', method)}\n{whose}")
            panel.axhline(level, color="black", lw=0.7, ls=":")
            panel.grid(alpha=0.3, lw=0.4)
        for panel in panels.flat[len(methods) :]:
            panel.axis("off")
        for panel in panels.flat[max(0, len(methods) - across) : len(methods)]:
            panel.set_xlabel("t/T (1: noise, 0: data)")
            panel.tick_params(labelbottom=True)
        for panel in panels[:, 0]:
            panel.set_ylabel("distance in u" if quantity == "distance" else "p(class)")
        for scale, shade in shades.items():
            panels[0, 0].plot([], [], color=shade, label=f"scale {scale:g}")
        if quantity == "distance":
            panels[0, 0].plot([], [], "--", color="#777777", lw=0.6, label="10 % and 90 %")
        figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def _curves(panel: Any, own: dict[float, Traced], shades: dict[float, Any], quantity: str) -> None:
    """One method's lines; of distances the quantiles too, at the first and the last scale."""
    for scale in sorted(own):
        t, value = curve(own[scale], own[scale].guide, quantity)
        panel.plot(t, value, color=shades[scale], lw=1.1)
        if quantity == "distance" and scale in (min(own), max(own)):
            for p in (10, 90):
                edge = curve(own[scale], own[scale].guide, f"distance_{p}")[1]
                panel.plot(t, edge, color=shades[scale], lw=0.6, ls="--")


def curve(one: Traced, classifier: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """t/T, falling, and a column of curves.csv there, classes averaged; NaN where none has it."""
    counts = {row["class"]: row["n"] for row in one.of(classifier)}
    levels: dict[float, list[dict]] = {}
    for row in one.curves:
        if row["classifier"] == classifier:
            levels.setdefault(row["sigma"], []).append({**row, "n": counts[row["class"]]})
    t = np.array([rows[0]["t"] for rows in levels.values()])
    return t, np.array([_known(rows, quantity) for rows in levels.values()])


def _known(rows: list[dict], quantity: str) -> float:
    """Mean over the classes that have it; NaN where none has."""
    value = mean([row for row in rows if row[quantity] is not None], quantity)
    return np.nan if value is None else value


def joined(levels: list[float], zeros: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """A boundary as a line and as dots, (2, n) of t/T and u each, from t/T and u of its zeros.

    The line joins neighbouring levels that have one zero each, at most JUMP apart; NaN breaks it.
    """
    runs, dots = [[]], []
    for t in dict.fromkeys(levels):  # beyond the DDPM's own noise levels t stands still
        found: list[float] = []
        for u in sorted(u for at, u in zeros if at == t):
            if not found or u - found[-1] > APART:
                found.append(u)
        if len(found) != 1:
            dots += [(t, u) for u in found]
            runs.append([])
        elif runs[-1] and abs(found[0] - runs[-1][-1][1]) > JUMP:
            runs.append([(t, found[0])])
        else:
            runs[-1].append((t, found[0]))
    dots += [run[0] for run in runs if len(run) == 1]
    line = [point for run in runs if len(run) > 1 for point in (*run, (np.nan, np.nan))]
    return np.array(line).reshape(-1, 2).T, np.array(dots).reshape(-1, 2).T


def _limits(some: list[Traced]) -> tuple[float, float]:
    """Of u, for all panels: nearly all that the trajectories reach, and a margin."""
    held = [load_tensors(one.file, "path", "sigma") for one in some]
    u = np.concatenate([scaled(h["path"], h["sigma"]).flatten().numpy() for h in held])
    low, high = np.quantile(u, [0.004, 0.996])
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _trajectories(panel: Any, one: Traced, boundaries: dict[str, Any]) -> None:
    held = load_tensors(one.file, "path", "sigma", "c")
    t, u = time_of(held["sigma"]).numpy(), scaled(held["path"], held["sigma"])[..., 0].numpy()
    rows = one.of(one.guide)
    most = PER_CLASS if _known(rows, "straightness") < ROUGH else OF_ROUGH
    for k in held["c"].unique().tolist():
        paths = u[held["c"].numpy() == k][:most]
        y = np.pad(paths, ((0, 0), (0, 1)), constant_values=np.nan)  # one line, broken by NaN,
        x = np.tile(np.append(t, np.nan), len(paths))  # a smaller PDF than many lines
        colour = COLOURS[k % len(COLOURS)]
        (line,) = panel.plot(x, y.flatten(), color=colour, lw=0.5, alpha=0.6)
        line.get_path().simplify_threshold = SIMPLER
    for classifier, dashes in boundaries.items():
        zeros = [(r["t"], r["u"]) for r in one.boundaries if r["classifier"] == classifier]
        levels = curve(one, classifier, "confidence")[0].tolist()
        line, dots = joined(levels, zeros)
        panel.plot(*line, color="black", lw=1.1, ls=dashes)
        panel.plot(*dots, ".", color="black", ms=3, mew=0)
    distance = _known(rows, "distance")
    says = f"straightness {_known(rows, 'straightness'):.2f}"
    says += "" if np.isnan(distance) else f", distance {distance:.2f}"
    panel.set_title(says, loc="left", fontsize=7, pad=3)


def _finals(panel: Any, data_set: Any, file: Path | None, limits: tuple[float, float]) -> None:
    """The finished samples of each class and their true density, on their side: x up."""
    held = load_tensors(file, "x", "c") if file else {"x": torch.empty(0), "c": torch.empty(0)}
    x, peak = np.linspace(*limits, 200), 0.0
    for k in range(data_set.num_classes):
        colour = COLOURS[k % len(COLOURS)]
        own = held["x"][held["c"] == k].flatten().numpy()
        counts, edges = np.histogram(own, BINS, limits)
        some = slice(*(counts.nonzero()[0][[0, -1]] + [0, 1])) if counts.any() else slice(0)
        density = counts[some] / max(1, len(own)) / np.diff(edges)[0]
        edges = edges[some.start or 0 : some.stop + 1]
        panel.stairs(density, edges, orientation="horizontal", fill=True, color=colour, alpha=0.4)
        if data_set.truth is not None:
            at = torch.tensor(x)[:, None], torch.full((len(x),), k)
            density = data_set.truth.log_density(*at).exp().numpy()
            peak = max(peak, density.max())
            seen = density > 1e-3 * density.max()
            panel.plot(density[seen], x[seen], color=colour, lw=0.9)
    panel.set(xlim=(0, 2 * peak or None), xticks=[])
    panel.tick_params(left=False, labelleft=False)


def _dashes(some: list[Traced]) -> dict[str, Any]:
    """{classifier with a boundary: its line's style}, the own one first."""
    found = {row["classifier"] for one in some for row in one.boundaries}
    others = {name: DASHES[1 + i % 2] for i, name in enumerate(sorted(found - {"own"}))}
    return ({"own": DASHES[0]} if "own" in found else {}) | others


def _legend(figure: Any, data_set: Any, boundaries: dict[str, Any], columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    for k in range(data_set.num_classes):
        handles.append(Line2D([], [], color=COLOURS[k % len(COLOURS)], label=f"class {k}"))
    for name, dashes in boundaries.items():
        label = f"boundary of {'its own classifier' if name == 'own' else name}"
        handles.append(Line2D([], [], color="black", ls=dashes, label=label))
    handles.append(Patch(color="#999999", alpha=0.5, lw=0, label="finished samples"))
    if data_set.truth is not None:
        handles.append(Line2D([], [], color="#555555", lw=0.9, label="true density"))
    add_legend(figure, handles, [handle.get_label() for handle in handles], **BELOW, ncols=columns)
