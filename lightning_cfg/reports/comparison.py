"""The report's part on many guidance methods: each at its best scale, fidelity and diversity."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_cfg.reports.claims import kind_of, meaning, show
from lightning_cfg.reports.figures import COLOURS, REAL, STYLE, save
from lightning_cfg.reports.markdown import table

DISTANCE = ("fid", "fd_dinov2", "fd", "frechet")  # by the first of which a scale is the best
FIDELITY = ("precision", "outliers", "class_accuracy", "wrong_class")
CLASS = ("wrong_class", "class_accuracy")
DIVERSITY = ("recall", "coverage")
LEAST = 3  # methods from which on they are compared


def sections(averages: dict[tuple, dict], config: dict, metrics: list[str]) -> list[str]:
    """Markdown: a row per method at the scale where its distance is smallest.

    averages  {(method, scale, stage, flow): {nfe, n, metrics}}
    Nothing where there are fewer than 3 methods, or no distance was measured.
    """
    distance = first(metrics, DISTANCE)
    if len(config["methods"]) < LEAST or distance is None:
        return []
    shown = [m for m in metrics if "_std" not in m]
    kinds = [("before", ""), *sorted({key[2:] for key in averages if key[2] == "after"})]
    parts = [
        f"Every method at that scale of its own grid where `{distance}` is smallest, so that none "
        "is judged at a scale that suits another; `nfe` is network evaluations per sample, all "
        "networks together. The choice is made on the samples that it is told of."
    ]
    for stage, flow in kinds:
        body = []
        for method in config["methods"]:
            own = {k[1]: row for k, row in averages.items()
                   if k[0] == method and k[2:] == (stage, flow) and distance in row}  # fmt: skip
            if own:
                scale = min(own, key=lambda s: own[s][distance])
                row = {**own[scale], "method": method, "scale": scale}
                body.append(row)
        if not body:
            continue
        best = {m: _best(m, body) for m in shown}
        lines = []
        for row in body:
            cells = [show(n, row.get(n)) for n in ("method", "scale", "nfe")]
            for m in shown:
                text = show(m, row.get(m))
                cells.append(
                    f"**{text}**" if row.get(m) is not None and row[m] == best[m] else text
                )
            lines.append(cells)
        if REAL in averages:
            floor = averages[REAL]
            lines.append(["real", "", "", *(show(m, floor.get(m)) for m in shown)])
        title = "Before refinement" if stage == "before" else f"After refinement, flow `{flow}`"
        parts += [f"**{title}**", table(["method", "scale", "nfe", *shown], lines)]
    return parts + _matched(averages, list(config["methods"]), distance, first(metrics, CLASS))


def _matched(
    averages: dict[tuple, dict], methods: list[str], distance: str, error: str | None
) -> list[str]:
    """What every method reaches in class errors at no larger distance than the first one has."""
    if error is None:
        return []
    curves = {
        m: [
            (row[distance], row[error])
            for key, row in sorted(averages.items(), key=lambda item: item[0][1] or 0)
            if key[0] == m and key[2] == "before" and {distance, error} <= set(row)
        ]
        for m in methods
    }
    limits = {
        key[1]: row[distance]
        for key, row in averages.items()
        if key[0] == methods[0] and key[2] == "before" and distance in row
    }
    fewest = max if meaning(error)[0] == "higher" else min
    found = {
        (m, scale): fewest(_within(curve, limit), default=None)
        for m, curve in curves.items()
        for scale, limit in limits.items()
    }
    best = {
        scale: fewest(v for m in methods if (v := found[m, scale]) is not None) for scale in limits
    }
    heads = [f"≤ {show(distance, limit)} ({scale:g})" for scale, limit in limits.items()]
    lines = []
    for m in methods:
        cells = []
        for scale in limits:
            text = show(error, found[m, scale])
            cells.append(f"**{text}**" if text and found[m, scale] == best[scale] else text)
        lines.append([m, *cells])
    return [
        f"**At matched distance**: the best `{error}` that each method reaches, before refinement, "
        f"where its `{distance}` is no larger than that of {methods[0]} at the scale in brackets; "
        "interpolated between neighbours among its scales, empty where it has none.",
        table(["method", *heads], lines),
    ]


def _within(curve: list[tuple[float, float]], limit: float) -> list[float]:
    """Heights of a curve of (distance, height) at its points within the limit, and where it leaves.

    Between neighbouring points the curve is straight.
    """
    heights = [height for distance, height in curve if distance <= limit]
    for (a, p), (b, q) in pairwise(curve):
        if min(a, b) <= limit < max(a, b):
            heights.append(p + (q - p) * (limit - a) / (b - a))
    return heights


def draw(
    directory: Path, *, averages: dict[tuple, dict], config: dict, metrics: list[str]
) -> list[tuple[str, str]]:
    """Write the curves of fidelity against diversity, a line per method; (caption, file name)."""
    fidelity, diversity = first(metrics, FIDELITY), first(metrics, DIVERSITY)
    if len(config["methods"]) < LEAST or fidelity is None or diversity is None:
        return []
    save(fidelity_diversity(averages, list(config["methods"]), fidelity, diversity),
         directory / "fidelity_diversity")  # fmt: skip
    says = (
        f"{fidelity} against {diversity}, a line per method over its guidance scales (the dot is "
    )
    says += "its smallest); the star is a fresh real draw."
    return [(f"Fidelity against diversity: {says}", "fidelity_diversity")]


def fidelity_diversity(
    averages: dict[tuple, dict], methods: list[str], fidelity: str, diversity: str
) -> Any:
    """A panel before refinement and one for every flow; diversity across, fidelity up."""
    import matplotlib
    from matplotlib.figure import Figure

    kinds = [("before", ""), *sorted({key[2:] for key in averages if key[2] == "after"})]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(kinds) + 1.9, 3.3), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
        for panel, kind in zip(panels, kinds, strict=True):
            for i, method in enumerate(methods):
                line = sorted(
                    (key[1], row[diversity], row[fidelity])
                    for key, row in averages.items()
                    if key[0] == method and key[2:] == kind and {diversity, fidelity} <= set(row)
                )
                if line:
                    _, x, y = zip(*line, strict=True)
                    colour = COLOURS[i % len(COLOURS)]
                    style = ("-", "--", ":")[i // len(COLOURS) % 3]
                    panel.plot(x, y, color=colour, ls=style, lw=1, label=method)
                    panel.plot(x[0], y[0], "o", color=colour, ms=3)
            if REAL in averages and {diversity, fidelity} <= set(averages[REAL]):
                real = averages[REAL]
                panel.plot(real[diversity], real[fidelity], "*", color="black", ms=7, label="real")
            panel.set(title=" ".join(kind).strip(), xlabel=diversity)
            panel.grid(alpha=0.3, lw=0.4)
        panels[0].set_ylabel(fidelity)
        if meaning(fidelity)[0] != "higher":
            panels[0].set_yscale("symlog", linthresh=1e-3)  # shares, from none to almost all
            panels[0].invert_yaxis()  # better is up
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def first(metrics: list[str], kinds: tuple[str, ...]) -> str | None:
    """The first of the metrics that is of the first of these kinds."""
    return next(
        (m for kind in kinds for m in metrics if kind_of(m) == kind and "_std" not in m), None
    )


def _best(metric: str, rows: list[dict]) -> float | None:
    """The best value among the rows where a way is better."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    better = meaning(metric)[0]
    if not values or better not in ("lower", "higher"):
        return None
    return min(values) if better == "lower" else max(values)
