"""`refine`: samples follow the flow to where their real neighbours are."""

from lightning_cfg.config import check_arguments, main

check_arguments(__name__)  # a missing file answers before torch is imported

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
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

    refined, evaluations = [], 0

    def velocity(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return model.velocity(x, t, c)

    total = len(source["x"])
    with tqdm(total=total, unit="sample", disable=not sys.stderr.isatty()) as bar, torch.no_grad():
        blocks = zip(source["x"].split(batch_size), source["c"].split(batch_size), strict=True)
        for x, c in blocks:
            x = x.double().to(place)
            x = integrate(velocity, x, c.to(place), 0.0, 1.0, rtol, atol, max_evaluations)
            refined.append(x.float().cpu())
            bar.update(len(x))
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = save_tensors(
        run.directory / SAMPLES, x=torch.cat(refined), c=source["c"], seed=source["seed"]
    )
    run.finish(out, evaluations={"flow": evaluations / total}, weights=weights)
    print(f"{run_dir}: {total} samples, {evaluations / total:.0f} evaluations each")
    return run.directory


if __name__ == "__main__":
    main(refine)
