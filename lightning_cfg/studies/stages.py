"""The stages of a study run: each in a directory that is found again by what the stage is."""

import hashlib
import heapq
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from lightning_cfg.config import checked, dump
from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.runs.files import is_empty, write_text
from lightning_cfg.runs.lock import Lock
from lightning_cfg.runs.manifests import fault_of, read_manifest, read_record, trained
from lightning_cfg.runs.run import FORMAT, identity
from lightning_cfg.runs.to_come import ToCome
from lightning_cfg.studies.chosen import Chosen
from lightning_cfg.studies.graph import Output, Stage
from lightning_cfg.studies.left import Taken
from lightning_cfg.training.undisturbed import undisturbed


@dataclass
class Stages:
    """The stages of a study, each a run directory named by what it is and depends on.

    So a stage is found again as long as its settings and inputs are the same, and a changed
    setting makes a new directory for it and for what depends on it, and for nothing else.

    verbs   by name
    only    the one stage to run; None: all of them, "": none, they are only looked at
    force   do them again
    places  where the stages that are done lie
    states  done, damaged, ready, or what it waits for, of the stages that were looked at
    left    how long those will take that are not done, by what the others have taken
    """

    root: Path
    verbs: dict[str, Callable[..., Path]]
    only: str | None = None
    force: bool = False
    places: dict[str, Path] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    done: list[dict] = field(default_factory=list)
    left: str = ""
    _reused: set[str] = field(default_factory=set)  # those that are done before it begins

    def check(self, stages: dict[str, Stage], asked: str | None = None) -> None:
        """Try every stage that is not done, without its work; nothing is written.

        asked  a stage by name
        UserError if the directory is something else's, there is no stage that is asked for, or one
        would be refused by its verb. A single stage, one of a plan, is left to its verb.
        """
        self._before()
        if asked is not None and asked not in stages:
            hint = did_you_mean(asked, stages, "plan=true prints them")
            raise UserError(f"stage={asked} is no stage of this study; {hint}")
        places: dict[str, Path | ToCome] = {}
        for stage in () if self.only else in_order(stages):
            try:
                done = self._done(stage, places)
                self._reused |= set() if done is None else {stage.name}
                places[stage.name] = done or self._tried(stage, places)
            except UserError as error:
                raise UserError(f"stage {stage.name}: {error}") from error

    def _done(self, stage: Stage, places: Mapping[str, Path | ToCome]) -> Path | None:
        """The directory of a stage that is done and will not be done again."""
        if self.force or any(isinstance(places[name], ToCome) for name in stage.needs):
            return None
        settings, directory = self._found(stage, places)
        done = _is_done(stage, settings, directory) and not fault_of(directory)
        return directory if done else None

    def _tried(self, stage: Stage, places: Mapping[str, Path | ToCome]) -> ToCome:
        """What a stage will hold, as far as that is known; UserError where its verb refuses it."""
        verb = self.verbs[stage.verb]
        config = checked(verb, {**_filled(stage.settings, places), "run_dir": ""})
        with undisturbed():
            return ToCome(stage.name, verb.tried(config))  # type: ignore[attr-defined]

    @contextmanager
    def claimed(self, asked: dict) -> Iterator[None]:
        """The directory is this study's from now on, and this process's where all stages are run.

        Of a study with a report config.yaml and study.json stay as they are up to its next one.
        UserError where another process runs it.
        """
        lock = Lock(self.root)
        if self.only is None:
            lock.take()
        try:
            if not self._before().get("stages"):
                self._write([])
                self._write_config(asked)
            yield
        finally:
            lock.release()

    def _before(self) -> dict:
        """What study.json says; UserError if the directory is something else's."""
        known = self.root / "study.json"
        if known.is_file():
            return read_record(known, "stages")
        if self.root.exists() and not (self.root.is_dir() and is_empty(self.root)):
            raise UserError(f"{self.root} exists and is no study: give another run_dir")
        return {}

    def run(self, stages: dict[str, Stage]) -> None:
        """Run those that are to be run, each once what it needs is done."""
        before = self._before()
        if before.get("stages") and before.get("format", 1) != FORMAT:
            told = f"{self.root}: its stages are an older version's, and are done again"
            print(told, file=sys.stderr)
        order, taken = list(in_order(stages)), Taken(stages)
        for i, stage in enumerate(order, 1):
            waits = [name for name in stage.needs if name not in self.places]
            if waits and stage.name == self.only:
                told = ", ".join(map(self._with_damage, waits))
                raise UserError(f"stage={stage.name} needs these to be done before: {told}")
            if waits:
                self.states[stage.name] = f"waits for {', '.join(waits)}"
            elif self.only in (None, stage.name):
                left = taken.left(one for one in order[i - 1 :] if one.name not in self._reused)
                told = f"[{1 if self.only else i}/{len(stages)}] {stage.name}"
                print(f"{told} ({left} left)" if left and not self.only else told, flush=True)
                self._run(stage)
            else:
                self._look(stage)
            if stage.name in self.places:
                seconds = read_manifest(self.places[stage.name], "seconds")["seconds"]
                taken.add(stage, seconds)
        self.left = taken.left(stage for stage in order if stage.name not in self.places)

    def _with_damage(self, name: str) -> str:
        state = self.states[name]
        return f"{name} ({state})" if state.startswith("damaged") else name

    def _run(self, stage: Stage) -> None:
        """Call the verb in the stage's directory, which tells by itself whether it is done."""
        settings, directory = self._found(stage, self.places)
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
        settings, directory = self._found(stage, self.places)
        done = _is_done(stage, settings, directory)
        fault = fault_of(directory) if done else ""
        self.states[stage.name] = f"damaged: {fault}" if fault else "done" if done else "ready"
        if done and not fault:
            self.places[stage.name] = directory

    def _found(self, stage: Stage, places: Mapping[str, Path | ToCome]) -> tuple[dict, Path]:
        """The stage's keys with directories in the place of stages; the directory for it."""
        verb = self.verbs[stage.verb]
        settings = _filled(stage.settings, places)
        found, files = identity(verb, checked(verb, {**settings, "run_dir": ""}))
        text = json.dumps([stage.verb, found.settings, files], sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return settings, self.root / "stages" / f"{stage.folder.replace(' ', '-')}-{digest}"

    def close(self, asked: dict) -> None:
        """Record which stage directories the report is made of, and of what study it is."""
        self._write(self.done)
        self._write_config(asked)

    def _write_config(self, asked: dict) -> None:
        write_text(self.root / "config.yaml", "# lightning_cfg.study\n" + dump(asked))

    def _write(self, stages: list[dict]) -> None:
        text = json.dumps({"format": FORMAT, "stages": stages}, indent=1)
        write_text(self.root / "study.json", text)


def _is_done(stage: Stage, settings: dict, directory: Path) -> bool:
    manifest = directory / "manifest.json"
    if not manifest.is_file() or stage.verb != "fit":
        return manifest.is_file()
    # it may be asked for more steps than it has
    return trained(read_manifest(directory, "step"), settings["trainer"].get("max_steps"))


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
            "state": states[stage.name].split()[0].rstrip(":"),
        }
        for stage in stages
    ]


def _filled(value: Any, places: Mapping[str, Path | ToCome]) -> Any:
    if isinstance(value, Output):
        place = places[value.stage]
        return place if isinstance(place, ToCome) else str(place)
    if isinstance(value, Chosen):
        return _filled(value.by(places[value.stage]), places)
    if isinstance(value, dict):
        return {key: _filled(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, places) for item in value]
    return value
