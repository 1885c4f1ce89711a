"""The report of a study: what refinement did, said in sentences, tables and figures."""

from collections.abc import Callable
from pathlib import Path

from lightning_cfg.evaluation.tables import as_csv, in_markdown, markdown_table
from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.metrics.over_seeds import OverSeeds, over
from lightning_cfg.reports import (
    against_scale,
    claims,
    comparison,
    contact_sheet,
    effective,
    evaluations,
    front,
    pca,
    place_and_mass,
    points,
    resampled,
    trajectories,
    trajectory_figures,
    tuned,
    variants,
)
from lightning_cfg.reports.case import FRONT, Case
from lightning_cfg.reports.differences import differences
from lightning_cfg.reports.finding import finding
from lightning_cfg.reports.page import page
from lightning_cfg.reports.panels import save
from lightning_cfg.reports.prose import done, spent
from lightning_cfg.reports.rows import REAL, SAMPLE_KINDS, SEED, Cell, Rows
from lightning_cfg.runs.files import write_text

FIGURES = (  # in the order of a report: what was found, then what it is made of
    comparison,
    front,
    place_and_mass,
    trajectory_figures,
    against_scale,
    variants,
    evaluations,
    points,
    pca,
    contact_sheet,
)
WAYS = {  # (in the head of a table, in its definition)
    "lower": (" ↓", "; lower is better"),
    "higher": (" ↑", "; higher is better"),
    "real": (" → real", "; closer to real is better"),
    None: ("", ""),
}
TABLE = (
    "Classes averaged, weighted by n; every class by itself stands below and, with more digits, in "
    "[table.csv](table.csv). `nfe` is network evaluations per sample from the noise on, "
    "`evaluations` how many of each network, `seconds` the wall time per sample on the machine "
    "that made it. The last row, `real`, is a fresh draw of real data, scored in the same way: the "
    "floor. Where closer to real is better, lower than the floor is not better."
)

OVER_SEEDS = (
    "Numbers are means over the seeds {} ± half of the 95 % interval (Student's t: 4.30 standard "
    "errors of the mean for three seeds, 2.78 for five); n is one seed's. `one draw` below `real` "
    "is the deviation of a single fresh real draw over the seeds: what is within it of real's "
    "cannot be told from real data by one such sample. table.csv has every seed by itself, "
    "[differences.csv](differences.csv) the differences paired by seed, which count where their "
    "interval excludes 0."
)
PICTURES = (
    "Points, images and trajectories are those of seed {}. Of curves the bands or crosses are 95 % "
    "intervals over the seeds, the grey band the deviation of a single fresh real draw."
)


def write_report(
    directory: Path, *, title: str, config: dict, cases: list[Case], stages: list[dict]
) -> None:
    """Write report.md, report.html, table.csv and figures/ into a study's directory.

    cases   what was found on each data set; a single one has no name
    stages  {name, verb, seconds, directory, reused} of each
    Raises UserError where something cannot be written or a sample file is damaged.
    """
    directory, metrics = Path(directory), cases[0].metrics
    seeds, several = cases[0].seeds, len(cases[0].seeds) > 1

    def chapter(title: str, told: Callable[[Case], list[str]], *first: str) -> list[str]:
        """A heading, then what is told of every case under its name; nothing where nothing is."""
        of_each = [(f"### {case.name}" if case.name else "", told(case)) for case in cases]
        lines = [line for name, parts in of_each for line in (name, *parts) if line]
        return [f"## {title}", *first, *lines] if any(parts for _, parts in of_each) else []

    parts = [f"# {in_markdown(title)}", done(config, cases), spent(directory, stages)]
    if config["flows"]:
        parts += chapter("What refinement did", claims.told)
    parts += chapter("Methods tuned", lambda case: tuned.sections(case, config))
    parts += chapter(
        "Methods compared", lambda case: comparison.sections(case.averages, config, metrics)
    )
    parts += chapter("Read right", resampled.told)
    parts += chapter(
        "Effective guidance scales",
        lambda case: effective.sections(case.averages, config, metrics),
        effective.meaning(several=several),
    )
    parts += chapter(
        "How far from the best schedule",
        lambda case: front.sections(case.averages, config),
        front.meaning(several=several),
    )
    parts += chapter("Flows and scales", lambda case: variants.sections(case, config))
    parts += chapter(
        "What guidance did to the trajectories",
        lambda case: trajectories.told(case, config),
        trajectories.MEANING,
        *([trajectories.FIRST.format(seeds[0])] if several else []),
    )
    table = [TABLE, OVER_SEEDS.format(", ".join(map(str, seeds)))] if several else [TABLE]
    parts += chapter("Table", lambda case: [_averages_table(case.averages, metrics)], *table)
    parts += ["\n".join(f"- {_definition(name)}" for name in metrics)]
    pictures = [PICTURES.format(seeds[0])] if several else []
    drawn = {case.name: _figures(directory, case, config) for case in cases}
    parts += chapter("Figures", lambda case: drawn[case.name][False], *pictures)
    parts += chapter("Appendix: every method", lambda case: drawn[case.name][True])
    parts += chapter("Every class", lambda case: [_table([*FRONT], metrics, _every_class(case))])
    markdown = "\n\n".join(parts) + "\n"
    _write_tables(directory, cases)
    whole = page(markdown, directory, title=title, cases=cases, config=config)
    write_text(directory / "report.html", whole)
    write_text(directory / "report.md", _finding_first(markdown, cases, config))


def _finding_first(markdown: str, cases: list[Case], config: dict) -> str:
    """What was found, as a list below the title; the page makes its own of it."""
    lines = [
        f"- {f'{in_markdown(case.name)}: ' if case.name else ''}{in_markdown(line)}"
        for case in cases
        for line in finding(case, config)
    ]
    title, rest = markdown.split("\n\n", 1)
    return "\n\n".join([title, *(["\n".join(lines)] if lines else []), rest])


def _figures(directory: Path, case: Case, config: dict) -> dict[bool, list[str]]:
    """Draw all that there is to draw; each with its caption, those of the appendix apart."""
    out: dict[bool, list[str]] = {False: [], True: []}
    for drawn in (figure for kind in FIGURES for figure in kind.draw(case, config)):
        file, says = Path("figures", case.name, drawn.name), in_markdown(drawn.caption)
        save(drawn.figure, directory / file, drawn.colours)
        out[drawn.appendix].append(f"![{says}]({file}.png)\n\n{says} [PDF]({file}.pdf)")
    return out


def _write_tables(directory: Path, cases: list[Case]) -> None:
    """table.csv; differences.csv of several seeds; of traced trajectories those and curves.csv."""
    names = "table", "differences", "trajectories", "curves"
    tables: dict[str, list[dict]] = {name: [] for name in names}
    for case in cases:
        name = {"data": case.name} if case.name else {}
        tables["table"] += [name | row for row in case.rows]
        tables["differences"] += [name | row for row in differences(case)]
        traced = case.traced_by or {case.seeds[0]: case.traced}
        for seed, method, scale, seen in (
            (seed, *what, seen) for seed, own in traced.items() for what, seen in own.items()
        ):
            numbered = {SEED: seed} if case.traced_by else {}
            front = {**name, **numbered, "method": method, "scale": scale}
            for table, rows in (("trajectories", seen.rows), ("curves", seen.curves)):
                tables[table] += [
                    front | {k: v for k, v in row.items() if k != "samples"} for row in rows
                ]
    for table, rows in tables.items():
        if rows:
            write_text(directory / f"{table}.csv", as_csv(rows))


def _averages_table(averages: Rows, metrics: list[str]) -> str:
    """A row per method, scale and sample set, real last."""
    methods = [*dict.fromkeys(cell.method for cell in averages if cell != REAL), REAL.method]
    kinds = [*SAMPLE_KINDS, *(cell.kind for cell in averages if cell != REAL), REAL.kind]

    def place(cell: Cell) -> tuple:
        return methods.index(cell.method), cell.scale or 0, kinds.index(cell.kind)

    rows = []
    for cell in sorted(averages, key=place):
        name = SAMPLE_KINDS.get(cell.kind, cell.flow or "fresh draw")
        front = {"method": cell.method, "scale": cell.scale, "samples": name}
        rows.append({**averages[cell], **front})
    if averages.over_seeds and averages.real:
        drawn = {m: v.deviation for m, v in averages.real.items() if isinstance(v, OverSeeds)}
        rows.append({"method": REAL.method, "samples": "one draw", **drawn})
    front = ["method", "scale", "samples", "nfe", "evaluations", "seconds", "n"]
    return _table(front, metrics, rows)


def _every_class(case: Case) -> list[dict]:
    """The rows of every class; of several seeds their means."""
    alike: dict[tuple, dict[int, dict]] = {}
    for row in case.rows:
        same = tuple(row.get(key) for key in ("method", "scale", "class", "stage", "flow"))
        alike.setdefault(same, {})[row.get(SEED, case.seeds[0])] = row
    return [
        {key: over({seed: row.get(key) for seed, row in found.items()}) for key in found[seed]}
        | {key: found[seed].get(key) for key in ("scale", "class")}
        for found in alike.values()
        for seed in [min(found)]
    ]


def _table(front: list[str], metrics: list[str], rows: list[dict]) -> str:
    heads = [in_markdown(metric) + WAYS[meaning(metric).better][0] for metric in metrics]
    body = [[show(name, row.get(name)) for name in (*front, *metrics)] for row in rows]
    return markdown_table([*front, *heads], body)


def _definition(metric: str) -> str:
    return f"`{metric}`: {meaning(metric).text}{WAYS[meaning(metric).better][1]}"
