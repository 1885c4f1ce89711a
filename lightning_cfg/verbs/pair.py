"""`pair`: generated samples and the real points that they are to become."""

import sys
from functools import partial
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
    Positive,
    Seed,
    build,
)
from lightning_cfg.data.build import build_data
from lightning_cfg.data.pairs import DIRECTION
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.evaluation.coupling import (
    Found,
    blocks_of,
    by_neighbours,
    by_transport,
    matched_within,
    parts_of,
)
from lightning_cfg.evaluation.features import Space, as_space
from lightning_cfg.evaluation.real_features import own_reach, real_features
from lightning_cfg.evaluation.sample_sets import Samples, SampleSet, all_of, real_set
from lightning_cfg.evaluation.size import Size
from lightning_cfg.evaluation.sources import Sources, choose_sources, known_scales
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.evaluation.transported import Transport
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.refinement.condition import distance_condition, scale_condition
from lightning_cfg.refinement.neighbours import check_enough
from lightning_cfg.refinement.targets import balanced, effective, used_once, used_targets
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.names import PAIRS
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.sampling.prepared import pick_device


def _unread(config: dict, key: str) -> bool:
    return config["split"] == "bank" and key.startswith("data.") and key.endswith(".held_out")


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    within, n, k = matched_within(config), config["n"], config["k"]
    real = build_data(config["data"])
    sets = choose_sources(config["sources"], real, n)
    parts, c = parts_of(config, within, sets), torch.cat([some.c for some in sets])
    x = torch.zeros(1, *real.shape).expand(len(c), *real.shape)
    space = _space(config["features"])
    points = real_set(real, config["split"], config["bank"])
    if config["coupling"] == "transport":
        cut = blocks_of(config, within, c, parts, points)
        transport = Transport(space, config["epsilon"], k)
        transport.check_memory(cut, x[0].numel(), space(x[:1]).shape[1], config["memory"])
        k = transport.columns(cut)
    else:
        Size.of(x, points, space, k, same_class="class" in within).shard(config["memory"])
        of_class = {label: int((points.c == label).sum()) for label in points.c.unique().tolist()}
        check_enough(of_class if "class" in within else {None: len(points)}, k)
    nothing = torch.zeros(1, dtype=torch.long)
    tensors = {"x": x[:1], "targets": x[:1], "c": nothing, "neighbours": nothing.expand(1, k)}
    tensors |= {"num_classes": torch.tensor(real.num_classes)}
    if config["condition"] == "scale":
        scales = known_scales(config["sources"], sets, "condition=scale")
        tensors |= scale_condition(scales, nothing, between=config["between"])
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
    coupling: Literal["neighbours", "transport"] = "neighbours",
    within: list[Literal["class", "scale"]] | None = None,
    block: Annotated[int, Between(1, 50_000)] = 2048,
    epsilon: Annotated[float, Positive] | None = None,
    same_class: bool = True,
    keep_close: Annotated[float, Between(0, 1, below=True)] = 0.0,
    balance: bool = False,
    condition: Literal["scale", "distance"] | None = None,
    between: bool = False,
    memory: Annotated[float, Between(0, 1e6, above=True), Free] = 4.0,  # no machine has more
    cache: Annotated[bool, Free] = True,
    device: Annotated[str, Free] = "auto",
    seed: Seed = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Match every generated sample with real points; the run holds pairs/.

    It also holds metrics/pairs.csv, distances and how many targets are used by source and class,
    and of images figures/pairs.png, sources beside their targets. Where neighbours suffice for it,
    the manifest has frechet_sources and frechet_targets, of the samples and of as many targets as
    they are drawn to the real points, in the space: a flow ends in the distribution of its targets.

    sources     runs of `generate`, sample files, or folders or zips of images with classes; several
                share n equally
    n           sources in all; left out, every sample of every one
    k           real points of each: nearest ones, or of transport with an epsilon those that have
                most of its plan
    split       of the data, where the real points are
    bank        real points per class of it; left out, all of them
    features    the space in which near is near (Zhao & Schwing 2025, sec. B.1)
    coupling    neighbours, the paper's, bring samples to a place where data are; transport moves
                as much mass to every place as the data have there (`refinement.transport`)
    within      class: only with real points of the sample's class; scale: `balance` and transport
                are done for each guidance scale by itself; left out: class, and scale too for
                transport and where the flow is told it
    block       samples that transport matches at once, with as many real points, or with
                epsilon all of the bank's in as many parts
    epsilon     of transport's entropy, as a share of a block's median squared distance; left out:
                none, which matches samples and real points one to one
    same_class  false is within=[], the old spelling
    keep_close  a sample that is nearer to a real point than this share of real points are to each
                other is its own target, so that the flow leaves it where it is; 0 is the paper's
    balance     draw each sample's neighbours by `targets.balanced`, so that real points are targets
                equally often; false is the paper's: all k are equally likely
    condition   what the flow is told beside the class: the sources' guidance scale, or the quarter
                of the sources, by distance to the data, that a sample is in; null is the paper's
    between     of condition=scale: in training a sample is told scales between its own and the
                next ones, nearer ones more often, so that the flow knows those between too
    memory      GiB that sources, bank and search may take: a larger bank is searched in parts, with
                the same result; what cannot fit is refused before it starts
    cache       keep features of real points that a network makes in the user's cache, where
                `evaluate` finds them too
    seed        of the order in which transport takes samples and real points
    trust       modules of one's own that a checkpoint may name; see docs/security.md
    force       does a finished run again
    """
    asked = {"sources": sources, "coupling": coupling, "within": within, "block": block}
    asked |= {"epsilon": epsilon, "same_class": same_class, "keep_close": keep_close}
    asked |= {"balance": balance, "condition": condition, "between": between, "seed": seed}
    inside = matched_within(asked)
    real = build_data(data)
    if run.finished_already():
        return run.directory

    if not same_class:
        print("same_class=false is now within=[]", file=sys.stderr)
    read = Sources.read(sources, real, n)
    x, c = read.x, read.c
    parts = parts_of(asked, inside, read.sets)
    space = _space(features).to(pick_device(device))
    points = real_set(real, split, bank)
    size = Size.of(x, points, space, k, same_class="class" in inside)
    run.check_room(size.least)
    asked |= {"data": data, "split": split, "bank": bank, "k": k, "memory": memory, "cache": cache}
    found = _found(asked, inside, read, parts, real, points, space, size)
    if found is None:
        return run.directory
    index, weights = found.index, found.weights
    own = torch.zeros(len(x), dtype=torch.bool)
    if keep_close:
        own = found.distance[:, 0].sqrt() <= own_reach(found.points, found.rows, keep_close)[c]
    if balance:
        weights = _balanced(index, weights, own, parts)

    used, chosen = index[~own].unique(return_inverse=True)  # keep only somebody's targets
    targets = all_of(points.chosen(used))
    tensors = {"num_classes": torch.tensor(real.num_classes)}
    tensors |= _tensors(x, c, read.number, found.distance, chosen, targets, own)
    tensors |= {"weights": weights} if balance or epsilon is not None else {}
    tensors |= _condition(asked, read, targets, points.c[used])
    table = used_targets(found.distance.sqrt(), index, c, read.number, read.names, weights)
    run.begin()
    out = [save_tensors(run.directory / PAIRS, **tensors)]
    out.append(write_text(run.directory / "metrics/pairs.csv", as_csv(table)))
    facts = _facts(found, own, None if epsilon is None else found.left_out)
    facts |= {"method": read.sets[0].method} if condition == "scale" else {}
    if found.moments.count:
        drawn = torch.multinomial(weights, 1, generator=keyed("targets", seed))
        ends = found.points[index.gather(1, drawn)[:, 0]]
        ends[own] = found.queries[own]
        facts |= _distances(found.moments, sources=found.queries, targets=ends)
    facts |= {} if real.class_names is None else {"class_names": real.class_names}
    run.finish(*out, *_drawn(run.directory, x, c, points, index, real), **facts)
    _say(run, facts, index.shape[1], len(points), keep_close)
    return run.directory


def _found(
    asked: dict,
    within: set[str],
    read: Sources,
    parts: Tensor,
    real: Any,
    points: SampleSet,
    space: Space,
    size: Size,
) -> Found | None:
    """The real points of each sample, found by all ranks together; None on all but the first."""
    keys = {"section": asked["data"], "per_class": asked["bank"]}
    keys |= {key: asked[key] for key in ("split", "cache")}
    with sharing() as ranks:
        ranks.check(len(read.x), f"{len(read.x)} samples")
        embed = partial(real_features, real, points, space, size.d, ranks=ranks, **keys)
        if asked["coupling"] == "transport":
            cut = blocks_of(asked, within, read.c, parts, points)
            transport = Transport(space, asked["epsilon"], asked["k"])
            found = by_transport(ranks, transport, cut, read.x, embed, size.d, asked["memory"])
        else:
            found = by_neighbours(ranks, read, "class" in within, embed, size, asked["memory"])
    return found if ranks.first else None


def _balanced(index: Tensor, weights: Tensor, own: Tensor, parts: Tensor) -> Tensor:
    """`balanced` of each part by itself, but for samples that are their own targets."""
    for part in parts[~own].unique():
        some = ~own & (parts == part)
        weights[some] = balanced(index[some])
    return weights


def _condition(asked: dict, read: Sources, targets: Tensor, of: Tensor) -> dict[str, Tensor]:
    """What the pairs' file holds of what the flow is told beside the class."""
    if asked["condition"] == "scale":
        scales = known_scales(asked["sources"], read.sets, "condition=scale")
        return scale_condition(scales, read.number, between=asked["between"])
    nothing = asked["condition"] is None
    return {} if nothing else distance_condition(read.x, read.c, targets, of)


SHOWN = 500  # samples among which the picture finds some of each class


def _facts(found: Found, own: Tensor, left_out: float | None) -> dict[str, Any]:
    """What the manifest says of the pairs; left_out only of a plan that has more than it keeps."""
    distance, index, weights = found.distance.sqrt(), found.index, found.weights
    facts = {"direction": DIRECTION, "pairs": len(index), "mean_distance": float(distance.mean())}
    facts |= {"distinct_targets": len(index[~own].unique())}
    facts |= {"effective_targets": effective(index, weights), "used_once": used_once(index)}
    facts |= {"kept_close": float(own.double().mean())}
    if left_out is not None:
        facts |= {"mean_distance": float((weights * distance).sum(1).mean()), "left_out": left_out}
    return facts


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
    directory: Path, x: Tensor, c: Tensor, points: SampleSet, index: Tensor, real: Any
) -> list[Path]:
    """Of images figures/pairs: samples, their nearest real ones, and the last of their k."""
    if not drawable(tuple(x.shape[1:])):
        return []
    k = index.shape[1]
    first, last = (all_of(points.chosen(index[:SHOWN, j])) for j in (0, k - 1))
    shown = {"generated": (x[:SHOWN], c[:SHOWN]), "the nearest real one": (first, c[:SHOWN])}
    shown |= {f"the {k}th": (last, c[:SHOWN])} if k > 1 else {}
    sheet = contact_sheet(shown, real.num_classes, columns=6, names=real.class_names)
    save(sheet, directory / "figures/pairs", colours=0)
    return [directory / f"figures/pairs.{kind}" for kind in ("png", "pdf")]


def _say(run: Run, facts: dict, k: int, points: int, keep_close: float) -> None:
    n, left_out = facts["pairs"], facts.get("left_out")
    run.say(
        f"{n} samples, {k} of {points} real points each, "
        f"mean distance {facts['mean_distance']:.4g}, {facts['distinct_targets']} distinct "
        f"targets, effectively {facts['effective_targets']:.0f}"
        + (f", {facts['kept_close']:.1%} their own" if keep_close else "")
        + ("" if left_out is None else f", {left_out:.1%} of the plan left out")
    )
    if "frechet_sources" in facts:
        before, after = facts["frechet_sources"], facts["frechet_targets"]
        print(
            f"squared Fréchet distance to the real points in this space: {n} samples "
            f"{before:.4g}, as many of their targets {after:.4g}"
            + (": a flow that reached them would be farther from the data" * (after > before))
        )
