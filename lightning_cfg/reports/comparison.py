"""The report's part on many guidance methods: each at its best scale, fidelity and diversity."""

import math
from collections.abc import Iterator
from typing import Any

from lightning_cfg.evaluation.tables import markdown_table
from lightning_cfg.metrics.matched import at_matched
from lightning_cfg.metrics.meaning import kind_of, meaning, show
from lightning_cfg.metrics.over_seeds import OverSeeds, of, over
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.panels import MOST_LINES, Drawn, Line, in_units, per_name, styles
from lightning_cfg.reports.rows import ALIKE, SAMPLE_KINDS, Rows, best, bold, loss

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
    return parts + _matched(averages, methods, distance, metrics)


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


def at_matched_distance(
    averages: Rows, methods: list[str], distance: str, error: str
) -> list[tuple[float, Any, dict[str, Any]]]:
    """For each scale it, the first method's distance, {method: its best class errors within that}.

    Before refinement; between the scales of a method its curve is straight. None where it has none.
    Of several seeds each by itself.
    """
    before = averages.where(stage="before")
    return [
        (scale, limit, {m: reached(before, m, limit, distance, error) for m in methods})
        for scale, limit in before.where(method=methods[0]).line(distance)
    ]


def reached(rows: Rows, method: str, limit: float, d: str, e: str) -> float | None:
    """The best error of a method's curve within a limit, each seed by itself; None without one."""
    curve = rows.where(method=method).curve(d, e)
    seeds = list(limit.by_seed) if isinstance(limit, OverSeeds) else [0]
    return over(
        {
            seed: at_matched([(of(x, seed), of(y, seed)) for x, y in curve], of(limit, seed), e)
            for seed in seeds
        }
    )


def _matched(averages: Rows, methods: list[str], distance: str, metrics: list[str]) -> list[str]:
    """What every method reaches in class errors at no larger distance than the first one has."""
    error = first(metrics, CLASS)
    if error is None:
        return []
    fewest = max if meaning(error).better == "higher" else min
    columns, heads = [methods], []
    for scale, limit, values in at_matched_distance(averages, methods, distance, error):
        heads.append(f"≤ {show(distance, limit)} ({scale:g})")
        top = fewest(value for value in values.values() if value is not None)
        columns.append([bold(error, value, top) for value in values.values()])
    return [
        f"**At matched distance**: the best `{error}` that each method reaches, before refinement, "
        f"where its `{distance}` is no larger than that of {methods[0]} at the scale in brackets; "
        "interpolated between neighbours among its scales, empty where it has none"
        + (f"; each seed by itself. Bold is the best, {ALIKE}." if averages.over_seeds else "."),
        markdown_table(["method", *heads], [list(line) for line in zip(*columns, strict=True)]),
    ]


def measures(case: Case) -> tuple[str | None, str | None]:
    """The distance and the error by which methods are compared, where they were measured.

    Of methods that were tuned those of their tuning.
    """
    for choice in case.tuned.values():
        return choice["distance"], choice["error"]
    return first(case.metrics, DISTANCE), first(case.metrics, CLASS)


def foremost(
    averages: Rows, methods: list[str], distance: str | None, error: str | None
) -> list[str]:
    """The first method, and those after it that make the fewest class errors at matched distance.

    By the mean rank over the first method's distances; without class errors by their smallest
    distance, and in their own order where no distance was measured.
    """
    if distance is None or len(methods) <= MOST_LINES:
        return methods[:MOST_LINES]
    if error is None:
        before = averages.where(stage="before")
        lines = {method: before.where(method=method).line(distance) for method in methods}
        columns = [{m: min((float(d) for _, d in lines[m]), default=math.inf) for m in methods}]
    else:
        columns = [
            {m: math.inf if v is None else loss(error, v, None) for m, v in values.items()}
            for _, _, values in at_matched_distance(averages, methods, distance, error)
        ]
    ranks = {
        method: sum(sum(other < own[method] for other in own.values()) for own in columns)
        for method in methods
    }
    others = sorted(methods[1:], key=lambda method: ranks[method])[: MOST_LINES - 1]
    return [method for method in methods if method in (methods[0], *others)]


def draw(case: Case, config: dict) -> Iterator[Drawn]:
    """Class errors against distance, and fidelity against diversity: a line per method."""
    methods, metrics = list(config["methods"]), case.metrics
    if len(methods) < LEAST:
        return
    called, (distance, error) = names.of_methods(config), measures(case)
    ahead = [called[method] for method in foremost(case.averages, methods, distance, error)]
    grey = len(methods) - len(ahead)
    says = (
        "a line per method over its guidance scales (the dot is its smallest); the star is a fresh "
        "real draw"
    )
    says += f"; the other {grey} methods are grey, named where they end." if grey > 0 else "."
    fidelity, diversity = first(metrics, FIDELITY), first(metrics, DIVERSITY)
    for name, title, up, across in (
        ("errors_distance", "Class errors against distance to held-out real data", error, distance),
        ("fidelity_diversity", "Fidelity against diversity", fidelity, diversity),
    ):
        if up is not None and across is not None:
            figure = fronts(case.averages, called, ahead, up, across)
            yield Drawn(name, f"{title}: {says}", figure)


def fronts(averages: Rows, called: dict[str, str], ahead: list[str], up: str, across: str) -> Any:
    """A panel before refinement and one for each flow of the paper's: one metric against another.

    called  {method: name}
    ahead   names of those that have colours
    """
    look = styles(list(called.values()), ahead)
    kinds = {SAMPLE_KINDS[kind]: kind for kind in averages.kinds() if kind in SAMPLE_KINDS}

    def lines(kind: str) -> list[Line]:
        stage, flow = kinds[kind]
        return [
            Line(
                name,
                averages.where(method=key, stage=stage, flow=flow).curve(across, up),
                look.get(name, {}),
            )
            for key, name in called.items()
        ]

    def finish(panel: Any, kind: str) -> None:
        for line in panel.get_lines():
            x, y = line.get_data()
            panel.plot(x[0], y[0], "o", color=line.get_color(), ms=3)
        real = averages.having(across, up).real
        if real and (meaning(across).better != "lower" or real[across] > 0):
            panel.plot(real[across], real[up], "*", color="black", ms=7, label="real")
        if kind == next(iter(kinds)):
            panel.set_ylabel(names.of_column(up) + names.way(up))
            if meaning(across).better == "lower":
                panel.set_xscale("log")
            if meaning(up).better != "higher":
                panel.set_yscale("symlog", linthresh=1e-3)  # shares, from none to almost all
                panel.set_ylim(bottom=max(panel.get_ylim()[0], -1e-4))  # and never fewer
            if meaning(up).better != "higher" and meaning(across).better == "higher":
                panel.invert_yaxis()  # better is up
        in_units(panel.xaxis, names.is_share(across))
        in_units(panel.yaxis, names.is_share(up))

    size = (3.7, 3.3) if len(called) <= 2 * MOST_LINES else (5.6, 5.0)  # names need room
    return per_name(
        {kind: kind for kind in kinds}, lines, xlabel=names.of_column(across) + names.way(across),
        floors={}, says=averages.counted, first=ahead, panel=size, finish=finish, sharex=True,
        sharey=True,
    )  # fmt: skip


def first(metrics: list[str], kinds: tuple[str, ...]) -> str | None:
    """The first of the metrics that is of the first of these kinds."""
    return next(
        (m for kind in kinds for m in metrics if kind_of(m) == kind and "_std" not in m), None
    )
