"""State dicts of DiT (Peebles & Xie 2023), which tell their network but for its heads."""

import math
from typing import Any

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.weights.published import Published, refuse_said

NAMES = {"x_embedder.proj.weight", "blocks.0.attn.qkv.weight", "y_embedder.embedding_table.weight"}


def published(state: dict[str, Tensor], **told: Any) -> Published:
    """The DDPM of a state dict; UserError where its heads are not said, or for odd shapes.

    Its last embedding is that of no class. The variance that it learned is left out.
    """
    refuse_said(told, "dit", "shape", "num_heads", "head_channels")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = _heads(width, told)
    positions = state["pos_embed"].shape[1]
    rows = math.isqrt(positions)
    if rows**2 != positions:
        raise UserError(f"its {positions} positions are no square")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    answered = len(state["final_layer.linear.weight"]) // patch**2
    net = {
        "name": "DiT",
        "channels": width,
        "blocks": len(blocks),
        "num_heads": heads,
        "patch": patch,
        "learned_variance": answered == 2 * channels,
    }
    model = {"name": "DDPM", "label_dropout": 0.1, "schedule": "linear"}
    shape = (channels, rows * patch, rows * patch)
    classes = len(state["y_embedder.embedding_table.weight"]) - 1
    weights = {f"net.{name}": weight for name, weight in state.items()}
    return Published("dit", net, model, shape, classes, weights)


def _heads(width: int, told: dict) -> int:
    """The number of heads that is said; UserError where none is, or both ways."""
    number, channels = told["num_heads"], told["head_channels"]
    if number is not None and channels is not None:
        raise UserError("num_heads and head_channels say the same: give one of them")
    if number is not None:
        return number
    if channels is None:
        raise UserError(
            "its weights do not tell num_heads= or head_channels=: docs/adopt.md has what is right"
        )
    if width % channels:
        raise UserError(f"head_channels {channels} does not divide {width} channels")
    return width // channels
