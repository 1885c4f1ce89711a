"""The stages of a study run: each in a directory that is found again by what the stage is."""

import hashlib
import heapq
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from lightning_cfg.config import checked, dump
from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.manifests import read_manifest, read_record
from lightning_cfg.runs.run import FORMAT, identity
from lightning_cfg.studies.graph import Output, Stage


@dataclass
class Stages:
    """The stages of a study, each a run directory named by what it is and depends on.

    So a stage is found again as long as its settings and inputs are the same, and a changed
    setting makes a new directory for it and for what depends on it, and for nothing else.

    verbs   by name
    only    the one stage to run; None: all of them, "": none, they are only looked at
    force   do them again
    places  where the stages that are done lie
    states  done, ready, or what it waits for, of the stages that were looked at
    """

    root: Path
    verbs: dict[str, Callable[..., Path]]
    only: str | None = None
    force: bool = False
    places: dict[str, Path] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    done: list[dict] = field(default_factory=list)

    def claim(self, asked: dict) -> None:
        """Write the study's config.yaml; UserError if the directory is something else's."""
        known = self.root / "study.json"
        if self.root.exists() and (
            not self.root.is_dir() or (any(self.root.iterdir()) and not known.is_file())
        ):
            raise UserError(f"{self.root} exists and is no study: give another run_dir")
        before = read_record(known, "stages") if known.is_file() else {}
        if before.get("stages") and before.get("format", 1) != FORMAT:
            told = f"{self.root}: its stages are an older version's, and are done again"
            print(told, file=sys.stderr)
        if self.only is None or not before:
            self._write([])
        write_text(self.root / "config.yaml", "# lightning_cfg.study\n" + dump(asked))

    def run(self, stages: dict[str, Stage]) -> None:
        """Run those that are to be run, each once what it needs is done."""
        if self.only and self.only not in stages:
            hint = did_you_mean(self.only, stages, "plan=true prints them")
            raise UserError(f"stage={self.only} is no stage of this study; {hint}")
        for i, stage in enumerate(in_order(stages), 1):
            waits = [name for name in stage.needs if name not in self.places]
            if waits and stage.name == self.only:
                raise UserError(
                    f"stage={stage.name} needs these to be done before: {', '.join(waits)}"
                )
            if waits:
                self.states[stage.name] = f"waits for {', '.join(waits)}"
            elif self.only in (None, stage.name):
                print(f"[{1 if self.only else i}/{len(stages)}] {stage.name}", flush=True)
                self._run(stage)
            else:
                self._look(stage)

    def _run(self, stage: Stage) -> None:
        """Call the verb in the stage's directory, which tells by itself whether it is done."""
        settings, directory = self._found(stage)
        manifest = directory / "manifest.json"
        before = manifest.stat().st_mtime_ns if manifest.is_file() else 0
        self.verbs[stage.verb](**settings, run_dir=str(directory), force=self.force)
        self.places[stage.name] = directory
        self.done.append(
            {
                "name": stage.name,
                "verb": stage.verb,
                "seconds": read_manifest(directory, "seconds")["seconds"],
                "directory": str(directory.relative_to(self.root)),
                "reused": before != 0 and manifest.stat().st_mtime_ns == before,
                "hash": directory.name.rpartition("-")[2],
            }
        )

    def _look(self, stage: Stage) -> None:
        """Whether the stage is done, without running it."""
        settings, directory = self._found(stage)
        manifest = directory / "manifest.json"
        done = manifest.is_file()
        if done and stage.verb == "fit":  # which may be asked for more steps than it has
            steps = read_manifest(directory, "step")["step"]
            done = steps == settings["trainer"].get("max_steps")
        self.states[stage.name] = "done" if done else "ready"
        if done:
            self.places[stage.name] = directory

    def _found(self, stage: Stage) -> tuple[dict, Path]:
        """The stage's keys with directories in the place of stages; the directory for it."""
        verb = self.verbs[stage.verb]
        settings = _filled(stage.settings, self.places)
        found, files = identity(verb, checked(verb, {**settings, "run_dir": ""}))
        text = json.dumps([stage.verb, found.settings, files], sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return settings, self.root / "stages" / f"{stage.name.replace(' ', '-')}-{digest}"

    def close(self) -> None:
        """Record which stage directories the report is made of."""
        self._write(self.done)

    def _write(self, stages: list[dict]) -> None:
        text = json.dumps({"format": FORMAT, "stages": stages}, indent=1)
        write_text(self.root / "study.json", text)


def in_order(stages: dict[str, Stage]) -> Iterator[Stage]:
    """Every stage after those that it needs, and otherwise as they are given."""
    number = {name: i for i, name in enumerate(stages)}
    names = list(stages)
    sorter = TopologicalSorter({name: stage.needs for name, stage in stages.items()})
    sorter.prepare()
    ready: list[int] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, number[name])
        name = names[heapq.heappop(ready)]
        yield stages[name]
        sorter.done(name)


def as_plan(stages: Iterable[Stage], states: dict[str, str]) -> list[dict]:
    """What `plan` prints as JSON: each stage with its verb, what it needs, and how it stands."""
    return [
        {
            "name": stage.name,
            "verb": stage.verb,
            "needs": stage.needs,
            "state": states[stage.name].split()[0],
        }
        for stage in stages
    ]


def _filled(value: Any, places: dict[str, Path]) -> Any:
    if isinstance(value, Output):
        return str(places[value.stage])
    if isinstance(value, dict):
        return {key: _filled(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, places) for item in value]
    return value
