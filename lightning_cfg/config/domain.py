"""Which values a key may have: marks beside its type, checked with the type and told by `--help`.

    lr: Annotated[float, Positive] = 1e-3                      float above 0
    k: Annotated[int, AtLeast(1)] = 5                          int of at least 1
    scales: Annotated[list[Annotated[float, Real]], Filled]    list of float that is not empty

Every number of a config has one, `Real` where all of them may be meant (`tests/test_ranges.py`).
NaN is none, and infinity only with `Infinite`. A mark stands beside the number itself, inside
lists and unions. Rules over two keys of a callable are declared on it: `ordered`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from lightning_cfg.config.schema import Keys, join, marks

T = TypeVar("T", bound=Callable)


@dataclass(frozen=True)
class Between:
    """Numbers from low to high; with `above` without low itself, with `below` without high."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value that has passed its type lies in it; what is no number does."""
        if type(value) not in (int, float) or self == Real:
            return True
        if not fits(value):
            return False
        from_low = value > self.low if self.above else value >= self.low
        return from_low and (value < self.high if self.below else value <= self.high)

    def __str__(self):
        low, high = map(_shown, (self.low, self.high))
        if self.high == math.inf:
            lowest = f"above {low}" if self.above else f"of at least {low}"
            return lowest if self.low > -math.inf else ""
        high = f"below {high}" if self.below else high
        if self.above:
            return f"above {low} and {high if self.below else f'at most {high}'}"
        return f"from {low} to {high}"


def fits(value: Any) -> bool:
    """Whether a tensor can hold it, if it is an int; a seed, which is hashed, may be any."""
    return type(value) is not int or abs(value) < 2**63


def _shown(n: float) -> str:
    """A number as our configs have it: 100_000."""
    return f"{n:_}" if isinstance(n, int) and n >= 10_000 else f"{n:g}"


@dataclass(frozen=True)
class MultipleOf:
    """Integers that `of` divides but for `rest`."""

    of: int
    rest: int = 0

    def holds(self, value: Any) -> bool:
        return type(value) is not int or value % self.of == self.rest

    def __str__(self):
        return f"and {'odd' if self == Odd else f'a multiple of {self.of}'}"


@dataclass(frozen=True)
class NotEmpty:
    """Lists, texts and sections that hold something."""

    def holds(self, value: Any) -> bool:
        return value is None or type(value) in (int, float, bool) or len(value) > 0

    def __str__(self):
        return "that is not empty"


@dataclass(frozen=True)
class AlsoInfinite:
    """Beside a range: infinity is one of its numbers."""

    def holds(self, value: Any) -> bool:
        return True

    def __str__(self):
        return "or .inf"


def AtLeast(n: float) -> Between:
    """Numbers from n on."""
    return Between(n)


Real = Between()
Positive = Between(0, above=True)
NonNegative = Between(0)
Share = Between(0, 1)
Odd = MultipleOf(2, 1)
Filled = NotEmpty()
Infinite = AlsoInfinite()

# of guidance, side by side
Scales = Annotated[list[Annotated[float, Real]], Filled]

# any integer: trainings, data and pairs draw by a hash of it; which ones samples can have depends
# on how many there are, and is told where that is known
Seed = Annotated[int, Real]

# What has an upper bound, as what lies beyond it cannot be meant

# samples, or points of a class: ImageNet has 1.3e6; beyond it they would not fit in one file
Count = Annotated[int, Between(1, 100_000_000)]
# of a solver: 1000 is the DDPM's own; beyond 100,000 float64 no longer tells the levels apart
Steps = Annotated[int, Between(1, 100_000)]
# of a layer, and of a network in layers: no network has more, and building one takes all memory
Width = Annotated[int, Between(1, 16_384)]
Depth = Annotated[int, Between(1, 1000)]
# data have deviations of about 1: at 1e6 nothing is left of them, and powers overflow beyond it
Sigma = Annotated[float, Between(0, 1e6, above=True)]

DOMAINS = (Between, MultipleOf, NotEmpty, AlsoInfinite)
Domain = Between | MultipleOf | NotEmpty | AlsoInfinite


def domains_of(kind: Any) -> list[Domain]:
    """The ranges that an annotation itself says, in their order; not those inside it."""
    return [mark for mark in marks(kind) if isinstance(mark, DOMAINS)]


# Rules over several keys


@dataclass(frozen=True)
class Ordered:
    """One key's number lies below another's, or with `equal` not above it."""

    low: str
    high: str
    equal: bool = False

    def broken(self, values: dict, keys: Keys, path: str) -> str | None:
        """What is wrong with the section at a path; None where a key is absent or no number."""
        if self.low not in keys or self.high not in keys:
            return None
        a, b = (values.get(key, keys[key][1]) for key in (self.low, self.high))
        if any(type(n) not in (int, float) for n in (a, b)) or a < b or (self.equal and a == b):
            return None
        how = "at most" if self.equal else "below"
        return f"{join(path, self.low)}={a} must be {how} {self.high}={b}"


RULES = "rules_of_keys"


def ordered(low: str, high: str, *, equal: bool = False) -> Callable[[T], T]:
    """Declares of a function or class that its key `low` is below its key `high`.

    Checked with the types, wherever both are given or have a default that is a number.
    """

    def declare(function: T) -> T:
        setattr(function, RULES, (*rules_of(function), Ordered(low, high, equal)))
        return function

    return declare


def rules_of(function: Callable) -> tuple[Ordered, ...]:
    """The rules over several keys that were declared of a callable."""
    return getattr(function, RULES, ())
