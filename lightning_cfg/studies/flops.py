"""What sampling by published networks will take: evaluations, FLOPs, GPU hours, disk."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_cfg.errors import UserError
from lightning_cfg.latents.vae import untrained
from lightning_cfg.nets import EDM2UNet, ResNet
from lightning_cfg.runs.checkpoints import build_model, load
from lightning_cfg.sampling.guided import StandIn, guide
from lightning_cfg.sampling.network import decodes, path_and_weights
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.studies.chosen import at_first
from lightning_cfg.studies.graph import Stage

CARD, PEAK, SHARES = "H100", 989e12, (0.35, 0.15)  # dense bfloat16; utilisations that were seen
EDM2 = re.compile(r"edm2-img(\d+)-(xxs|xs|s|m|l|xl|xxl)-(uncond-)?.+")
RESNET = re.compile(r"resnet(50|152)-imagenet")
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
SHAPES = {"512": (4, 64, 64), "64": (3, 64, 64)}


def evaluations(
    guidance: dict, sampler: dict, roles: list[str], shape: tuple[int, ...] = (1,)
) -> Counter[str]:
    """Evaluations of each network that one sample of this shape takes at most.

    Counted with networks that cost nothing: the classifier is confused altogether, so that every
    pass is made that there may be. Two samples are made, as a knock-out needs another sample.
    """
    spent: Counter[str] = Counter()
    networks = {role: _Counting(role, spent) for role in roles}
    for _ in sample(sampler, guide(guidance, networks), *seeded([0, 1], shape, 2)):
        pass
    return Counter({role: both // 2 for role, both in spent.items()})


class _Counting(StandIn):
    num_classes, label_dropout, clean = 2, 1.0, False

    def __init__(self, role: str, spent: Counter[str]):
        self.role, self.spent = role, spent

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        self.spent[self.role] += len(x)
        if self.role not in ("classifier", "discriminator"):
            return x
        return 0 * x.flatten(1)[:, :1].expand(-1, 2)  # which has a gradient


def macs(net: nn.Module, *inputs: Tensor) -> float:
    """Multiply-accumulates of convolutions and matrix products in a forward pass, on `meta`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        net.eval()(*inputs)
    return counted.get_total_flops() / 2


@dataclass(frozen=True)
class Cost:
    """Of one evaluation of a network: multiply-accumulates; and its numbers."""

    macs: float
    numbers: int


@cache
def cost_of(path: str) -> Cost | None:
    """That of a run's network, or of one that is to be adopted under its own name.

    None where neither is known.
    """
    with torch.device("meta"):
        net, shape = _known(Path(path).name) or _held(path) or (None, ())
        if net is None:
            return None
        numbers = sum(weight.numel() for weight in net.parameters())
        return Cost(macs(net, *inputs(shape)), numbers)


def _known(name: str) -> tuple[nn.Module, tuple[int, ...]] | None:
    """The published network of this name, and the shape of its samples."""
    if resnet := RESNET.fullmatch(name):
        depth: Any = int(resnet[1])
        return ResNet((3, 512, 512), 1000, depth=depth), (3, 512, 512)
    known = EDM2.fullmatch(name)
    if known is None:
        return None
    side, size, unconditional = known.groups()
    classes = 0 if unconditional else 1000
    return EDM2UNet(SHAPES[side], classes, channels=WIDTHS[size]), SHAPES[side]


def _held(path: str) -> tuple[nn.Module, tuple[int, ...]] | None:
    """The network of a run."""
    if not Path(path).exists():
        return None
    held = load(path)
    shape = tuple(held["shape"])
    names = held.get("class_names")
    model: Any = build_model(held["config"], shape, held["num_classes"], names)
    return model.net, shape


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(1, *shape), torch.ones(1), torch.zeros(1, dtype=torch.long)


def decoding(section: dict | None, shape: tuple[int, ...]) -> float | None:
    """Multiply-accumulates of decoding one sample; None where that is not known."""
    if section is None:
        return 0.0
    if "path" not in section:
        return None
    try:
        with torch.device("meta"):
            net = untrained(Path(section["path"]))
            return macs(Decoding(net), torch.zeros(1, *shape))
    except UserError:
        return None


class Decoding(nn.Module):
    """The half of an autoencoder that decodes."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net.decode(z).sample


def forecast(stages: dict[str, Stage], shape: tuple[int, ...]) -> list[str]:
    """A line for every set of samples by networks of others, and one for all of them.

    shape  of a sample
    """
    every = [replace(one, settings=at_first(one.settings)) for one in stages.values()]
    made = [stage for stage in every if stage.verb == "generate" and _of_others(stage)]
    if not made:
        return []
    scored = [s.settings.get("decode") for s in stages.values() if s.verb == "evaluate"]
    lines, total, unknown = [], 0.0, set()
    for stage in made:
        decode = stage.settings.get("decode") or next(filter(None, scored), None)
        flop, told, lacking = _of_samples(stage, shape, decode)
        unknown |= lacking
        lines.append(f"{stage.name}: {stage.settings['n']:,} samples, {told}: {flop:.2g} FLOP")
        total += flop
    hours = (f"{total / (PEAK * share) / 3600:.3g} at {share:.0%}" for share in SHARES)
    paths = {
        path_and_weights(net)[0] for stage in made for net in stage.settings["models"].values()
    }
    numbers = sum(cost.numbers for cost in map(cost_of, sorted(paths)) if cost is not None)
    lines.append(
        f"in all {total:.2g} FLOP: hours of one {CARD}, {' and '.join(hours)} of its {PEAK:.3g}; "
        f"networks of {numbers / 1e9:.3g} G numbers, {2 * numbers / 2**30:.3g} GiB in float16"
    )
    if unknown:
        lines.append(f"not counted, as not known: {', '.join(sorted(unknown))}")
    return lines


def _of_others(stage: Stage) -> bool:
    """Whether all its networks are paths, none of which the study trains itself."""
    paths = [path_and_weights(network)[0] for network in stage.settings["models"].values()]
    return all(isinstance(path, str) and path != "exact" for path in paths)


def _of_samples(
    stage: Stage, shape: tuple[int, ...], decode: dict | None
) -> tuple[float, str, set[str]]:
    """FLOP of a set of samples, what they are of, and what of them is not known."""
    settings, lacking, parts, each = stage.settings, set(), [], 0.0
    models = settings["models"]
    spent = evaluations(settings["guidance"], settings["sampler"], list(models))
    for role, network in models.items():
        path, _ = path_and_weights(network)
        own = cost_of(path)
        costs = {path: None if own is None else own.macs}
        if role in decodes(models):
            section = decodes(models)[role]
            costs[f"{section['name']} for {role}"] = decoding(section, shape)
        lacking |= {name for name, cost in costs.items() if cost is None}
        cost = sum(filter(None, costs.values()))
        parts.append(f"{role} {spent[role]} x {cost / 1e9:.4g} GMAC")
        each += spent[role] * cost
    last = decoding(decode, shape)
    if last is None:
        lacking.add(f"{(decode or {})['name']} of samples")
    elif last:
        parts.append(f"decoded once x {last / 1e9:.4g} GMAC")
    return 2 * settings["n"] * (each + (last or 0.0)), ", ".join(parts), lacking
