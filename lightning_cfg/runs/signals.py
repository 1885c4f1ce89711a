"""Signals to a process whose main thread hears none: it waits for others, or is inside of C++.

Python's handlers run between two lines of Python. So a thread of its own is told of each signal
that has such a handler, and ends the process where the handler has no chance. Imports nothing
heavy.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lightning_cfg.errors import REQUEUE

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the second of these ends a process
APART = 0.5  # seconds: torchrun passes on what the terminal has sent to all by itself
SOON = 5.0  # seconds, after which it is said that a signal was heard


@dataclass
class _Heard:
    """What a process has heard, and what it does at the moment."""

    came: list[float] = field(default_factory=list)  # when, of those that count
    nothing_lost: str = ""  # why it may end at once


_heard: _Heard | None = None
_last: list[Callable[[], object]] = []  # what is done before a process ends from a thread


def _forget() -> None:
    """A forked child has no such thread, and shares the pipe with its parent."""
    global _heard
    if _heard is not None:
        _heard = None
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)


@contextmanager
def heeded() -> Iterator[None]:
    """A second SIGINT, SIGTERM or SIGHUP ends the process at once, whatever it does.

    Within `nothing_lost` the first one does, or SIGUSR1. That is said in a line; the status is 130
    after SIGINT, 75 where nothing was lost, otherwise 128 and the signal's number.
    """
    global _heard
    if _heard is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _heard = _Heard()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader, _heard), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _heard = None
        os.close(writer)
        thread.join(1)
        os.close(reader)


@contextmanager
def nothing_lost(why: str) -> Iterator[None]:
    """While there is nothing to save, as before the first step, the first signal ends the process.

    why  what the line says of it
    """
    with heeded():
        heard = _heard or _Heard()  # of a thread nobody hears
        before = heard.nothing_lost
        heard.nothing_lost = why
        try:
            yield
        finally:
            heard.nothing_lost = before


@contextmanager
def raised() -> Iterator[None]:
    """The first signal that asks a process to end raises KeyboardInterrupt, with its name.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1, as far as nobody else handles or ignores them. Those that
    follow at once, as torchrun passes on what the terminal has sent, change nothing.
    """
    came: list[int] = []

    def hear(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt(signal.Signals(number).name)

    main = threading.current_thread() is threading.main_thread()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    asking = [number for number in (*ENDING, signal.SIGUSR1) if signal.getsignal(number) in usual]
    before = {number: signal.signal(number, hear) for number in asking if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def before_the_end(work: Callable[[], object]) -> Iterator[None]:
    """`work` is done where the process is ended meanwhile: its own processes are ended too."""
    _last.append(work)
    try:
        yield
    finally:
        _last.remove(work)


def _listen(reader: int, heard: _Heard) -> None:
    while numbers := os.read(reader, 64):
        for number in numbers:
            if heard.nothing_lost and (number in ENDING or number == signal.SIGUSR1):
                _end(number, heard, heard.nothing_lost)
            if number not in ENDING:
                continue
            now = time.monotonic()
            if heard.came and now - heard.came[0] > APART:
                _end(number, heard, "the second signal, so nothing more is saved")
            if not heard.came:
                threading.Thread(target=_say_heard, args=(number, heard), daemon=True).start()
            heard.came.append(now)


def _say_heard(number: int, heard: _Heard) -> None:
    time.sleep(SOON)
    if _heard is heard:
        name = signal.Signals(number).name
        told = f"{name} was heard, and ends it as soon as it can; once more ends it at once"
        print(f"lightning_cfg: {told}", file=sys.stderr, flush=True)


def _end(number: int, heard: _Heard, why: str) -> None:
    """The process's end, from a thread, with a line."""
    name = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
    kept = REQUEUE if heard.nothing_lost and number != signal.SIGINT else 128 + number
    end_now(f"{name}: {why}", kept)


def end_now(line: str, status: int) -> None:
    """End the process from any thread, whatever the others wait for, with this as its last line."""
    for work in _last:
        work()
    print(f"lightning_cfg: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
