"""Run directories: one run of one verb each, with its config and, once finished, its manifest."""

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_cfg import __version__
from lightning_cfg.config import dump, identity_difference
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.runs.files import sha256, write_text
from lightning_cfg.runs.ranks import launched

PLACES = ("root", "path", "held_out", "memory")  # of a data section: where it lies, not what it is
PACKAGES = ("torch", "lightning", "torchvision", "faiss-gpu", "faiss-cpu", "torchdiffeq", "numpy")


class Run:
    """A directory that belongs to one run: what it was asked, what it read, what it made.

    verb      whose run it is
    settings  what its result depends on; another run's settings are refused
    inputs    {name: file} it reads; they count by content, so a moved file changes nothing
    free      settings that may differ between calls and are recorded only
    Raises UserError if the directory belongs to another run or to something else.
    """

    def __init__(
        self,
        directory: str | Path,
        verb: str,
        settings: dict,
        inputs: dict[str, Path] | None = None,
        free: dict | None = None,
    ):
        self.directory, self.verb, self.free = Path(directory), verb, free or {}
        self.inputs = {name: sha256(path) for name, path in (inputs or {}).items()}
        # as json gives it back, so that tuples and integer keys compare equal
        self.identity = json.loads(
            json.dumps({"verb": verb, "settings": settings, "inputs": self.inputs})
        )
        self._start = time.monotonic()
        self._refuse_another()

    @property
    def manifest(self) -> dict | None:
        """What the finished run wrote of itself; None if it has not finished."""
        try:
            return json.loads((self.directory / "manifest.json").read_text())
        except FileNotFoundError:
            return None

    def finished(self) -> bool:
        """Whether all its files are there, as they were written."""
        manifest = self.manifest
        return manifest is not None and all(
            (self.directory / name).exists() and sha256(self.directory / name) == digest
            for name, digest in manifest["outputs"].items()
        )

    def begin(self) -> None:
        """Write config.yaml and identity.json, by which the directory is known from now on."""
        (self.directory / "manifest.json").unlink(missing_ok=True)
        write_text(self.directory / "identity.json", json.dumps(self.identity, indent=1))
        config = {**self.identity["settings"], **self.free}
        write_text(self.directory / "config.yaml", f"# lightning_cfg.{self.verb}\n" + dump(config))

    def finish(self, *outputs: Path, **facts: object) -> dict:
        """Write manifest.json: from now on the run is not done again."""
        manifest = {
            **self.identity,
            "free": self.free,
            "seconds": round(time.monotonic() - self._start, 1),
            **facts,
            "outputs": {str(o.relative_to(self.directory)): sha256(o) for o in outputs},
            "packages": _packages(),
        }
        write_text(self.directory / "manifest.json", json.dumps(manifest, indent=1, default=str))
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
            difference = identity_difference(json.loads(known.read_text()), self.identity)
            if difference:
                raise UserError(
                    f"{self.directory} belongs to another run ({difference}): "
                    "give another run_dir, or remove it"
                )
        elif launched().rank > 0:
            return  # the first rank may be about to write it, and refuses for all
        elif self.directory.exists() and (
            not self.directory.is_dir() or any(self.directory.iterdir())
        ):
            raise UserError(f"{self.directory} exists and is no run of ours: give another run_dir")


def content_of(data: dict, data_set: DataSet) -> tuple[dict, dict[str, Path]]:
    """A data section without the places of its files, and these files, which count by content.

    A data set names its file or folder by `.path`; where it has none, only `root` is left out.
    """
    if data_set.path is None:
        return {k: v for k, v in data.items() if k != "root"}, {}
    files = {"data": Path(data_set.path)}
    if data.get("held_out") is not None:
        files["held_out"] = Path(data["held_out"])
    return placeless(data), files


def placeless(data: dict) -> dict:
    """A data section, and those inside it, without the places of their files."""
    return {
        k: placeless(v) if isinstance(v, dict) else v for k, v in data.items() if k not in PLACES
    }


def _packages() -> dict[str, str]:
    found = {"lightning_cfg": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
