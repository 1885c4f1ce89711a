"""What stands for a network in `models`: a path, or a path and which of its weights are meant."""

from typing import Annotated

from lightning_cfg.config import Decode, Verb
from lightning_cfg.runs.inputs import Checkpoint, Weights, told_weights

Networks = dict[
    str, Checkpoint | Annotated[dict, Verb("lightning_cfg.sampling.network.network", short="path")]
]


def network(
    *, path: Checkpoint, weights: Weights | None = None, decode: Decode | None = None
) -> tuple[str, Weights | None, dict | None]:
    """The keys of one that is more than a path.

    path     a run directory of `fit`, or any checkpoint of it, such as an earlier one
    weights  ema, raw, the half-life in images of the average wanted, or its relative width {std:
             0.15}, made of snapshots, also of an earlier step {std: 0.15, step: 1000}; left out,
             the run's own
    decode   of a classifier of images beside a model of latents: what makes images of these
    """
    return path, weights, decode


def path_and_weights(named: str | dict) -> tuple[str, Weights | None]:
    """Where a network of `models` lies, and its weights if it names them."""
    return network(**named)[:2] if isinstance(named, dict) else (named, None)


def decodes(models: dict) -> dict[str, dict]:
    """By role the decoders of those networks that read images of latents."""
    sections = {role: one.get("decode") for role, one in models.items() if isinstance(one, dict)}
    return {role: section for role, section in sections.items() if section is not None}


def told(named: str | dict) -> str:
    """A network of `models` in a few words."""
    path, weights = path_and_weights(named)
    return path if weights is None else f"{path} (weights {told_weights(weights)})"


def own_weights(models: dict) -> dict[str, Weights]:
    """The weights of those networks that name them, by role; of a run's settings too."""
    named = {role: network for role, network in models.items() if isinstance(network, dict)}
    found = {role: network.get("weights") for role, network in named.items()}
    return {role: weights for role, weights in found.items() if weights is not None}
