"""A study's flows: every one against the scale and its cost, with a paper's rows beside."""

import math
from collections.abc import Iterator
from typing import Any

from lightning_cfg.evaluation.tables import in_markdown, markdown_table
from lightning_cfg.metrics.meaning import kind_of, meaning, show
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import (
    Drawn,
    Line,
    in_units,
    per_name,
    spread_out,
    styles,
)
from lightning_cfg.reports.rows import ALIKE, SAMPLE_KINDS, Rows, best, bold

DISTANCES = ("fid", "fd_dinov2", "fd", "frechet")
# What is told of every flow: how close it comes to the data, and what that may have been bought by.
TOLD = (*DISTANCES, "energy_distance", "outliers", "recall", "coverage", "near_copies")
NAMES = {flow: name for (_, flow), name in SAMPLE_KINDS.items() if flow} | {"": "before"}
BEFORE = {"color": "#404040", "ls": (0, (1, 1.2))}
PURPOSES = (
    "Neighbours repair place: samples come to where data are, and as many to each place as before, "
    "so that what guidance made certain stays certain. Transport repairs mass: as many come to "
    "each place as the data have there, so that what guidance did to the distribution is undone, "
    "and the certainty that it bought with it: wrong classes return to the data's share."
)


def sections(case: Case, config: dict) -> list[str]:
    """Markdown: what the variants change, and a table per method and metric, scales across.

    The best of a scale is bold. Rows of a paper stand below ours; nothing where a study has neither
    variants nor published numbers.
    """
    if not config["variants"] and not config["published"]:
        return []
    parts = []
    if config["variants"]:
        parts.append(
            "The study's own recipe, which is the paper's, and what each variant changes of it:"
        )
        changes = (f"- {name}: `{dotted(change)}`" for name, change in config["variants"].items())
        parts.append("\n".join(changes))
    pairings = [change.get("pairs", {}) for change in config["variants"].values()]
    if any(pairing.get("coupling") == "transport" for pairing in pairings):
        parts.append(PURPOSES)
    parts.append(
        "`evaluations` are those of the flow, per sample, averaged over the scales. The best of "
        "ours at each scale is bold, samples before refinement among them"
        + (f", {ALIKE}." if case.averages.over_seeds else ".")
    )
    averages = case.averages
    for method in config["methods"]:
        for metric in (m for m in case.metrics if kind_of(m) in TOLD):
            own = averages.where(method=method)
            parts += _table(metric, own, averages.real.get(metric), method, config)
    return parts


def _table(metric: str, averages: Rows, real: float | None, method: str, config: dict) -> list[str]:
    """A row per flow of one method, the papers' below each, a column per scale."""
    own, papers = averages.having(metric), _papers(metric, method, config["published"])
    tried = {float(s) for paper in papers for row in paper["rows"].values() for s in row}
    scales = sorted(tried | set(own.scales()))
    top = {scale: best(metric, [row[metric] for row in own.where(scale=scale).values()], real)
           for scale in scales}  # fmt: skip
    body = []
    for flow in ["", "dedicated", "all", *config["variants"]]:
        rows = own.where(flow=flow)
        found = dict(rows.line(metric))
        published = [(paper, paper["rows"].get(flow or "before")) for paper in papers]
        if rows or any(numbers is not None for _, numbers in published):
            cells = [bold(metric, found.get(scale), top[scale], real) for scale in scales]
            body.append([NAMES.get(flow, flow), _spent(rows, averages), *cells])
        for paper, numbers in published:
            if numbers:
                there = {float(scale): value for scale, value in numbers.items()}
                cells = [show(paper["metric"], there.get(scale)) for scale in scales]
                body.append([f"· {in_markdown(paper['source'])}", "", *cells])
    if not body:
        return []
    floor = f" (fresh real draw: {show(metric, real)})" if real is not None else ""
    head = ["samples", "evaluations", *(f"scale {scale:g}" for scale in scales)]
    return [f"**{method}: `{metric}`**{floor}", markdown_table(head, body)]


def _papers(metric: str, method: str, published: list[dict]) -> list[dict]:
    """What papers have in the place of a column: their numbers are against the first reference."""
    names = {metric} if "_vs_" in metric else {metric, kind_of(metric)}
    return [p for p in published if p["method"] in (method, None) and p["metric"] in names]


def _spent(rows: Rows, averages: Rows) -> str:
    """Evaluations of a flow, averaged over the scales; nothing before refinement."""
    spent = [row["nfe"] - averages[cell.before]["nfe"] for cell, row in rows.items() if cell.flow]
    return f"{sum(spent) / len(spent):.0f}" if spent else ""


def dotted(change: dict) -> str:
    """{pairs: {k: 40}} as "pairs.k: 40"; a section with a name in short."""
    change = {key: value for key, value in change.items() if value not in (None, [])}
    return ", ".join(f"{path}: {value}" for path, value in _leaves(change, "")) or "nothing"


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and "name" not in value:
        return [leaf for key, v in value.items() for leaf in _leaves(v, f"{path}.{key}".strip("."))]
    if path == "then":
        value = ", ".join(value)
    if isinstance(value, dict):
        value = " ".join([value["name"], *(f"{k}={v}" for k, v in value.items() if k != "name")])
    return [(path, value)]


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """The figures that a study with variants has."""
    variants, averages = config["variants"], case.averages
    if not variants:
        return
    called, flows = names.of_methods(config), names.of_flows(config)
    shown = [m for m in case.metrics if kind_of(m) in TOLD]
    for method in config["methods"]:
        own = averages.where(method=method)
        figure = against_scale(own, flows, shown, averages.real)
        says = (
            "every flow against the guidance scale; dotted: before, dashed: a fresh real draw. Of "
            "more than six the paper's and those closest to the data have colours, others are grey."
        )
        yield Drawn(f"variants_{method}", f"{called[method]}: {says}", figure)


def against_scale(averages: Rows, flows: dict[str, str], metrics: list[str], real: dict) -> Any:
    """Of one method: a panel per metric, a line per flow over the guidance scale.

    flows  {key: name}, "" before refinement
    """
    flows = {flow: name for flow, name in flows.items() if averages.where(flow=flow)}
    first = [flows[flow] for flow in _closest(averages, list(flows), metrics)]
    look = styles([name for flow, name in flows.items() if flow], first[1:])
    look |= {flows[flow]: BEFORE for flow in flows if not flow}

    def lines(metric: str) -> list[Line]:
        return [
            Line(
                name, averages.where(flow=flow).line(metric), {"marker": "o", **look.get(name, {})}
            )
            for flow, name in flows.items()
        ]

    titles = {metric: names.of_column(metric) + names.way(metric) for metric in metrics}
    return per_name(
        titles, lines, xlabel="guidance scale", floors=real, most=3, panel=(2.7, 2.2),
        says=averages.counted, first=first, finish=logarithmic,
    )  # fmt: skip


def _closest(averages: Rows, flows: list[str], metrics: list[str]) -> list[str]:
    """Samples before, the paper's flow, then the flows by a distance's mean over the scales."""
    distance = next((m for m in metrics if kind_of(m) in ("energy_distance", *DISTANCES)), None)
    fixed = [flow for flow in ("", "all") if flow in flows]

    def mean(flow: str) -> float:
        values = [float(value) for _, value in averages.where(flow=flow).line(distance or "")]
        return sum(values) / len(values) if values else math.inf

    return [*fixed, *sorted((flow for flow in flows if flow not in fixed), key=mean)]


def logarithmic(panel: Any, metric: str) -> None:
    """Where lower is better and values differ much."""
    values = [y for line in panel.get_lines() for y in line.get_ydata()]
    if meaning(metric).better == "lower" and spread_out(values):
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.5 * float(min(values)))  # an interval may reach below 0
    in_units(panel.yaxis, names.is_share(metric))
