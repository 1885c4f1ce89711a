"""Metrics against the guidance scale, in the manner of Fig. S1 of Zhao & Schwing (2025)."""

import json
from collections.abc import Iterator
from typing import Any

from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import (
    COLOURS,
    Drawn,
    Line,
    framed,
    per_name,
    plotted,
    spread_out,
)
from lightning_cfg.reports.rows import SAMPLE_KINDS, Rows

LABELS = {  # metric: axis label
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
LINES = {  # name of a set of samples: its line
    "before": {"color": "#777777", "marker": "o", "ms": 4},
    "after, own flow": {"color": "#D55E00", "marker": "D", "ms": 4},
    "after, one for all": {"color": "#0072B2", "marker": "o", "ms": 4},
}


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """Before and after refinement, or where there is none one method beside another."""
    methods = list(dict.fromkeys(cell.method for cell in case.sets))
    if not case.sets.where(stage="after"):
        caption = (
            "Metrics against the guidance scale, classes averaged. A colour per guidance and "
            "classifier, dashed on the exact denoiser; black, dotted: a fresh draw of real data."
        )
        figure = compared(case.averages, {name: config["methods"][name] for name in methods})
    else:
        trained_on = list(config["flows"].get("all", []))
        caption = (
            "Metrics against the guidance scale, classes averaged; dashed: a fresh draw of real "
            "data."
        )
        if trained_on:
            caption += " Hollow circles are scales that the flow for all scales was not trained on."
        figure = refined(case.averages, methods, trained_on)
    yield Drawn("against_scale", caption, figure)


def refined(averages: Rows, methods: list[str], trained_on: list[float]) -> Any:
    """Metrics down, methods across: before and after refinement over the scale, real dashed.

    trained_on  scales of the sources of the flow that is one for all
    """
    metrics = [m for m in LABELS if averages.having(m)]
    down, across = max(1, len(metrics)), max(1, len(methods))
    size = 3.4 * across + 0.6, 1.35 * down + 0.6
    legend = {"loc": "outside upper center", "ncols": 4 if across > 1 else 2}
    with framed(down, across, size, legend, sharex=True, sharey="row") as (figure, panels):
        for row, metric in zip(panels, metrics, strict=False):
            measured = averages.having(metric)
            row[0].set_ylabel(LABELS[metric])
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
        for panel, method in zip(panels[0], methods, strict=True):
            panel.set_title(method)
        for panel in panels[-1]:
            panel.set_xlabel("guidance scale")
            panel.set_xticks(averages.scales())
        figure.align_ylabels()
    return figure


def compared(averages: Rows, sections: dict[str, dict]) -> Any:
    """A panel per metric, a line per method over the scale, real dotted: nothing was refined.

    sections  of the methods in the study's config: {name: {models, guidance}}
    """
    kinds = {name: _apart_from_scale(section) for name, section in sections.items()}
    ordered = list(dict.fromkeys(kinds.values()))

    def lines(metric: str) -> list[Line]:
        out = []
        for name, section in sections.items():
            exact = section["models"].get("model") == "exact"
            style = {"ls": "--", "marker": "x"} if exact else {"ls": "-", "marker": "o"}
            style["color"] = COLOURS[ordered.index(kinds[name]) % len(COLOURS)]
            out.append(Line(name, averages.where(method=name).line(metric), style))
        return out

    titles = {metric: label for metric, label in LABELS.items() if averages.having(metric)}
    return per_name(
        titles, lines, xlabel="guidance scale", floors=averages.real, floor=":", sharex=True
    )


def _apart_from_scale(section: dict) -> str:
    """What makes a method another one: all that its guidance says but the scale, its classifier."""
    guidance = {key: value for key, value in section["guidance"].items() if key != "scale"}
    return json.dumps([guidance, section["models"].get("classifier")], sort_keys=True)
