"""How samples are matched with real points: by which coupling, within what, and what was found."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.real_features import RealFeatures, shards
from lightning_cfg.evaluation.sample_sets import SampleSet
from lightning_cfg.evaluation.size import Size
from lightning_cfg.evaluation.sources import Sources, known_scales, numbers_of
from lightning_cfg.evaluation.transported import Transport
from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.refinement.neighbours import nearest_in_shards
from lightning_cfg.refinement.transport import Block, blocks
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import Ranks, launched

WIDEST = 4096  # dimensions up to which a Fréchet distance takes less time than the search


@dataclass
class Found:
    """Of every sample, by squared distances, its real points (N, k), and how they are drawn."""

    points: RealFeatures  # all of them
    distance: Tensor
    index: Tensor
    weights: Tensor
    queries: Tensor = field(default_factory=lambda: torch.empty(0))  # their features
    moments: Moments = field(default_factory=Moments)  # of the real points, where they suffice
    rows: int = 0  # real points that were searched at once
    left_out: float = 0.0  # of the plan's mass


def by_neighbours(
    ranks: Ranks,
    sources: Sources,
    same_class: bool,
    embed: Callable[..., RealFeatures],
    size: Size,
    memory: float,
) -> Found:
    """The k nearest of each sample, on the first rank.

    embed  gives the real points' features, which may take `room` bytes of memory
    """
    x, moments, rows = sources.x, Moments(), size.shard(memory)
    if ranks.first:
        print(size.told(rows))
    points = embed(room=size.spare(memory))
    rows = size.shard(memory - points.held / 2**30)
    mine = ranks.share(torch.arange(len(x)))
    classes = sources.c[mine] if same_class else None
    enough = size.d < min(len(x), len(points)) and size.d <= WIDEST and ranks.first
    of = moments if enough else None
    found = ranks.raise_together(lambda: _nearest(x[mine], classes, points, size.k, rows, of))
    distance, index, queries = (ranks.gather_rows(part) for part in found)
    weights = torch.full(index.shape, 1 / size.k)
    return Found(points, distance, index, weights, queries, moments, rows)


def by_transport(
    ranks: Ranks,
    transport: Transport,
    cut: list[Block],
    x: Tensor,
    embed: Callable[..., RealFeatures],
    d: int,
    memory: float,
) -> Found:
    """The real points that transport brings each sample to; every rank solves its own blocks.

    embed  as in `by_neighbours`; d  features of a point
    """
    told = transport.check_memory(cut, x[0].numel(), d, memory)
    points = embed(room=transport.spare(cut, x[0].numel(), d, memory))
    if ranks.first:
        print(f"transport of {len(x):,} samples to {len(points):,} real points, {told}")
    mine, k = cut[ranks.rank :: ranks.size], transport.columns(cut)
    solved = ranks.raise_together(lambda: transport.solved(mine, k, x, points, ranks.first))
    rows = torch.cat(ranks.all_gather_object(solved))
    rows = rows[rows[:, 0].argsort()]  # by the samples' numbers
    _, distance, index, weights, left = rows.split([1, k, k, k, 1], dim=1)
    left_out = left.mean().item()
    return Found(points, distance, index.long(), weights.float(), left_out=left_out)


def _nearest(
    x: Tensor,
    c: Tensor | None,
    points: RealFeatures,
    k: int,
    rows: int,
    moments: Moments | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of this rank's samples x the neighbours' squared distances and rows, and its own features.

    It is the search that takes time, so each rank has the whole bank, `rows` of it at once.
    moments  are added up over the bank
    """
    queries = points.space(x)
    with progress(len(points), " real points", shown=launched().rank == 0) as bar:

        def seen(features: Tensor) -> None:
            bar.update(len(features))
            if moments is not None:
                moments.add(features.flatten(1))

        parts = shards(points, rows, seen)
        return *nearest_in_shards(queries, parts, k=k, c=c), queries


def matched_within(config: dict) -> set[str]:
    """Within what samples are matched; UserError for keys that exclude each other."""
    transport, within = config["coupling"] == "transport", config["within"]
    for key in ("balance", "keep_close"):
        if transport and config[key]:
            raise UserError(
                f"{key}={str(config[key]).lower()} is for coupling=neighbours: transport uses "
                "every real point equally often, and moves every sample"
            )
    if config["between"] and config["condition"] != "scale":
        raise UserError("between=true is for condition=scale, by which a flow is told the scale")
    if config["epsilon"] is not None and not transport:
        raise UserError("epsilon is for coupling=transport")
    if within is None:
        scale = transport or config["condition"] == "scale"
        return {*["class"] * config["same_class"], *["scale"] * scale}
    if not config["same_class"]:
        raise UserError(f"same_class=false and {within=} say two things: leave same_class out")
    return set(within)


def parts_of(config: dict, within: set[str], sets: list[SampleSet]) -> Tensor:
    """Of each sample the number of its scale, where samples are matched within one; else 0, (N,).

    Sources whose scales nobody has asked for, and which do not say them, are parts of their own.
    """
    number, told = numbers_of(sets), config["condition"] == "scale"
    if told:
        known_scales(config["sources"], sets, "condition=scale")
    if "scale" not in within:
        return torch.zeros_like(number)
    try:
        scales = known_scales(config["sources"], sets, "within=[scale]")
    except UserError:
        if config["within"] is not None:
            raise
        return number
    return torch.tensor(scales, dtype=torch.float64).unique(return_inverse=True)[1][number]


def blocks_of(
    config: dict, within: set[str], c: Tensor, parts: Tensor, points: SampleSet
) -> list[Block]:
    of, ofs = (c, points.c) if "class" in within else map(torch.zeros_like, (c, points.c))
    how = {"size": config["block"], "seed": config["seed"]}
    return blocks(of, parts, ofs, **how, one_to_one=config["epsilon"] is None)
