"""Run directories: one run of one verb each, with its config and, once finished, its manifest."""

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_cfg import __version__
from lightning_cfg.config import Data, Identity, completed, dump, identity_difference, identity_of
from lightning_cfg.errors import Interrupted, Preempted, UserError
from lightning_cfg.runs.files import LOCK, PARTS, is_empty, nearest_folder, sha256, write_text
from lightning_cfg.runs.lock import Lock
from lightning_cfg.runs.manifests import (
    MANIFEST,
    content_hash,
    fault_of,
    read_manifest,
    read_record,
)
from lightning_cfg.runs.ranks import alone, launched
from lightning_cfg.runs.signals import raised

FORMAT = 2  # of identity.json: 1, which did not say so, wrote by hand what made runs the same
PACKAGES = ("torch", "lightning", "torchvision", "faiss-gpu", "faiss-cpu", "torchdiffeq", "numpy")


Unread = Callable[[dict, str], bool]  # (config, dotted key of an input) -> it is not read
# a checked config -> {name of an output: what it will hold}, as `to_come` has it
Tried = Callable[[dict], dict[str, Any]]


def verb(
    unread: Unread = lambda config, key: False,
    *,
    tried: Tried = lambda config: {},
    one_process: bool = False,
    short: str = "",
) -> Callable[[Callable], Callable[..., Path]]:
    """A verb, from its function: its keywords are checked and completed, and it is given its `Run`.

    So it is the same run whether it is called from Python (`config.completed`) or by a command
    line.
    unread       which inputs do not count, since this verb does not read them
    tried        checks a config as the verb itself does, without its work, and says what the run
                 would hold; inputs may be `ToCome`. UserError as the verb raises it
    one_process  it refuses to be started on several
    short        the key that a text stands for which is given it in the place of a config
    """

    def decorated(function: Callable) -> Callable[..., Path]:
        @functools.wraps(function)
        def run_of(**config: object) -> Path:
            if one_process:
                alone(function.__name__)
            run = Run.of(called, config)
            try:
                with raised():
                    return function(run, **config)
            except KeyboardInterrupt as error:
                raise run.ended_by(str(error) or "SIGINT") from None
            finally:
                run.lock.release()

        called = completed(run_of, short=short)
        called.unread, called.tried = unread, tried  # type: ignore[attr-defined]
        return called

    return decorated


def identity(verb: Callable, config: dict) -> tuple[Identity, dict[str, str]]:
    """What a run of the verb is, and the content hashes of what it reads, by dotted key."""
    own = {key: value for key, value in config.items() if key not in ("run_dir", "force")}
    found = identity_of(verb, own, unread=lambda key: verb.unread(config, key))
    files = found.inputs | found.code
    return found, {key: content_hash(file) for key, file in files.items()}


class Run:
    """A directory that belongs to one run: what it was asked, what it read, what it made.

    verb      whose run it is
    settings  what its result depends on; another run's settings are refused
    inputs    {name: content hash} of what it reads: a moved file changes nothing
    free      settings that may differ between calls and are recorded only
    usual     settings that are as they are by default, see `config.Identity`
    force     do again what has finished, also by an older version; once: a run that is cut off then
              goes on like any other
    Raises UserError if the directory belongs to another run or to something else.
    """

    def __init__(
        self,
        directory: str | Path,
        verb: str,
        settings: dict,
        inputs: dict[str, str] | None = None,
        free: dict | None = None,
        *,
        usual: set[str] | frozenset[str] = frozenset(),
        force: bool = False,
    ):
        self.directory, self.verb, self.free = Path(directory), verb, free or {}
        self.inputs = inputs or {}
        # as json gives it back, so that tuples and integer keys compare equal
        identity = {"format": FORMAT, "verb": verb, "settings": settings, "inputs": self.inputs}
        self.identity = json.loads(json.dumps(identity))
        self.again = force and (self.directory / MANIFEST).is_file()
        self._usual = {f"settings.{key}" for key in usual}
        self._start = time.monotonic()
        self.lock = Lock(self.directory)
        self._new = False  # whether nothing was there when it was begun
        self.kept = ""  # what an interrupted run has kept, in words
        self._refuse_another()

    @classmethod
    def of(cls, verb: Callable, config: dict) -> "Run":
        """The run of a verb with this config, which has been checked."""
        found, inputs = identity(verb, config)
        return cls(
            config["run_dir"],
            verb.__name__,
            found.settings,
            inputs,
            found.free,
            usual=found.usual,
            force=config.get("force", False),
        )

    @property
    def manifest(self) -> dict:
        """What the finished run wrote of itself; empty if it has not finished."""
        return read_manifest(self.directory, "verb", "outputs")

    def finished(self) -> bool:
        """Whether all its files are there, as they were written, and none is to be made again.

        Of a finished run whose files are not, a line says so.
        """
        if self.again or not self.manifest:
            return False
        fault = fault_of(self.directory)
        if fault:
            self.say(f"{fault}; it is made again")
        return not fault

    def finished_already(self) -> bool:
        """Whether it has finished, which is said; if not, the directory is claimed for the work."""
        if finished := self.finished():
            self.say("finished already")
        else:
            self.claim()
        return finished

    def claim(self) -> None:
        """Have the directory for oneself, before the work; `verb` gives it back.

        The first rank has it for all. Raises UserError where another process has it, or where it
        has become another run's since it was looked at.
        """
        if launched().rank == 0:
            self.lock.take()
            self._refuse_another()

    def check_room(self, size: float) -> None:
        """UserError where the disk has less room than what is going to be written, in bytes."""
        free = shutil.disk_usage(nearest_folder(self.directory)).free
        if size > free:
            raise UserError(
                f"{self.directory}: what it will hold takes {size / 2**30:.3g} GiB, and its disk "
                f"has {free / 2**30:.3g} GiB left: make room, or give another run_dir"
            )

    def begin(self) -> None:
        """Write config.yaml and identity.json, by which the directory is known from now on."""
        self.claim()  # again: where the file system has no locks another run may have begun
        self._new = self._holds_nothing()
        (self.directory / "manifest.json").unlink(missing_ok=True)
        write_text(self.directory / "identity.json", json.dumps(self.identity, indent=1))
        config = {**self.identity["settings"], **self.free}
        write_text(self.directory / "config.yaml", f"# lightning_cfg.{self.verb}\n" + dump(config))

    def withdraw(self) -> None:
        """Empty a directory that was new when it was begun: nothing came of it.

        So what was wrong may be corrected, and is not refused as another run's.
        """
        if not self._new:
            return
        for path in self.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def _holds_nothing(self) -> bool:
        """Whether there is no more than what an earlier call has begun with."""
        begun = ("identity.json", "config.yaml")
        if not self.directory.is_dir():
            return True
        return is_empty(self.directory) or all(
            path.name in (*begun, LOCK, PARTS) for path in self.directory.iterdir()
        )

    def ended_by(self, signal: str) -> Preempted:
        """What a run says that a signal has ended."""
        kind = Interrupted if signal == "SIGINT" else Preempted
        goes_on = f"{self.kept}; started again it goes on" if self.kept else "nothing of it is kept"
        return kind(f"{self.directory}: {signal} ended it, {goes_on}")

    def finish(self, *outputs: Path, **facts: object) -> dict:
        """Write manifest.json: from now on the run is not done again, and needs no parts."""
        manifest = {
            **self.identity,
            "free": self.free,
            "seconds": round(time.monotonic() - self._start, 1),
            **facts,
            "outputs": {str(o.relative_to(self.directory)): sha256(o) for o in outputs},
            "packages": _packages(),
            "git": checkout(),
        }
        write_text(self.directory / "manifest.json", json.dumps(manifest, indent=1, default=str))
        if (self.directory / PARTS).is_dir():
            shutil.rmtree(self.directory / PARTS)
        return manifest

    def add(self, *outputs: Path) -> None:
        """Name outputs in the manifest that were made of the others, after the run had finished."""
        manifest = {**self.manifest, "free": self.free}
        manifest["outputs"] |= {str(o.relative_to(self.directory)): sha256(o) for o in outputs}
        write_text(self.directory / "manifest.json", json.dumps(manifest, indent=1, default=str))

    def say(self, text: str) -> None:
        """Print a line about the run, once for all ranks."""
        if launched().rank == 0:
            print(f"{self.directory}: {text}")

    def _refuse_another(self) -> None:
        known = self.directory / "identity.json"
        if known.is_file():
            self._compare(read_record(known, "verb", "settings"))
        elif launched().rank > 0:
            return  # the first rank may be about to write it, and refuses for all
        elif self.directory.exists() and (
            not self.directory.is_dir() or not is_empty(self.directory)
        ):
            raise UserError(f"{self.directory} exists and is no run of ours: give another run_dir")

    def _compare(self, known: dict) -> None:
        if known.get("format") != FORMAT:
            older = "an older version" if known.get("format", 1) < FORMAT else "a newer version"
            if not self.again or known["verb"] != self.verb:
                raise UserError(
                    f"{self.directory} was made by {older} of lightning_cfg, which can be read but "
                    "not gone on with: give another run_dir, or force=true does it again"
                )
            return
        difference = identity_difference(known, self.identity, self._usual)
        if difference:
            raise UserError(
                f"{self.directory} belongs to another run ({difference}): "
                "give another run_dir, or remove it"
            )


def content_of(data: dict) -> tuple[dict, tuple[str, ...]]:
    """A `data` section without the places of its files, and the hashes of their content."""

    def known_by(*, data: Data) -> None: ...

    found = identity_of(known_by, {"data": data})
    return found.settings["data"], tuple(map(content_hash, found.inputs.values()))


def checkout() -> dict[str, object] | None:
    """{commit, clean} of the git checkout that this package, or else the run, lies in."""
    if shutil.which("git") is None:
        return None
    for folder in (Path(__file__).parent, Path.cwd()):
        git = ("git", "-C", str(folder))
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if commit.returncode == 0:
            changed = subprocess.run(
                [*git, "status", "--porcelain", "--untracked-files=no"],
                capture_output=True,
                text=True,
            )
            return {"commit": commit.stdout.strip(), "clean": not changed.stdout.strip()}
    return None


def _packages() -> dict[str, str]:
    found = {"lightning_cfg": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
