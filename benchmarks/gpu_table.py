"""The table of benchmarks/gpu.py: measured within a time limit, told and written line by line."""

import gc
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

GRACE = 8.0  # seconds after the limit by which the process ends, whatever it is doing


class TimeUp(Exception):
    """What was measured took longer than it may."""


@dataclass
class Spread:
    """The median of several measurements, and the least and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def rate(self, amount: float) -> "Spread":
        """Of seconds the rate: so much in each."""
        return Spread(amount / self.median, amount / self.high, amount / self.low)


@dataclass
class Found:
    """What a measurement found.

    value    with its unit
    seconds  of one step or pass
    limit    the card's limit of it, seconds; None where it was not measured
    compile  seconds until the first one was done, where something was compiled
    """

    value: Spread
    unit: str
    seconds: float | None = None
    limit: float | None = None
    compile: float | None = None
    note: str = ""

    @classmethod
    def rate(cls, seconds: Spread, amount: float, unit: str, **more) -> "Found":
        """`amount` of `unit` each so many seconds."""
        return cls(seconds.rate(amount), f"{unit}/s", seconds.median, **more)


class Table:
    """Rows that are printed as they come and written to gpu.txt and gpu.json after each.

    A row is what one measurement found, that it failed and why, or that there was no time for it.
    ends  when the time is up, on time.monotonic's clock
    """

    def __init__(self, out: Path, about: dict, device: torch.device, ends: float):
        self.out, self.about, self.device, self.ends = out, about, device, ends
        self.rows: list[dict] = []
        self.began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        print(self._head(), flush=True)

    def left(self) -> float:
        return self.ends - time.monotonic()

    def measure(
        self,
        line: str,
        what: str,
        function: Callable[[], Found],
        *,
        needs: float,
        than: dict[str, "Found | None"] | None = None,
    ) -> Found | None:
        """Measure, and tell it; None where it failed or there was no time.

        needs  about how many seconds it takes: with fewer left it is skipped, after three times as
               many it is cut off
        than   alternatives by their name: how many times faster than each it is
        """
        if self.left() < needs:
            self.tell(line, what, error=f"skipped: {self.left():.0f} s left, it needs {needs:g} s")
            return None
        cuda, began, found, error = self.device.type == "cuda", time.monotonic(), None, ""
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            with cut_off(min(self.left(), max(3 * needs, 20.0))):
                found = function()
        except Exception as failed:  # whatever a card or a compiler makes fail, the others go on
            error = f"{type(failed).__name__}: {' '.join(str(failed).split())}"[:400]
        gib = torch.cuda.max_memory_allocated(self.device) / 2**30 if cuda else None
        free(self.device)
        columns: dict = {"error": error, "gib": gib, "took": time.monotonic() - began}
        if found is not None:
            columns |= asdict(found)
            columns["times"] = {
                name: other.seconds / found.seconds
                for name, other in (than or {}).items()
                if other is not None and other.seconds and found.seconds
            }
        self.tell(line, what, **columns)
        return found

    def tell(self, line: str, what: str, **columns: object) -> None:
        """A row more; a column that is None or empty is left out."""
        given = {name: value for name, value in columns.items() if value not in (None, "", {})}
        self.rows.append({"line": line, "what": what, "at": time.monotonic() - self.began, **given})
        print(text_of(self.rows[-1]), flush=True)
        self.write()

    def write(self) -> None:
        lines = [self._head(), *map(text_of, self.rows)]
        _replace(self.out / "gpu.txt", "\n".join(lines) + "\n")
        content = {"about": self.about, "rows": [finite(row) for row in self.rows]}
        _replace(self.out / "gpu.json", json.dumps(content, indent=1, default=str) + "\n")

    def _head(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.about.items())

    @contextmanager
    def ended_by_force(self) -> Iterator[None]:
        """In the meantime the process ends soon after its time, even where nothing hears."""

        def end() -> None:
            self.tell("time", "is up", error="the process was ended in what it was doing")
            sys.stdout.flush()
            os._exit(1)

        timer = threading.Timer(max(0.0, self.left()) + GRACE, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def text_of(row: dict) -> str:
    """A row in words, of at most a few lines' length."""
    parts = [f"{row['line']:11} {row['what']}:"]
    if "value" in row:
        value = row["value"]
        parts.append(f"{value['median']:.4g} {row['unit']}")
        if value["low"] != value["high"]:
            parts.append(f"({value['low']:.4g} ... {value['high']:.4g})")
    if row.get("seconds"):
        parts.append(f"{1e3 * row['seconds']:.4g} ms")
    for name, times in row.get("times", {}).items():
        parts.append(f"| {times:.2f} times {name}")
    if row.get("limit") and row.get("seconds"):
        parts.append(f"| {row['seconds'] / row['limit']:.2f} x limit")
    if row.get("gib"):
        parts.append(f"| {row['gib']:.1f} GiB")
    if row.get("compile"):
        parts.append(f"| compiled in {row['compile']:.0f} s")
    if row.get("note"):
        parts.append(f"| {row['note']}")
    if row.get("error"):
        parts.append(row["error"])
    return " ".join(parts)


def timed(
    function: Callable[[], object],
    device: torch.device,
    *,
    seconds: float = 0.3,
    repeats: int = 5,
    warm: int = 2,
) -> Spread:
    """Seconds of a call, by a clock that waits for the device, of `repeats` groups of calls.

    seconds  that all are to take together: a group has as many calls as that allows
    """
    for _ in range(warm):
        function()
    start = now(device)
    function()
    once = max(now(device) - start, 1e-7)
    calls = max(1, min(10_000, int(seconds / repeats / once)))
    found = [once] if calls == 1 else []  # a long one counts
    fewer = calls == 1 and once * repeats > 2 * seconds
    repeats = max(2, int(seconds / once)) if fewer else repeats
    while len(found) < repeats:
        start = now(device)
        for _ in range(calls):
            function()
        found.append((now(device) - start) / calls)
    return Spread.of(found)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def free(device: torch.device) -> None:
    """Give back what the last measurement held, compiled code too."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def cut_off(seconds: float) -> Iterator[None]:
    """TimeUp after so many seconds; in another thread than the first nothing is cut off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeUp(f"it was cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def finite(value):
    """The same with null for a number that json has not."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
