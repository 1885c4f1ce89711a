"""A process that is killed at its n-th file operation, played within the process of a test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.killed import Killed

OPERATIONS = (
    (os, "replace"), (os, "fsync"), (os, "rmdir"), (shutil, "copyfile"), (shutil, "rmtree"),
    (Path, "unlink"), (Path, "mkdir"), (Path, "write_text"), (torch, "save"),
)  # fmt: skip


class Dying:
    """Counts file operations; from the one numbered `at` on, counted from 0, none is done.

    So nothing is tidied up, as after SIGKILL. Of one that writes, half of the bytes are written.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None = None):
        self.count, self.at = 0, at
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def _watched(self, do: Callable, name: str) -> Callable:
        def done(*args: object, **how: object) -> object:
            self.count += 1
            if self.at is None or self.count <= self.at:
                return do(*args, **how)
            if self.count == self.at + 1 and name in ("copyfile", "write_text", "save"):
                do(*args, **how)
                file = args[0] if name == "write_text" else args[1]
                os.truncate(file, os.path.getsize(file) // 2)
            raise Killed

        return done
