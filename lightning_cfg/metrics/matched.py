"""What a method reaches in one metric where another one is no worse than a limit."""

from collections.abc import Sequence
from itertools import pairwise

from lightning_cfg.metrics.meaning import meaning


def within(curve: Sequence[tuple[float, float]], limit: float) -> list[float]:
    """Heights of a curve of (distance, height) at its points within the limit, and where it leaves.

    Between neighbouring points the curve is straight.
    """
    heights = [height for distance, height in curve if distance <= limit]
    for (a, p), (b, q) in pairwise(curve):
        if min(a, b) <= limit < max(a, b):
            heights.append(p + (q - p) * (limit - a) / (b - a))
    return heights


def at_matched(curve: Sequence[tuple[float, float]], limit: float, error: str) -> float | None:
    """The best height of a curve within the limit, as `error` is better; None where it has none."""
    fewest = max if meaning(error).better == "higher" else min
    return fewest(within(curve, limit), default=None)
