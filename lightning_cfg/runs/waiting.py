"""Ranks that wait for one that lives but does not come: for whom is told, and not for ever."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import isfinite
from typing import Any

from lightning_cfg.errors import UserError
from lightning_cfg.runs.signals import end_now

PATIENCE = 60.0  # seconds, until it is said for whom a process waits
LIMIT = 3600.0  # seconds, until it waits no more
VARIABLE = "LIGHTNING_CFG_WAIT"
DEAF = 5.0  # seconds without an answer of the first rank, which tells who has come


def limit() -> float:
    """Seconds that a rank waits for another: $LIGHTNING_CFG_WAIT, or an hour."""
    told = os.environ.get(VARIABLE, "")
    try:
        seconds = float(told or LIMIT)
    except ValueError:
        seconds = -1.0
    if not (isfinite(seconds) and seconds > 0):
        raise UserError(f"{VARIABLE}={told} must be a number of seconds above 0")
    return seconds


@contextmanager
def limited(rank: int, place: str) -> Iterator[None]:
    """A line where the ranks do not meet for long; after `limit()` the process ends.

    place  for whom it waits and where
    """
    began, longest = time.monotonic(), limit()
    tell = f"lightning_cfg: rank {rank} waits {place}, {longest:.0f} s at most: were they started?"

    def end() -> None:
        waited = time.monotonic() - began
        end_now(f"error: rank {rank}: waited {place} for {waited:.0f} s: were they started?", 1)

    told = threading.Timer(PATIENCE, print, [tell], {"file": sys.stderr, "flush": True})
    timers = (told, threading.Timer(longest, end))
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


class Waiting:
    """Where each rank is among the places at which all of them meet, each time in the same order.

    A rank that has waited PATIENCE for others says for whom; after `limit()` it ends with status 1,
    or, where its own work before took longer, after as long as that.

    tell  gives every rank what each of them has said
    """

    def __init__(self, rank: int, size: int, address: str, tell: Callable[[Any], list]):
        from torch import distributed

        store: Any = distributed.TCPStore  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
        self.rank, self.size, self._limit = rank, size, limit()
        how = {"wait_for_workers": False, "timeout": timedelta(seconds=60)}
        if rank == 0:
            self._store = store(address, 0, is_master=True, **how)
        port = tell(self._store.port if rank == 0 else 0)[0]
        if rank:
            self._store = store(address, port, is_master=False, **how)
        self._meeting = 0  # the last one that this rank has come to
        self._others = [0] * size  # the same of each, as it was heard
        self._store.set(str(rank), "0")
        tell(0)  # all have said so
        self._since: float | None = None  # when this rank began to wait
        self._heard = self._left = time.monotonic()
        self._end = threading.Event()
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def come(self) -> None:
        """This rank is at the next meeting, which nobody leaves before all have come."""
        self._meeting += 1
        self._since = time.monotonic()

    def leave(self) -> None:
        """The meeting is over."""
        self._since, self._left = None, time.monotonic()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around one."""
        self.come()
        try:
            yield
        finally:
            self.leave()

    def close(self) -> None:
        """No meeting comes any more."""
        self._end.set()

    def missing(self) -> list[int]:
        """The ranks that have not come to where this one is, as far as is known."""
        if time.monotonic() - self._heard > DEAF:
            return [0]  # it holds the store
        return [rank for rank, at in enumerate(self._others) if at < self._meeting]

    def _exchange(self) -> None:
        names = [str(rank) for rank in range(self.size)]
        try:
            while not self._end.wait(min(1.0, PATIENCE / 4)):
                self._store.set(str(self.rank), str(self._meeting))
                self._others = [int(at) for at in self._store.multi_get(names)]
                self._heard = time.monotonic()
        except RuntimeError:
            pass  # the first rank has ended, which is heard of elsewhere

    def _watch(self) -> None:
        said_of = 0
        while not self._end.wait(min(0.5, PATIENCE / 4)):
            since = self._since
            if since is None:
                continue
            waited, longest = time.monotonic() - since, max(self._limit, since - self._left)
            for_whom = f"rank {self.rank} of {self.size} waits for {self._absent()}"
            if waited >= longest:
                end_now(
                    f"error: {for_whom} since {waited:.0f} s, and no longer: a process hangs, or "
                    f"is so slow that {VARIABLE} has to be more", 1
                )  # fmt: skip
            if waited >= PATIENCE and self.missing() and said_of != self._meeting:
                said_of = self._meeting
                line = f"{for_whom}, {longest:.0f} s at most ({VARIABLE})"
                print(f"lightning_cfg: {line}", file=sys.stderr, flush=True)

    def _absent(self) -> str:
        """The missing ranks; where all have come, what they do."""
        ranks = self.missing()
        names = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        return names if ranks else "an exchange of all"
