"""`pair`: generated samples and their nearest real neighbours of the same class."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_cfg.config import Data, Features, build
from lightning_cfg.data.pairs import (
    DIRECTION,
    distance_condition,
    scale_condition,
)
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space, as_space
from lightning_cfg.evaluation.sample_sets import SampleSet, input_of, read_set, real_set
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.metrics.moments import Moments, frechet_distance
from lightning_cfg.refinement.neighbours import AT_ONCE, nearest_in_shards
from lightning_cfg.refinement.targets import balanced, effective, used_once, used_targets
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import save_tensors, write_text
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run, content_of
from lightning_cfg.sampling.prepared import pick_device

PAIRS = "pairs/pairs.safetensors"


def pair(
    *,
    sources: list[str],
    data: Data,
    run_dir: str,
    n: int | None = None,
    k: int = 20,
    split: Literal["bank", "held_out"] = "bank",
    bank: int | None = None,
    features: Features = {"name": "pixels"},  # noqa: B006  a default section, never changed
    same_class: bool = True,
    keep_close: float = 0.0,
    balance: bool = False,
    condition: Literal["scale", "distance"] | None = None,
    memory: float = 4.0,
    device: str = "auto",
    seed: int = 0,
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
    """
    if n is not None and n < 1:
        raise UserError(f"n={n} must be at least 1")
    if k < 1:
        raise UserError(f"k={k} must be at least 1")
    if not 0 <= keep_close < 1:
        raise UserError(f"keep_close={keep_close} must be a share from 0 to below 1")
    if not sources:
        raise UserError("sources must name at least one run of `generate` or set of samples")
    inputs = {f"sources.{i}": input_of(source) for i, source in enumerate(sources)}
    settings = {"n": n, "k": k, "bank": bank, "same_class": same_class, "split": split}
    settings["features"] = {
        key: v for key, v in features.items() if key not in ("path", "weights", "code")
    }
    settings |= {"keep_close": keep_close} if keep_close else {}
    settings |= {"balance": balance} if balance else {}
    settings |= {"condition": condition} if condition else {}
    if features.get("path") is not None:
        inputs["features"] = input_of(features["path"], checkpoints.LAST)
    real = build("lightning_cfg.data", data)
    section, read = content_of(data, real)
    if split == "bank":
        read.pop("held_out", None)  # only the bank is read
    settings |= {"data": section, "seed": seed}
    free = {"sources": sources, "data": data, "features": features}
    run = Run(run_dir, "pair", settings, inputs | read, free | {"memory": memory, "device": device})
    if run.finished():
        run.say("finished already")
        return run.directory

    x, c, source, named, scales = _sources(sources, real, n)
    if condition == "scale" and None in scales:
        raise UserError(
            f"condition=scale: {sources[scales.index(None)]} does not say its guidance scale, as "
            "runs of `generate` do"
        )
    space = as_space(build("lightning_cfg.evaluation.features", features), features["name"])
    space.to(pick_device(device))
    points = real_set(real, split, bank)
    size = Size.of(x, points, space, k, same_class=same_class)
    rows = size.shard(memory)
    with sharing() as ranks:
        ranks.check(len(x), f"{len(x)} samples")
        if ranks.first:
            print(size.told(rows))
        mine, hidden = ranks.share(torch.arange(len(x))), not (ranks.first and sys.stderr.isatty())

        moments = Moments()  # of the real points, where they and the samples suffice

        def search() -> tuple[Tensor, Tensor, Tensor]:
            """Of this rank's samples; it is the search that takes time, so each has the bank."""
            queries = space(x[mine])
            d = queries[0].numel()
            enough = d < min(len(x), len(points)) and d <= WIDEST and ranks.first
            with tqdm(total=len(points), unit=" real", disable=hidden) as bar:

                def seen(features: Tensor) -> None:
                    bar.update(len(features))
                    if enough:
                        moments.add(features.flatten(1))

                shards = _shards(points, space, rows, seen)
                classes = c[mine] if same_class else None
                return *nearest_in_shards(queries, shards, k=k, c=classes), queries

        found = ranks.together(search)
        distance, index, queries = (ranks.collect(part) for part in found)
    if not ranks.first:
        return run.directory
    own = torch.zeros(len(x), dtype=torch.bool)
    if keep_close:
        own = distance[:, 0].sqrt() <= _reach(points, space, rows, keep_close)[c]

    run.begin()
    used, neighbours = index[~own].unique(return_inverse=True)  # keep only somebody's targets
    targets = _read(points.chosen(used))
    own_rows = len(used) + torch.arange(int(own.sum()))
    all_neighbours = torch.empty_like(index)
    all_neighbours[~own], all_neighbours[own] = neighbours, own_rows[:, None].expand(-1, k)
    weights = torch.full(index.shape, 1 / k)
    if balance and not own.all():
        weights[~own] = balanced(neighbours)
    table = used_targets(distance.sqrt(), index, c, source, named, weights)
    tensors = {
        "x": x,
        "c": c,
        "neighbours": all_neighbours,
        "targets": torch.cat([targets, x[own]]),
        "distance": distance.sqrt().float(),
        "source": source,
        "num_classes": torch.tensor(real.num_classes),
    }
    tensors |= {"weights": weights} if balance else {}
    if condition == "scale":
        tensors |= scale_condition(scales, source)
    if condition == "distance":
        tensors |= distance_condition(x, c, targets, points.c[used])
    out = [save_tensors(run.directory / PAIRS, **tensors)]
    out.append(write_text(run.directory / "metrics/pairs.csv", as_csv(table)))
    if drawable(tuple(x.shape[1:])):
        first, last = (_read(points.chosen(index[:SHOWN, j])) for j in (0, k - 1))
        shown = {"generated": (x[:SHOWN], c[:SHOWN]), "the nearest real one": (first, c[:SHOWN])}
        shown |= {f"the {k}th": (last, c[:SHOWN])} if k > 1 else {}
        sheet = contact_sheet(shown, real.num_classes, columns=6)
        save(sheet, run.directory / "figures/pairs", colours=0)
        out += [run.directory / f"figures/pairs.{kind}" for kind in ("png", "pdf")]
    facts = {
        "direction": DIRECTION,
        "pairs": len(x),
        "mean_distance": float(distance.sqrt().mean()),
        "distinct_targets": len(used),
        "effective_targets": effective(index, weights),
        "used_once": used_once(index),
        "kept_close": float(own.double().mean()),
    }
    if moments.count:  # what a perfect flow would reach, beside where it starts
        drawn = torch.multinomial(weights, 1, generator=keyed("targets", seed))
        ends = tensors["targets"][all_neighbours.gather(1, drawn)[:, 0]]
        for what, features in (("sources", queries), ("targets", space(ends))):
            told = Moments().add(features.flatten(1))
            facts[f"frechet_{what}"] = frechet_distance(told, moments)
    run.finish(*out, **facts)
    run.say(
        f"{len(x)} samples, {k} of {len(points)} real points each, "
        f"mean distance {facts['mean_distance']:.4g}, {len(used)} distinct targets, "
        f"effectively {facts['effective_targets']:.0f}"
        + (f", {facts['kept_close']:.1%} their own" if keep_close else "")
    )
    if moments.count:
        before, after = facts["frechet_sources"], facts["frechet_targets"]
        print(
            f"squared Fréchet distance to the real points in this space: {len(x)} samples "
            f"{before:.4g}, as many of their targets {after:.4g}"
            + (": a flow that reached them would be farther from the data" * (after > before))
        )
    return run.directory


WIDEST = 4096  # dimensions up to which a Fréchet distance takes less time than the search
SHOWN = 500  # samples among which the picture finds some of each class


@dataclass(frozen=True)
class Size:
    """What a search takes, in numbers of float32 where it does not say otherwise."""

    n: int  # samples
    m: int  # real points
    point: int  # numbers of one point
    d: int  # its features
    k: int
    groups: int  # classes that are searched one by one
    shared: bool  # features are the points themselves

    @classmethod
    def of(cls, x: Tensor, points: SampleSet, space: Space, k: int, *, same_class: bool) -> "Size":
        features = space(x[:1])
        groups = len(points.c.unique()) if same_class else 1
        shared = features.data_ptr() == x.data_ptr()
        return cls(len(x), len(points), x[0].numel(), features.shape[1], k, groups, shared)

    @property
    def fixed(self) -> int:
        """Bytes that are there whatever the shard: samples, their features, results, blocks."""
        own = 0 if self.shared else self.d
        copies = self.n * self.d // self.groups if self.groups > 1 else 0  # one class's queries
        return 4 * (self.n * (self.point + own + 8 * self.k) + copies) + 8 * AT_ONCE

    @property
    def row(self) -> int:
        """Bytes of a real point: itself, its features, copies of one class and in the index."""
        copies = 2 / self.groups if self.groups > 1 else 1
        return int(4 * (self.point + (0 if self.shared else self.d) + copies * self.d))

    def shard(self, memory: float) -> int:
        """Real points that are searched at once; UserError where not even a thousand fit."""
        room = memory * 2**30 - self.fixed
        rows = min(self.m, int(room // self.row))
        least = min(self.m, 1000)
        if rows < least:
            needed = (self.fixed + least * self.row) / 2**30
            raise UserError(
                f"pairing {self.n:,} samples with {self.m:,} real points in {self.d} dimensions "
                f"needs {needed:.2g} GiB at least, more than memory={memory:g}"
            )
        return rows

    def told(self, rows: int) -> str:
        """The estimate, before the work starts."""
        work = 2 * self.n * self.m * self.d / self.groups / 1e12
        targets = min(self.m, self.n * self.k)
        file = (4 * self.point * (self.n + targets) + 12 * self.n * self.k) / 2**30
        parts = -(-self.m // rows)
        return (
            f"pairing {self.n:,} samples with {self.m:,} real points in {self.d} dimensions: "
            f"{work:.3g} TFLOP, {(self.fixed + rows * self.row) / 2**30:.2g} GiB of memory"
            + (f" in {parts} parts" if parts > 1 else "")
            + f", a file of up to {file:.2g} GiB"
        )


def _sources(
    paths: list[str], real: object, n: int | None
) -> tuple[Tensor, Tensor, Tensor, list[str], list[float | None]]:
    """Samples x, classes c, numbers of their sources, and each source's name and guidance scale."""
    xs, cs, numbers, names, scales = [], [], [], [], []
    for i, path in enumerate(paths):
        held = read_set(path, real, as_bytes=False)
        if not held.labelled:
            raise UserError(f"{path} says no classes, and a flow is trained by class")
        share = None if n is None else n * (i + 1) // len(paths) - n * i // len(paths)
        if share is not None and share > len(held):
            raise UserError(f"{path} holds {len(held)} samples, not the {share} wanted")
        some = held.chosen(torch.arange(len(held) if share is None else share))
        xs.append(_read(some))
        cs.append(some.c)
        numbers.append(torch.full((len(some),), i))
        names.append(held.about.get("guidance", str(path)))
        scales.append(held.scale)
    return torch.cat(xs), torch.cat(cs), torch.cat(numbers), names, scales


def _read(points: SampleSet) -> Tensor:
    return torch.cat([x for x, _ in points.batches(1024)])


def _shards(
    points: SampleSet, space: Space, rows: int, progress: Callable = lambda features: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and classes of the real points, so many at a time."""
    for some in torch.arange(len(points)).split(rows):
        part = points.chosen(some)
        features = space(_read(part))
        yield features, part.c
        progress(features)


def _reach(points: SampleSet, space: Space, rows: int, share: float) -> Tensor:
    """By class, the distance below which this share of real points lies to another one, (K,).

    Of 1,000 of them, evenly spaced.
    """
    limits = torch.zeros(int(points.c.max()) + 1, dtype=torch.float64)
    chosen = [(points.c == label).nonzero()[:, 0] for label in range(len(limits))]
    chosen = [own[:: max(1, len(own) // 1000)] for own in chosen]
    asked = points.chosen(torch.cat(chosen))
    distance, _ = nearest_in_shards(
        space(_read(asked)), _shards(points, space, rows), k=2, c=asked.c
    )
    for label in range(len(limits)):
        own = distance[asked.c == label, 1]  # the first is the point itself
        limits[label] = own.sqrt().quantile(share) if len(own) else 0.0
    return limits
