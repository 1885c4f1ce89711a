"""Checkpoints: a network restored from the config inside."""

from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from lightning_cfg.config import build
from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LAST


def load(path: str | Path) -> dict:
    """The content of a checkpoint of ours, by its own path or its run directory's.

    Raises UserError if there is none, or it is truncated or somebody else's.
    """
    path = output_of(path, LAST)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is truncated or not a checkpoint of ours: {reason}") from error
    if not isinstance(checkpoint, dict) or "config" not in checkpoint or "ema" not in checkpoint:
        raise UserError(f"{path} is a checkpoint, but not one that `fit` here has written")
    return checkpoint


def build_model(config: dict, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model of a run's config, untrained."""
    net = build("lightning_cfg.nets", config["net"], shape, num_classes)
    return build("lightning_cfg.diffusion.models", config["model"], net)


def restore(path: str | Path, *, weights: str | int = "ema") -> nn.Module:
    """The model of a checkpoint, frozen, in evaluation mode, with `.shape`, `.num_classes`,
    `.refines`, whether it starts from samples instead of noise, and `.pairs`, where those
    are that it was trained on, if they had a condition (see `data.pairs.Pairs`), otherwise None.

    weights  "ema": the average of the first half-life; a number: that of this half-life in
             images; "raw": no average
    Raises UserError if the file is not ours, does not fit its own config or lacks the average.
    """
    checkpoint = load(path)
    shape = tuple(checkpoint["shape"])
    model = build_model(checkpoint["config"], shape, checkpoint["num_classes"])
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
    model.shape = shape
    model.refines = checkpoint["config"]["learner"]["name"] == "Refinement"
    told = checkpoint.get("conditioned")  # {pairs: path, values: how many}
    model.num_classes = checkpoint["num_classes"] // (told["values"] if told else 1)
    model.pairs = told and told["pairs"]
    return model.eval().requires_grad_(False)
