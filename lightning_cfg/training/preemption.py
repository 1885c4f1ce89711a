"""A run that is asked to end early: a signal sets a flag, and at the end of a step all ranks stop.

A signal lands anywhere, also within a collective, so nothing is done where it lands. Imports
nothing heavy: the handlers have to be there before anything that takes seconds.
"""

import atexit
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EARLY = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*EARLY, signal.SIGINT)  # Ctrl-C only once there is something to save
_came: list[int] = []  # of SIGNALS, since the watch began


def watch(numbers: tuple[signal.Signals, ...] = EARLY) -> None:
    """From now on these signals only set a flag."""
    if threading.current_thread() is not threading.main_thread():
        return  # where Python takes no handlers
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _note)


def watch_to_the_end() -> None:
    """`watch` for the whole life of a process, whose status then is its own.

    When Python shuts down it gives signals back their default, to end the process. srun sends one
    as soon as a first task has ended, and its status would be that of whom it hit.
    """
    watch()
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])


@contextmanager
def watching() -> Iterator[None]:
    """`watch` for a while: afterwards the signals are what they were before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    watch()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
        forget()


def forget() -> None:
    """As if none had come: the next training of this process is not ended by them too."""
    _came.clear()


def asked() -> str:
    """The name of the signal that came first; "" where none has."""
    return signal.Signals(_came[0]).name if _came else ""


def _note(number: int, frame: object) -> None:
    _came.append(number)
