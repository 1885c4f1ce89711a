"""`generate`: seeds become samples under a guidance method."""

import itertools
import time
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Count,
    Data,
    Decode,
    Free,
    Guidance,
    NonNegative,
    Sampler,
    Seed,
    ordered,
)
from lightning_cfg.errors import UserError
from lightning_cfg.latents.pictures import Pictures, pictures_of
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs.inputs import Weights
from lightning_cfg.runs.names import SAMPLES, SHEET, TRAJECTORIES
from lightning_cfg.runs.pngs import IMAGES, check_images, drawable, save_images
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import Ranks, launched, sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.sampling.guided import check_roles, check_together
from lightning_cfg.sampling.network import Networks
from lightning_cfg.sampling.prepared import Prepared, pick_device, prepare
from lightning_cfg.sampling.sample import check_finite
from lightning_cfg.sampling.seeds import check_seeds


def _unread(config: dict, key: str) -> bool:
    """Data are read for their closed form only."""
    return key.startswith("data.") and "exact" not in config["models"].values()


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    ready, _ = _prepared({**config, "device": "cpu"})
    check_together(config["guidance"], config["sampler"])
    n, kept, classes = config["n"], config["trajectories"], max(1, ready.classes)
    x, c = torch.zeros(1, *ready.shape).expand(n, *ready.shape), torch.arange(n) % classes
    samples = {"x": x, "c": c, "seed": torch.arange(n), "guidance": config["guidance"]}
    path = torch.zeros(1, 2, *ready.shape).expand(kept, 2, *ready.shape)
    sigma = torch.tensor([80.0, 0.0], dtype=torch.float64)
    paths = {"path": path, "sigma": sigma, "c": c[:kept], "seed": torch.arange(kept)}
    return {SAMPLES: samples} | ({TRAJECTORIES: paths} if kept else {})


def _prepared(config: dict) -> tuple[Prepared, Pictures]:
    """The networks put together, and what makes pictures of their samples.

    UserError for keys of `generate` that do not fit each other.
    """
    check_roles(config["guidance"], config["models"])
    check_seeds(config["seed"], config["n"])
    keys = ("models", "guidance", "sampler", "data", "class_label", "weights", "device")
    ready = prepare(**{key: config[key] for key in keys})
    pictures = pictures_of(config["decode"], ready.shape, ready.device)
    check_images(config["images"], pictures.shape)
    return ready, pictures


@verb(_unread, tried=_tried)
@ordered("trajectories", "n", equal=True)
def generate(
    run: Run,
    /,
    *,
    models: Networks,
    guidance: Guidance,
    sampler: Sampler,
    run_dir: str,
    n: Count,
    seed: Seed = 0,
    data: Data | None = None,
    class_label: Annotated[int, NonNegative] | str | None = None,
    weights: Weights = "ema",
    batch_size: Annotated[int, AtLeast(1)] = 1000,
    trajectories: Annotated[int, NonNegative] = 0,
    images: Annotated[Literal["folder", "zip"] | None, Free] = None,
    decode: Annotated[Decode | None, Free] = None,
    device: Annotated[str, Free] = "auto",
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Generate n samples, of the seeds seed, seed + 1, ...; the run holds samples/.

    Of images, figures/samples.png shows the first ones.

    models       {model, weak, classifier, discriminator}: run directories or checkpoints, as the
                 guidance needs them; exact: the closed form of `data`. With weights of its own:
                 weak: {path: runs/base/checkpoints/best_001000.ckpt, weights: 100_000}
    class_label  of all samples, by number or name; left out, each seed draws its own
    weights      ema, raw, the half-life in images of the average wanted, or its relative width
                 {std: 0.15}, which is made of the snapshots of a `fit`, also as of an earlier step:
                 {std: 0.15, step: 1000}
    trajectories  of the first so many samples are kept: samples/trajectories.safetensors with
                  path (trajectories, steps + 1, *shape), sigma (steps + 1,) falling to 0, c, seed
    images       also as 8-bit PNGs (`save_images`), in samples/images/ or samples/images.zip; a
                 finished run makes them of its samples
    decode       what makes images of latents, which the samples remain: for `images` and
                 figures/samples.png
    trust        modules of one's own that a checkpoint may name; see docs/security.md
    force        does a finished run again
    """
    check_roles(guidance, models)
    if run.finished():
        _add_images(run, images, decode, device)
        run.say(f"finished already, {n} samples")
        return run.directory
    run.claim()

    asked = {"models": models, "guidance": guidance, "sampler": sampler, "data": data}
    asked |= {"class_label": class_label, "weights": weights, "device": device, "images": images}
    ready, pictures = _prepared({**asked, "decode": decode, "n": n, "seed": seed})
    states = n + trajectories * sampler.get("steps", 1)
    run.check_room(4.0 * states * prod(ready.shape))

    with sharing() as ranks:
        ranks.check(n, f"n={n}")
        seeds = torch.arange(seed, seed + n)
        began = time.monotonic()
        made = ranks.raise_together(lambda: _made(ready, ranks, seeds, batch_size, trajectories))
        levels = _levels(ranks.all_gather_object(made[3]), sampler["name"], trajectories)
        seconds = ranks.sum({"seconds": time.monotonic() - began})["seconds"] / n
        evaluations = {role: net.evaluations / n for role, net in ready.networks.items()}
        evaluations = ranks.sum(evaluations)
        x, c = map(ranks.gather_rows, made[:2])
        path = ranks.gather_rows(made[2]) if trajectories else made[2]
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=c, seed=seeds)]
    if trajectories:
        kept = {"path": path, "sigma": torch.tensor(levels, dtype=torch.float64)}
        kept |= {"c": c[:trajectories], "seed": seeds[:trajectories]}
        out.append(save_tensors(run.directory / TRAJECTORIES, **kept))
    if images is not None:
        place, labelled = run.directory / IMAGES[images], ready.classes > 0
        saved = {"x": x, "c": c, "seed": seeds, "labelled": labelled}
        out.append(save_images(place, **saved, as_bytes=pictures.bytes))
    if drawable(pictures.shape):
        rows = ready.classes if class_label is None else 0
        shown = {"samples": pictures.first(x, c, 10, rows)}
        sheet = contact_sheet(shown, rows, columns=10, names=ready.class_names)
        colours = 32 if pictures.shape[0] == 1 else 0
        save(sheet, run.directory / "figures/samples", colours=colours)
        out += [run.directory / name for name in SHEET]
    facts = {"evaluations": evaluations, "seconds_per_sample": seconds}
    facts |= {"weights": weights, "num_classes": ready.classes, "steps": ready.steps}
    facts |= {} if ready.class_names is None else {"class_names": ready.class_names}
    run.finish(*out, **facts, solver_dtype="float64")
    run.say(f"{n} samples, {sum(evaluations.values()):.0f} evaluations each")
    return run.directory


def _add_images(run: Run, images: str | None, decode: dict | None, device: str) -> None:
    """The images of a finished run, where it has not these yet, or has them by another decoder."""
    if images is None or launched().rank > 0:
        return
    before = run.manifest.get("free", {}).get("decode")
    if IMAGES[images] in run.manifest["outputs"] and decode == before:
        return
    run.claim()
    held = load_tensors(run.directory / SAMPLES, "x", "c", "seed")
    pictures = pictures_of(decode, tuple(held["x"].shape[1:]), pick_device(device))
    check_images(images, pictures.shape)
    labelled, place = run.manifest.get("num_classes") != 0, run.directory / IMAGES[images]
    run.add(save_images(place, **held, labelled=labelled, as_bytes=pictures.bytes))


def _levels(of_ranks: list, sampler: str, trajectories: int) -> list[float]:
    """The noise levels of all batches with trajectories, which have to be the same."""
    levels = list(itertools.chain(*of_ranks))
    if any(sigmas != levels[0] for sigmas in levels):
        raise UserError(
            f"sampler {sampler} takes other steps in each batch, so its trajectories "
            f"must be of one: batch_size={trajectories} or more, and one process"
        )
    return levels[0] if levels else []


@torch.no_grad()
def _made(
    ready: "Prepared", ranks: Ranks, seeds: Tensor, batch_size: int, trajectories: int
) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """This rank's samples and classes; its wanted trajectories' paths and each batch's levels.

    trajectories  so many are wanted of all seeds, the first ones
    """
    xs, cs, paths, levels = [], [], [], []
    own, wanted = ranks.share(seeds), len(ranks.share(seeds[:trajectories]))
    with progress(len(seeds), "sample", shown=ranks.first) as bar:
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
    path = torch.cat(paths) if trajectories else torch.zeros(len(own), 0)
    return torch.cat(xs), torch.cat(cs), path, levels
