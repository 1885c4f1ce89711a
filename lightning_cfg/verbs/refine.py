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
    Decode,
    Filled,
    Free,
    NonNegative,
    Positive,
    Real,
    Seed,
    Share,
    Steps,
    Verb,
)
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import Samples, SampleSet, read_set
from lightning_cfg.latents.pictures import Pictures, pictures_of
from lightning_cfg.refinement.condition import ByScale, ClassVectors, Condition, condition_of
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
class _Leg:
    """A flow, how it is followed, and what it is told beside the class."""

    model: Flow
    solver: Solver
    condition: Condition | None

    @property
    def vectors(self) -> ClassVectors | None:
        """The network's, of classes that lie on the CPU, as samples do until they are moved."""
        own, place = self.model.class_vectors, next(self.model.parameters()).device
        return None if own is None else lambda c: own(c.to(place))


@dataclass(frozen=True)
class _Ready:
    """Flows in a row, the samples that they move, and the guidance scale that they are told."""

    legs: list[_Leg]
    source: SampleSet
    scale: float | None
    extrapolated: bool
    pictures: Pictures

    def moved(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[int]]:
        """A batch at the end of its way, and the evaluations of every flow."""
        spent = []
        for leg in self.legs:
            told = c
            if leg.condition is not None:
                told = leg.condition.told(x, c, self.scale, leg.vectors)
            x, evaluations = refined(leg.model, x, told, leg.solver)
            spent.append(evaluations)
        return x, spent


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    source = _ready({**config, "device": "cpu"}).source
    x = torch.zeros(1, *source.shape).expand(len(source), *source.shape)
    return {SAMPLES: {"x": x, "c": source.c, "seed": source.seeds, "guidance": source.guidance}}


def _ready(config: dict) -> _Ready:
    """All that `refine` needs; UserError for keys that do not fit each other."""
    flow, samples, images = config["flow"], config["samples"], config["images"]
    legs = [_leg(part, config) for part in (flow if isinstance(flow, list) else [flow])]
    shapes = {tuple(leg.model.shape): None for leg in legs}
    if len(shapes) > 1:
        raise UserError(
            f"flow: these move samples of different shapes, {' and '.join(map(str, shapes))}"
        )
    model = legs[0].model
    source = read_set(samples, model, as_bytes=False)
    if not source.labelled:
        raise UserError(f"{samples} says no classes, and the flow moves samples by class")
    pictures = pictures_of(config["decode"], model.shape, pick_device(config["device"]))
    check_images(images, pictures.shape)
    scale, extrapolated = _told_scale(config, source, legs)
    return _Ready(legs, source, scale, extrapolated, pictures)


def _leg(part: str | dict, config: dict) -> _Leg:
    """One of the flows; what it does not say itself is as for all of them."""
    own: dict[str, Any] = {"path": part} if not isinstance(part, dict) else part
    asked = config | {key: value for key, value in own.items() if value is not None}
    keys = ("method", "steps", "rtol", "atol", "max_evaluations", "strength", "scale")
    solver = Solver(**{key: asked[key] for key in keys})
    model = _flow(asked["path"], asked["weights"]).to(pick_device(config["device"]))
    solver.check(model)
    return _Leg(model, solver, _condition(model))


def _told_scale(config: dict, source: SampleSet, legs: list[_Leg]) -> tuple[float | None, bool]:
    """The scale that the flows are told, and whether it is beyond those of a flow's sources.

    UserError where it is needed and not known, is another method's, or lies beyond them unasked.
    """
    samples, at, scale = config["samples"], config["at"], source.scale
    told = [leg.condition for leg in legs if isinstance(leg.condition, ByScale)]
    if at is not None and not told:
        raise UserError(f"at={at:g}: the flow is not conditioned on the guidance scale")
    if at is not None and scale is not None and at != scale:
        raise UserError(f"at={at:g}: {samples} says that its guidance scale is {scale:g}")
    scale = at if scale is None else scale
    beyond = False
    for condition in told:
        if scale is None:
            raise UserError(
                f"{samples} does not say its guidance scale, on which the flow is conditioned: "
                "say it by at="
            )
        if None not in (condition.method, source.method) and condition.method != source.method:
            raise UserError(
                f"{samples} was guided by {source.method}, and the flow knows the scales of "
                f"{condition.method}: another method's are not the same thing"
            )
        if not condition.knows(scale):
            beyond = True
            low, high = condition.scales[0], condition.scales[-1]
            if not config["extrapolate"]:
                raise UserError(
                    f"{samples} has guidance scale {scale:g}, and the flow knows those from "
                    f"{low:g} to {high:g}: extrapolate=true takes the nearest of them"
                )
    return scale, beyond


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
    trust            modules of one's own that a checkpoint may name; see docs/security.md
    force            does a finished run again
    """
    if run.finished_already():
        return run.directory

    asked = {"flow": flow, "samples": samples, "weights": weights, "method": method}
    asked |= {"steps": steps, "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
    asked |= {"strength": strength, "scale": scale, "at": at, "extrapolate": extrapolate}
    ready = _ready({**asked, "images": images, "decode": decode, "device": device})
    source, total = ready.source, len(ready.source)
    names = ["flow", *(f"flow_{i}" for i in range(2, len(ready.legs) + 1))]
    run.check_room(4.0 * total * prod(source.shape))
    with sharing() as ranks:
        ranks.check(total, samples)
        own, began = source.chosen(ranks.share(torch.arange(total))), time.monotonic()

        def work() -> tuple[Tensor, list[int]]:
            parts, spent = [], [0] * len(names)
            with progress(total, "sample", shown=ranks.first) as bar:
                for x, c in own.batches(batch_size):
                    moved, evaluations = ready.moved(x, c)
                    parts.append(moved)
                    spent = [a + b for a, b in zip(spent, evaluations, strict=True)]
                    bar.update(len(x) * ranks.size)
            return torch.cat(parts), spent

        x, spent = ranks.raise_together(work)
        x = ranks.gather_rows(x)
        cost = {**dict(zip(names, spent, strict=True)), "seconds": time.monotonic() - began}
        cost = {name: value / total for name, value in ranks.sum(cost).items()}
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=source.c, seed=source.seeds)]
    if images is not None:
        place, labelled = run.directory / IMAGES[images], ready.legs[0].model.num_classes > 0
        saved = {"x": x, "c": source.c, "seed": source.seeds, "labelled": labelled}
        out.append(save_images(place, **saved, as_bytes=ready.pictures.bytes))
    seconds = cost.pop("seconds")
    facts = {"evaluations": cost, "seconds_per_sample": seconds, "extrapolated": ready.extrapolated}
    each = zip(names, ready.legs, strict=True)
    run.finish(*out, **facts, weights=weights, steps={name: leg.model.step for name, leg in each})
    beyond = ", by the nearest guidance scale that the flow knows" if ready.extrapolated else ""
    run.say(f"{total} samples, {sum(cost.values()):.0f} evaluations each{beyond}")
    return run.directory


def _flow(path: str, weights: Weights) -> Flow:
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
