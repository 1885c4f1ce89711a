"""The stages of a study: run directories that are found again by what they are."""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_cfg.config import dump
from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import sha256, write_text
from lightning_cfg.runs.names import SHEET, TRAJECTORIES
from lightning_cfg.runs.pngs import IMAGES
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.trace import trace

# What may change without the stage being another one: a longer training goes on where it stopped.
FREE = {
    "run_dir", "device", "resume", "trainer", "checkpoint_every", "keep", "keep_by", "log_every",
    "logger", "grids", "evaluation", "cache", "compile", "channels_last", "matmul_precision",
    "images",
}  # fmt: skip


class Stages:
    """The stages of a study, each a run directory named by what it is and depends on.

    So a stage is found again as long as its settings and inputs are the same, and a changed
    setting makes a new directory for it and for what depends on it, and for nothing else.

    only  the one stage to run; None: all of them, "": none, they are only looked at
    """

    def __init__(self, root: Path, seed: int, only: str | None = None):
        self.root, self.seed, self.only = root, seed, only
        self.states: dict[str, str] = {}  # of the stages that were looked at
        self.done: list[dict] = []
        self.expected = 0
        self._known: dict[str, Path] = {}  # by verb and settings
        self._hashes: dict[str, str] = {}  # of the files of the data, which a study reads often

    def claim(self, asked: dict) -> None:
        """Write the study's config.yaml; UserError if the directory is something else's."""
        if self.root.exists() and (
            not self.root.is_dir()
            or (any(self.root.iterdir()) and not (self.root / "study.json").is_file())
        ):
            raise UserError(f"{self.root} exists and is no study: give another run_dir")
        if self.only is None or not (self.root / "study.json").is_file():
            write_text(self.root / "study.json", json.dumps({"stages": []}))
        write_text(self.root / "config.yaml", "# lightning_cfg.study\n" + dump(asked))

    def run(self, name: str, verb: Callable, settings: dict[str, Any]) -> Path:
        """Call the verb in its directory, which tells by itself whether it is done."""
        settings = {"seed": self.seed, **settings}
        asked = json.dumps([verb.__name__, settings], sort_keys=True, default=list)
        if asked in self._known:  # by another name: two variants may share their pairs
            return self._known[asked]
        self._known[asked] = self._run(name, verb, settings)
        return self._known[asked]

    def _run(self, name: str, verb: Callable, settings: dict[str, Any]) -> Path:
        waits = sorted(set(_waited_for(settings)))
        if waits:
            if name == self.only:
                raise UserError(f"stage={name} needs these to be done before: {', '.join(waits)}")
            self.states[name] = f"waits for {', '.join(waits)}"
            return Path(WAITING + name)
        kept = {k: v for k, v in settings.items() if k not in FREE}
        if kept.get("data") is not None:
            kept["data"] = self._data(kept["data"])
        # trajectories are there for `trace` only: more of them leave the other stages as they are,
        # and pictures are there to be looked at
        without = (*SHEET, *IMAGES.values())
        without += () if verb is trace else (TRAJECTORIES,)
        content = self._content(kept, without)
        text = json.dumps([verb.__name__, content], sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        directory = self.root / "stages" / f"{name.replace(' ', '-')}-{digest}"
        manifest = directory / "manifest.json"
        if self.only not in (None, name):
            done = manifest.is_file()
            if done and verb is fit:  # which may be asked for more steps than it has
                steps = json.loads(manifest.read_text())["step"]
                done = steps == settings["trainer"].get("max_steps")
            self.states[name] = "done" if done else "ready"
            return directory if done else Path(WAITING + name)
        print(f"[{len(self.done) + 1}/{self.expected}] {name}", flush=True)
        before = manifest.stat().st_mtime_ns if manifest.is_file() else 0
        if verb is fit and settings["trainer"].get("devices") in (None, "auto"):
            settings["trainer"] = {**settings["trainer"], "devices": 1}  # not all that there are
        verb(**settings, run_dir=str(directory))
        reused = before != 0 and manifest.stat().st_mtime_ns == before
        self.done.append(
            {
                "name": name,
                "verb": verb.__name__,
                "seconds": json.loads(manifest.read_text())["seconds"],
                "directory": str(directory.relative_to(self.root)),
                "reused": reused,
                "hash": digest,
            }
        )
        return directory

    def tell(self) -> None:
        """Print how the stages stand; UserError where the one that was asked for is none."""
        if self.only and not self.done:
            near = difflib.get_close_matches(self.only, self.states, 1)
            hint = f"did you mean '{near[0]}'?" if near else "plan=true prints them"
            raise UserError(f"stage={self.only} is no stage of this study; {hint}")
        if not self.only:
            for name, state in self.states.items():
                print(f"{name}: {state}")

    def close(self) -> None:
        """Record which stage directories the report is made of."""
        write_text(self.root / "study.json", json.dumps({"stages": self.done}, indent=1))

    def _data(self, section: dict) -> dict:
        """A data section with the hashes of its files, wherever they lie."""
        places = ("root", "memory")
        kept = {k: v for k, v in section.items() if k not in places and v is not None}
        kept = {k: self._data(v) if isinstance(v, dict) else v for k, v in kept.items()}
        for key in ("path", "held_out"):
            place = kept.get(key)
            if isinstance(place, str) and Path(place).exists() and not _is_stage(place):
                if place not in self._hashes:
                    self._hashes[place] = sha256(place)
                kept[key] = self._hashes[place]
        return kept

    def _content(self, value: Any, without: tuple[str, ...]) -> Any:
        """Paths of stages become the files that they hold, with their content hashes."""
        if isinstance(value, dict):
            return {k: self._content(v, without) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._content(v, without) for v in value]
        if isinstance(value, str) and _is_stage(value):
            files = json.loads((Path(value) / "manifest.json").read_text())["outputs"]
            return {name: digest for name, digest in files.items() if name not in without}
        return value


WAITING = "waiting for stage "  # in place of the directory of a stage that is not done


def _waited_for(value: Any) -> Iterator[str]:
    """The stages whose results a setting needs and that are not there yet."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _waited_for(item)
    if isinstance(value, str) and value.startswith(WAITING):
        yield value.removeprefix(WAITING)


def _is_stage(path: str) -> bool:
    return (Path(path) / "manifest.json").is_file()
