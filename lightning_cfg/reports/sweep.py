"""What a sweep shows: one table, and every metric against the swept scale."""

from pathlib import Path
from typing import Any

from lightning_cfg.evaluation.tables import FRONT, as_csv
from lightning_cfg.reports import figures
from lightning_cfg.reports.claims import meaning, show
from lightning_cfg.runs.files import write_text

Values = dict[str, Any]  # of the swept parameters
FLOOR = "real"  # the label that `evaluate` gives a fresh draw of real data


def write_report(folder: Path, runs: list[tuple[Values, list[dict]]]) -> str:
    """Write table.csv, table.md and against_<parameter>.png and .pdf; the table as text.

    runs  the values of each run and what it has found, nothing where it has not finished
    """
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
    write_text(folder / "table.md", table)
    along = axis(
        [{names[k]: v for k, v in values.items() if names[k] in swept} for values, _ in runs]
    )
    if along is not None and metrics_of(rows, names.values()):
        figure = against(rows, along, [name for name in names.values() if name in swept], names)
        figures.save(figure, folder / f"against_{along}", colours=64)
    return f"{table}\n{folder}: {sum(bool(found) for _, found in runs)} of {len(runs)} runs"


def shortened(names: list[str]) -> dict[str, str]:
    """{generate.guided.guidance.scale: scale}: as few last parts of each key as tell them apart."""
    names = list(dict.fromkeys(names))
    short = {}
    for name in names:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            tail = ".".join(parts[-n:])
            if sum(f".{other}".endswith(f".{tail}") for other in names) == 1:
                break
        short[name] = tail
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
    import matplotlib
    from matplotlib.figure import Figure

    metrics, others = metrics_of(rows, names.values()), [name for name in swept if name != along]
    several = len({row.get("samples") for row in rows} - {FLOOR, None}) > 1
    classes = len({row.get("class") for row in rows} - {None}) > 1
    others += ["samples"] * several + ["class"] * classes

    def line_of(row: dict) -> str:
        return ", ".join(_said(row.get(name), name) for name in others) or "all runs"

    of_samples = [row for row in rows if row.get("samples") != FLOOR]
    lines = list(dict.fromkeys(line_of(row) for row in of_samples))
    across = min(4, len(metrics))
    down = -(-len(metrics) // across)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(2.6 * across + 1.7, 2.3 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for panel in panels.flat[len(metrics) :]:
            panel.axis("off")
        for panel, metric in zip(panels.flat, metrics, strict=False):
            for i, line in enumerate(lines):
                points = [
                    (row[along] if _number(row[along]) else str(row[along]), row[metric])
                    for row in of_samples
                    if line_of(row) == line and metric in row
                ]
                if points and all(_number(x) for x, _ in points):
                    points.sort()
                colour = figures.COLOURS[i % len(figures.COLOURS)]
                dashes = ("-", "--", ":")[i // len(figures.COLOURS) % 3]
                xs, ys = zip(*points, strict=True) if points else ((), ())
                panel.plot(xs, ys, dashes, marker="o", ms=3, color=colour, label=line)
            floor = [row[metric] for row in rows if row.get("samples") == FLOOR and metric in row]
            if floor and not classes:
                panel.axhline(sum(floor) / len(floor), color="black", lw=0.8, ls=":", label=FLOOR)
            better = meaning(metric)[0]
            way = f" ({better} is better)" if better in ("lower", "higher") else ""
            panel.set(title=f"{metric}{way}", xlabel=along)
            xs = [row[along] for row in of_samples]
            numbers = along.split(".")[-1] != "scale" and all(_number(x) for x in xs)
            if numbers and min(xs) > 0 and max(xs) >= 10 * min(xs):  # such as learning rates
                panel.set_xscale("log")
            panel.grid(alpha=0.3, lw=0.4)
        found = [panel.get_legend_handles_labels() for panel in panels.flat]
        handles = {name: h for pair in found for h, name in zip(*pair, strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def as_markdown(rows: list[dict], parameters: int) -> str:
    """A line per run and sample set: what was swept, then what was found."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        f"| {' | '.join(columns)} |",
        "|:--" * parameters + "|--:" * (len(columns) - parameters) + "|",
    ]
    for row in rows:
        cells = [_cell(name, row[name]) if name in row else "" for name in columns]
        if len(row) <= parameters and len(columns) > parameters:
            cells[parameters] = "not finished"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    return show(name, value) if isinstance(value, float) else str(value).replace("|", "\\|")


def _said(value: Any, name: str) -> str:
    return f"{name} {value:g}" if _number(value) else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
