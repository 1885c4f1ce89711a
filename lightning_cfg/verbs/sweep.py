"""`sweep`: a W&B sweep file run without W&B: its grid on this machine, one table, one plot.

python -m lightning_cfg.sweep FILE [--print | --index I | --report] [key=value ...]

FILE is what `wandb sweep` takes: method grid, parameters with `value` or `values`, and a command
that starts a verb with values as arguments. Arguments here are added to every run's own.

  --print    the commands, one a line, and nothing else
  --index I  only run number I, counted from 0, as one task of a SLURM array
  --report   table and plot of what has finished, running nothing

Its name and description stand above the table, its project and entity are the runs' own where these
log to W&B, run_cap is the most runs that are done, and the best by its metric is told at the end. A
run that has finished is found again, one that fails is told at the end (exit 1), and table and plot
are in runs/<name of FILE>/.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_cfg.config import from_arguments, identity_difference, identity_of, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.lock import Lock
from lightning_cfg.runs.manifests import MANIFEST, read_manifest, read_record, read_table
from lightning_cfg.runs.names import METRICS
from lightning_cfg.runs.progress import clock
from lightning_cfg.runs.run import identity

KEYS = ("program", "command", "method", "parameters", "metric", "name", "description", "project")
KEYS += ("entity", "run_cap")  # of W&B's schema; what else it has is refused
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's default
SOURCE = "sweep_file.txt"  # the path of the sweep file, in the folder of its table
WANDB, QUIET = "logger=wandb", "logger=csv"  # a sweep file says wandb for the agents' sake


@dataclass
class Row:
    """One run of the grid: its values, its command, and where it writes."""

    values: dict[str, Any]
    command: list[str]
    directory: Path
    verb: Callable
    config: dict
    environment: dict[str, str] = field(default_factory=dict)  # of W&B, where it logs there
    failed: int = 0  # exit status
    found: list[dict] = field(default_factory=list)  # its results, a dict per sample set and class


def grid(sweep: dict) -> list[dict[str, Any]]:
    """The values of every run, {parameter: value}; the last parameter changes fastest."""
    choices = {
        name: [entry["value"]] if "value" in entry else entry["values"]
        for name, entry in sweep["parameters"].items()
    }
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


def command_of(sweep: dict, values: dict[str, Any]) -> list[str]:
    """The words of one run's command: what W&B's agent would start, with this interpreter."""
    plain = [f"{name}={value}" for name, value in values.items()]
    macros = {
        "env": [],
        "interpreter": [sys.executable],
        "program": [str(sweep.get("program", ""))],
        "args": [f"--{word}" for word in plain],
        "args_no_hyphens": plain,
        "args_no_equals": [w for k, v in values.items() for w in (f"--{k}", str(v))],
    }
    words = []
    for word in map(str, sweep.get("command", COMMAND)):
        macro = re.fullmatch(r"\$\{(\w+)\}", word)
        if macro and macro[1] not in macros:
            raise UserError(
                f"command: {word} is not known here; ${{args}}, ${{args_no_hyphens}} and "
                "${args_no_equals} are"
            )
        value = re.sub(r"\$\{envvar:(\w+)\}", lambda m: os.environ.get(m[1], m[1]), word)
        words += macros[macro[1]] if macro else [value]
    return words


def read(file: str | Path) -> dict:
    """The sweep file; UserError, naming the key, for what it lacks or what is no grid."""
    try:
        sweep = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the sweep file '{file}': {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not yaml: {error}") from None
    if not isinstance(sweep, dict) or not isinstance(sweep.get("parameters"), dict):
        raise UserError(f"{file}: a sweep has parameters, {{key: {{values: [...]}}}}")
    for key in sweep:
        if key not in KEYS:
            raise UserError(f"{file}: '{key}' is not run here; known are {', '.join(KEYS)}")
    if sweep.get("method") != "grid":
        raise UserError(
            f"{file}: method {sweep.get('method')} needs W&B's server (wandb sweep {file}); here "
            "it must be grid"
        )
    command = sweep.get("command", list(COMMAND))
    listed = isinstance(command, list) and command
    if not listed or not all(isinstance(word, str) for word in command):
        raise UserError(f"{file}: command must be a list of words, such as {list(COMMAND)}")
    for name, entry in sweep["parameters"].items():
        known = isinstance(entry, dict) and len(entry) == 1
        if not known or not ("value" in entry or isinstance(entry.get("values"), list)):
            raise UserError(f"{file}: parameters.{name} must have value or values, a list")
        if entry.get("values") == []:
            raise UserError(f"{file}: parameters.{name}.values is empty")
    _check_settings(file, sweep)
    return sweep


def _check_settings(file: str | Path, sweep: dict) -> None:
    """UserError for a value of the sweep's own keys that could not be done as it says."""
    cap, metric = sweep.get("run_cap", 1), sweep.get("metric", {"name": ""})
    if type(cap) is not int or cap < 1:
        raise UserError(f"{file}: run_cap must be an int of at least 1, not {cap!r}")
    named = isinstance(metric, dict) and isinstance(metric.get("name"), str)
    goal = metric.get("goal", "minimize") if named else None
    if goal not in ("minimize", "maximize") or not metric.keys() <= {"name", "goal"}:
        raise UserError(f"{file}: metric must be {{name: NAME, goal: minimize or maximize}}")


def rows_of(sweep: dict, extra: list[str]) -> list[Row]:
    """Every run of the sweep, its arguments checked as the verb itself checks them.

    UserError for a wrong one, or where two runs would write to the same directory.
    """
    rows: list[Row] = []
    taken: dict[Path, int] = {}
    place = {f"WANDB_{k.upper()}": str(sweep[k]) for k in ("project", "entity") if k in sweep}
    for i, values in enumerate(grid(sweep)[: sweep.get("run_cap")]):
        command = command_of(sweep, values)
        command = [QUIET if word == WANDB else word for word in command] + extra
        module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
        if not module.startswith("lightning_cfg."):
            raise UserError(
                f"command: run {i} starts no verb of ours: it must have -m, lightning_cfg.VERB"
            )
        name = module.rpartition(".")[2]
        verb = resolve("", f"lightning_cfg.verbs.{name}.{name}")
        config = from_arguments(verb, command[command.index("-m") + 2 :])
        directory = Path(config["run_dir"])
        if directory in taken:
            raise UserError(
                f"runs {taken[directory]} and {i} would both write to run_dir={directory}: name "
                "the swept keys in it, as in run_dir: runs/name_${guidance.scale}"
            )
        taken[directory] = i
        rows.append(Row(values, command, directory, verb, config, place))
    return rows


def run(row: Row) -> None:
    """Start one run in a process of its own, as W&B's agent does, and note its exit status."""
    row.failed = subprocess.run(row.command, env={**os.environ, **row.environment}).returncode


def outdated(row: Row) -> str | None:
    """How the finished run in a row's directory differs from what the row asks for, if it does."""
    file = row.directory / "manifest.json"
    if not file.is_file() or not hasattr(row.verb, "unread"):  # a study has no manifest
        return None
    known = read_record(file)
    try:
        now, inputs = identity(row.verb, row.config)
    except UserError:  # what it has read is gone, and so cannot be another
        now, inputs = identity_of(row.verb, row.config, find=False), known["inputs"]
        now.settings = {k: v for k, v in now.settings.items() if k not in ("run_dir", "force")}
    here = {"verb": row.verb.__name__, "settings": now.settings, "inputs": inputs}
    there = {key: known.get(key) for key in here}
    here = json.loads(json.dumps(here))
    return identity_difference(there, here, {f"settings.{key}" for key in now.usual})


def results(directory: Path) -> list[dict]:
    """What a finished run has found: a dict per sample set and class, or the loss of a training."""
    if not (directory / MANIFEST).is_file():
        return []
    scores = directory / METRICS
    if scores.is_file():
        rows = read_table(scores)
        last = [row for row in rows if row.get("draw", "mean") == "mean"]
        return [{k: v for k, v in row.items() if k != "draw"} for row in last]
    facts = read_manifest(directory)
    trained = {"loss": facts.get("loss"), "step": facts.get("step")}
    return [{k: v for k, v in trained.items() if v is not None}]


def main(argv: list[str]) -> int:
    """Run a sweep from the command line; the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if argv else 2
    file, *rest = argv
    flags = [word for word in rest if word in ("--print", "--report")]
    extra = [word for word in rest if word not in flags]
    index = None
    if "--index" in extra:
        at = extra.index("--index")
        index, extra = (extra[at + 1 : at + 2] or [""])[0], extra[:at] + extra[at + 2 :]
        if not index.isdigit():
            raise UserError(f"--index needs a number, counted from 0, not '{index}'")
    sweep = read(file)
    rows = rows_of(sweep, extra)
    if index is not None:
        if int(index) >= len(rows):
            raise UserError(f"--index {index}: {file} has runs 0 ... {len(rows) - 1}")
        rows = [rows[int(index)]]
    if "--print" in flags:
        print("\n".join(shlex.join(row.command) for row in rows))
        return 0
    lock = Lock(Path("runs") / Path(file).stem)
    if index is None:
        lock.take()
    try:
        if index is None:
            keep_for(lock.directory, Path(file))
        if "--report" not in flags:
            run_all(rows)
        if index is None:
            report(rows, lock.directory, sweep)
    finally:
        lock.release()
    failed = [row for row in rows if row.failed]
    for row in failed:
        print(f"failed with status {row.failed}: {shlex.join(row.command)}", file=sys.stderr)
    return 1 if failed else 0


def keep_for(folder: Path, file: Path) -> None:
    """Note whose table lies here; UserError where it is that of another file of the same name."""
    note = folder / SOURCE
    if note.is_file():
        other = Path(note.read_text(encoding="utf-8").strip())
        if other.is_file() and not other.samefile(file):
            raise UserError(f"{folder} has the table of {other}: rename one of the two files")
    write_text(note, f"{file.resolve()}\n")


def run_all(rows: list[Row]) -> None:
    """Start every run, one after the other, and say how long the rest will take."""
    began = time.monotonic()
    for i, row in enumerate(rows):
        left = (time.monotonic() - began) / max(1, i) * (len(rows) - i)
        said = ", ".join(f"{name}={value}" for name, value in row.values.items())
        told = f" (about {clock(left)} left)" if i and left > 60 else ""
        print(f"[{i + 1}/{len(rows)}] {said}{told}", flush=True)
        run(row)


def report(rows: list[Row], folder: Path, sweep: dict) -> None:
    """Write table and plot of what has finished, and tell the best by the file's metric; results
    of other settings are left out. The file's name and description stand above the table."""
    for row in rows:
        other = None if row.failed else outdated(row)
        if other is not None:
            told = f"{row.directory}: left out, its result is of other settings ({other})"
            print(told, file=sys.stderr)
        row.found = [] if row.failed or other is not None else results(row.directory)
    from lightning_cfg.reports.sweep import best_of, write_report  # it draws

    runs = [(row.values, row.found) for row in rows]
    told = (str(sweep[key]) for key in ("name", "description") if sweep.get(key))
    print(write_report(folder, runs, ": ".join(told)))
    if sweep.get("metric") is not None:
        print(best_of(runs, sweep["metric"]))
