"""The report's part on many guidance methods: each at its best scale, fidelity and diversity."""

from collections.abc import Iterator
from typing import Any

from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.metrics.matched import at_matched
from lightning_cfg.metrics.meaning import kind_of, meaning, show
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import Drawn, Line, per_name, turn
from lightning_cfg.reports.rows import ALIKE, Rows, best, bold

# by the first of which a scale is the best
DISTANCE = ("fid", "fd_dinov2", "fd", "frechet", "energy_distance")
FIDELITY = ("precision", "outliers", "class_accuracy", "wrong_class")
CLASS = ("wrong_class", "class_accuracy")
DIVERSITY = ("recall", "coverage")
LEAST = 3  # methods from which on they are compared


def sections(averages: Rows, config: dict, metrics: list[str]) -> list[str]:
    """Markdown: a row per method at the scale where its distance is smallest.

    Nothing where there are fewer than 3 methods, or no distance was measured.
    """
    distance, methods = first(metrics, DISTANCE), list(config["methods"])
    if len(methods) < LEAST or distance is None:
        return []
    shown = [m for m in metrics if "_std" not in m]
    parts = [
        f"Every method at that scale of its own grid where `{distance}` is smallest, so that none "
        "is judged at a scale that suits another; `nfe` is network evaluations per sample, all "
        "networks together. The choice is made on the samples that it is told of. The best of a "
        "column is bold" + (f", {ALIKE}." if averages.over_seeds else ".")
    ]
    for stage, flow in averages.kinds():
        rows = averages.where(stage=stage, flow=flow).having(distance)
        if rows:
            title = "Before refinement" if stage == "before" else f"After refinement, flow `{flow}`"
            table = _at_their_best(rows, methods, distance, shown, averages.real)
            parts += [f"**{title}**", table]
    if config["tuning"] is not None:  # see `tuned`, which is fair
        return parts
    return parts + _matched(averages.where(stage="before"), methods, distance, metrics)


def _at_their_best(
    rows: Rows, methods: list[str], distance: str, shown: list[str], real: dict
) -> str:
    """A row per method at its best scale, real data's last; the best of a column is bold."""
    found = []
    for method in methods:
        own = rows.where(method=method)
        if own:
            cell = min(sorted(own), key=lambda cell: own[cell][distance])
            found.append({**own[cell], "method": method, "scale": cell.scale})
    front = ["method", "scale", "nfe"]
    columns = [[show(name, row.get(name)) for row in found] for name in front]
    for metric in shown:
        top = best(metric, [row.get(metric) for row in found])
        columns.append([bold(metric, row.get(metric), top) for row in found])
    body = [list(line) for line in zip(*columns, strict=True)]
    if real:
        body.append(["real", "", "", *(show(m, real.get(m)) for m in shown)])
    return markdown_table([*front, *shown], body)


def _matched(before: Rows, methods: list[str], distance: str, metrics: list[str]) -> list[str]:
    """What every method reaches in class errors at no larger distance than the first one has."""
    error = first(metrics, CLASS)
    if error is None:
        return []
    fewest = max if meaning(error).better == "higher" else min
    limits = [(s, float(d)) for s, d in before.where(method=methods[0]).line(distance)]
    curves = [
        [(float(d), float(e)) for d, e in before.where(method=method).curve(distance, error)]
        for method in methods
    ]
    columns = [methods]
    for _, limit in limits:
        values = [at_matched(curve, limit, error) for curve in curves]
        top = fewest(value for value in values if value is not None)
        columns.append([bold(error, value, top) for value in values])
    heads = [f"≤ {show(distance, limit)} ({scale:g})" for scale, limit in limits]
    return [
        f"**At matched distance**: the best `{error}` that each method reaches, before refinement, "
        f"where its `{distance}` is no larger than that of {methods[0]} at the scale in brackets; "
        "interpolated between neighbours among its scales, empty where it has none"
        + ("; of the means over the seeds." if before.over_seeds else "."),
        markdown_table(["method", *heads], [list(line) for line in zip(*columns, strict=True)]),
    ]


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """The curves of fidelity against diversity, a line per method."""
    fidelity, diversity = first(case.metrics, FIDELITY), first(case.metrics, DIVERSITY)
    if len(config["methods"]) < LEAST or fidelity is None or diversity is None:
        return
    figure = fidelity_diversity(case.averages, list(config["methods"]), fidelity, diversity)
    says = (
        f"{fidelity} against {diversity}, a line per method over its guidance scales (the dot is "
        "its smallest); the star is a fresh real draw."
    )
    yield Drawn("fidelity_diversity", f"Fidelity against diversity: {says}", figure)


def fidelity_diversity(averages: Rows, methods: list[str], fidelity: str, diversity: str) -> Any:
    """A panel before refinement and one for every flow; diversity across, fidelity up."""
    kinds = {" ".join(kind).strip(): kind for kind in averages.kinds()}

    def lines(kind: str) -> list[Line]:
        stage, flow = kinds[kind]
        out = []
        for i, method in enumerate(methods):
            rows = averages.where(method=method, stage=stage, flow=flow)
            out.append(Line(method, rows.curve(diversity, fidelity), turn(i)))
        return out

    def finish(panel: Any, kind: str) -> None:
        for line in panel.get_lines():
            x, y = line.get_data()
            panel.plot(x[0], y[0], "o", color=line.get_color(), ms=3)
        real = averages.having(diversity, fidelity).real
        if real:
            panel.plot(real[diversity], real[fidelity], "*", color="black", ms=7, label="real")
        if kind == next(iter(kinds)):
            panel.set_ylabel(fidelity)
            if meaning(fidelity).better != "higher":
                panel.set_yscale("symlog", linthresh=1e-3)  # shares, from none to almost all
                panel.invert_yaxis()  # better is up

    return per_name(
        {kind: kind for kind in kinds}, lines, xlabel=diversity, floors={}, most=len(kinds),
        panel=(3.4, 3.3), beside=1.9, finish=finish, sharex=True, sharey=True,
    )  # fmt: skip


def first(metrics: list[str], kinds: tuple[str, ...]) -> str | None:
    """The first of the metrics that is of the first of these kinds."""
    return next(
        (m for kind in kinds for m in metrics if kind_of(m) == kind and "_std" not in m), None
    )
