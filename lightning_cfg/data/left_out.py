"""Files beside the images that are not read: never without a word."""

import sys
from collections import Counter
from pathlib import Path, PurePosixPath

from lightning_cfg.runs.ranks import launched

_said: set[tuple[Path, str]] = set()  # by this process, which may open a data set many times


def counted(names: list[str]) -> str:
    """How many of these files there are by ending, such as "2 .webp, 1 .txt"; "" for none."""
    endings = Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in names)
    return ", ".join(f"{n} {ending}" for ending, n in sorted(endings.items()))


def say(path: Path, left_out: str, endings: tuple[str, ...]) -> None:
    """One line on standard error, once for each zip or folder, by the first rank."""
    if left_out and (path, left_out) not in _said and launched().rank == 0:
        _said.add((path, left_out))
        text = f"{path}: files that are not {', '.join(endings)} were left out: {left_out}"
        print(f"lightning_cfg: {text}", file=sys.stderr)
