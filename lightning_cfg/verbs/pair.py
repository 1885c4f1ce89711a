"""`pair`: generated samples and their nearest real neighbours of the same class."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Between,
    Count,
    Data,
    Features,
    Filled,
    Free,
    Seed,
    build,
)
from lightning_cfg.data.build import build_data
from lightning_cfg.data.pairs import DIRECTION
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space, as_space
from lightning_cfg.evaluation.sample_sets import Samples, SampleSet, real_set
from lightning_cfg.evaluation.size import Size
from lightning_cfg.evaluation.sources import (
    all_of,
    choose_sources,
    feature_shards,
    own_reach,
    read_sources,
)
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.refinement.condition import distance_condition, scale_condition
from lightning_cfg.refinement.neighbours import check_enough, nearest_in_shards
from lightning_cfg.refinement.targets import balanced, effective, used_once, used_targets
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.names import PAIRS
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import launched, sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.sampling.prepared import pick_device


def _unread(config: dict, key: str) -> bool:
    return config["split"] == "bank" and key.startswith("data.") and key.endswith(".held_out")


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    sources, n, k = config["sources"], config["n"], config["k"]
    real = build_data(config["data"])
    chosen = choose_sources(sources, real, n)
    x = torch.zeros(1, *real.shape).expand(sum(map(len, chosen)), *real.shape)
    space = _space(config["features"])
    points = real_set(real, config["split"], config["bank"])
    Size.of(x, points, space, k, same_class=config["same_class"]).shard(config["memory"])
    of_class = {label: int((points.c == label).sum()) for label in points.c.unique().tolist()}
    check_enough(of_class if config["same_class"] else {None: len(points)}, k)
    nothing = torch.zeros(1, dtype=torch.long)
    tensors = {"x": x[:1], "targets": x[:1], "c": nothing, "neighbours": nothing.expand(1, k)}
    tensors |= {"num_classes": torch.tensor(real.num_classes)}
    if config["condition"] == "scale":
        scales = _known_scales(sources, [some.scale for some in chosen])
        tensors |= scale_condition(scales, nothing)
    elif config["condition"] == "distance":
        tensors |= distance_condition(x[:1], nothing, x[:1], nothing)
    return {PAIRS: tensors}


def _space(features: dict) -> Space:
    return as_space(build("lightning_cfg.evaluation.features", features), features["name"])


@verb(_unread, tried=_tried)
def pair(
    run: Run,
    /,
    *,
    sources: Annotated[list[Samples], Filled],
    data: Data,
    run_dir: str,
    n: Count | None = None,
    k: Annotated[int, AtLeast(1)] = 20,
    split: Literal["bank", "held_out"] = "bank",
    bank: Count | None = None,
    features: Features = {"name": "pixels"},
    same_class: bool = True,
    keep_close: Annotated[float, Between(0, 1, below=True)] = 0.0,
    balance: bool = False,
    condition: Literal["scale", "distance"] | None = None,
    memory: Annotated[float, Between(0, 1e6, above=True), Free] = 4.0,  # no machine has more
    device: Annotated[str, Free] = "auto",
    seed: Seed = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Find the k nearest real points of every generated sample; the run holds pairs/.

    It also holds metrics/pairs.csv, distances and how many targets are used by source and class,
    and of images figures/pairs.png, sources beside their neighbours. Where they suffice for it, the
    manifest has frechet_sources and frechet_targets, of the samples and of as many targets as they
    are drawn to the real points, in the space: a flow ends in the distribution of its targets.

    sources     runs of `generate`, sample files, or folders or zips of images with classes; several
                share n equally
    n           sources in all; left out, every sample of every one
    split       of the data, where the neighbours are looked for
    bank        real points per class of it; left out, all of them
    features    the space in which near is near (Zhao & Schwing 2025, sec. B.1)
    same_class  neighbours only among real points of the sample's class
    keep_close  a sample that is nearer to a real point than this share of real points are to each
                other is its own target, so that the flow leaves it where it is; 0 is the paper's
    balance     draw each sample's neighbours by `targets.balanced`, so that real points are targets
                equally often; false is the paper's: all k are equally likely
    condition   what the flow is told beside the class: the sources' guidance scale, or the quarter
                of the sources, by distance to the data, that a sample is in; null is the paper's
    memory      GiB that sources, bank and search may take: a larger bank is searched in parts, with
                the same result; what cannot fit is refused before it starts
    trust       modules of one's own that a checkpoint may name; see docs/security.md
    force       does a finished run again
    """
    real = build_data(data)
    if run.finished_already():
        return run.directory

    x, c, source, named, scales = read_sources(sources, real, n)
    known = _known_scales(sources, scales) if condition == "scale" else []
    space = _space(features).to(pick_device(device))
    points = real_set(real, split, bank)
    size = Size.of(x, points, space, k, same_class=same_class)
    rows = size.shard(memory)
    run.check_room(size.least)
    moments = Moments()  # of the real points, where they and the samples suffice
    with sharing() as ranks:
        ranks.check(len(x), f"{len(x)} samples")
        if ranks.first:
            print(size.told(rows))
        mine = ranks.share(torch.arange(len(x)))
        classes = c[mine] if same_class else None
        enough = size.d < min(len(x), len(points)) and size.d <= WIDEST and ranks.first
        of = moments if enough else None
        found = ranks.raise_together(lambda: _nearest(x[mine], classes, points, space, k, rows, of))
        distance, index, queries = (ranks.gather_rows(part) for part in found)
    if not ranks.first:
        return run.directory
    own = torch.zeros(len(x), dtype=torch.bool)
    if keep_close:
        own = distance[:, 0].sqrt() <= own_reach(points, space, rows, keep_close)[c]

    used, neighbours = index[~own].unique(return_inverse=True)  # keep only somebody's targets
    targets = all_of(points.chosen(used))
    weights = torch.full(index.shape, 1 / k)
    if balance and not own.all():
        weights[~own] = balanced(neighbours)
    tensors = _tensors(x, c, source, distance, neighbours, targets, own)
    tensors |= {"num_classes": torch.tensor(real.num_classes)}
    tensors |= {"weights": weights} if balance else {}
    told = {"scale": lambda: scale_condition(known, source)}
    told |= {"distance": lambda: distance_condition(x, c, targets, points.c[used])}
    tensors |= told[condition]() if condition else {}
    table = used_targets(distance.sqrt(), index, c, source, named, weights)
    run.begin()
    out = [save_tensors(run.directory / PAIRS, **tensors)]
    out.append(write_text(run.directory / "metrics/pairs.csv", as_csv(table)))
    out += _drawn(run.directory, x, c, points, index, real.num_classes)
    facts = {"direction": DIRECTION, "pairs": len(x), "distinct_targets": len(used)}
    facts |= {"mean_distance": float(distance.sqrt().mean())}
    facts |= {"effective_targets": effective(index, weights), "used_once": used_once(index)}
    facts |= {"kept_close": float(own.double().mean())}
    if moments.count:
        drawn = torch.multinomial(weights, 1, generator=keyed("targets", seed))
        ends = tensors["targets"][tensors["neighbours"].gather(1, drawn)[:, 0]]
        facts |= _distances(moments, sources=queries, targets=space(ends))
    run.finish(*out, **facts)
    _say(run, facts, k, len(points), keep_close)
    return run.directory


WIDEST = 4096  # dimensions up to which a Fréchet distance takes less time than the search
SHOWN = 500  # samples among which the picture finds some of each class


def _known_scales(sources: list[str], scales: list[float | None]) -> list[float]:
    known = []
    for source, scale in zip(sources, scales, strict=True):
        if scale is None:
            raise UserError(
                f"condition=scale: {source} does not say its guidance scale, as runs of `generate` "
                "do"
            )
        known.append(scale)
    return known


def _nearest(
    x: Tensor,
    c: Tensor | None,
    points: SampleSet,
    space: Space,
    k: int,
    rows: int,
    moments: Moments | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of this rank's samples x the neighbours' squared distances and rows, and its own features.

    It is the search that takes time, so each rank has the whole bank, `rows` of it at once.
    moments  are added up over the bank
    """
    queries = space(x)
    with progress(len(points), " real", shown=launched().rank == 0) as bar:

        def seen(features: Tensor) -> None:
            bar.update(len(features))
            if moments is not None:
                moments.add(features.flatten(1))

        shards = feature_shards(points, space, rows, seen)
        return *nearest_in_shards(queries, shards, k=k, c=c), queries


def _distances(real: Moments, **sets: Tensor) -> dict[str, float]:
    """Where a perfect flow starts, and what it would reach: distances to the real points."""
    return {
        f"frechet_{what}": frechet_distance(Moments().add(features.flatten(1)), real)
        for what, features in sets.items()
    }


def _tensors(
    x: Tensor,
    c: Tensor,
    source: Tensor,
    distance: Tensor,
    neighbours: Tensor,
    targets: Tensor,
    own: Tensor,
) -> dict[str, Tensor]:
    """The pairs' file: every sample with the rows of its targets, itself where it is its own."""
    rows = torch.empty_like(distance, dtype=torch.long)
    itself = len(targets) + torch.arange(int(own.sum()))
    rows[~own], rows[own] = neighbours, itself[:, None].expand(-1, distance.shape[1])
    return {
        "x": x,
        "c": c,
        "neighbours": rows,
        "targets": torch.cat([targets, x[own]]),
        "distance": distance.sqrt().float(),
        "source": source,
    }


def _drawn(
    directory: Path, x: Tensor, c: Tensor, points: SampleSet, index: Tensor, classes: int
) -> list[Path]:
    """Of images figures/pairs: samples, their nearest real ones, and the last of their k."""
    if not drawable(tuple(x.shape[1:])):
        return []
    k = index.shape[1]
    first, last = (all_of(points.chosen(index[:SHOWN, j])) for j in (0, k - 1))
    shown = {"generated": (x[:SHOWN], c[:SHOWN]), "the nearest real one": (first, c[:SHOWN])}
    shown |= {f"the {k}th": (last, c[:SHOWN])} if k > 1 else {}
    sheet = contact_sheet(shown, classes, columns=6)
    save(sheet, directory / "figures/pairs", colours=0)
    return [directory / f"figures/pairs.{kind}" for kind in ("png", "pdf")]


def _say(run: Run, facts: dict, k: int, points: int, keep_close: float) -> None:
    n = facts["pairs"]
    run.say(
        f"{n} samples, {k} of {points} real points each, "
        f"mean distance {facts['mean_distance']:.4g}, {facts['distinct_targets']} distinct "
        f"targets, effectively {facts['effective_targets']:.0f}"
        + (f", {facts['kept_close']:.1%} their own" if keep_close else "")
    )
    if "frechet_sources" in facts:
        before, after = facts["frechet_sources"], facts["frechet_targets"]
        print(
            f"squared Fréchet distance to the real points in this space: {n} samples "
            f"{before:.4g}, as many of their targets {after:.4g}"
            + (": a flow that reached them would be farther from the data" * (after > before))
        )
