"""Classifier-free guidance for benchmarks/gpu.py: both passes in one batch or two; samples."""

from contextlib import nullcontext
from unittest import mock

import torch
from gpu_card import at
from gpu_table import Found, now, timed
from gpu_training import Task
from torch import nn

from lightning_cfg.guidance import scales
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted, within_limits
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

CFG = {"name": "classifier_free", "scale": 2.0}


def model_of(task: Task, device: torch.device, *, channels_last: bool, compiled: bool) -> nn.Module:
    """The network as `generate` has it, or laid out and compiled as `fit` does."""
    model = task.model().to(device).eval().requires_grad_(False)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled:
        model.net.compile(dynamic=False)
    return model


def evaluated(task: Task, model: nn.Module, device: torch.device, batch: int, *, together: bool,
              precision: str, seconds: float) -> Found:  # fmt: skip
    """A guided evaluation of so many samples, by one pass of twice as many or by two."""
    denoise = guide(CFG, {"model": Counted(model)})
    noise, c, _ = seeded(list(range(batch)), task.data.shape, 10, device=device)
    sigma = torch.ones(batch, dtype=torch.float64, device=device)
    with torch.no_grad(), at(precision, device), together_is(together):
        spent = timed(lambda: denoise(noise, sigma, c), device, seconds=seconds, repeats=3, warm=1)
    return Found.rate(spent, batch, "samples")


def generated(
    task: Task,
    device: torch.device,
    batch: int,
    *,
    steps: int,
    together: bool,
    precision: str | None,
    compiled: bool = False,
    channels_last: bool = True,
    limit: float | None,
    repeats: int = 2,
) -> Found:
    """Images a second of whole samples, from the seed; precision None: as torch has it, which is
    `generate`'s: convolutions in TF32, products in float32."""
    model = model_of(task, device, channels_last=channels_last, compiled=compiled)
    denoise = guide(CFG, {"model": Counted(model)})
    section = within_limits({"name": "heun", "steps": steps}, model)

    def run() -> None:
        noise, c, draw = seeded(list(range(batch)), task.data.shape, 10, device=device)
        for _ in sample(section, denoise, noise, c, draw):
            pass

    noise, c, _ = seeded(list(range(batch)), task.data.shape, 10, device=device)
    sigma = torch.ones(batch, dtype=torch.float64, device=device)
    with torch.no_grad(), at(precision, device) if precision else nullcontext():
        with together_is(together):
            start = now(device)
            denoise(noise, sigma, c)
            first = now(device) - start
            seconds = timed(run, device, seconds=0.0, repeats=repeats, warm=0)
    return Found.rate(seconds, batch, "images", limit=limit, compile=first if compiled else None)


def together_is(one_batch: bool):
    """Both passes are one batch of any size, or never."""
    return mock.patch.object(scales, "TOGETHER", 10**9 if one_batch else 0)
