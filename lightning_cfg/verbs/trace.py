"""`trace`: trajectories become curves: how far they run from decision boundaries, and when."""

import json
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from lightning_cfg.config import Data, Free, Seed
from lightning_cfg.diffusion.trajectories import (
    Along,
    along,
    closest,
    over_time,
    straightness,
    time_of,
)
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.tables import as_csv
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
            _fits(file, held, name, reader)
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
            _fits(file, held, name, reader)
            for c in held["c"].unique().tolist():
                own = held["c"] == c
                path, sigma = held["path"][own].to(place), held["sigma"].to(place)
                seen = along(reader, path, sigma, c)
                front = {"samples": label, "class": c, "classifier": name}
                rows.append({**front, "n": len(path), **_summary(path, sigma, seen)})
                curves += [front | row for row in _curve(sigma, seen)]
                boundaries += [
                    {**front, "sigma": s, "t": t, "u": u}
                    for s, t, zeros in zip(
                        sigma.tolist(), time_of(sigma).tolist(), seen.zeros, strict=False
                    )
                    for u in zeros.tolist()
                ]
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


def _summary(path: Tensor, sigma: Tensor, seen: Along) -> dict[str, float | None]:
    wrong = (seen.margin < 0).double()
    return {
        "straightness": straightness(path, sigma).mean().item(),
        "closest": _number(closest(seen.distance, sigma).nanmean()),
        "distance": _number(over_time(seen.distance, sigma).nanmean()),
        "wrong_time": over_time(wrong, sigma).mean().item(),
        "wrong_end": wrong[:, -1].mean().item(),
        "confidence": seen.confidence[:, -1].mean().item(),
    }


def _curve(sigma: Tensor, seen: Along) -> list[dict[str, float | None]]:
    quantiles = seen.distance.nanquantile(seen.distance.new_tensor([0.1, 0.5, 0.9]), 0)
    columns = {
        "sigma": sigma.double(),
        "t": time_of(sigma),
        "distance": seen.distance.nanmean(0),
        "distance_10": quantiles[0],
        "distance_50": quantiles[1],
        "distance_90": quantiles[2],
        "wrong": (seen.margin < 0).double().mean(0),
        "confidence": seen.confidence.mean(0),
    }
    return [
        {name: _number(column[i]) for name, column in columns.items()} for i in range(len(sigma))
    ]


def _number(value: Tensor) -> float | None:
    """None where no trajectory meets a boundary: JSON has no NaN."""
    return None if value.isnan() else value.item()


def _reader(role: str, path: str, data: dict | None, weights: Weights) -> Model:
    reader = network(role, path, data, weights, classifies=True)
    if reader.clean:
        raise UserError(f"{role}: {path} reads finished samples only (model.clean), not noisy ones")
    return reader


def _fits(file: Path, held: dict[str, Tensor], name: str, reader: Model) -> None:
    """UserError unless these are trajectories that the classifier can read."""
    path, sigma, c = held["path"], held["sigma"], held["c"]
    if path.ndim < 3 or sigma.shape != path.shape[1:2] or c.shape != path.shape[:1]:
        raise UserError(
            f"{file}: path {tuple(path.shape)}, sigma {tuple(sigma.shape)} and c {tuple(c.shape)} "
            "are not (n, levels, *shape), (levels,) and (n,)"
        )
    if not (sigma.diff() < 0).all() or sigma[-1] != 0:
        raise UserError(f"{file}: sigma does not fall to 0")
    if len(path) < 1 or len(sigma) < 2:
        raise UserError(f"{file} holds {len(path)} trajectories of {len(sigma)} noise levels")
    if reader.num_classes < 2:
        raise UserError(f"classifiers.{name} knows one class only, so it has no boundary")
    if tuple(path.shape[2:]) != tuple(reader.shape):
        raise UserError(
            f"{file} holds trajectories of shape {tuple(path.shape[2:])}, but classifiers.{name} "
            f"reads {tuple(reader.shape)}"
        )
    if not 0 <= int(c.min()) <= int(c.max()) < reader.num_classes:
        raise UserError(
            f"{file} holds classes {int(c.min())} ... {int(c.max())}, classifiers.{name} knows "
            f"0 ... {reader.num_classes - 1}"
        )
