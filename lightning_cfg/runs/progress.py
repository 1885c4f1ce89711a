"""A bar that shows how far a run is."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress(total: int | None, unit: str, *, shown: bool = True, **how: Any) -> "tqdm":
    """A bar on a terminal, nothing elsewhere.

    shown  whether this process is the one of all ranks that shows it
    how    what else tqdm takes
    """
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, disable=not (shown and sys.stderr.isatty()), **how)
