"""`lc.load`: a trained network of a run."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_cfg.config import asked
from lightning_cfg.config.trust import trust as trust_modules
from lightning_cfg.interfaces import Known, Model
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.inputs import Weights, checkpoint_of
from lightning_cfg.sampling.prepared import pick_device


@torch.inference_mode(False)
def load(
    path: str | Path,
    *,
    weights: Weights = "ema",
    device: str | torch.device = "auto",
    trust: Iterable[str] = (),
) -> Model:
    """The trained network of a run of `fit` or `adopt`, or of a checkpoint: frozen, a function.

    A denoiser is called D(x, sigma, c), the posterior mean of the clean signal; a classifier
    (x, sigma) and gives logits; a flow on pairs is for `lc.refined`. Each says its shape,
    num_classes, sigma_min, sigma_max and step.

    weights  ema, raw, the half-life in images of the average wanted, or its relative width {std:
             0.15}, made of snapshots
    device   auto: a GPU where there is one
    trust    modules of one's own that the checkpoint may name; see docs/security.md
    UserError for what is no checkpoint of ours, is damaged, or lacks these weights.
    """
    trust_modules(trust)
    place = pick_device(str(device))
    file = os.path.expanduser(os.fspath(path))
    checkpoint_of(file)  # what a run would be called of a published network
    return checkpoints.restore(file, weights=asked(Weights, weights, "weights")).to(place)


def device_of(network: Any) -> torch.device:
    """Where a network's numbers lie; the CPU of one without any, such as a formula."""
    while isinstance(network, Known):
        network = network.net
    network = getattr(network, "__self__", network)  # of a method, such as truth.logits
    held = chain(network.parameters(), network.buffers()) if isinstance(network, nn.Module) else ()
    first = next(iter(held), None)
    return torch.device("cpu") if first is None else first.device
