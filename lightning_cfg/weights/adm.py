"""State dicts in Dhariwal & Nichol's names: OpenAI's (guided-diffusion) and Tong et al.'s.

What the weights tell of their network is read off their shapes; heads of attention, the side of the
images, the order of q, k and v and the schedule are not among that, and have to be said.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.weights.published import Published, refuse_said

State = dict[str, Tensor]


def published(state: State, kind: str, *, step: int = 0, **told: Any) -> Published:
    """The network of a state dict; UserError for what has to be said and is not.

    kind  guided_diffusion, a DDPM or a classifier of its noisy images, or otcfm, a flow whose
          network is told t unscaled
    told  the keys of `adopt` that say what the weights do not
    """
    _check_told(kind, told)
    encodes = "out.2.positional_embedding" in state
    shape = tuple(told["shape"])
    layout = Layout.of(state, shape, encodes)
    channels = state["input_blocks.0.0.weight"].shape[1]
    if channels != shape[0]:
        raise UserError(f"its network takes {channels} channels, not {shape[0]} as shape says")
    net = _net(state, layout, shape, encodes, told)
    if kind == "otcfm":
        net["time_scale"] = 1.0
        model = {"name": "Flow", "label_dropout": 0.0}
    elif encodes:
        model = {"name": "NoisyClassifier", "schedule": told["schedule"]}
    else:
        model = {"name": "DDPM", "label_dropout": 0.0, "schedule": told["schedule"]}
    if told["attention_order"] == "new":
        state = {k: _legacy(v, **_heads(told)) if ".qkv." in k else v for k, v in state.items()}
    labels = state.get("label_emb.weight")
    classes = len(state["out.2.c_proj.bias"]) if encodes else 0 if labels is None else len(labels)
    weights = {f"net.{name}": weight for name, weight in state.items()}
    learner = "Classification" if encodes else "Diffusion"
    return Published(kind, net, model, shape, classes, weights, learner, step)


def _check_told(kind: str, told: dict) -> None:
    """UserError for what has to be said and is not, or does not count."""
    needed = ["shape"]
    if kind == "guided_diffusion":
        needed += ["schedule", "attention_order"]
    else:
        refuse_said({"schedule": told["schedule"]}, kind)
    missing = [f"{key}=" for key in needed if told[key] is None]
    heads = _heads(told)
    if not heads:
        missing.append("num_heads= or head_channels=")
    if missing:
        raise UserError(
            f"its weights do not tell {', '.join(missing)}: docs/adopt.md has what is right"
        )
    if len(heads) > 1:
        raise UserError("num_heads and head_channels say the same: give one of them")


@dataclass
class Layout:
    """Levels of a network: the channels of each, whether it attends, and its number of blocks."""

    widths: list[int]
    attends: list[bool]
    blocks: int
    residual: bool

    @classmethod
    def of(cls, state: State, shape: tuple[int, ...], encodes: bool) -> "Layout":
        """That of the way down; UserError for names that are not Dhariwal & Nichol's."""
        inputs = {int(m[1]) for k in state if (m := re.match(r"input_blocks\.(\d+)\.", k))}
        halved = {i for i in inputs if f"input_blocks.{i}.0.op.weight" in state}
        if halved:
            levels = 1 + len(halved)
        elif encodes:  # the pool has a vector for every position that is left, and one for the mean
            left = state["out.2.positional_embedding"].shape[1] - 1
            levels = 1 + round(math.log(max(math.prod(shape[1:]) / max(left, 1), 1), 4))
        else:  # as many as double on the way up, where a second residual block follows the first
            second = r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight"
            levels = 1 + len([k for k in state if re.fullmatch(second, k)])
        each = len(inputs) // levels  # a level's blocks, and the one that halves or comes first
        firsts = [f"input_blocks.{i * each + 1}" for i in range(levels)]
        absent = [f for f in firsts if f"{f}.0.in_layers.2.weight" not in state]
        if len(inputs) != levels * each or each < 2 or absent:
            raise UserError(
                f"its {len(inputs)} input blocks are not {levels} levels of Dhariwal & Nichol's "
                f"network at shape={list(shape)}"
            )
        widths = [len(state[f"{first}.0.in_layers.2.weight"]) for first in firsts]
        attends = [f"{first}.1.qkv.weight" in state for first in firsts]
        return cls(widths, attends, each - 1, residual=not halved and levels > 1)


def _net(
    state: State, layout: Layout, shape: tuple[int, ...], encodes: bool, told: dict
) -> dict:  # fmt: skip
    """The section of a config."""
    time = state["time_embed.0.weight"].shape[1]
    channels = time if all(w % time == 0 for w in layout.widths) else layout.widths[0]
    told_twice = len(state["input_blocks.1.0.emb_layers.1.weight"]) == 2 * layout.widths[0]
    net = {
        "name": "ADMEncoder" if encodes else "ADMUNet",
        "channels": channels,
        "blocks": layout.blocks,
        "channel_mult": [width // channels for width in layout.widths],
        "attention_resolutions": [2**i for i, attends in enumerate(layout.attends) if attends],
        **_heads(told),
        "dropout": 0.0,
        "scale_shift": told_twice,
        "residual_resampling": layout.residual,
        "time_channels": None if channels == time else time,
    }
    if not encodes:
        out = len(state["out.2.weight"])
        net |= {"null_class": False, "learned_variance": out == 2 * shape[0]}
    return net


def _heads(told: dict) -> dict:
    return {key: told[key] for key in ("num_heads", "head_channels") if told[key] is not None}


def _legacy(weight: Tensor, num_heads: int = 0, head_channels: int = 0) -> Tensor:
    """Rows of qkv (3 C, ...): q of all heads, k, v -> q, k, v of the first head, of the second."""
    heads = num_heads or weight.shape[0] // 3 // head_channels
    if heads < 1 or weight.shape[0] % (3 * heads):
        raise UserError(f"{weight.shape[0] // 3} channels do not divide into its heads")
    rows = weight.reshape(3, heads, -1, *weight.shape[1:])
    return rows.transpose(0, 1).reshape(weight.shape)
