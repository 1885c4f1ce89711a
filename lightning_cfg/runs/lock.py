"""A directory that one process writes at a time."""

import errno
import fcntl
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import LOCK, remove_temporaries

_held: set[int] = set()  # file descriptors, which a forked child must not keep
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Lock:
    """The right to write into a directory: of one process, until it lets go of it or ends.

    It is the kernel's (flock), so that of a killed process is gone with it, and the run can be
    started again at once. It holds among the processes of a machine, and among machines where the
    file system carries it (NFS with its lock service, Lustre mounted with `flock`). Where there are
    no locks at all a line says so, and the caller sees to it that a run is started once.
    """

    def __init__(self, directory: Path):
        self.directory, self._file = directory, directory / LOCK
        self._descriptor: int | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first

    def take(self) -> None:
        """Have the directory, made where it is not there, without what killed processes have left.

        Raises UserError where another process has it, or it cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            self._made = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
            self._descriptor = self._locked()
        except OSError as error:
            self._tidy()
            raise UserError(f"{self.directory} cannot be written: {error}") from error
        except UserError:
            self._made = []  # by another, perhaps
            raise
        _held.add(self._descriptor)
        remove_temporaries(self.directory)

    def release(self) -> None:
        """Let go of it; a folder that was made for nothing is removed."""
        if self._descriptor is None:
            return
        try:
            self._file.unlink(missing_ok=True)
        except OSError:
            pass  # the file says nothing without its lock
        finally:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self._tidy()

    def _locked(self) -> int:
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # who had made the folder has just removed it
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == os.stat(self._file).st_ino:
                    break
            except FileNotFoundError:
                pass  # who had it before has just let go of it, and removed the file
            except BlockingIOError:
                told = os.pread(descriptor, 1000, 0).decode(errors="replace")
                os.close(descriptor)
                raise UserError(
                    f"{self.directory} is being written by {_in_words(told)}: wait until it has "
                    "ended, or give another run_dir"
                ) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
                told = f"{self.directory}: this file system has no locks: start a run only once"
                print(told, file=sys.stderr)
                break
            os.close(descriptor)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        owner["since"] = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError:  # a full disk, which takes the file and not what is in it
            self._file.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return descriptor

    def _tidy(self) -> None:
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # it is not empty, or was never made
                break
        self._made = []


def _in_words(told: str) -> str:
    try:
        owner = json.loads(told)
        return f"process {owner['pid']} of {owner['host']} since {owner['since']}"
    except (ValueError, TypeError, KeyError):  # it has just begun
        return "another process"
