"""What a user is told in one line instead of a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

REQUEUE = 75  # exit status, EX_TEMPFAIL in sysexits.h: the batch scripts in launch/ know it


class UserError(Exception):
    """A mistake of the user's: one line that names the thing and what would be right (exit 2)."""


class NotWritten(UserError):
    """A full disk, or a place that cannot be written: what was made before is kept (exit 2)."""


class Diverged(Exception):
    """Too many steps not finite: the run stops, its last good checkpoint stays (exit 1)."""


class Preempted(Exception):
    """A signal asked the run to end; it is saved and goes on when started again (exit 75)."""


class Interrupted(Preempted):
    """The signal was Ctrl-C's (exit 130)."""


class RankLost(Exception):
    """Another process of the run has ended or cannot be reached (exit 1)."""


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that may have been meant, if any is near."""
    return next(iter(get_close_matches(name, list(names), 1)), None)


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """The hint that follows an unknown name: the nearest known one; if none is near, `otherwise`.

    otherwise  left out, it lists all of them
    """
    near = nearest(name, names)
    return f"did you mean '{near}'?" if near else otherwise or f"it has {', '.join(names)}"
