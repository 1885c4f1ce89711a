"""`generate`: seeds become samples under a guidance method."""

import itertools
import sys
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_cfg.config import Data, Guidance, Sampler, build
from lightning_cfg.errors import UserError
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import load_tensors, output_of, save_tensors
from lightning_cfg.runs.names import SAMPLES, SHEET, TRAJECTORIES
from lightning_cfg.runs.pngs import IMAGES, check_images, drawable, save_images
from lightning_cfg.runs.ranks import Ranks, launched, sharing
from lightning_cfg.runs.run import Run, content_of
from lightning_cfg.sampling.guided import check_roles
from lightning_cfg.sampling.network import Networks, own_weights, path_and_weights
from lightning_cfg.sampling.prepared import Prepared, prepare
from lightning_cfg.sampling.sample import check_finite


def generate(
    *,
    models: Networks,
    guidance: Guidance,
    sampler: Sampler,
    run_dir: str,
    n: int,
    seed: int = 0,
    data: Data | None = None,
    class_label: int | None = None,
    weights: str | int = "ema",
    batch_size: int = 1000,
    trajectories: int = 0,
    images: Literal["folder", "zip"] | None = None,
    device: str = "auto",
) -> Path:
    """Generate n samples, of the seeds seed, seed + 1, ...; the run holds samples/.

    Of images, figures/samples.png shows the first ones.

    models       {model, weak, classifier, discriminator}: run directories or checkpoints, as the
                 guidance needs them; exact: the closed form of `data`. With weights of its own:
                 weak: {path: runs/base/checkpoints/best_001000.ckpt, weights: 100_000}
    class_label  of all samples; left out, each seed draws its own
    weights      ema, raw, or the half-life in images of the average wanted
    trajectories of the first so many samples are kept: samples/trajectories.safetensors with
                 path (trajectories, steps + 1, *shape), sigma (steps + 1,) falling to 0, c, seed
    images       also as 8-bit PNGs (`save_images`), in samples/images/ or samples/images.zip; a
                 finished run makes them of its samples
    """
    paths = {role: path_and_weights(network)[0] for role, network in models.items()}
    inputs = {
        f"models.{role}": output_of(path, checkpoints.LAST)
        for role, path in paths.items()
        if path != "exact"
    }
    exact = {role: path for role, path in paths.items() if path == "exact"}
    section = data
    if data is not None:
        section, files = content_of(data, build("lightning_cfg.data", data))
        inputs |= files if exact else {}
    settings = {"guidance": guidance, "sampler": sampler, "n": n, "seed": seed, "data": section}
    settings |= {"class_label": class_label, "weights": weights, "batch_size": batch_size}
    settings |= {"trajectories": trajectories, "models": exact}
    settings |= {"own_weights": own} if (own := own_weights(models)) else {}
    check_roles(guidance, models)
    free = {"models": models, "data": data, "images": images, "device": device}
    run = Run(run_dir, "generate", settings, inputs, free)
    if run.finished():
        missing = images is not None and IMAGES[images] not in run.manifest["outputs"]
        if missing and launched().rank == 0:
            held = load_tensors(run.directory / SAMPLES, "x", "c", "seed")
            check_images(images, tuple(held["x"].shape[1:]))
            labelled = run.manifest.get("num_classes") != 0
            run.add(save_images(run.directory / IMAGES[images], **held, labelled=labelled))
        run.say(f"finished already, {n} samples")
        return run.directory

    ready = prepare(
        models=models,
        guidance=guidance,
        sampler=sampler,
        data=data,
        class_label=class_label,
        weights=weights,
        device=device,
    )
    shape, classes = ready.shape, ready.classes
    check_images(images, shape)
    if n < 1 or batch_size < 1:
        raise UserError(f"n={n} and batch_size={batch_size} must be at least 1")
    if not 0 <= trajectories <= n:
        raise UserError(f"trajectories={trajectories} must be from 0 to n={n}")

    with sharing() as ranks:
        ranks.check(n, f"n={n}")
        seeds = torch.arange(seed, seed + n)
        began = time.monotonic()
        made = ranks.together(lambda: _made(ready, ranks, seeds, batch_size, trajectories))
        levels = list(itertools.chain(*ranks.told(made[3])))  # of all batches with trajectories
        if any(sigmas != levels[0] for sigmas in levels):
            raise UserError(
                f"sampler {sampler['name']} takes other steps in each batch, so its trajectories "
                f"must be of one: batch_size={trajectories} or more, and one process"
            )
        seconds = ranks.total({"seconds": time.monotonic() - began})["seconds"] / n
        evaluations = {role: net.evaluations / n for role, net in ready.networks.items()}
        evaluations = ranks.total(evaluations)
        x, c, path = (None if part is None else ranks.collect(part) for part in made[:3])
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=c, seed=seeds)]
    if trajectories:
        kept = {"path": path, "sigma": torch.tensor(levels[0], dtype=torch.float64)}
        kept |= {"c": c[:trajectories], "seed": seeds[:trajectories]}
        out.append(save_tensors(run.directory / TRAJECTORIES, **kept))
    if images is not None:
        place = run.directory / IMAGES[images]
        out.append(save_images(place, x=x, c=c, seed=seeds, labelled=classes > 0))
    if drawable(shape):
        rows = classes if class_label is None else 0
        sheet = contact_sheet({"samples": (x, c)}, rows, columns=10)
        save(sheet, run.directory / "figures/samples", colours=32 if shape[0] == 1 else 0)
        out += [run.directory / name for name in SHEET]
    facts = {"evaluations": evaluations, "seconds_per_sample": seconds}
    facts |= {"weights": weights, "num_classes": classes}
    run.finish(*out, **facts, solver_dtype="float64")
    run.say(f"{n} samples, {sum(evaluations.values()):.0f} evaluations each")
    return run.directory


@torch.no_grad()
def _made(
    ready: "Prepared", ranks: Ranks, seeds: Tensor, batch_size: int, trajectories: int
) -> tuple[Tensor, Tensor, Tensor | None, list[list[float]]]:
    """This rank's samples and classes; its wanted trajectories' paths and each batch's levels.

    trajectories  so many are wanted of all seeds, the first ones
    """
    xs, cs, paths, levels = [], [], [], []
    own, wanted = ranks.share(seeds), len(ranks.share(seeds[:trajectories]))
    hidden = not (ranks.first and sys.stderr.isatty())
    with tqdm(total=len(seeds), unit="sample", disable=hidden) as bar:
        for some in own.split(batch_size):
            rows = min(max(0, wanted - sum(map(len, xs))), len(some))
            c, steps = ready.start(some, rows)
            path, sigmas = [], []
            for sigma, x in steps:
                if trajectories:
                    path.append(x[:rows].float().cpu())
                    sigmas.append(sigma)
            check_finite(x, some)
            xs.append(x.float().cpu())
            cs.append(c.cpu())
            if trajectories and (rows or not paths):
                paths.append(torch.stack(path, 1))
                levels.append(sigmas)
            bar.update(len(some) * ranks.size)
    path = torch.cat(paths) if trajectories else None
    return torch.cat(xs), torch.cat(cs), path, levels
