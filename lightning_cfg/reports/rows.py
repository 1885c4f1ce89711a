"""The rows of a study's table by what they are of: selected, classes averaged, the best one."""

from typing import Any, NamedTuple, TypeVar

from lightning_cfg.metrics.meaning import meaning, show
from lightning_cfg.metrics.over_seeds import OverSeeds, difference, each, over, positive

Held = TypeVar("Held")


class Cell(NamedTuple):
    """What a set of samples is of."""

    method: str
    scale: float | None  # None of real data
    stage: str  # before or after refinement, or real
    flow: str  # that has refined it, or ""

    @property
    def before(self) -> "Cell":
        """The same samples before refinement."""
        return self._replace(stage="before", flow="")

    @property
    def kind(self) -> tuple[str, str]:
        return self.stage, self.flow


SEED = "seed"  # a column of rows of several
SPENT = ("nfe", "seconds", "n")  # columns that have no interval
ALIKE = "and with it whatever the interval of the difference, paired by seed, does not tell from it"

REAL = Cell("real", None, "real", "")
SAMPLE_KINDS = {  # (stage, flow): name of a set of samples, in the order of the papers' figures
    ("before", ""): "before",
    ("after", "dedicated"): "after, own flow",
    ("after", "all"): "after, one for all",
}


class Cells(dict[Cell, Held]):
    """What there is of each cell; plain tuples are made cells."""

    def __init__(self, held: Any = ()):
        super().__init__({Cell(*cell): value for cell, value in dict(held).items()})

    def where(self, **wanted: Any):
        """Those of this method, scale, stage or flow."""
        wants = wanted.items()
        return type(self)(
            {cell: v for cell, v in self.items() if all(getattr(cell, k) == w for k, w in wants)}
        )

    def kinds(self) -> list[tuple[str, str]]:
        """(stage, flow) of samples that are there: before, then after by the flows' names."""
        after = sorted({cell.kind for cell in self if cell.stage == "after"})
        return [("before", ""), *after]

    def scales(self) -> list[float]:
        return sorted({cell.scale for cell in self if cell.scale is not None})


class Rows(Cells[dict[str, Any]]):
    """{cell: {nfe, n, metrics}} with classes averaged; metrics of several seeds as `OverSeeds`."""

    @classmethod
    def averaged(cls, rows: list[dict]) -> "Rows":
        """Means over the classes, weighted by n, then over the seeds; n is the sum over classes.

        What some class or seed lacks is left out. A text is the first one's.
        """
        groups: dict[Cell, dict[int, list[dict]]] = {}
        for row in rows:
            own = groups.setdefault(Cell(*(row[name] for name in Cell._fields)), {})
            own.setdefault(row.get(SEED, 0), []).append(row)
        out = cls()
        for cell, by_seed in groups.items():
            front = {*Cell._fields, "class", SEED, "n"}
            names = [k for k in next(iter(by_seed.values()))[0] if k not in front]
            means = {k: over({seed: mean(own, k) for seed, own in by_seed.items()}) for k in names}
            means["n"] = over({s: sum(row["n"] for row in own) for s, own in by_seed.items()})
            means |= {k: float(means[k]) for k in SPENT if isinstance(means.get(k), OverSeeds)}
            out[cell] = {name: value for name, value in means.items() if value is not None}
        return out

    def having(self, *metrics: str) -> "Rows":
        """Those in which all of these were measured."""
        return Rows({cell: row for cell, row in self.items() if set(metrics) <= set(row)})

    def line(self, metric: str) -> list[tuple[float, float]]:
        """(scale, value) of a metric, where it was measured, by scale."""
        return sorted((cell.scale or 0.0, row[metric]) for cell, row in self.having(metric).items())

    def curve(self, x: str, y: str) -> list[tuple[float, float]]:
        """Two metrics of one method, where both were measured, in the order of the scales."""
        return [(self[cell][x], self[cell][y]) for cell in sorted(self.having(x, y))]

    @property
    def over_seeds(self) -> bool:
        """Whether the numbers are of several seeds."""
        return any(isinstance(value, OverSeeds) for row in self.values() for value in row.values())

    @property
    def counted(self) -> str:
        """How many samples a point is of, and over how many seeds: the N of a figure."""
        own = {cell: row for cell, row in self.items() if cell != REAL}
        n = sorted({row["n"] for row in own.values() if "n" in row})
        lines = [" to ".join(f"{size:,.0f}" for size in dict.fromkeys((n[0], n[-1])))] if n else []
        lines = [f"N = {line} a point" for line in lines]
        values = [value for row in own.values() for value in row.values()]
        if several := [len(value.by_seed) for value in values if isinstance(value, OverSeeds)]:
            lines += [f"mean of {max(several)} seeds", "95 % intervals (t)"]
        return "\n".join(lines)

    @property
    def real(self) -> dict[str, Any]:
        """Of a fresh draw of real data; nothing where there is none."""
        return self.get(REAL, {})


def mean(rows: list[dict], column: str) -> Any:
    """Of a column, weighted by the rows' n; None where one of them has none; a text: the first."""
    values = [row.get(column) for row in rows]
    if not values or None in values:
        return None
    if isinstance(values[0], str):
        return values[0]
    return sum(row["n"] * row[column] for row in rows) / sum(row["n"] for row in rows)


def best(metric: str, values: list[float | None], real: float | None = None) -> float | None:
    """The best of the values; None where no way is known to be better, or real is not known."""
    known, way = [value for value in values if value is not None], meaning(metric).better
    if not known or way is None or (way == "real" and real is None):
        return None
    return min(known, key=lambda value: loss(metric, value, real))


def loss(metric: str, value: float, real: float | None) -> float:
    """What is lower of a better value: itself, with a minus, or its distance to real's, by seed."""
    way = meaning(metric).better
    if way == "real" and real is not None:
        return each(lambda one, floor: abs(one - floor), value, real)
    return each(lambda one: -one, value) if way == "higher" else value


def bold(metric: str, value: float | None, top: float | None, real: float | None = None) -> str:
    """A value as a cell of a table, the best one bold, and whatever seeds do not tell from it."""
    text = show(metric, value)
    if value is None or top is None:
        return text
    return f"**{text}**" if value == top or _alike(metric, value, top, real) else text


def _alike(metric: str, value: float, top: float, real: float | None) -> bool:
    if not (isinstance(value, OverSeeds) and isinstance(top, OverSeeds)):
        return False
    losses = loss(metric, value, real), loss(metric, top, real)
    return positive(difference(*losses)) is None
