"""How far a run is: a bar on a terminal and in a notebook, elsewhere a line a minute."""

import sys
import time
import warnings
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Lines:
    """What a log gets in the place of a bar, with as much of its methods as is used here.

    initial  what an earlier call has done, which says nothing of the speed
    """

    disable = False

    def __init__(self, total: int | None, unit: str, initial: int = 0):
        self.total, self.unit, self.n, self._initial = total, unit.strip(), initial, initial
        self._began = self._last = time.monotonic()
        self._more = ""

    def update(self, n: int = 1) -> None:
        """So many more are done, which a line says if the last one was a minute ago."""
        self.n += n
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            print(f"lightning_cfg: {self._said(now)}", file=sys.stderr, flush=True)

    def set_postfix(self, more: dict[str, Any], refresh: bool = False) -> None:
        """What stands at the end of a line."""
        self._more = "".join(f", {name} {value}" for name, value in more.items())

    def _said(self, now: float) -> str:
        passed = now - self._began
        if not self.total:
            return f"{self.n:,} {self.unit}, {clock(passed)} so far{self._more}"
        done = min(self.n, self.total)
        left = passed * (self.total - done) / max(1, done - self._initial)
        return (
            f"{done:,} of {self.total:,} {self.unit}, {done / self.total:.0%}, {clock(passed)} so "
            f"far, {clock(left)} left{self._more}"
        )

    def close(self) -> None:
        """Nothing: what is finished says so itself."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clock(seconds: float) -> str:
    """A time as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def progress(
    total: int | None, unit: str, *, shown: bool = True, initial: int = 0, **how: Any
) -> "tqdm | Lines":
    """A bar on a terminal and in a notebook; elsewhere a line a minute, on stderr.

    shown    whether this process is the one of all ranks that shows it
    initial  what an earlier call has done
    how      what else tqdm takes
    """
    if in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that without ipywidgets the bar is one of text
            from tqdm.auto import tqdm
        how = {"mininterval": 1.0, **how}  # a notebook keeps every line of a bar of text
    elif shown and not sys.stderr.isatty():
        return Lines(total, unit, initial)
    else:
        from tqdm import tqdm
    return tqdm(total=total, unit=unit, disable=not shown, initial=initial, **how)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
