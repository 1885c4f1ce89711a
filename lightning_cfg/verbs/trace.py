"""`trace`: trajectories become curves: how far they run from decision boundaries, and when."""

import json
from pathlib import Path
from typing import Annotated, Any

from lightning_cfg.config import Data, Free, Seed
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.evaluation.traced import check_fits, check_noisy, traced
from lightning_cfg.interfaces import Model
from lightning_cfg.runs.files import output_of, write_text
from lightning_cfg.runs.inputs import Checkpoint, Trajectories, Weights
from lightning_cfg.runs.names import BOUNDARIES, CURVES, SUMMARY, TRAJECTORIES
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.prepared import network, pick_device


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    readers = _readers(config["classifiers"], config["data"], config["weights"])
    for path in config["samples"].values():
        file = output_of(path, TRAJECTORIES)
        held = load_tensors(file, "path", "sigma", "c")
        for name, reader in readers.items():
            check_fits(str(file), f"classifiers.{name}", reader, **held)
    return {}


def _readers(classifiers: dict[str, str], data: dict | None, weights: Weights) -> dict:
    return {
        name: _reader(f"classifiers.{name}", path, data, weights)
        for name, path in classifiers.items()
    }


@verb(tried=_tried, one_process=True)
def trace(
    run: Run,
    /,
    *,
    samples: dict[str, Trajectories],
    classifiers: dict[str, Checkpoint],
    run_dir: str,
    data: Data | None = None,
    weights: Weights = "ema",
    device: Annotated[str, Free] = "auto",
    seed: Annotated[Seed, Free] = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Measure trajectories, class by class; the run holds metrics/trajectories.csv and curves.csv.

    samples      {label: run of `generate` that kept trajectories, or a file of them}
    classifiers  {name: run of `fit` of a noisy classifier, whose boundary is meant}; exact: the
                 closed form of `data`
    weights      of the classifiers: ema, raw, the half-life in images of the average wanted, or
                 {std: 0.15}, as in `generate`
    trust        modules of one's own that a checkpoint may name; see docs/security.md
    force        does a finished run again

    trajectories.csv has a row per label, class and classifier, means over the trajectories:
        straightness  arc over chord in the plane of t/T and u = x / sqrt(1 + sigma^2)
        closest       smallest distance to the decision boundary in u at t/T <= 1/2; 0 for a
                      trajectory that crosses it there
        distance      signed distance averaged over t/T, above 0 on the class's own side
        wrong_time    share of t/T that is spent on the wrong side
        wrong_end     share of finished samples on the wrong side
        confidence    p(class) of the finished samples
    curves.csv has one per noise level too: sigma, t/T, the distance's mean and its 10 %, 50 % and
    90 % quantiles, the share on the wrong side and the mean confidence. In one dimension
    boundaries.csv has the boundary itself: sigma, t/T and u of every zero of the margin.
    """
    if not samples or not classifiers:
        raise UserError("trace needs at least one of samples and one of classifiers")
    if run.finished_already():
        return run.directory

    place = pick_device(device)
    readers = _readers(classifiers, data, weights)
    for reader in readers.values():
        reader.to(place)
    rows, curves, boundaries = [], [], []
    for label, file in ((k, output_of(path, TRAJECTORIES)) for k, path in samples.items()):
        held = load_tensors(file, "path", "sigma", "c")
        for name, reader in readers.items():
            check_fits(str(file), f"classifiers.{name}", reader, **held)
            found = traced(reader, **held, device=place)
            for table, new in zip((rows, curves, boundaries), found, strict=True):
                front = {"samples": label, "class": 0, "classifier": name}  # in this order
                table += [front | row for row in new]
    run.begin()
    outputs = []
    for name, table in ((SUMMARY, rows), (CURVES, curves), (BOUNDARIES, boundaries)):
        if table:
            outputs.append(write_text(run.directory / name, json.dumps(table)))
            outputs.append(write_text(outputs[-1].with_suffix(".csv"), as_csv(table)))
    steps = {name: reader.step for name, reader in readers.items() if reader.step is not None}
    run.finish(*outputs, weights=weights, steps=steps)
    print(f"{run_dir}: {len(rows)} rows, {len(readers)} classifiers")
    return run.directory


def _reader(role: str, path: str, data: dict | None, weights: Weights) -> Model:
    reader = network(role, path, data, weights, classifies=True)
    check_noisy(f"{role}: {path}", reader)
    return reader
