"""What a sweep shows: one table, and every metric against the swept scale."""

from pathlib import Path
from typing import Any

from lightning_cfg.evaluation.tables import FRONT, as_csv, in_markdown, markdown_table
from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.reports.panels import Line, per_name, save, turn
from lightning_cfg.runs.files import write_text

Values = dict[str, Any]  # of the swept parameters
FLOOR = "real"  # the label that `evaluate` gives a fresh draw of real data


def write_report(folder: Path, runs: list[tuple[Values, list[dict]]], title: str = "") -> str:
    """Write table.csv, table.md and against_<parameter>.png and .pdf; the table as text.

    runs   the values of each run and what it has found, nothing where it has not finished
    title  what stands above the table
    """
    runs = [({name: number(value) for name, value in of.items()}, found) for of, found in runs]
    names = shortened([name for values, _ in runs for name in values])
    swept = {short: {repr(v[name]) for v, _ in runs if name in v} for name, short in names.items()}
    swept = {short for short, values in swept.items() if len(values) > 1}
    rows = [
        {names[name]: value for name, value in values.items()} | found
        for values, several in runs
        for found in several or [{}]
    ]
    table = as_markdown(rows, len(names))
    write_text(folder / "table.csv", as_csv(rows))
    write_text(folder / "table.md", f"{title}\n\n{table}" if title else table)
    along = axis(
        [{names[k]: v for k, v in values.items() if names[k] in swept} for values, _ in runs]
    )
    if along is not None and metrics_of(rows, names.values()):
        figure = against(rows, along, [name for name in names.values() if name in swept], names)
        save(figure, folder / f"against_{along}")
    return f"{table}\n{folder}: {sum(bool(found) for _, found in runs)} of {len(runs)} runs"


def best_of(runs: list[tuple[Values, list[dict]]], metric: dict) -> str:
    """A line of the run that is best by a sweep's metric, {name, goal}; runs as of write_report."""
    name, sign = metric["name"], -1 if metric.get("goal") == "maximize" else 1
    found = [(sign * one[name], i) for i, (_, several) in enumerate(runs) for one in several
             if one.get("samples") != FLOOR and isinstance(one.get(name), int | float)]  # fmt: skip
    if not found:
        return f"no run has the metric {name}"
    value, i = min(found)
    said = ", ".join(f"{key}={one}" for key, one in runs[i][0].items())
    return f"best {name}, {sign * value:.6g}: {said}"


def number(value: Any) -> Any:
    """A value of a sweep file: 1e-4 is a number to the verbs, and a text to who reads it there."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def shortened(names: list[str]) -> dict[str, str]:
    """{generate.guided.guidance.scale: scale}: as few last parts of each key as tell them apart."""
    names = list(dict.fromkeys(names))
    short = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = (t for t in tails if sum(f".{other}".endswith(f".{t}") for other in names) == 1)
        short[name] = next(alone, name)
    return short


def metrics_of(rows: list[dict], parameters: Any) -> list[str]:
    """The columns that are measured: numbers that are neither parameters nor counts."""
    other = {*parameters, *FRONT, "step"}
    columns = dict.fromkeys(name for row in rows for name in row if name not in other)
    return [name for name in columns if any(isinstance(row.get(name), int | float) for row in rows)]


def axis(values: list[Values]) -> str | None:
    """What the plot goes along: the scale, otherwise the parameter with the most values."""
    counts: dict[str, set] = {}
    for one in values:
        for name, value in one.items():
            counts.setdefault(name, set()).add(repr(value))
    scales = [name for name in counts if name.split(".")[-1] == "scale"]
    return max(scales or counts, key=lambda name: len(counts[name]), default=None)


def against(rows: list[dict], along: str, swept: list[str], names: dict[str, str]) -> Any:
    """A panel per metric, a line per combination of the other parameters; real data dotted."""
    metrics = metrics_of(rows, names.values())
    samples = [row for row in rows if row.get("samples") != FLOOR]
    several = len({row.get("samples") for row in samples} - {None}) > 1
    classes = len({row.get("class") for row in rows} - {None}) > 1
    others = [name for name in swept if name != along]
    others += ["samples"] * several + ["class"] * classes
    groups: dict[str, list[dict]] = {}
    for row in samples:
        label = ", ".join(_said(row.get(name), name) for name in others) or "all runs"
        groups.setdefault(label, []).append(row)
    floors = {} if classes else {metric: _floor(rows, metric) for metric in metrics}
    xs = [row[along] for row in samples]
    wide = along.split(".")[-1] != "scale" and all(map(_number, xs))
    wide = wide and min(xs) > 0 and max(xs) >= 10 * min(xs)  # such as learning rates

    def lines(metric: str) -> list[Line]:
        return [
            Line(label, _points(own, along, metric), {**turn(i), "marker": "o", "lw": 1.5})
            for i, (label, own) in enumerate(groups.items())
        ]

    return per_name(
        {metric: f"{metric}{_way(metric)}" for metric in metrics}, lines, xlabel=along,
        floors=floors, floor=":", panel=(2.6, 2.3),
        finish=lambda panel, metric: panel.set_xscale("log") if wide else None,
    )  # fmt: skip


def _points(rows: list[dict], along: str, metric: str) -> list[tuple[Any, float]]:
    """(swept value, metric) of a line, by the value where it is a number."""
    numbers = all(_number(row[along]) for row in rows if metric in row)
    points = [(row[along] if _number(row[along]) else str(row[along]), row[metric])
              for row in rows if metric in row]  # fmt: skip
    return sorted(points) if numbers else points


def _floor(rows: list[dict], metric: str) -> float | None:
    """Of real data, averaged over the runs that drew them."""
    found = [row[metric] for row in rows if row.get("samples") == FLOOR and metric in row]
    return sum(found) / len(found) if found else None


def _way(metric: str) -> str:
    better = meaning(metric).better
    return f" ({better} is better)" if better in ("lower", "higher") else ""


def as_markdown(rows: list[dict], parameters: int) -> str:
    """A line per run and sample set: what was swept, then what was found."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = []
    for row in rows:
        cells = [_cell(name, row[name]) if name in row else "" for name in columns]
        if len(row) <= parameters and len(columns) > parameters:
            cells[parameters] = "not finished"
        body.append(cells)
    return markdown_table(columns, body, left=parameters) + "\n"


def _cell(name: str, value: Any) -> str:
    return show(name, value) if isinstance(value, float) else in_markdown(str(value))


def _said(value: Any, name: str) -> str:
    return f"{name} {value:g}" if _number(value) else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
