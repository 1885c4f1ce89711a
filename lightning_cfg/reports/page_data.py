"""The numbers of a study for its page: every row of table.csv, and the averages that are drawn."""

import math
from typing import Any

from lightning_cfg.metrics.meaning import meaning
from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.reports import names
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.rows import REAL, SPENT, Rows

MOST_ROWS = 3000  # of table.csv; more are left to that file


def table_of(case: Case, config: dict) -> dict[str, Any]:
    """What the page is told of one data set, in what JSON has; texts as they are.

    averages  a row per method, scale and sample set: classes averaged, over seeds with half of
              the 95 % interval and the deviation of a single draw
    rows      those of table.csv, or none where they are too many
    """
    averages, called = case.averages, names.of_methods(config)
    tried = list(dict.fromkeys(cell.method for cell in averages if cell != REAL))
    flows = names.of_flows(config)
    used = dict.fromkeys(cell.flow for cell in averages if cell != REAL)
    columns = case.front + case.metrics
    return {
        "name": case.name,
        "classes": _classes(case.data_set),
        "metrics": [_metric(metric) for metric in case.metrics],
        "methods": [{"key": key, "name": called.get(key, key)} for key in tried],
        "flows": [{"key": flow, "name": flows.get(flow, flow)} for flow in used],
        "averages": _averages(averages, case.metrics),
        "seeds": case.seeds,
        "columns": columns,
        "rows": [[plain(row.get(name)) for name in columns] for row in case.rows]
        if len(case.rows) <= MOST_ROWS
        else [],
    }


def _classes(data_set: Any) -> list[str]:
    return data_set.class_names or [f"class {k}" for k in range(data_set.num_classes)]


def _metric(metric: str) -> dict[str, Any]:
    means = meaning(metric)
    return {
        "key": metric,
        "name": names.of_column(metric),
        "better": means.better,
        "share": names.is_share(metric),
        "text": means.text,
    }


def _averages(averages: Rows, metrics: list[str]) -> list[dict[str, Any]]:
    out = []
    for cell, row in averages.items():
        held = {metric: row[metric] for metric in metrics if metric in row}
        several = {metric: v for metric, v in held.items() if isinstance(v, OverSeeds)}
        out.append(
            {
                "method": cell.method,
                "scale": cell.scale,
                "stage": cell.stage,
                "flow": cell.flow,
                **{name: plain(row.get(name)) for name in SPENT},
                "values": {metric: plain(value) for metric, value in held.items()},
                "half": {metric: plain(value.half) for metric, value in several.items()},
                "deviation": {metric: plain(value.deviation) for metric, value in several.items()},
            }
        )
    return out


def plain(value: Any) -> Any:
    """A number as table.csv writes it, six digits; None for what no number is."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
