"""Metrics against the guidance scale, in the manner of Fig. S1 of Zhao & Schwing (2025)."""

import textwrap
from collections.abc import Iterator
from typing import Any

from lightning_cfg.metrics.meaning import kind_of
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.comparison import foremost, measures
from lightning_cfg.reports.panels import (
    Drawn,
    Line,
    framed,
    in_units,
    per_name,
    plotted,
    spread_out,
    styles,
)
from lightning_cfg.reports.rows import SAMPLE_KINDS, Rows

SHOWN = (  # kinds of metrics, in this order
    "wasserstein", "outliers", "nll_mean", "nearest_real", "wrong_class", "class_accuracy",
    "frechet", "energy_distance", "fd_classifier", "recall",
)  # fmt: skip
MOST_ACROSS = 4  # methods with a column each
LINES = {  # name of a set of samples: its line
    "before": {"color": "#777777", "marker": "o", "ms": 4},
    "after, own flow": {"color": "#D55E00", "marker": "D", "ms": 4},
    "after, one for all": {"color": "#0072B2", "marker": "o", "ms": 4},
}


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """Before and after refinement, a column per method; of many methods one beside another."""
    methods = list(dict.fromkeys(cell.method for cell in case.sets))
    called, flows = names.of_methods(config), [kind for kind in SAMPLE_KINDS if kind[1]]
    flows = [kind for kind in flows if case.sets.where(stage=kind[0], flow=kind[1])]
    if flows and len(methods) <= MOST_ACROSS:
        trained_on = list(config["flows"].get("all", []))
        caption = (
            "Metrics against the guidance scale, classes averaged; dashed: a fresh draw of real "
            "data."
        )
        if trained_on:
            caption += " Hollow circles are scales that the flow for all scales was not trained on."
        figure = refined(case.averages, {m: called[m] for m in methods}, trained_on)
        yield Drawn("against_scale", caption, figure)
        return
    first = foremost(case.averages, methods, *measures(case))
    for stage, flow in [("before", ""), *flows]:
        when = {"": "", "all": " after refinement by one flow for all scales"}.get(
            flow, " after refinement by the scale's own flow"
        )
        caption = (
            f"Metrics against the guidance scale{when}, classes averaged; black, dotted: a fresh "
            "draw of real data."
        )
        caption += _others(len(methods), len(first))
        rows = case.averages.where(stage=stage, flow=flow)
        real = case.averages.real
        figure = compared(rows, real, {m: called[m] for m in methods}, [called[m] for m in first])
        yield Drawn(
            f"against_scale{'_after' if flow else ''}{'_own' * (flow == 'dedicated')}",
            caption,
            figure,
        )


def _others(methods: int, coloured: int) -> str:
    grey = methods - coloured
    return f" The other {grey} methods are grey, named where they end." if grey > 0 else ""


def shown(rows: Rows) -> list[str]:
    """The metrics that were measured, one of each kind."""
    measured = list(dict.fromkeys(name for row in rows.values() for name in row))
    of_kind = [
        next((m for m in measured if kind_of(m) == kind or m == kind), None) for kind in SHOWN
    ]
    return [m for m in of_kind if m is not None]


def refined(averages: Rows, methods: dict[str, str], trained_on: list[float]) -> Any:
    """Metrics down, methods across: before and after refinement over the scale, real dashed.

    methods     {key: name}
    trained_on  scales of the sources of the flow that is one for all
    """
    metrics = shown(averages)
    down, across = max(1, len(metrics)), max(1, len(methods))
    size = 3.2 * across + 0.8, 1.35 * down + 0.6
    legend = {
        "loc": "outside upper center",
        "ncols": 4,
        "title": averages.counted.replace("\n", ", "),
    }
    with framed(down, across, size, legend, sharex=True, sharey="row") as (figure, panels):
        for row, metric in zip(panels, metrics, strict=False):
            measured = averages.having(metric)
            row[0].set_ylabel(textwrap.fill(names.of_column(metric), 18) + names.way(metric))
            if spread_out([found[metric] for found in measured.values()]):
                row[0].set_yscale("log")
            for panel, method in zip(row, methods, strict=True):
                own = measured.where(method=method)
                lines = [
                    Line(title, own.where(stage=stage, flow=flow).line(metric), LINES[title])
                    for (stage, flow), title in SAMPLE_KINDS.items()
                ]
                plotted(panel, lines, averages.real.get(metric))
                hollow = own.where(stage="after", flow="all").line(metric)
                hollow = [(x, y) for x, y in hollow if x not in trained_on]
                if hollow:
                    x, y = zip(*hollow, strict=True)
                    colour = LINES["after, one for all"]["color"]
                    panel.plot(x, y, "o", ms=4, mfc="white", mec=colour)
            in_units(row[0].yaxis, names.is_share(metric))
        for panel, name in zip(panels[0], methods.values(), strict=True):
            panel.set_title(name)
        for panel in panels[-1]:
            panel.set_xlabel("guidance scale")
        figure.align_ylabels()
    return figure


def compared(averages: Rows, real: dict, methods: dict[str, str], first: list[str]) -> Any:
    """A panel per metric, a line per method over the scale, real dotted.

    methods  {key: name}
    first    names of those that have colours
    """
    metrics, look = shown(averages), styles(list(methods.values()), first)

    def lines(metric: str) -> list[Line]:
        return [
            Line(
                name, averages.where(method=key).line(metric), {"marker": "o", **look.get(name, {})}
            )
            for key, name in methods.items()
        ]

    def finish(panel: Any, metric: str) -> None:
        if spread_out([y for line in panel.get_lines() for y in line.get_ydata()]):
            panel.set_yscale("log")
        in_units(panel.yaxis, names.is_share(metric))

    titles = {metric: names.of_column(metric) + names.way(metric) for metric in metrics}
    return per_name(
        titles, lines, xlabel="guidance scale", floors=real, floor=":", says=averages.counted,
        first=first, finish=finish,
    )  # fmt: skip
