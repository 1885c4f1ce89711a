"""What a study found on one data set, as its report is given it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_cfg.reports.rows import SEED, Cell, Cells, Rows
from lightning_cfg.runs.manifests import read_table
from lightning_cfg.runs.names import BOUNDARIES, CURVES, SUMMARY

SETTING = "setting"  # a column of rows of tuned methods
FRONT = ("method", "scale", "class", "stage", "flow", "nfe", "evaluations", "seconds", "n")


@dataclass
class Traced:
    """Trajectories of one method at one scale, and what `trace` measured along them."""

    file: Path  # of trajectories
    rows: list[dict]  # a row per class and classifier
    curves: list[dict]  # and noise level
    boundaries: list[dict]  # in one dimension: t and u of each zero of the margin

    @property
    def guide(self) -> str:
        """The classifier whose boundary is meant: the method's own, otherwise the first."""
        names = [row["classifier"] for row in self.rows]
        return "own" if "own" in names else names[0]

    def of(self, classifier: str) -> list[dict]:
        """The rows by one classifier, a class each."""
        return [row for row in self.rows if row["classifier"] == classifier]

    @classmethod
    def read(cls, file: Path, run: Path) -> "Traced":
        """From the trajectory file and the run of `trace` that read it."""
        tables = []
        for name in (SUMMARY, CURVES, BOUNDARIES):
            tables.append(read_table(run / name) if (run / name).is_file() else [])
        return cls(file, *tables)


@dataclass
class Case:
    """What a study found on one data set."""

    name: str  # "" where it is the only one
    data_set: Any
    # of the table: FRONT, then the metrics; seed before them where there are several
    rows: list[dict] = field(default_factory=list)
    # {(method, scale, stage, flow): sample file}, of the first seed
    sets: Cells[Path] = field(default_factory=Cells)
    # {(method, scale): trajectories before refinement}, of the first seed
    traced: dict[tuple, Traced] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    # of every seed, where there are several
    traced_by: dict[int, dict[tuple, Traced]] = field(default_factory=dict)
    # {method: what `tune` has chosen, told in words}
    tuned: dict[str, dict] = field(default_factory=dict)
    images: Any = None  # those that are shown, once `nearest.shown` has made them
    # by seed, of each class how many samples were read as it: {class, n, right}
    right: Cells[list[list[dict]]] = field(default_factory=Cells)

    def __post_init__(self) -> None:
        self.sets, self.right = Cells(self.sets), Cells(self.right)

    @property
    def averages(self) -> Rows:
        return Rows.averaged(self.rows)

    @property
    def metrics(self) -> list[str]:
        front = (SEED, SETTING, *FRONT)
        return [name for name in self.rows[0] if name not in front] if self.rows else []

    @property
    def front(self) -> list[str]:
        """The columns before the metrics."""
        return [SEED, *FRONT] if len(self.seeds) > 1 else [*FRONT]


def joined(cases: list[Case]) -> Case:
    """One case of the same one by several seeds: all rows; pictures of the first seed."""
    if len(cases) == 1:
        return cases[0]
    first, seeds = cases[0], [case.seeds[0] for case in cases]
    return Case(
        first.name,
        first.data_set,
        [{SEED: case.seeds[0], **row} for case in cases for row in case.rows],
        first.sets,
        first.traced,
        seeds,
        {case.seeds[0]: case.traced for case in cases},
        right=Cells({cell: [case.right[cell][0] for case in cases] for cell in _by_all(cases)}),
    )


def _by_all(cases: list[Case]) -> list[Cell]:
    """The sets that were read by every seed."""
    return [cell for cell in cases[0].right if all(cell in case.right for case in cases)]
