"""What each refinement repairs: place, how many samples lie where no data are, and mass, how many
lie where the data lie; an arrow from before to after."""

from collections.abc import Iterator
from typing import Any

from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import Drawn, framed, in_units
from lightning_cfg.reports.rows import Rows

PLACE, MASS = "outliers", "energy_distance"
ACROSS = 5  # panels, so that a page can be read
SAYS = (
    "What refinement repairs: across the share of outliers (place), up the energy distance to "
    "held-out real data (mass), both logarithmic; an arrow for each guidance scale, from before to "
    "after. To the left is place mended, downwards mass; dashed: a fresh real draw. Hollow: scales "
    "that the flow was not trained on."
)


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """The figure, where a study has variants and both were measured."""
    measured = case.averages.having(PLACE, MASS)
    if config["variants"] and measured.where(stage="after"):
        trained = [float(scale) for scale in config["flows"].get("all", [])]
        figure = arrows(measured, trained, names.of_methods(config), names.of_flows(config))
        yield Drawn("place_and_mass", SAYS, figure)


def arrows(averages: Rows, trained: list[float], called: dict, named: dict) -> Any:
    """Rows of at most ACROSS flows for each method; an arrow per scale.

    called  {method: name}
    named   {flow: name}
    """
    after = averages.where(stage="after")
    methods = list(dict.fromkeys(cell.method for cell in after))
    flows, scales = list(dict.fromkeys(cell.flow for cell in after)), after.scales()
    parts = [flows[i : i + ACROSS] for i in range(0, len(flows), ACROSS)]
    shown, columns = [(method, part) for method in methods for part in parts], len(parts[0])
    size = (1.75 * columns + 0.9, 1.9 * len(shown) + 0.5)
    legend = {"loc": "outside right upper", "title": averages.counted, "alignment": "left"}
    with framed(len(shown), columns, size, legend, sharex=True, sharey=True) as (figure, panels):
        for row, (method, part) in zip(panels, shown, strict=True):
            row[0].set_ylabel(f"{called[method]}:\n{names.of_column(MASS)}")
            for panel in row[len(part) :]:
                panel.set_visible(False)
            for panel, flow in zip(row, part, strict=False):
                panel.set_title({"all": "the study's own"}.get(flow, named[flow]))
                panel.set_xlabel(names.of_column(PLACE))
                _floor(panel, averages.real)
                for i, scale in enumerate(scales):
                    for cell, end in after.where(method=method, flow=flow, scale=scale).items():
                        colour = _colour(i, len(scales))
                        _arrow(panel, averages[cell.before], end, colour, scale, scale in trained)
                panel.set(xscale="log", yscale="log")
                in_units(panel.xaxis, share=True)
                panel.grid(alpha=0.3, lw=0.4)
    return figure


def _arrow(panel: Any, before: dict, after: dict, colour: Any, scale: float, known: bool) -> None:
    """From one to the other."""
    (x, y), (u, v) = (_placed(row) for row in (before, after))
    style = {"arrowstyle": "-|>", "color": colour, "lw": 0.9, "shrinkA": 0, "shrinkB": 2}
    panel.annotate("", (u, v), (x, y), arrowprops=style)
    panel.plot(x, y, ".", ms=3, color=colour)
    panel.plot(
        u, v, "o", ms=4, mec=colour, mfc=colour if known else "white", label=f"scale {scale:g}"
    )


def _floor(panel: Any, real: dict) -> None:
    if PLACE in real and MASS in real:
        style = {"color": "black", "lw": 0.7, "ls": "--"}
        x, y = _placed(real)
        panel.axvline(x, **style)
        if float(real[MASS]) > 0:  # it is without bias, so that a draw may have less than nothing
            panel.axhline(y, **style)


def _placed(row: dict) -> tuple[float, float]:
    """Where it stands: what is 0, which no logarithm has, at a sample in n, and at 1e-6."""
    return max(float(row[PLACE]), 1 / row["n"]), max(float(row[MASS]), 1e-6)


def _colour(i: int, n: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](0.9 * i / max(1, n - 1))
