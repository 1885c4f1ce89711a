"""`generate`: seeds become samples under a guidance method."""

import time
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Count,
    Data,
    Decode,
    Filled,
    Free,
    Guidance,
    Newer,
    NonNegative,
    Sampler,
    Seed,
    ordered,
)
from lightning_cfg.guidance.effective_scale import mean, of_levels
from lightning_cfg.latents.pictures import Pictures, pictures_of
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs.inputs import Weights
from lightning_cfg.runs.names import SAMPLES, SHEET, TRAJECTORIES
from lightning_cfg.runs.parts import Parts, room
from lightning_cfg.runs.pngs import IMAGES, check_images, drawable, save_images
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import launched, sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.batches import levels_of, one_batch
from lightning_cfg.sampling.faster import Precision
from lightning_cfg.sampling.guided import check_roles, check_together, spare
from lightning_cfg.sampling.network import Networks, others
from lightning_cfg.sampling.prepared import Prepared, pick_device, prepare
from lightning_cfg.sampling.seeds import check_seeds

EFFECTIVE = "effective_scale"
Label = Annotated[int, NonNegative] | str


def _unread(config: dict, key: str) -> bool:
    """Data are read for their closed form, and for what they tell networks that no run trained."""
    models = config["models"]
    return key.startswith("data.") and not ("exact" in models.values() or others(models))


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
    check_roles(config["guidance"], config["models"], more=config["spare_models"])
    check_seeds(config["seed"], config["n"])
    keys = ("models", "guidance", "sampler", "data", "class_label", "weights", "device")
    keys += ("spare_models", "precision", "compile", "effective_scale")
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
    class_label: Label | Annotated[list[Label], Filled] | None = None,
    weights: Weights = "ema",
    batch_size: Annotated[int, AtLeast(1)] = 1000,
    precision: Annotated[Precision, Newer] = "32-true",
    compile: Annotated[bool, Free] = False,
    trajectories: Annotated[int, NonNegative] = 0,
    images: Annotated[Literal["folder", "zip"] | None, Free] = None,
    decode: Annotated[Decode | None, Free] = None,
    device: Annotated[str, Free] = "auto",
    spare_models: Annotated[bool, Free] = False,
    effective_scale: Annotated[bool, Newer] = False,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Generate n samples, of the seeds seed, seed + 1, ...; the run holds samples/.

    Of images, figures/samples.png shows the first ones.

    models       {model, weak, classifier, discriminator}: run directories or checkpoints, as the
                 guidance needs them; exact: the closed form of `data`. With weights of its own:
                 weak: {path: runs/base/checkpoints/best_001000.ckpt, weights: 100_000}
    class_label  of all samples, by number or name; of several each seed draws one; left out, each
                 seed draws its own of all
    weights      ema, raw, the half-life in images of the average wanted, or its relative width
                 {std: 0.15}, which is made of the snapshots of a `fit`, also as of an earlier step:
                 {std: 0.15, step: 1000}
    precision    of the networks: 32-true, or bf16-mixed, which is faster on GPUs and newer CPUs;
                 the sampler's steps are in float64 always
    compile      the networks, by torch.compile: a minute at the start, then faster
    trajectories  of the first so many samples are kept: samples/trajectories.safetensors with
                  path (trajectories, steps + 1, *shape), sigma (steps + 1,) falling to 0, c, seed
    images       also as 8-bit PNGs (`save_images`), in samples/images/ or samples/images.zip; a
                 finished run makes them of its samples
    decode       what makes images of latents, which the samples remain: for `images` and
                 figures/samples.png
    spare_models  `models` may name networks that the guidance does not use, and they are left out:
                 so that one config serves a sweep over methods
    effective_scale  the scale of CFG that does most nearly the same, averaged along the path, is
                     measured, printed and kept in the manifest; passes that the method does not
                     make itself are made and counted there; the samples are the same. See
                     lightning_cfg.guidance.effective_scale
    trust        modules of one's own that a checkpoint may name; see docs/security.md
    force        does a finished run again
    """
    check_roles(guidance, models, more=spare_models)
    if run.finished():
        _add_images(run, images, decode, device)
        run.say(f"finished already, {n} samples")
        return run.directory
    run.claim()

    asked = {"models": models, "guidance": guidance, "sampler": sampler, "data": data}
    asked |= {"class_label": class_label, "weights": weights, "device": device, "images": images}
    asked |= {"precision": precision, "compile": compile}
    asked |= {"spare_models": spare_models, "effective_scale": effective_scale}
    for role in spare(guidance, models):
        run.say(f"models.{role} is left out, guidance {guidance['name']} does not use it")
    ready, pictures = _prepared({**asked, "decode": decode, "n": n, "seed": seed})
    states = n + trajectories * sampler.get("steps", 1)
    run.check_room(room(4.0 * states * prod(ready.shape)))

    with sharing() as ranks:
        ranks.check(n, f"n={n}")
        seeds = torch.arange(seed, seed + n)
        parts = Parts(run, ranks, batch_size=batch_size, device=ready.device)
        with parts.kept(n, "samples"):
            ranks.raise_together(lambda: _make(ready, parts, seeds, batch_size, trajectories))
            out = _written(ready, parts, seeds, batch_size, trajectories, sampler["name"])
            cost = {name: value / n for name, value in ranks.sum(parts.total()).items()}
            measured = _measured(parts, batch_size, n, cost) if effective_scale else {}
    if not ranks.first:
        return run.directory
    with parts.kept(n, "samples"):
        out += _drawn(run.directory, ready, pictures, images)
    facts = {"seconds_per_sample": cost.pop("seconds"), "evaluations": cost}
    facts |= {"weights": weights, "num_classes": ready.classes, "steps": ready.steps}
    facts |= {} if ready.class_names is None else {"class_names": ready.class_names}
    run.finish(*out, **facts, **measured, solver_dtype="float64")
    run.say(f"{n} samples, {sum(cost.values()):.0f} evaluations each{_told(measured)}")
    return run.directory


def _measured(parts: Parts, batch_size: int, n: int, cost: dict[str, float]) -> dict[str, dict]:
    """The manifest's effective_scale {mean, by_level, evaluations}; the last are taken off `cost`.

    mean      None where both models say the same everywhere
    by_level  [sigma, scale] each
    """
    batches = ceil(ceil(n / parts.ranks.size) / batch_size)
    own = [parts[str(k)][EFFECTIVE] for k in range(batches) if str(k) in parts]
    rows = torch.cat(parts.ranks.all_gather_object(torch.cat(own)))
    found = {"mean": mean(rows), "by_level": [list(level) for level in of_levels(rows)]}
    return {EFFECTIVE: {**found, "evaluations": cost.pop(EFFECTIVE)}}


def _told(measured: dict[str, dict]) -> str:
    found = measured.get(EFFECTIVE, {}).get("mean")
    return "" if found is None else f", effective scale {found:.3g}"


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


@torch.no_grad()
def _make(ready: Prepared, parts: Parts, seeds: Tensor, batch_size: int, trajectories: int) -> None:
    """This rank's samples, batch by batch, as far as they are not there yet.

    A batch has x, c and, where trajectories of it are wanted and in a rank's first, path and sigma.
    trajectories  so many are wanted of all seeds, the first ones
    """
    ranks = parts.ranks
    own, wanted = ranks.share(seeds), len(ranks.share(seeds[:trajectories]))
    done = parts.rows * ranks.size
    with progress(len(seeds), " samples", shown=ranks.first, initial=done) as bar:
        for k, some in enumerate(own.split(batch_size)):
            if str(k) not in parts:
                rows = min(max(0, wanted - k * batch_size), len(some))
                _make_batch(ready, parts, str(k), some, rows, trajectories and (rows or not k))
                bar.update(len(some) * ranks.size)
    if ranks.size > 1:
        parts.flush()  # now, since a signal ends a rank that waits for others at once


def _make_batch(
    ready: Prepared, parts: Parts, name: str, seeds: Tensor, rows: int, with_path: bool | int
) -> None:
    """The samples of these seeds, and the paths of the first so many."""
    began, before = time.monotonic(), ready.spent()
    made = one_batch(ready, seeds, rows if with_path else None)
    spent = {role: evaluations - before[role] for role, evaluations in ready.spent().items()}
    if ready.effective is not None:
        made[EFFECTIVE], spent[EFFECTIVE] = ready.effective.take()
    parts.keep(name, made, rows=len(seeds), seconds=time.monotonic() - began, **spent)


def _written(
    ready: Prepared, parts: Parts, seeds: Tensor, batch_size: int, trajectories: int, sampler: str
) -> list[Path]:
    """The files of all ranks' samples and of their paths, which the first rank writes."""
    ranks, n, none = parts.ranks, len(seeds), torch.empty(0, *ready.shape)
    batches = ceil(ceil(n / ranks.size) / batch_size)
    levels = _levels(parts, batches, sampler, trajectories) if trajectories else []
    if ranks.first:
        parts.run.begin()  # only now, or by what was kept: after an error the place is free
    shapes = {"x": ((n, *ready.shape), none.dtype), "c": ((n,), torch.int64)}
    blocks = parts.in_order(batches, x=none, c=torch.empty(0, dtype=torch.int64))
    out = [parts.joined(SAMPLES, shapes | {"seed": ((n,), torch.int64)}, blocks, seed=seeds)]
    if trajectories:
        kept = parts.in_order(batches, path=torch.empty(0, len(levels), *ready.shape))
        sigma = torch.tensor(levels, dtype=torch.float64)
        c = load_tensors(out[0], "c")["c"] if ranks.first else seeds
        whole = {"sigma": sigma, "c": c[:trajectories], "seed": seeds[:trajectories]}
        shapes = {name: (tuple(held.shape), held.dtype) for name, held in whole.items()}
        shapes["path"] = (trajectories, len(levels), *ready.shape), none.dtype
        out.append(parts.joined(TRAJECTORIES, shapes, kept, **whole))
    return out


def _drawn(directory: Path, ready: Prepared, pictures: Pictures, images: str | None) -> list[Path]:
    """The images that are asked for, and the sheet of the first ones, of samples that are there."""
    held, out = load_tensors(directory / SAMPLES, "x", "c", "seed"), []
    if images is not None:
        place, labelled = directory / IMAGES[images], ready.classes > 0
        out.append(save_images(place, **held, labelled=labelled, as_bytes=pictures.bytes))
    if drawable(pictures.shape):
        rows = ready.classes if ready.class_label is None else 0
        first = pictures.first(held["x"], held["c"], 10, rows)
        names = ready.class_names
        sheet = contact_sheet({"samples": first}, rows, columns=10, names=names)
        save(sheet, directory / "figures/samples", colours=32 if pictures.shape[0] == 1 else 0)
        out += [directory / name for name in SHEET]
    return out


def _levels(parts: Parts, batches: int, sampler: str, trajectories: int) -> list[float]:
    """The noise levels of all batches with trajectories, which have to be the same."""
    own = [parts[str(k)] for k in range(batches) if str(k) in parts]
    told = [tensors["sigma"].tolist() for tensors in own if "sigma" in tensors]
    return levels_of(parts.ranks.all_gather_object(told), sampler, trajectories)
