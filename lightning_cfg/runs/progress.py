"""A bar that shows how far a run is."""

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress(total: int | None, unit: str, *, shown: bool = True, **how: Any) -> "tqdm":
    """A bar on a terminal and in a notebook, nothing elsewhere.

    shown  whether this process is the one of all ranks that shows it
    how    what else tqdm takes
    """
    notebook = in_notebook()
    if notebook:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that without ipywidgets the bar is one of text
            from tqdm.auto import tqdm
        how = {"mininterval": 1.0, **how}  # a notebook keeps every line of a bar of text
    else:
        from tqdm import tqdm

    disable = not (shown and (notebook or sys.stderr.isatty()))
    return tqdm(total=total, unit=unit, disable=disable, **how)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
