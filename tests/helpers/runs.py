"""What lies in a run's directory, and when two of them are the same."""

import csv
import json
from pathlib import Path

import torch

from lightning_cfg.runs.checkpoints import load


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def logged(run: str) -> list[dict[str, float]]:
    """The rows of a run's log, without empty cells, of all the calls that it took."""
    rows = []
    for file in sorted(Path(run, "logs").glob("version_*/metrics.csv")):
        with open(file) as opened:
            rows += [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(opened)]
    return rows


def kept(run: str) -> list[int]:
    return sorted(int(file.stem[5:]) for file in Path(run, "checkpoints").glob("best_*.ckpt"))


def drawn(run: str) -> list[str]:
    return sorted(file.name for file in Path(run, "figures").iterdir())


def flat(value: object, path: str = "") -> dict[str, object]:
    """{dotted path: leaf} of nested dicts and lists."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, item in items for k, v in flat(item, f"{path}.{key}").items()}


def assert_same(one: Path, other: Path) -> None:
    """Two checkpoints hold the same step, weights, averages and optimiser, bit for bit."""
    a, b = load(one), load(other)
    for part in ("global_step", "state_dict", "ema", "optimizer_states", "lr_schedulers"):
        left, right = flat(a[part]), flat(b[part])
        assert left.keys() == right.keys()
        for key, value in left.items():
            equal = (
                torch.equal(value, right[key]) if torch.is_tensor(value) else value == right[key]
            )
            assert equal, f"{part}{key} differs"
