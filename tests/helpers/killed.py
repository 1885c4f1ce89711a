"""A training whose end comes from outside."""

import os
import sys

from lightning_cfg.cli import main
from lightning_cfg.verbs.fit import fit


class Killed(RuntimeError):
    """Stands for a SIGKILL within the process: nobody catches it."""


def fit_as_called(folder: str, words: list[str]) -> None:
    """What a process of a test does: `fit` of config.yaml as from the command line."""
    os.chdir(folder)
    sys.argv = ["fit", "--config", "config.yaml", *words]
    main(fit)
