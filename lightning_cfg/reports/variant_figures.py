"""Figures of a study's variants: against the scale, and quality against evaluations."""

import math
from pathlib import Path
from typing import Any

from lightning_cfg.reports.claims import kind_of, meaning
from lightning_cfg.reports.figures import COLOURS, REAL, STYLE, save
from lightning_cfg.reports.variants import NAMES, TOLD

ORDER = ("all", "dedicated")  # before the variants
SOLVING = {"method", "steps", "rtol", "atol", "max_evaluations"}  # of `refinement`


def draw(
    directory: Path, *, averages: dict[tuple, dict], config: dict, metrics: list[str]
) -> list[tuple[str, str]]:
    """Write the figures that a study with variants has; (caption, file name) of each."""
    if not config["variants"]:
        return []
    shown = [m for m in metrics if kind_of(m) in TOLD]
    drawn = []
    for method in config["methods"]:
        name = f"variants_{method}"
        flows = [f for f in ("", *ORDER, *config["variants"])
                 if any(k[0] == method and k[3] == f for k in averages)]  # fmt: skip
        save(against_scale(averages, method, flows, shown), directory / name)
        says = "every flow against the guidance scale; grey: before, dashed: a fresh real draw."
        drawn.append((f"{method}: {says}", name))
        solved = ["", "all", *(v for v, change in config["variants"].items() if _solves(change))]
        distances = [m for m in shown if kind_of(m) in TOLD[:4]]
        if len(solved) > 2 and distances:
            name = f"evaluations_{method}"
            figure = against_evaluations(averages, method, solved, distances)
            save(figure, directory / name)
            says = "quality against the evaluations of the flow; 0 is before refinement, the point "
            says += "with the most is by dopri5."
            drawn.append((f"{method}: {says}", name))
    return drawn


def against_scale(
    averages: dict[tuple, dict], method: str, flows: list[str], metrics: list[str]
) -> Any:
    """A panel per metric, a line per flow over the guidance scale."""
    import matplotlib
    from matplotlib.figure import Figure

    across = min(3, max(1, len(metrics)))
    down = -(-max(1, len(metrics)) // across)
    with matplotlib.rc_context(STYLE):
        height = max(2.2 * down, 0.4 + 0.17 * (len(flows) + 1))  # that of the legend, if it is long
        figure = Figure(figsize=(2.7 * across + 1.6, height), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for panel in panels.flat[len(metrics) :]:
            panel.axis("off")
        for panel, metric in zip(panels.flat, metrics, strict=False):
            for i, flow in enumerate(flows):
                line = sorted(
                    (key[1], row[metric])
                    for key, row in averages.items()
                    if key[0] == method and key[3] == flow and metric in row
                )
                if line:
                    colour = "#777777" if flow == "" else COLOURS[(i - 1) % len(COLOURS)]
                    style = "-" if i <= len(COLOURS) else "--"
                    label = NAMES.get(flow, flow)
                    x, y = zip(*line, strict=True)
                    panel.plot(x, y, color=colour, ls=style, marker="o", ms=3, lw=1, label=label)
            _floor(panel, averages, metric)
            panel.set(title=metric, xlabel="guidance scale")
            _positive(panel, metric)
            panel.grid(alpha=0.3, lw=0.4)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def against_evaluations(
    averages: dict[tuple, dict], method: str, flows: list[str], metrics: list[str]
) -> Any:
    """A panel per metric, a line per guidance scale over the evaluations that the flow took."""
    import matplotlib
    from matplotlib.figure import Figure

    scales = sorted({key[1] for key in averages if key[0] == method})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(metrics) + 1.2, 2.4), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            for i, scale in enumerate(scales):
                before = averages[method, scale, "before", ""]
                line = sorted(
                    (row["nfe"] - before["nfe"], row[metric])
                    for key, row in averages.items()
                    if key[:2] == (method, scale) and key[3] in flows and metric in row
                )
                x, y = zip(*line, strict=True)
                colour, label = COLOURS[i % len(COLOURS)], f"scale {scale:g}"
                panel.plot(x, y, color=colour, marker="o", ms=3, lw=1, label=label)
            _floor(panel, averages, metric)
            panel.set_xscale("symlog", linthresh=1, base=2)
            most = max(x for line in panel.get_lines()[: len(scales)] for x in line.get_xdata())
            ticks = [0, *(2**i for i in range(0, math.ceil(math.log2(most)) + 1, 2))]
            panel.set_xticks(ticks, map(str, ticks))
            panel.set(title=metric, xlabel="evaluations of the flow")
            _positive(panel, metric)
            panel.grid(alpha=0.3, lw=0.4)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _solves(change: dict) -> bool:
    """Does a variant change nothing but how the same flow is integrated?"""
    refinement = change.get("refinement", {})
    others = [change.get("pairs"), change.get("flow")]
    return bool(refinement) and not any(others) and set(refinement) <= SOLVING


def _floor(panel: Any, averages: dict[tuple, dict], metric: str) -> None:
    floor = averages.get(REAL, {}).get(metric)
    if floor is not None:
        panel.axhline(floor, color="black", lw=0.8, ls="--", label="real")


def _positive(panel: Any, metric: str) -> None:
    """Logarithmic where lower is better and values differ much."""
    values = [y for line in panel.get_lines() for y in line.get_ydata()]
    if meaning(metric)[0] == "lower" and min(values) > 0 and max(values) > 5 * min(values):
        panel.set_yscale("log")
