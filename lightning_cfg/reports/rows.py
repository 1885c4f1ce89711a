"""The rows of a study's table by what they are of: selected, classes averaged, the best one."""

from typing import Any, NamedTuple, TypeVar

from lightning_cfg.metrics.meaning import meaning, show

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
    """{cell: {nfe, n, metrics}} with classes averaged."""

    @classmethod
    def averaged(cls, rows: list[dict]) -> "Rows":
        """Means over the classes, weighted by n; n is the sum.

        What some class lacks is left out. A text is that of the first class.
        """
        groups: dict[Cell, list[dict]] = {}
        for row in rows:
            groups.setdefault(Cell(*(row[name] for name in Cell._fields)), []).append(row)
        out = cls()
        for cell, group in groups.items():
            means = {k: mean(group, k) for k in group[0] if k not in (*Cell._fields, "class")}
            out[cell] = {name: value for name, value in means.items() if value is not None}
            out[cell]["n"] = sum(row["n"] for row in group)
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
    if real is not None and way == "real":
        return min(known, key=lambda value: abs(value - real))
    return min(known) if way == "lower" else max(known)


def bold(metric: str, value: float | None, top: float | None) -> str:
    """A value as a cell of a table, the best one bold."""
    text = show(metric, value)
    return f"**{text}**" if value is not None and value == top else text
