"""Checkpoints: a network restored from the config inside."""

from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from lightning_cfg.config import build
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Model, Net, complete
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LAST
from lightning_cfg.runs.to_come import ToCome


def load(path: str | Path) -> dict:
    """The content of a checkpoint of ours, by its own path or its run directory's.

    Raises UserError if there is none, or it is truncated or somebody else's.
    """
    path = output_of(path, LAST)
    if isinstance(path, ToCome):
        return path.content
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is truncated or not a checkpoint of ours: {reason}") from error
    if not isinstance(checkpoint, dict) or "config" not in checkpoint or "ema" not in checkpoint:
        raise UserError(f"{path} is a checkpoint, but not one that `fit` here has written")
    return checkpoint


def build_model(config: dict, shape: tuple[int, ...], num_classes: int) -> Model:
    """The model of a run's config, untrained; UserError where one of one's own is none."""
    shape, name = tuple(shape), config["net"]["name"]
    net = _module("net", name, build("lightning_cfg.nets", config["net"], shape, num_classes))
    complete(net, Net, f"net {name}", "forward")
    name = config["model"]["name"]
    model = _module("model", name, build("lightning_cfg.diffusion.models", config["model"], net))
    if not isinstance(model, Model) and hasattr(model, "loss"):
        takes = signature(model.loss).parameters  # what one of one's own leaves to be seen
        seen = {
            "takes_x0": "x0" in takes,
            "augment_dim": net.augment_dim if "augment" in takes else None,
            "classifies": len(signature(model.forward).parameters) == 2,
        }
        for key in seen.keys() - set(dir(model)):
            setattr(model, key, seen[key])
    complete(model, Model, f"model {name}", "loss")
    model.shape, model.num_classes = shape, num_classes
    return model


def _module(what: str, name: str, made: object) -> Any:
    if not isinstance(made, nn.Module):
        raise UserError(f"{what} {name} makes a {type(made).__name__}, which is no torch.nn.Module")
    return made


def restore(path: str | Path, *, weights: str | int = "ema") -> Model:
    """The model of a checkpoint, frozen, in evaluation mode, with all that `Model` says of it.

    weights  "ema": the average of the first half-life; a number: that of this half-life in
             images; "raw": no average
    Raises UserError if the file is not ours, does not fit its own config or lacks the average.
    """
    checkpoint = load(path)
    config = checkpoint["config"]
    model = build_model(config, checkpoint["shape"], checkpoint["num_classes"])
    complete(model, Model, f"model {config['model']['name']}", "forward")
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    averages = checkpoint["ema"]
    if weights != "raw":
        half_life = next(iter(averages)) if weights == "ema" else weights
        if half_life not in averages:
            have = ", ".join(map(str, averages))
            raise UserError(f"{path} has no average of half-life {weights}; it has {have}, or raw")
        state.update(averages[half_life])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[min(1, str(error).count("\n"))].strip()  # the first
        reason = shorten(reason, 200, placeholder=" ...")  # another network's names fill pages
        raise UserError(f"{path} does not fit the network of its config: {reason}") from error
    model.refines = config["learner"]["name"] == "Refinement"
    model.conditioned = checkpoint.get("conditioned")
    if model.conditioned is not None:
        model.num_classes //= model.conditioned["values"]
    return model.eval().requires_grad_(False)
