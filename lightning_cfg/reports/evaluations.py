"""What evaluations of a flow buy: the same flow followed in few steps and in many."""

import json
import math
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from lightning_cfg.metrics.meaning import kind_of
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import Drawn, Line, few, per_name, styles, turn
from lightning_cfg.reports.rows import Rows
from lightning_cfg.reports.variants import DISTANCES, logarithmic

TOLD = (*DISTANCES, "energy_distance", "recall")
SOLVING = {"method", "steps", "rtol", "atol", "max_evaluations"}  # of `refinement`
AS_FAR = SOLVING | {
    "extrapolate",
    "batch_size",
    "precision",
    "compile",
}  # the same way, the same end
SAYS = "quality against the evaluations of the flow; 0 is before refinement."


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """The figures of a study in which a flow is followed in more than one way."""
    groups, called = followed(config["variants"]), names.of_methods(config)
    metrics = [m for m in case.metrics if kind_of(m) in TOLD]
    several = [group for group in groups if len(group) > 1]
    for method in config["methods"] if several else ():
        own = case.averages.where(method=method)
        if several == [groups[0]]:  # the study's own flow alone
            distances = [m for m in metrics if kind_of(m) in DISTANCES]
            figure = of_one(own, groups[0], distances, case.averages.real) if distances else None
        else:
            named = {member: name for member, name in names.of_flows(config).items() if member}
            figure = of_several(own, groups, named, metrics, case.averages.real)
        if figure is not None:
            yield Drawn(f"evaluations_{method}", f"{called[method]}: {SAYS}", figure)


def followed(variants: dict[str, dict]) -> list[list[str]]:
    """Variants of one and the same flow together, the study's own, `all`, in the first group."""
    groups: dict[str, list[str]] = {}
    for name, change in {"all": {}, **variants}.items():
        way = {k: v for k, v in (change.get("refinement") or {}).items() if k not in AS_FAR}
        rest = {k: v for k, v in change.items() if k not in ("refinement", "scales")}
        of = {k: v for k, v in {**rest, "refinement": way}.items() if v not in (None, [], {})}
        groups.setdefault(json.dumps(of, sort_keys=True), []).append(name)
    return list(groups.values())


def of_one(averages: Rows, flows: list[str], metrics: list[str], real: dict) -> Any:
    """Of one method and one flow: a panel per metric, a line per scale."""
    scales = few(averages.scales())

    def lines(metric: str) -> list[Line]:
        points = ((scale, _points(averages, ["", *flows], metric, scale)) for scale in scales)
        return [
            Line(f"scale {scale:g}", own, {"marker": "o", **turn(i)})
            for i, (scale, own) in enumerate(points)
        ]

    titles = {metric: names.of_column(metric) + names.way(metric) for metric in metrics}
    return per_name(
        titles, lines, xlabel="evaluations of the flow", floors=real, panel=(2.9, 2.4),
        says=averages.counted, finish=_finish,
    )  # fmt: skip


def of_several(
    averages: Rows, groups: list[list[str]], named: dict[str, str], metrics: list[str], real: dict
) -> Any:
    """Of one method: a row of panels per metric, one for each scale, a line per flow.

    named  {variant: name}; a flow has what the names of its variants begin with alike
    """
    scales = few(averages.scales())
    panels = {f"{metric} {scale}": (metric, scale) for metric in metrics for scale in scales}
    flows = {_name([named[member] for member in group]): group for group in groups}
    flows = {name: group for name, group in flows.items() if _has(averages, group)}
    first = sorted(flows, key=lambda name: _lowest(averages, flows[name], metrics[0]))
    look = styles(list(flows), first)

    def lines(panel: str) -> list[Line]:
        metric, scale = panels[panel]
        return [
            Line(
                name,
                _points(averages, ["", *group], metric, scale),
                {"marker": "o", **look.get(name, {})},
            )
            for name, group in flows.items()
        ]

    titles = {
        panel: f"scale {scale:g}: {names.of_column(metric)}{names.way(metric)}"
        for panel, (metric, scale) in panels.items()
    }
    floors = {panel: real[metric] for panel, (metric, _) in panels.items() if metric in real}
    return per_name(
        titles, lines, xlabel="evaluations of the flow", floors=floors, most=len(scales),
        panel=(2.9, 2.2), says=averages.counted, first=first,
        finish=lambda axes, panel: _finish(axes, panels[panel][0]),
    )  # fmt: skip


def _has(averages: Rows, flows: list[str]) -> bool:
    return any(averages.where(flow=flow) for flow in flows)


def _points(averages: Rows, flows: list[str], metric: str, scale: float) -> list[tuple[float, Any]]:
    """(evaluations of the flow, value) of a metric at a scale, by evaluations."""
    rows = averages.where(scale=scale).having(metric)
    return sorted(
        (row["nfe"] - averages[cell.before]["nfe"], row[metric])
        for cell, row in rows.items()
        if cell.flow in flows
    )


def _lowest(averages: Rows, flows: list[str], metric: str) -> float:
    """The least of a metric that a flow reaches at any scale."""
    rows = (row for flow in flows for row in averages.where(flow=flow).having(metric).values())
    return min((float(row[metric]) for row in rows), default=math.inf)


def _name(members: list[str]) -> str:
    """What the names of variants begin with alike, in whole words; the first one's, if nothing."""
    words = zip(*(name.replace("_", " ").split() for name in members), strict=False)
    alike = takewhile(lambda some: len(set(some)) == 1, words)
    return " ".join(some[0] for some in alike).rstrip(" ,:") or members[0]


def _finish(axes: Any, metric: str) -> None:
    axes.set_xscale("symlog", linthresh=1, base=2)
    axes.set_xlim(left=-0.3)
    most = max(x for line in axes.get_lines() for x in line.get_xdata())
    ticks = [0, *(2**i for i in range(0, math.ceil(math.log2(most)) + 1, 2))]
    axes.set_xticks(ticks, map(str, ticks))
    logarithmic(axes, metric)
