"""Between a command line and a verb: its file is read before anything heavy is imported."""

import errno
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from lightning_cfg.config import dump, help_of, load, parse
from lightning_cfg.errors import (
    REQUEUE,
    Diverged,
    Interrupted,
    Preempted,
    RankLost,
    UserError,
    one_line,
)
from lightning_cfg.runs.signals import heeded

LEFT_OUT = ("torchvision", "torch_fidelity")  # of a slim installation; docs/how-to/install.md


def main(verb: str | Callable, words: list[str] | None = None) -> None:
    """`python -m lightning_cfg.VERB --config FILE ...`, or these words instead of the process's.

    Status 2 for a user's mistake, at an unreadable file at once; 1 for divergence or a lost rank;
    75 for a run that was asked to end early and is to be started again; 130 after Ctrl-C, at which
    `fit` is saved too. A second signal ends it at once (`runs.signals`).
    """
    if verb == "fit":  # a signal during the imports, of seconds, would kill the run
        from lightning_cfg.training import preemption

        preemption.watch_to_the_end()
    with answered():
        arguments = parse(sys.argv[1:] if words is None else words)
        function, document = _named(verb), arguments.document
        if arguments.help or document is None:
            print(help_of(function, document.values if document else {}))
        elif arguments.print_config:
            print(dump(load(function, document)), end="")
        else:
            function(**load(function, document))


def _named(verb: str | Callable) -> Callable:
    if not isinstance(verb, str):
        return verb
    return getattr(importlib.import_module(f"lightning_cfg.verbs.{verb}"), verb)


def main_of(verb: str, words: list[str] | None = None) -> None:
    """A verb with a command line of its own: `adopt`, `assets` and `sweep`."""
    with answered():
        module = importlib.import_module(f"lightning_cfg.verbs.{verb}")
        sys.exit(module.main(sys.argv[1:] if words is None else words))


@contextmanager
def answered() -> Iterator[None]:
    """What is a user's to know ends the process with one line and a status of its own.

    Who reads what is printed may stop, as `| head` does: that ends it too, without a word.
    """
    try:
        with heeded(), _heard():
            yield
    except UserError as error:
        _stop(f"error: {one_line(error)}", 2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # of whatever is looked for by a name in a config
            raise
        name = str(error.filename)
        _stop(f"error: {name[:60]} ..., of {len(name)} characters, is too long for a file", 2)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in LEFT_OUT:
            raise
        _stop(f"error: this needs {name}, which is not installed: pip install {name}", 2)
    except (Diverged, RankLost) as error:
        _stop(f"error: {one_line(error)}", 1)
    except Preempted as error:
        _stop(one_line(error), 130 if isinstance(error, Interrupted) else REQUEUE)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


@contextmanager
def _heard() -> Iterator[None]:
    """The process ends as by SIGPIPE where nobody reads its output any more."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # what is held back would fail after the last line of Python
    except BrokenPipeError:
        if not _unread(sys.stdout):  # of another pipe it is somebody else's to tell
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _unread(stream: TextIO) -> bool:
    """Whether it is a pipe whose reader has gone."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all, as in a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _stop(message: str, status: int) -> NoReturn:
    print(f"lightning_cfg: {message}", file=sys.stderr)
    sys.exit(status)
