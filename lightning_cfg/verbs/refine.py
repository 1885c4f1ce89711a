"""`refine`: samples follow the flow to where their real neighbours are."""

import time
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from lightning_cfg.config import (
    AtLeast,
    Decode,
    Filled,
    Free,
    Newer,
    NonNegative,
    Positive,
    Real,
    Seed,
    Share,
    Steps,
    Verb,
)
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import Samples, SampleSet, read_set
from lightning_cfg.latents.pictures import Pictures, pictures_of
from lightning_cfg.refinement.solver import Solver
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.inputs import Checkpoint, Weights
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.parts import Parts, room
from lightning_cfg.runs.pngs import IMAGES, check_images, save_images
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.faster import Precision, Speed
from lightning_cfg.sampling.flows import Leg, check_alike, leg_of, moved, told_scale
from lightning_cfg.sampling.prepared import pick_device

Method = Literal["dopri5", "euler", "heun"]


def leg(
    *,
    path: Checkpoint,
    weights: Weights | None = None,
    method: Method | None = None,
    steps: Steps | None = None,
    strength: Annotated[float, Share] | None = None,
    scale: Annotated[float, Real] | None = None,
) -> None:
    """One of several flows in a row; what it leaves out is as for all of them.

    path  a run of `fit` of a Flow on pairs, or its checkpoint; the others as for `refine`
    """


Legs = list[Checkpoint | Annotated[dict, Verb("lightning_cfg.verbs.refine.leg", short="path")]]


@dataclass(frozen=True)
class _Ready:
    """Flows in a row, the samples that they move, and the guidance scale that they are told."""

    legs: list[Leg]
    source: SampleSet
    scale: float | None
    extrapolated: bool
    pictures: Pictures


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    source = _ready({**config, "device": "cpu"}).source
    x = torch.zeros(1, *source.shape).expand(len(source), *source.shape)
    return {SAMPLES: {"x": x, "c": source.c, "seed": source.seeds, "guidance": source.guidance}}


def _ready(config: dict) -> _Ready:
    """All that `refine` needs; UserError for keys that do not fit each other."""
    flow, samples, images = config["flow"], config["samples"], config["images"]
    legs = [_leg(part, config) for part in (flow if isinstance(flow, list) else [flow])]
    check_alike(legs)
    model = legs[0].model
    source = read_set(samples, model, as_bytes=False)
    if not source.labelled:
        raise UserError(f"{samples} says no classes, and the flow moves samples by class")
    pictures = pictures_of(config["decode"], model.shape, pick_device(config["device"]))
    check_images(images, pictures.shape)
    scale, extrapolated = told_scale(
        legs, samples, source.scale, source.method, at=config["at"], beyond=config["extrapolate"]
    )
    return _Ready(legs, source, scale, extrapolated, pictures)


def _leg(part: str | dict, config: dict) -> Leg:
    """One of the flows; what it does not say itself is as for all of them."""
    own: dict[str, Any] = {"path": part} if not isinstance(part, dict) else part
    asked = config | {key: value for key, value in own.items() if value is not None}
    keys = ("method", "steps", "rtol", "atol", "max_evaluations", "strength", "scale")
    solver = Solver(**{key: asked[key] for key in keys})
    model = checkpoints.restore(asked["path"], weights=asked["weights"])
    leg = leg_of(asked["path"], model.to(pick_device(config["device"])), solver)
    if asked["precision"] == "bf16-mixed" and solver.method == "dopri5":
        raise UserError(
            "precision=bf16-mixed is for method=euler and heun: dopri5 would take its rounding for "
            "the flow's own roughness"
        )
    Speed(asked["precision"], asked["compile"]).give(leg.model)
    return leg


@verb(tried=_tried)
def refine(
    run: Run,
    /,
    *,
    flow: Checkpoint | Annotated[Legs, Filled],
    samples: Samples,
    run_dir: str,
    weights: Weights = "ema",
    method: Method = "dopri5",
    steps: Steps = 8,
    rtol: Annotated[float, NonNegative] = 1e-5,
    atol: Annotated[float, Positive] = 1e-5,
    max_evaluations: Annotated[int, AtLeast(1)] = 2000,
    strength: Annotated[float, Share] = 1.0,
    scale: Annotated[float, Real] = 1.0,
    at: Annotated[float, Real] | None = None,
    extrapolate: bool = False,
    images: Annotated[Literal["folder", "zip"] | None, Free] = None,
    decode: Annotated[Decode | None, Free] = None,
    batch_size: Annotated[int, AtLeast(1)] = 1000,
    precision: Annotated[Precision, Newer] = "32-true",
    compile: Annotated[bool, Free] = False,
    device: Annotated[str, Free] = "auto",
    seed: Annotated[Seed, Free] = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Integrate dx/dt = v(x, t, c) from the sample at t = 0 to 1; the run holds samples/.

    flow             a run of `fit` of a Flow on pairs, or its checkpoint; or several in a row, each
                     such a path or {path, weights, method, steps, strength, scale}
    samples          a run of `generate`, a sample file, or images with classes: a folder, a zip
                     or an .npz
    method           dopri5, adaptive, by rtol and atol; euler or heun in equal `steps`, which take
                     one or two evaluations each
    max_evaluations  of the network per batch by dopri5, beyond which the run stops with an error
    strength         integrates up to this t only: 1 is the whole way, 0 changes nothing
    scale            w of classifier-free guidance inside the flow, v_u + w (v_c - v_u) (Zhao &
                     Schwing 2025, app. B.2): for a flow trained with label dropout; 1 is without
    at               guidance scale of samples that do not say it, for a flow that is told it: one
                     between two of its sources' is told by the class vectors between theirs
    extrapolate      beyond its sources' scales the nearest of them is told; false refuses
    images           also as 8-bit PNGs, in samples/images/ or samples/images.zip
    decode           what makes these of latents
    precision        of the network: 32-true, or bf16-mixed, which is for euler and heun: dopri5
                     would take its rounding for the flow's own roughness
    compile          the network, by torch.compile: a minute at the start, then faster
    trust            modules of one's own that a checkpoint may name; see docs/security.md
    force            does a finished run again
    """
    if run.finished_already():
        return run.directory

    asked = {"flow": flow, "samples": samples, "weights": weights, "method": method}
    asked |= {"steps": steps, "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
    asked |= {"strength": strength, "scale": scale, "at": at, "extrapolate": extrapolate}
    asked |= {"precision": precision, "compile": compile}
    ready = _ready({**asked, "images": images, "decode": decode, "device": device})
    source, total = ready.source, len(ready.source)
    names = ["flow", *(f"flow_{i}" for i in range(2, len(ready.legs) + 1))]
    run.check_room(room(4.0 * total * prod(source.shape)))
    with sharing() as ranks:
        ranks.check(total, samples)
        parts = Parts(run, ranks, batch_size=batch_size, device=pick_device(device))
        with parts.kept(total, "samples"):
            ranks.raise_together(lambda: _make(ready, parts, names, batch_size))
            out = [_written(ready, parts, batch_size)]
            cost = {name: value / total for name, value in ranks.sum(parts.total()).items()}
    if not ranks.first:
        return run.directory
    if images is not None:
        place, labelled = run.directory / IMAGES[images], ready.legs[0].model.num_classes > 0
        with parts.kept(total, "samples"):
            held = load_tensors(run.directory / SAMPLES, "x", "c", "seed")
            as_bytes = ready.pictures.bytes
            out.append(save_images(place, **held, labelled=labelled, as_bytes=as_bytes))
    seconds = cost.pop("seconds")
    facts = {"evaluations": cost, "seconds_per_sample": seconds, "extrapolated": ready.extrapolated}
    each = zip(names, ready.legs, strict=True)
    run.finish(*out, **facts, weights=weights, steps={name: leg.model.step for name, leg in each})
    beyond = ", by the nearest guidance scale that the flow knows" if ready.extrapolated else ""
    run.say(f"{total} samples, {sum(cost.values()):.0f} evaluations each{beyond}")
    return run.directory


def _make(ready: _Ready, parts: Parts, names: list[str], batch_size: int) -> None:
    """This rank's samples at the end of their way, batch by batch, as far as they are not there.

    names  of the flows, by which their evaluations are counted
    """
    ranks, source = parts.ranks, ready.source
    own = ranks.share(torch.arange(len(source)))
    done = parts.rows * ranks.size
    with progress(len(source), " samples", shown=ranks.first, initial=done) as bar:
        for k, rows in enumerate(own.split(batch_size)):
            if str(k) not in parts:
                began, (x, c) = time.monotonic(), next(source.chosen(rows).batches(len(rows)))
                end, evaluations = moved(ready.legs, x, c, ready.scale)
                spent = dict(zip(names, evaluations, strict=True))
                seconds = time.monotonic() - began
                parts.keep(str(k), {"x": end}, rows=len(rows), seconds=seconds, **spent)
                bar.update(len(rows) * ranks.size)
    if ranks.size > 1:
        parts.flush()  # now, since a signal ends a rank that waits for others at once


def _written(ready: _Ready, parts: Parts, batch_size: int) -> Path:
    """The file of all ranks' samples, which the first one writes."""
    source, none = ready.source, torch.empty(0, *ready.source.shape)
    n = len(source)
    if parts.ranks.first:
        parts.run.begin()  # only now, or by what was kept: after an error the place is free
    shapes = {"x": ((n, *source.shape), none.dtype), "c": ((n,), torch.int64)}
    shapes["seed"] = (n,), torch.int64
    blocks = parts.in_order(ceil(ceil(n / parts.ranks.size) / batch_size), x=none)
    whole = {"c": source.c, "seed": source.seeds}
    return parts.joined(SAMPLES, shapes, blocks, **whole)
