"""The report's part on the best schedule: certainty against distance, and what methods miss."""

import inspect
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from lightning_cfg.config import resolve
from lightning_cfg.evaluation.tables import in_markdown, markdown_table
from lightning_cfg.metrics.meaning import show
from lightning_cfg.metrics.over_seeds import OverSeeds, each
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.names import of_methods, usual
from lightning_cfg.reports.panels import Drawn, Line, per_name, styles
from lightning_cfg.reports.rows import Rows

DISTANCE, CERTAINTY = "energy_distance", "certainty"
BEST = "best schedule"
MEANING = (
    "The front is that of CFG with the best schedules w(sigma): the methods of a schedule `knots`, "
    "whose heights were learned on other samples at several prices of certainty. Of each method "
    "and scale, how far its `certainty` is below the front at its own `energy_distance`, in "
    "nats{}; empty where the front does not reach. Of learned networks that holds their errors too."
)
UNITS = " and in units of its own deviation: that of one seed's gap over the seeds"


def meaning(*, several: bool) -> str:
    """What the tables show; of several seeds in which units too."""
    return MEANING.format(UNITS if several else "")


def sections(averages: Rows, config: dict) -> list[str]:
    """Markdown: a row per method and scale, before refinement, by kind of sampler.

    Nothing where no method has a schedule `knots`, or certainty was not measured.
    """
    parts = []
    for kind, methods in kinds(config["methods"]).items():
        front, others = _parted(averages, config, methods)
        if not front:
            continue
        body = []
        for cell in sorted(others, key=lambda cell: (methods.index(cell.method), cell.scale)):
            row = others[cell]
            gap = below(front, row[DISTANCE], row[CERTAINTY])
            line = [in_markdown(cell.method), show("scale", cell.scale)]
            line += [show(metric, row[metric]) for metric in (DISTANCE, CERTAINTY)]
            line.append("" if gap is None else show(CERTAINTY, gap))
            if averages.over_seeds:
                line.append(_in_deviations(gap))
            body.append(line)
        heads = ["method", "scale", f"`{DISTANCE}`", f"`{CERTAINTY}`", "below the front"]
        heads += ["in deviations"] if averages.over_seeds else []
        parts += [f"**{kind.capitalize()} sampler**", markdown_table(heads, body)]
    return parts


def _in_deviations(gap: Any) -> str:
    if not isinstance(gap, OverSeeds) or gap.deviation == 0:
        return ""
    return f"{float(gap) / gap.deviation:.1f}"


def kinds(methods: dict[str, dict]) -> dict[str, list[str]]:
    """The methods by whether their sampler draws noise on the way."""
    out: dict[str, list[str]] = {}
    for name, section in methods.items():
        sampler = section["generation"]["sampler"]["name"]
        takes = inspect.signature(resolve("lightning_cfg.diffusion.samplers", sampler)).parameters
        out.setdefault("ancestral" if "draw" in takes else "deterministic", []).append(name)
    return out


def _parted(averages: Rows, config: dict, names: list[str]) -> tuple[list[tuple], Rows]:
    """The front's points by rising distance, the unguided model's too; the other methods' rows."""
    rows = averages.where(stage="before").having(DISTANCE, CERTAINTY)
    of_front = [name for name in names if on_front(config["methods"][name])]
    own = Rows({cell: row for cell, row in rows.items() if cell.method in of_front})
    others = Rows(
        {cell: row for cell, row in rows.items() if cell.method in names and cell not in own}
    )
    exact = {n for n in names if config["methods"][n]["models"].get("model") == "exact"}
    plain = [cell for cell in others if cell.scale == 1 and cell.method in exact][:1]
    points = [(row[DISTANCE], row[CERTAINTY]) for row in own.values()]
    points += [(others[cell][DISTANCE], others[cell][CERTAINTY]) for cell in plain if own]
    return sorted(points), others


def on_front(section: dict) -> bool:
    """Whether a method is CFG with a schedule that was learned."""
    scale = section["guidance"].get("scale")
    return isinstance(scale, dict) and scale["name"] == "knots"


def below(front: list[tuple[Any, Any]], distance: Any, certainty: Any) -> Any:
    """The front's certainty at a distance, less a method's, seed by seed; None beyond its ends.

    Straight between the points of a seed by rising distance; what is had at a smaller distance is
    had at a larger one too.
    """

    def one(d: float, c: float, *points: float) -> float:
        ds, cs = zip(*sorted(zip(points[::2], points[1::2], strict=True)), strict=True)
        cs = list(accumulate(cs, max))
        if not ds[0] <= d <= ds[-1]:
            return float("nan")
        i = min(bisect_right(ds, d), len(ds) - 1)
        width = ds[i] - ds[i - 1]
        share = (d - ds[i - 1]) / width if width > 0 else 1.0
        return cs[i - 1] + share * (cs[i] - cs[i - 1]) - c

    found = each(one, distance, certainty, *(value for point in front for value in point))
    return None if found != found else found


def rising(front: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The points by rising distance that have more certainty than all at smaller ones."""
    out: list[tuple[Any, Any]] = []
    for point in front:
        if not out or point[1] > out[-1][1]:
            out.append(point)
    return out


def _called(kind: str, rows: Rows, config: dict) -> dict[str, str]:
    """Names of a panel's methods: `cfg_ancestral` in that of the ancestral sampler is `cfg` there,
    so that a method has one colour in all panels."""
    names, shown = of_methods(config), dict.fromkeys(cell.method for cell in rows)
    stems = {method: method.removesuffix(f"_{kind}") for method in shown}
    return {
        method: names[method] if stem in shown else names.get(stem, usual(stem))
        for method, stem in stems.items()
    }


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """The plane: a panel per kind of sampler with a front, a line per method over its scales."""
    parts = {
        kind: _parted(case.averages, config, methods)
        for kind, methods in kinds(config["methods"]).items()
    }
    parts = {kind: part for kind, part in parts.items() if part[0]}
    if not parts:
        return
    called = {kind: _called(kind, rows, config) for kind, (_, rows) in parts.items()}
    look = styles([BEST, *dict.fromkeys(name for own in called.values() for name in own.values())])

    def lines(kind: str) -> list[Line]:
        front, rows = parts[kind]
        out = [Line(BEST, rising(front), {"color": "black", "lw": 2, "marker": "o"})]
        for method, name in called[kind].items():
            own = Rows({cell: row for cell, row in rows.items() if cell.method == method})
            points = [] if not own else own.curve(DISTANCE, CERTAINTY)
            out.append(Line(name, points, {**look.get(name, {}), "marker": "."}))
        return out

    def finish(panel: Any, kind: str) -> None:
        ends = [float(d) for d, _ in parts[kind][0]]
        panel.set_xlim(0, 1.3 * max(ends))
        lowest = [float(row[CERTAINTY]) for cell, row in parts[kind][1].items() if cell.scale == 1]
        if lowest:
            panel.set_ylim(1.15 * min(lowest), 0)
        panel.set_ylabel("certainty, mean log p(c|x) / nats")
        real = case.averages.having(DISTANCE, CERTAINTY).real
        if real:
            panel.plot(real[DISTANCE], real[CERTAINTY], "*", color="black", ms=8, label="real")

    figure = per_name(
        {kind: f"{kind} sampler" for kind in parts}, lines, xlabel="energy distance",
        floors={}, most=2, panel=(4.2, 3.6), beside=2.0, finish=finish,
    )  # fmt: skip
    caption = (
        "Certainty against energy distance, lines over each method's scales; black: CFG with the "
        "best schedules, learned on other samples."
    )
    yield Drawn("front", caption, figure)
