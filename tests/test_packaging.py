"""What an installation has: the package from any folder, its version and its command."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightning_cfg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """Such as a checkout called lightning_cfg, seen from the folder that contains it."""
    (tmp_path / "lightning_cfg/lightning_cfg").mkdir(parents=True)
    code = "import lightning_cfg; print(lightning_cfg.__file__, lightning_cfg.__version__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [lightning_cfg.__file__, lightning_cfg.__version__], done.stderr


@pytest.mark.xfail(strict=True, reason="lightning_cfg/__main__.py is not written yet")
def test_the_command_exists():
    for target in PROJECT["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
