"""Of a study with several seeds: every difference that its report compares, paired by seed."""

from collections.abc import Iterator

from lightning_cfg.metrics.over_seeds import OverSeeds, difference, positive
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import REAL, Cell, Rows


def differences(case: Case) -> list[dict]:
    """A row per metric and pair: the mean of the difference and half of its 95 % interval.

    Refined against before, another flow against the study's own, a method against the first one,
    and all against a fresh real draw. Nothing of a single seed. `counts` where the interval
    excludes 0.
    """
    averages, out = case.averages, []
    for cell, row in averages.items():
        for name, other in _others(cell, averages):
            for metric in case.metrics:
                if metric not in row or metric not in averages[other]:
                    continue
                found = difference(row[metric], averages[other][metric])
                if isinstance(found, OverSeeds):
                    front = {"method": cell.method, "scale": cell.scale, "stage": cell.stage}
                    front |= {"flow": cell.flow, "against": name, "metric": metric}
                    told = {"mean": float(found), "half_width": found.half}
                    counts = "no" if positive(found) is None else "yes"
                    out.append({**front, **told, "seeds": len(case.seeds), "counts": counts})
    return out


def _others(cell: Cell, averages: Rows) -> Iterator[tuple[str, Cell]]:
    """What a cell is compared with, by name."""
    if cell == REAL:
        return
    first = next(iter(averages)).method
    others = {
        "before": cell.before,
        "flow all": cell._replace(flow="all") if cell.flow else cell,
        f"method {first}": cell._replace(method=first),
        "real": REAL,
    }
    yield from ((name, o) for name, o in others.items() if o != cell and o in averages)
