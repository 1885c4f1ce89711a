"""`refine`: samples follow the flow to where their real neighbours are."""

from lightning_cfg.config import check_arguments, main

check_arguments(__name__)  # a missing file answers before torch is imported

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lightning_cfg import checkpoints  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.files import load_samples, output_of, save_tensors  # noqa: E402
from lightning_cfg.generate import SAMPLES, pick_device  # noqa: E402
from lightning_cfg.models import Flow  # noqa: E402
from lightning_cfg.runs import Run  # noqa: E402
from lightning_cfg.samplers import integrate  # noqa: E402


def refine(
    *,
    flow: str,
    samples: str,
    run_dir: str,
    weights: str | int = "ema",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 2000,
    batch_size: int = 1000,
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Integrate dx/dt = v(x, t, c) from the sample at t = 0 to 1 by dopri5; the run holds samples/.

    flow             a run of `fit` of a Flow on pairs, or its checkpoint
    samples          a run of `generate` or a sample file
    max_evaluations  of the network per batch, beyond which the run stops with an error
    """
    checkpoint, file = output_of(flow, checkpoints.LAST), output_of(samples, SAMPLES)
    settings = {"weights": weights, "rtol": rtol, "atol": atol, "batch_size": batch_size}
    settings |= {"max_evaluations": max_evaluations}
    free = {"flow": flow, "samples": samples, "device": device, "seed": seed}
    run = Run(run_dir, "refine", settings, {"flow": checkpoint, "samples": file}, free)
    if run.finished():
        print(f"{run_dir}: finished already")
        return run.directory

    place = pick_device(device)
    model = checkpoints.restore(checkpoint, weights=weights).to(place)
    if not model.refines:
        raise UserError(
            f"{flow} starts from noise: refine needs a flow that learner Refinement trained"
        )
    if not isinstance(model, Flow):
        raise UserError(f"{flow} is a {type(model).__name__}: refine needs model Flow")
    source = load_samples(file, model.shape, model.num_classes)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")

    total = len(source["x"])
    with tqdm(total=total, unit="sample", disable=not sys.stderr.isatty()) as bar:
        x, evaluations = refined(
            model,
            source["x"],
            source["c"],
            rtol=rtol,
            atol=atol,
            max_evaluations=max_evaluations,
            batch_size=batch_size,
            progress=bar.update,
        )
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = save_tensors(run.directory / SAMPLES, x=x, c=source["c"], seed=source["seed"])
    run.finish(out, evaluations={"flow": evaluations / total}, weights=weights)
    print(f"{run_dir}: {total} samples, {evaluations / total:.0f} evaluations each")
    return run.directory


@torch.no_grad()
def refined(
    model: Flow,
    x: Tensor,
    c: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 2000,
    batch_size: int = 1000,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[Tensor, int]:
    """Samples (n, *shape) at t = 1 of the flow that they start at t = 0, and its evaluations.

    On the model's device, in float64; the result is float32 on the CPU. Raises UserError as
    `samplers.integrate` does.
    """
    out, evaluations = [], 0
    place = next(model.parameters()).device

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return model.velocity(x, t, c)

    for some, label in zip(x.split(batch_size), c.split(batch_size), strict=True):
        start = some.double().to(place)
        end = integrate(velocity, start, label.to(place), 0.0, 1.0, rtol, atol, max_evaluations)
        out.append(end.float().cpu())
        progress(len(some))
    return torch.cat(out), evaluations


if __name__ == "__main__":
    main(refine)
