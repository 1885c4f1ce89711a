"""`refine`: samples follow the flow to where their real neighbours are."""

import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Free,
    NonNegative,
    Positive,
    Real,
    Seed,
    Share,
    Steps,
)
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import Samples, SampleSet, read_set
from lightning_cfg.refinement.condition import ByScale, Condition, condition_of
from lightning_cfg.refinement.solver import Solver, refined
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.inputs import Checkpoint, Weights
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import IMAGES, check_images, save_images
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.sampling.prepared import pick_device


@dataclass(frozen=True)
class _Ready:
    """A flow, and the samples that it moves."""

    model: Flow
    solver: Solver
    source: SampleSet
    condition: Condition | None


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    source = _ready({**config, "device": "cpu"}).source
    x = torch.zeros(1, *source.shape).expand(len(source), *source.shape)
    return {SAMPLES: {"x": x, "c": source.c, "seed": source.seeds, "scale": source.scale}}


def _ready(config: dict) -> _Ready:
    """All that `refine` needs; UserError for keys that do not fit each other."""
    flow, samples, images = config["flow"], config["samples"], config["images"]
    keys = ("method", "steps", "rtol", "atol", "max_evaluations", "strength", "scale")
    solver = Solver(**{key: config[key] for key in keys})
    place = pick_device(config["device"])
    model = _flow(flow, config["weights"]).to(place)
    solver.check(model)
    source = read_set(samples, model, as_bytes=False)
    if not source.labelled:
        raise UserError(f"{samples} says no classes, and the flow moves samples by class")
    check_images(images, model.shape)
    condition = _condition(model)
    if isinstance(condition, ByScale) and source.scale is None:
        raise UserError(
            f"{samples} does not say its guidance scale, on which the flow {flow} is conditioned"
        )
    return _Ready(model, solver, source, condition)


@verb(tried=_tried)
def refine(
    run: Run,
    /,
    *,
    flow: Checkpoint,
    samples: Samples,
    run_dir: str,
    weights: Weights = "ema",
    method: Literal["dopri5", "euler", "heun"] = "dopri5",
    steps: Steps = 8,
    rtol: Annotated[float, NonNegative] = 1e-5,
    atol: Annotated[float, Positive] = 1e-5,
    max_evaluations: Annotated[int, AtLeast(1)] = 2000,
    strength: Annotated[float, Share] = 1.0,
    scale: Annotated[float, Real] = 1.0,
    images: Annotated[Literal["folder", "zip"] | None, Free] = None,
    batch_size: Annotated[int, AtLeast(1)] = 1000,
    device: Annotated[str, Free] = "auto",
    seed: Annotated[Seed, Free] = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Integrate dx/dt = v(x, t, c) from the sample at t = 0 to 1; the run holds samples/.

    flow             a run of `fit` of a Flow on pairs, or its checkpoint
    samples          a run of `generate`, a sample file, or a folder or zip of images with classes
    method           dopri5, adaptive, by rtol and atol; euler or heun in equal `steps`, which take
                     one or two evaluations each
    max_evaluations  of the network per batch by dopri5, beyond which the run stops with an error
    strength         integrates up to this t only: 1 is the whole way, 0 changes nothing
    scale            w of classifier-free guidance inside the flow, v_u + w (v_c - v_u) (Zhao &
                     Schwing 2025, app. B.2): for a flow trained with label dropout; 1 is without
    images           also as 8-bit PNGs, in samples/images/ or samples/images.zip
    trust            modules of one's own that a checkpoint may name; see docs/security.md
    force            does a finished run again
    """
    if run.finished_already():
        return run.directory

    asked = {"flow": flow, "samples": samples, "weights": weights, "method": method}
    asked |= {"steps": steps, "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
    asked |= {"strength": strength, "scale": scale, "images": images, "batch_size": batch_size}
    ready = _ready({**asked, "device": device})
    model, solver, source, condition = ready.model, ready.solver, ready.source, ready.condition
    total = len(source)
    run.check_room(4.0 * total * prod(model.shape))
    with sharing() as ranks:
        ranks.check(total, samples)
        own, began = source.chosen(ranks.share(torch.arange(total))), time.monotonic()

        def work() -> tuple[Tensor, int]:
            parts, spent = [], 0
            with progress(total, "sample", shown=ranks.first) as bar:
                for x, c in own.batches(batch_size):
                    c = c if condition is None else condition.told(x, c, source.scale)
                    moved, evaluations = refined(model, x, c, solver)
                    parts.append(moved)
                    spent += evaluations
                    bar.update(len(x) * ranks.size)
            return torch.cat(parts), spent

        x, evaluations = ranks.raise_together(work)
        x = ranks.gather_rows(x)
        cost = {"evaluations": evaluations, "seconds": time.monotonic() - began}
        cost = {name: value / total for name, value in ranks.sum(cost).items()}
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=source.c, seed=source.seeds)]
    if images is not None:
        place, labelled = run.directory / IMAGES[images], model.num_classes > 0
        out.append(save_images(place, x=x, c=source.c, seed=source.seeds, labelled=labelled))
    facts = {"evaluations": {"flow": cost["evaluations"]}, "seconds_per_sample": cost["seconds"]}
    run.finish(*out, **facts, weights=weights, steps={"flow": model.step})
    run.say(f"{total} samples, {cost['evaluations']:.0f} evaluations each")
    return run.directory


def _flow(path: str, weights: str | int) -> Flow:
    """The trained network; UserError if it is no flow that refines samples."""
    model = checkpoints.restore(path, weights=weights)
    if not model.refines:
        raise UserError(
            f"{path} starts from noise: refine needs a flow that learner Refinement trained"
        )
    if not isinstance(model, Flow):
        raise UserError(f"{path} is a {type(model).__name__}: refine needs model Flow")
    return model


def _condition(model: Flow) -> Condition | None:
    """What the flow is told beside the class; checkpoints of version 0.1 name its pairs instead."""
    if model.conditioned is None:
        return None
    if "pairs" in model.conditioned:
        return Pairs(path=model.conditioned["pairs"]).condition
    return condition_of(model.conditioned)
