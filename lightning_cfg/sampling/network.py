"""What stands for a network in `models`: a path, or a path and which of its weights are meant."""

from typing import Annotated, NamedTuple

from lightning_cfg.config import Choice, Decode, Newer, Verb
from lightning_cfg.runs.inputs import Checkpoint, Weights, told_weights

Elsewhere = Annotated[dict, Choice("lightning_cfg.diffusers")]  # or anyone's, by its dotted path
Networks = dict[
    str,
    Checkpoint
    | Elsewhere
    | Annotated[dict, Verb("lightning_cfg.sampling.network.network", short="path")],
]


Weaken = Annotated[dict, Choice("lightning_cfg.sampling.weakened")]


class Network(NamedTuple):
    """Where a network lies, its weights if it names them, and what is done to it."""

    path: str
    weights: Weights | None = None
    weaken: dict | None = None
    decode: dict | None = None
    section: dict | None = None  # of one that is no run of ours


def network(
    *,
    path: Checkpoint,
    weights: Weights | None = None,
    weaken: Annotated[Weaken | None, Newer] = None,
    decode: Annotated[Decode | None, Newer] = None,
) -> Network:
    """The keys of one that is more than a path.

    path     a run directory of `fit`, or any checkpoint of it, such as an earlier one
    weights  ema, raw, the half-life in images of the average wanted, or its relative width {std:
             0.15}, made of snapshots, also of an earlier step {std: 0.15, step: 1000}; left out,
             the run's own
    weaken   what makes it worse in sampling, such as {name: skip, number: 2}: so a run is its own
             weak model; see `sampling.weakened`
    decode   of a classifier of images beside a model of latents: what makes images of these
    """
    return Network(path, weights, weaken, decode)


def network_of(named: str | dict) -> Network:
    """A network of `models`."""
    if not isinstance(named, dict):
        return Network(named)
    return Network(said(named), section=named) if "name" in named else network(**named)


def said(section: dict) -> str:
    """A network that is no run of ours, in a word or two."""
    return " ".join(str(section[key]) for key in ("name", "path") if key in section)


def path_and_weights(named: str | dict) -> tuple[str, Weights | None]:
    """Where a network of `models` lies, and its weights if it names them."""
    return network_of(named)[:2]


def decodes(models: dict) -> dict[str, dict]:
    """By role the decoders of those networks that read images of latents."""
    sections = {role: network_of(one).decode for role, one in models.items()}
    return {role: section for role, section in sections.items() if section is not None}


def others(models: dict) -> bool:
    """Whether one of the networks is no run of ours: then the run's data are told to it."""
    return any(isinstance(named, dict) and "name" in named for named in models.values())


def told(named: str | dict) -> str:
    """A network of `models` in a few words."""
    path, weights, weaken, *_ = network_of(named)
    of = [] if weights is None else [f"weights {told_weights(weights)}"]
    of += [] if weaken is None else [f"weakened by {weaken['name']}"]
    return f"{path} ({', '.join(of)})" if of else path


def own_weights(models: dict) -> dict[str, Weights]:
    """The weights of those networks that name them, by role; of a run's settings too."""
    named = {role: network for role, network in models.items() if isinstance(network, dict)}
    found = {role: network.get("weights") for role, network in named.items()}
    return {role: weights for role, weights in found.items() if weights is not None}
