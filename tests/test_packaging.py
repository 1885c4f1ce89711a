"""What an installation has: the package from any folder, its version and its command."""

import importlib
import subprocess
import sys
import tomllib

import yaml
from helpers import ROOT

import lightning_cfg

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """Such as a checkout called lightning_cfg, seen from the folder that contains it."""
    (tmp_path / "lightning_cfg/lightning_cfg").mkdir(parents=True)
    code = "import lightning_cfg; print(lightning_cfg.__file__, lightning_cfg.__version__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [lightning_cfg.__file__, lightning_cfg.__version__], done.stderr


def test_the_command_exists():
    for target in PROJECT["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_slim_installation_is_the_same_without_cuda():
    """requirements/cpu.txt: the same packages, FAISS for CPUs, and where torch's builds are."""
    lines = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    slim = [line for line in lines if line and not line.startswith(("#", "--"))]
    usual = [line.partition(";")[0].strip() for line in PROJECT["dependencies"]]
    assert slim == [line for line in usual if not line.startswith("faiss-gpu")]
    assert [line for line in lines if line.startswith("--")] == [
        "--extra-index-url https://download.pytorch.org/whl/cpu"
    ]


def test_what_is_to_be_cited():
    """The keys that the citation format 1.2 requires, and the version that there is."""
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert told["cff-version"] == "1.2.0"
    assert told["version"] == lightning_cfg.__version__
    assert all(told[key] for key in ("message", "title", "authors"))
    assert all(paper[key] for paper in told["references"] for key in ("type", "title", "authors"))
    addresses = {paper["url"] for paper in told["references"]}
    assert addresses == set(PROJECT["urls"].values())


def test_the_changelog_has_this_version():
    assert f"\n## [{lightning_cfg.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
