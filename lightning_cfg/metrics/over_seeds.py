"""Numbers over the seeds of a study: the mean, its 95 % interval, and differences by seed."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any


class OverSeeds(float):
    """The mean of a number over seeds, as a float that knows each seed's: {seed: number}.

    half       half of the mean's 95 % interval by Student's t: t(.975, n - 1) s / sqrt(n)
    deviation  s, of one seed's number, with n - 1
    Raises ValueError for fewer than two seeds, which have no interval.
    """

    by_seed: dict[int, float]

    def __new__(cls, by_seed: Mapping[int, float]) -> "OverSeeds":
        if len(by_seed) < 2:
            raise ValueError(f"{len(by_seed)} seeds have no interval")
        made = super().__new__(cls, sum(by_seed.values()) / len(by_seed))
        made.by_seed = dict(by_seed)
        return made

    @property
    def deviation(self) -> float:
        squares = sum((value - self) ** 2 for value in self.by_seed.values())
        return (squares / (len(self.by_seed) - 1)) ** 0.5

    @property
    def half(self) -> float:
        n = len(self.by_seed)
        return _student(n - 1) * self.deviation / n**0.5


@cache
def _student(freedom: int) -> float:
    """The number of standard errors of a 95 % interval: 4.30 for three seeds, 2.78 for five."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def over(by_seed: Mapping[int, Any]) -> Any:
    """A number of each seed as one: of a single seed the number itself.

    None where a seed has none; of texts the first.
    """
    values = list(by_seed.values())
    if None in values:
        return None
    return values[0] if len(values) == 1 or isinstance(values[0], str) else OverSeeds(by_seed)


def each(function: Callable[..., float], *values: float) -> float:
    """A function of numbers, seed by seed: what is compared is paired, and other numbers are fixed.

    Raises ValueError for numbers over other seeds.
    """
    seeds = {tuple(value.by_seed) for value in values if isinstance(value, OverSeeds)}
    if len(seeds) > 1:
        raise ValueError(f"numbers over other seeds are not paired: {sorted(seeds)}")
    if not seeds:
        return function(*values)
    return OverSeeds(
        {seed: function(*(of(value, seed) for value in values)) for seed in seeds.pop()}
    )


def of(value: float, seed: int) -> float:
    """One seed's number."""
    return value.by_seed[seed] if isinstance(value, OverSeeds) else value


def difference(a: float, b: float) -> float:
    """a - b, paired by seed."""
    return each(lambda one, other: one - other, a, b)


def positive(value: float) -> bool | None:
    """Whether a number is above 0; over seeds by its interval, and None where that holds 0."""
    if not isinstance(value, OverSeeds):
        return value > 0
    if abs(value) > value.half:
        return value > 0
    return None
