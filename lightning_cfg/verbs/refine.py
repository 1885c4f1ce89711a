"""`refine`: samples follow the flow to where their real neighbours are."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.diffusion.samplers import integrate, integrate_in_steps
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import input_of, read_set
from lightning_cfg.guidance import require_null
from lightning_cfg.interfaces import NULL, Velocity
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import IMAGES, check_images, save_images
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.sampling.prepared import pick_device


def refine(
    *,
    flow: str,
    samples: str,
    run_dir: str,
    weights: str | int = "ema",
    method: Literal["dopri5", "euler", "heun"] = "dopri5",
    steps: int = 8,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 2000,
    strength: float = 1.0,
    scale: float = 1.0,
    images: Literal["folder", "zip"] | None = None,
    batch_size: int = 1000,
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Integrate dx/dt = v(x, t, c) from the sample at t = 0 to 1; the run holds samples/.

    flow             a run of `fit` of a Flow on pairs, or its checkpoint
    samples          a run of `generate`, a sample file, or a folder or zip of images with classes
    method           dopri5, adaptive, by rtol and atol; euler or heun in equal `steps`, which take
                     one or two evaluations each
    max_evaluations  of the network per batch by dopri5, beyond which the run stops with an error
    strength         integrates up to this t only: 1 is the whole way, 0 changes nothing
    scale            w of classifier-free guidance inside the flow, v_u + w (v_c - v_u) (Zhao &
                     Schwing 2025, app. B.2): for a flow trained with label dropout; 1 is without
    images           also as 8-bit PNGs, in samples/images/ or samples/images.zip
    """
    solver = Solver(method, steps, rtol, atol, max_evaluations, strength, scale)
    checkpoint, file = output_of(flow, checkpoints.LAST), input_of(samples)
    settings = {"weights": weights, "rtol": rtol, "atol": atol, "batch_size": batch_size}
    settings |= {"max_evaluations": max_evaluations}
    settings |= {"method": method, "steps": steps} if method != "dopri5" else {}
    settings |= {"strength": strength} if strength != 1 else {}
    settings |= {"scale": scale} if scale != 1 else {}
    free = {"flow": flow, "samples": samples, "device": device, "seed": seed, "images": images}
    free |= {"method": method, "steps": steps, "strength": strength, "scale": scale}
    run = Run(run_dir, "refine", settings, {"flow": checkpoint, "samples": file}, free)
    if run.finished():
        run.say("finished already")
        return run.directory

    place = pick_device(device)
    model = checkpoints.restore(checkpoint, weights=weights).to(place)
    if not model.refines:
        raise UserError(
            f"{flow} starts from noise: refine needs a flow that learner Refinement trained"
        )
    if not isinstance(model, Flow):
        raise UserError(f"{flow} is a {type(model).__name__}: refine needs model Flow")
    solver.check(model)
    source = read_set(samples, model, as_bytes=False)
    if not source.labelled:
        raise UserError(f"{samples} says no classes, and the flow moves samples by class")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    check_images(images, model.shape)

    pairs = None if model.pairs is None else Pairs(path=model.pairs)
    if pairs is not None and "scales" in pairs.condition and source.scale is None:
        raise UserError(
            f"{samples} does not say its guidance scale, on which the flow {flow} is conditioned"
        )

    total = len(source)
    with sharing() as ranks:
        ranks.check(total, samples)
        own, began = source.chosen(ranks.share(torch.arange(total))), time.monotonic()

        def work() -> tuple[Tensor, int]:
            parts, spent, hidden = [], 0, not (ranks.first and sys.stderr.isatty())
            with tqdm(total=total, unit="sample", disable=hidden) as bar:
                for x, c in own.batches(batch_size):
                    c = c if pairs is None else pairs.conditioned(x, c, source.scale)
                    moved, evaluations = refined(model, x, c, solver)
                    parts.append(moved)
                    spent += evaluations
                    bar.update(len(x) * ranks.size)
            return torch.cat(parts), spent

        x, evaluations = ranks.together(work)
        x = ranks.collect(x)
        cost = {"evaluations": evaluations, "seconds": time.monotonic() - began}
        cost = {name: value / total for name, value in ranks.total(cost).items()}
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=source.c, seed=source.seeds)]
    if images is not None:
        place, labelled = run.directory / IMAGES[images], model.num_classes > 0
        out.append(save_images(place, x=x, c=source.c, seed=source.seeds, labelled=labelled))
    facts = {"evaluations": {"flow": cost["evaluations"]}, "seconds_per_sample": cost["seconds"]}
    run.finish(*out, **facts, weights=weights)
    run.say(f"{total} samples, {cost['evaluations']:.0f} evaluations each")
    return run.directory


@dataclass(frozen=True)
class Solver:
    """How samples are taken along a refinement; see `refine`."""

    method: str = "dopri5"
    steps: int = 8
    rtol: float = 1e-5
    atol: float = 1e-5
    max_evaluations: int = 2000
    strength: float = 1.0
    scale: float = 1.0

    def check(self, model: Flow) -> None:
        """UserError for numbers that cannot be, or a guidance that this flow does not know."""
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength} must be from 0 to 1, how far t goes")
        if self.scale != 1:
            require_null(model, f"scale={self.scale:g} inside the flow")

    def guided(self, velocity: Velocity) -> Velocity:
        """v_u + w (v_c - v_u), which is v_c where the scale w is 1."""
        if self.scale == 1:
            return velocity

        def both(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            v_u = velocity(x, t, torch.full_like(c, NULL))
            return v_u + self.scale * (velocity(x, t, c) - v_u)

        return both

    def run(self, velocity: Velocity, x: Tensor, c: Tensor) -> Tensor:
        """x at t = strength."""
        velocity = self.guided(velocity)
        if self.strength == 0:
            return x
        if self.method == "dopri5":
            limits = (self.rtol, self.atol, self.max_evaluations)
            return integrate(velocity, x, c, 0.0, self.strength, *limits)
        order = {"euler": 1, "heun": 2}[self.method]
        return integrate_in_steps(velocity, x, c, 0.0, self.strength, self.steps, order)


@torch.no_grad()
def refined(model: Flow, x: Tensor, c: Tensor, solver: Solver) -> tuple[Tensor, int]:
    """One batch of samples (B, *shape) taken along the flow, and the evaluations that it took.

    In float64 on the model's device; the result is float32 on the CPU. Raises UserError as
    `samplers.integrate` does.
    """
    place, evaluations = next(model.parameters()).device, 0

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return model.velocity(x, t, c)

    end = solver.run(velocity, x.double().to(place), c.to(place))
    return end.float().cpu(), evaluations
