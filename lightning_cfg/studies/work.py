"""What a study's stages will take of a GPU: FLOP by networks that it trains itself, and time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import torch

from lightning_cfg.runs.checkpoints import build_net
from lightning_cfg.runs.progress import clock
from lightning_cfg.sampling.network import path_and_weights
from lightning_cfg.studies.chosen import at_first
from lightning_cfg.studies.flops import CARD, PEAK, SHARES, evaluations, inputs, macs
from lightning_cfg.studies.graph import Output, Stage

TF32, FLOAT32 = PEAK / 2, 67e12  # FLOP a second of the same card; PEAK is bfloat16's
DOPRI5 = 50  # its evaluations of a sample, which nobody knows before: on MNIST they were 43


@dataclass(frozen=True)
class Work:
    """FLOP, and the FLOP a second that the card makes at the most in the precision that is used."""

    flop: float
    peak: float

    def __str__(self) -> str:
        """The FLOP, and from a minute on how long the card takes."""
        few, many = (ceil(self.flop / (self.peak * share) / 60) for share in SHARES)
        minutes = f"{few} min" if few == many else f"{few} to {many} min"
        return f"{self.flop:.2g} FLOP" + (f", {minutes} of one {CARD}" if many > 1 else "")


def work(stages: Mapping[str, Stage], data: Any) -> dict[str, Work]:
    """Of each stage that trains, makes samples or refines them by networks of the study.

    data  the study's data set, whose shape and classes its networks have
    A multiply-accumulate is 2 FLOP, a step of training three forward passes: one, and the two
    products of the backward pass. Gradients of classifiers are not counted, nor is what scores.
    """
    shape, images = tuple(data.shape), len(data.shape) == 3
    costs: dict[str, float] = {}  # FLOP of an evaluation of what a stage trains

    def each(name: str) -> float:
        if name not in costs:
            costs[name] = 2 * forward(at_first(stages[name].settings)["net"], data)
        return costs[name]

    @cache
    def spent(asked: str) -> Mapping[str, int]:
        guidance, sampler, roles = json.loads(asked)
        return evaluations(guidance, sampler, roles, shape)

    def sampled(settings: dict) -> float:
        models = settings["models"]
        counts = spent(json.dumps([settings["guidance"], settings["sampler"], list(models)]))
        paths = {role: path_and_weights(network)[0] for role, network in models.items()}
        own = {role: path.stage for role, path in paths.items() if isinstance(path, Output)}
        return sum(counts[role] * each(name) for role, name in own.items())

    out: dict[str, Work] = {}
    for name, stage in stages.items():
        settings = at_first(stage.settings)
        half = settings.get("precision") == "bf16-mixed"
        peak = FLOAT32 if not images else PEAK if half or stage.verb == "fit" else TF32
        if stage.verb == "fit":
            steps = settings["trainer"].get("max_steps", 0)
            out[name] = Work(3 * each(name) * settings["batch_size"] * steps, peak)
        elif stage.verb == "generate":
            out[name] = Work(settings["n"] * sampled(settings), peak)
        elif stage.verb == "refine":
            flow = settings["flow"]
            legs = flow if isinstance(flow, list) else [{**settings, "path": flow}]
            adaptive = any(leg.get("method", "dopri5") == "dopri5" for leg in legs)
            n = stages[settings["samples"].stage].settings["n"]
            flop = n * sum(along(leg) * each(leg["path"].stage) for leg in legs)
            out[name] = Work(flop, FLOAT32 if adaptive else peak)
    return out


def along(leg: dict) -> int:
    """Evaluations of a sample that follows a flow by these keys of `refine`."""
    of_a_step = {"euler": 1, "heun": 2}.get(leg.get("method", "dopri5"))
    passes = 1 if leg.get("scale", 1.0) == 1 else 2
    return passes * (DOPRI5 if of_a_step is None else of_a_step * leg.get("steps", 8))


def forward(net: dict, data: Any) -> float:
    """Multiply-accumulates of a forward pass of the network of this section."""
    with torch.device("meta"):
        made = build_net(net, tuple(data.shape), data.num_classes, data.class_names)
        return macs(made, *inputs(tuple(data.shape)))


def in_all(works: Mapping[str, Work]) -> str:
    """A line for all of them."""
    flop = sum(one.flop for one in works.values())
    seconds = sum(one.flop / one.peak for one in works.values())
    each = " and ".join(f"{clock(seconds / share)} at {share:.0%}" for share in SHARES)
    return (
        f"in all {flop:.2g} FLOP; of one {CARD} {each} of its {PEAK:.3g} a second in bfloat16, "
        f"{TF32:.3g} in TF32, {FLOAT32:.2g} in float32, which is for points and dopri5, here "
        f"{DOPRI5} evaluations; scores are not counted"
    )
