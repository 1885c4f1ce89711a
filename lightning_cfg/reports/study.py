"""The report of a study: what refinement did, said in sentences, tables and figures."""

import json
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.reports import comparison, figures, trajectory_figures, variant_figures
from lightning_cfg.reports import variants as variant_report
from lightning_cfg.reports.claims import (
    ONE_FOR_ALL,
    PROMISES,
    Claim,
    averaged,
    check_claims,
    meaning,
    show,
    summary,
    worse,
)
from lightning_cfg.reports.figures import REAL, STAGES
from lightning_cfg.reports.markdown import as_html, table
from lightning_cfg.reports.trajectories import MEANING, told, trends
from lightning_cfg.runs.files import write_text
from lightning_cfg.verbs.trace import BOUNDARIES, CURVES, SUMMARY

__all__ = [
    "Case",
    "Claim",
    "Traced",
    "as_html",
    "check_claims",
    "summary",
    "trends",
    "write_report",
]

FRONT = ("method", "scale", "class", "stage", "flow", "nfe", "evaluations", "seconds", "n")
WAYS = {  # (in the head of a table, in its definition)
    "lower": (" ↓", "; lower is better"),
    "higher": (" ↑", "; higher is better"),
    "real": (" → real", "; closer to real is better"),
    None: ("", ""),
}
PAPER = {
    "refinement": "refinement improves the samples whatever the kind of guidance and its scale "
    "(Zhao & Schwing 2025, sec. 4.1)",
    "one for all": "one flow for all scales is on a par with a flow for each, or better (Zhao & "
    "Schwing 2025, app. A)",
}


@dataclass
class Traced:
    """Trajectories of one method at one scale, and what `trace` measured along them."""

    file: Path  # of trajectories
    rows: list[dict]  # a row per class and classifier
    curves: list[dict]  # and noise level
    boundaries: list[dict]  # in one dimension: t and u of each zero of the margin

    @property
    def guide(self) -> str:
        """The classifier whose boundary is meant: the method's own, otherwise the first."""
        names = [row["classifier"] for row in self.rows]
        return "own" if "own" in names else names[0]

    @classmethod
    def read(cls, file: Path, run: Path) -> "Traced":
        """From the trajectory file and the run of `trace` that read it."""
        tables = []
        for name in (SUMMARY, CURVES, BOUNDARIES):
            tables.append(json.loads((run / name).read_text()) if (run / name).is_file() else [])
        return cls(file, *tables)


@dataclass
class Case:
    """What a study found on one data set."""

    name: str  # "" where it is the only one
    data_set: Any
    # of the table: FRONT, then the metrics
    rows: list[dict] = field(default_factory=list)
    # {(method, scale, stage, flow): sample file}
    sets: dict[tuple, Path] = field(default_factory=dict)
    # {(method, scale): trajectories before refinement}
    traced: dict[tuple, Traced] = field(default_factory=dict)


def write_report(
    directory: Path, *, title: str, config: dict, cases: list[Case], stages: list[dict]
) -> None:
    """Write report.md, report.html, table.csv and figures/ into a study's directory.

    cases   what was found on each data set; a single one has no name
    stages  {name, verb, seconds, directory, reused} of each
    Raises UserError where something cannot be written or a sample file is damaged.
    """
    directory = Path(directory)
    metrics = [name for name in cases[0].rows[0] if name not in FRONT]
    averages = {case.name: averaged(case.rows) for case in cases}
    drawn = {}
    for case in cases:
        folder = directory / "figures" / case.name
        drawn[case.name] = figures.draw(
            folder,
            data_set=case.data_set,
            averages=averages[case.name],
            sets=case.sets,
            trained_on=list(config["flows"].get("all", [])),
            sections=config["methods"],
        )
        for more in (variant_figures, comparison):
            drawn[case.name] += more.draw(
                folder, averages=averages[case.name], config=config, metrics=metrics
            )
        if case.traced:
            drawn[case.name] += trajectory_figures.draw(
                folder,
                data_set=case.data_set,
                name=case.name,
                methods=config["methods"],
                traced=case.traced,
                sets=case.sets,
            )
    parts = [f"# {title}", _done(config, cases), _spent(directory, stages)]
    if config["flows"]:
        parts += ["## What refinement did"]
        for case in cases:
            parts += _headline(case)
            parts += _judged(check_claims(case.rows), averages[case.name], metrics)
    compared = [(c, comparison.sections(averages[c.name], config, metrics)) for c in cases]
    if any(lines for _, lines in compared):
        parts += ["## Methods compared"]
        for case, lines in compared:
            parts += [*_headline(case), *lines]
    if config["variants"] or config["published"]:
        parts += ["## Flows and scales"]
        for case in cases:
            parts += _headline(case)
            parts += variant_report.sections(averages[case.name], config, metrics)
    if any(case.traced for case in cases):
        parts += ["## What guidance did to the trajectories", MEANING]
        for case in cases:
            parts += [*_headline(case), *told(case, config["methods"])]
    parts += [
        "## Table",
        "Classes averaged, weighted by n; every class by itself stands below and, with more "
        "digits, in [table.csv](table.csv). `nfe` is network evaluations per sample from the "
        "noise on, `evaluations` how many of each network, `seconds` the wall time per sample on "
        "the machine that made it. The last row, `real`, is a fresh draw of real data, scored in "
        "the same way: the floor. Where closer to real is better, lower than the floor is not "
        "better.",
    ]
    for case in cases:
        parts += [*_headline(case), _averages_table(averages[case.name], metrics)]
    parts += ["\n".join(f"- {_definition(name)}" for name in metrics), "## Figures"]
    for case in cases:
        parts += _headline(case)
        for says, name in drawn[case.name]:
            file = Path("figures", case.name, name)
            parts.append(f"![{says}]({file}.png)\n\n{says} [PDF]({file}.pdf)")
    columns = [*FRONT, *metrics]
    parts += ["## Every class"]
    for case in cases:
        body = [_cells(row, columns) for row in case.rows]
        parts += [*_headline(case), table([*FRONT, *map(_headed, metrics)], body)]
    markdown = "\n\n".join(parts) + "\n"
    rows = [({"data": case.name} if case.name else {}) | row for case in cases for row in case.rows]
    write_text(directory / "table.csv", as_csv(rows))
    for name, tables in (("trajectories", "rows"), ("curves", "curves")):
        traced = [
            {**({"data": case.name} if case.name else {}), "method": method, "scale": scale} | row
            for case in cases
            for (method, scale), seen in case.traced.items()
            for row in getattr(seen, tables)
        ]
        for row in traced:
            del row["samples"]
        if traced:
            write_text(directory / f"{name}.csv", as_csv(traced))
    write_text(directory / "report.html", as_html(markdown, directory))
    write_text(directory / "report.md", markdown)


def _headline(case: Case) -> list[str]:
    return [f"### {case.name}"] if case.name else []


def _done(config: dict, cases: list[Case]) -> str:
    """What was done, on what."""
    data = "; ".join(
        f"{case.name + ': ' if case.name else ''}`{section['name']}`, "
        f"{case.data_set.num_classes} classes, shape {tuple(case.data_set.shape)}"
        + f", {case.data_set.formula}".removesuffix(", ")
        for case, section in zip(cases, config["cases"].values() or [config["data"]], strict=True)
    )
    methods = "; ".join(
        f"{name}, guidance `{section['guidance']['name']}` with "
        + ", ".join(f"{role} {path}" for role, path in section["models"].items())
        for name, section in config["methods"].items()
    )
    text = f"Data: {data}. Methods: {methods}. "
    grids = {name: section["scales"] for name, section in config["methods"].items()}
    scales = sorted({scale for own in grids.values() for scale in own})
    shared, own = (list(config["flows"].get(kind, [])) for kind in ("all", "dedicated"))
    flows = []
    if shared:
        unseen = [scale for scale in scales if scale not in shared]
        never = f", and it never saw {_scales(unseen)}" if unseen else ""
        flows.append(f"one for all scales (its samples have scales {_scales(shared)}{never})")
    if own:
        flows.append(f"one of its own for each of the scales {_scales(own)}")
    fresh = f"{config['samples']:,} fresh samples at each of the scales "
    if len({tuple(own) for own in grids.values()}) == 1:
        fresh += _scales(scales)
    else:
        fresh += "; ".join(f"{_scales(own)} ({name})" for name, own in grids.items())
    if flows:
        text += (
            f"For each method, {config['sources']:,} generated samples per flow were paired with "
            f"their {config['pairs'].get('k', 20)} nearest real neighbours, and rectified flows "
            f"trained on the pairs: {'; '.join(flows)}. Then {fresh} were scored before and after "
            "refinement."
        )
    else:
        text += f"For each method, {fresh} were scored."
    return f"{text} Seed {config['seed']}; every setting is in [config.yaml](config.yaml)."


def _spent(directory: Path, stages: list[dict]) -> str:
    """Time, machine and versions; the versions are those that the stages wrote down."""
    verbs = list(dict.fromkeys(stage["verb"] for stage in stages))
    seconds = {v: [stage["seconds"] for stage in stages if stage["verb"] == v] for v in verbs}
    packages: dict[str, set] = {}
    for stage in stages:
        manifest = directory / stage["directory"] / "manifest.json"
        if manifest.is_file():
            for name, version in json.loads(manifest.read_text()).get("packages", {}).items():
                packages.setdefault(name, set()).add(version)
    reused = sum(bool(stage["reused"]) for stage in stages)
    names = re.findall(r"model name\s*:\s*(.+)", _text("/proc/cpuinfo")) or [platform.machine()]
    machine = f"{os.cpu_count()} CPUs ({names[0]})"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    text = f"Time of all {len(stages)} stages: {_time(sum(sum(s) for s in seconds.values()))}"
    if reused:
        text += f", {reused} of them taken over from earlier calls"
    each = ", ".join(f"{verb} {_time(sum(s))} ({len(s)} x)" for verb, s in seconds.items())
    text += f" ({each}). " if each else ". "
    versions = ", ".join(f"{n} {' and '.join(sorted(v))}" for n, v in packages.items())
    text += f"Machine: {machine}, {platform.system()}."
    return text + (f" Versions: {versions}." if versions else "")


def _judged(claims: list[Claim], averages: dict, metrics: list[str]) -> list[str]:
    """The claims, a column each, with yes or NO and the numbers; then the plain sentences."""
    parts = []
    for about, heads in (("refinement", PROMISES), ("one for all", ONE_FOR_ALL)):
        found = {(c.method, c.scale, c.flow, c.metric): c for c in claims if c.about == about}
        if not found:
            continue
        if about == "one for all":
            parts.append("One flow for all scales vs the flow trained for the scale alone: is the "
                         "first within 10 % of the second, or better?")  # fmt: skip
        columns = [m for m in heads if any(key[3] == m for key in found)]
        body = []
        for method, scale, flow in dict.fromkeys(key[:3] for key in found):
            row = (found.get((method, scale, flow, m)) for m in columns)
            body.append([method, f"{scale:g}", flow, *map(_verdict, row)])
        floors = {c.metric: f" (real {c.real})" for c in found.values() if c.real}
        titles = [f"{m} {heads[m]}".removesuffix(" itself") + floors.get(m, "") for m in columns]
        parts.append(table(["method", "scale", "flow", *titles], body))
        no = [str(claim) for claim in found.values() if not claim.holds]
        if no:
            parts.append(f"{len(found) - len(no)} of {len(found)} checks hold. **At odds with the "
                         f"paper's claim** that {PAPER[about]}:")  # fmt: skip
            parts.append("\n".join(f"- {claim}" for claim in no))
        else:
            parts.append(f"All {len(found)} checks hold: nothing in them is at odds with the "
                         f"paper's claim that {PAPER[about]}.")  # fmt: skip
    if not parts:
        parts = ["No scale above 1 was refined, so there is no claim to check."]
    losses = worse(averages, metrics)
    if losses:
        parts.append("Beyond these checks, refinement made worse, by more than 5 % and, where "
                     "lower is better, by more than a fresh real draw has (no test of "
                     "significance):")  # fmt: skip
        parts.append("\n".join(f"- {line}" for line in losses))
    return parts


def _averages_table(averages: dict, metrics: list[str]) -> str:
    """A row per method, scale and sample set, real last."""
    methods = [*dict.fromkeys(key[0] for key in averages if key != REAL), REAL[0]]
    variants = (key[2:] for key in averages if key[2:] not in (*STAGES, REAL[2:]))
    kinds = [*STAGES, *dict.fromkeys(variants), REAL[2:]]
    body, front = [], ["method", "scale", "samples", "nfe", "evaluations", "seconds", "n"]
    for key in sorted(
        averages, key=lambda k: (methods.index(k[0]), k[1] or 0, kinds.index(tuple(k[2:])))
    ):
        name = STAGES.get(key[2:], key[3] or "fresh draw")
        row = {**averages[key], "method": key[0], "scale": key[1], "samples": name}
        body.append(_cells(row, [*front, *metrics]))
    return table([*front, *map(_headed, metrics)], body)


def _cells(row: dict, names: list[str]) -> list[str]:
    return [show(name, row.get(name)) for name in names]


def _definition(metric: str) -> str:
    better, text = meaning(metric)
    return f"`{metric}`: {text}{WAYS[better][1]}"


def _headed(metric: str) -> str:
    return metric + WAYS[meaning(metric)[0]][0]


def _verdict(claim: Claim | None) -> str:
    return f"{'yes' if claim.holds else '**NO**'}: {claim.numbers}" if claim else ""


def _scales(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
