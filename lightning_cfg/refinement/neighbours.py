"""Nearest neighbours by Euclidean distance: FAISS proposes, float64 decides."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.refinement.on_gpu import candidate_search, gpu_for

AT_ONCE = 1 << 24  # numbers of queries or bank that are copied at once: 64 MiB in float32
BLOCK = 1 << 22  # numbers held at once where all of the bank is compared: 32 MiB in float64
RERANK = 1 << 16  # of a thread while re-ranking, in float32 and float64: they stay in its cache
MOST = 2048  # candidates per query beyond which all of the bank is compared (and FAISS' GPU limit)


def nearest(queries: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k points of the bank nearest to each query, exactly, ties by the smaller index.

    FAISS' IndexFlatL2 works in float32 with |q|^2 + |b|^2 - 2 q.b, which far from the origin or
    among near duplicates is rounding alone. So it only proposes candidates, on centred data;
    squared differences in float64 rank those that its rounding could have misplaced, and a query is
    settled once that rounding cannot hide a nearer point. The others are searched again, further,
    and at last against the whole bank.

    queries (N, *shape), bank (M, *shape); returns squared distances (N, k) float64, ascending,
    and indices into the bank (N, k) long, on the queries' device. Uses GPU FAISS where there is
    one, and torch on a GPU where there is not. Raises UserError where k is not in 1..M, shapes
    differ, or a point has NaN or inf.
    """
    if queries.shape[1:] != bank.shape[1:]:
        shapes = f"{tuple(queries.shape[1:])} and {tuple(bank.shape[1:])}"
        raise UserError(f"queries and bank must have points of one shape, got {shapes}")
    queries, bank = queries.detach().flatten(1), bank.detach().flatten(1).to(queries.device)
    (n, d), m = queries.shape, len(bank)
    if not 1 <= k <= m:
        raise UserError(f"k = {k} neighbours asked of a bank of {m} points; k must be in 1..{m}")
    rows = max(1, AT_ONCE // max(1, d))
    extremes = [_extremes(queries, rows, "queries"), _extremes(bank, rows, "bank")]
    home = queries.device
    if (gpu := _without_faiss(queries, bank)) is not None:
        queries, bank = queries.to(gpu), bank.to(gpu)
        search = candidate_search(queries, bank, rows)
    else:
        search = _candidate_search(queries, bank, rows, torch.cat(extremes))
    distance = queries.new_empty(n, k, dtype=torch.float64)
    index = queries.new_empty(n, k, dtype=torch.long)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        distance[block], index[block] = _settled(queries[block], bank, search, k)
    return distance.to(home), index.to(home)


def _without_faiss(queries: Tensor, bank: Tensor) -> torch.device | None:
    """The GPU where torch searches, since FAISS cannot."""
    import faiss

    return None if faiss.get_num_gpus() > 0 else gpu_for(queries, bank)


def _extremes(points: Tensor, rows: int, name: str) -> Tensor:
    """The least and the greatest of every coordinate, (2, d), or (0, d) of no points.

    UserError, naming the points, where one is not finite.
    """
    if not len(points):
        return points
    parts = points.split(rows)
    found = torch.stack(
        [
            torch.stack([part.amin(0) for part in parts]).amin(0),
            torch.stack([part.amax(0) for part in parts]).amax(0),
        ]
    )
    if not found.isfinite().all():  # which NaN passes through
        raise UserError(f"the {name} of a neighbour search must be finite, got NaN or inf")
    return found


def _settled(queries: Tensor, bank: Tensor, search: Callable, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` for some queries: searched further and further until their candidates suffice."""
    n, d, m = *queries.shape, len(bank)
    distance = queries.new_empty(n, k, dtype=torch.float64)
    index = queries.new_empty(n, k, dtype=torch.long)
    pending, count = torch.arange(n, device=queries.device), min(k + 8, m)
    # A point within R of q lies within |q| + R of the centre, so that FAISS has its squared
    # distance to within (d + 8) u (2 |q| + R)^2, u half of float32's epsilon (Higham 2002, sec.
    # 3.1). The k proposed first are within R, and so is every point nearer than one of them.
    unit = (d + 8) * 6e-8
    while len(pending) and count <= MOST and unit < 0.5:
        # not copied where they are all
        proposed, candidates, q = search(_rows(queries, pending), count)
        kth = proposed[:, k - 1].clamp(min=0)
        R = (kth.sqrt() + 2 * unit**0.5 * q) / (1 - unit**0.5)
        slack = unit * ((2 * q + R).square() + 1e-30)  # 1e-30: underflow
        limit = kth + 2 * slack  # nothing beyond it can be among the k nearest
        settled = (limit < proposed[:, -1]) | (count == m)
        rows = pending[settled]
        needed = (proposed <= limit[:, None]).sum(1).clamp(min=k)[settled]
        found = _rerank(_rows(queries, rows), bank, candidates[settled], needed, k)
        distance[rows], index[rows] = found
        pending, count = pending[~settled], min(4 * count, m)
    for block in pending.split(max(1, BLOCK // m)) if len(pending) else ():
        distance[block], index[block] = _against_all(queries[block], bank, k)
    return distance, index


def nearest_in_class(
    queries: Tensor, c: Tensor, bank: Tensor, bank_c: Tensor, *, k: int
) -> tuple[Tensor, Tensor]:
    """`nearest` among the bank's points of each query's own class; indices into the whole bank.

    queries (N, *shape) of classes c (N,), bank (M, *shape) of classes bank_c (M,). Raises
    UserError, naming the class, where the bank has fewer than k points of it.
    """
    return nearest_in_shards(queries, [(bank, bank_c)], k=k, c=c)


def nearest_in_shards(
    queries: Tensor, shards: Iterable[tuple[Tensor, Tensor]], *, k: int, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`nearest` in a bank that comes in parts, (points, classes) each; the result is the same.

    c  (N,) classes of the queries: neighbours are of the same one; None: of any
    Raises UserError, naming the class, where the bank has fewer than k points of it.
    """
    n, start = len(queries), 0
    distance = queries.new_full((n, k), torch.inf, dtype=torch.float64)
    index = queries.new_full((n, k), -1, dtype=torch.long)
    labels = [None] if c is None else c.unique().tolist()
    have = dict.fromkeys(labels, 0)
    for bank, bank_c in shards:
        for label in labels:
            ours, members = slice(None), torch.arange(len(bank), device=bank.device)
            if label is not None:
                ours = (c == label).nonzero()[:, 0].to(queries.device)
                members = (bank_c == label).nonzero()[:, 0].to(bank.device)
            have[label] += len(members)
            if not len(members):
                continue
            among = bank if label is None else bank[members]
            near, found = nearest(queries[ours], among, k=min(k, len(members)))
            # stable, and what came first has the smaller indices: ties stay by index
            near, order = torch.cat([distance[ours], near], 1).sort(dim=1, stable=True)
            found = torch.cat([index[ours], members.to(found.device)[found] + start], 1)
            distance[ours], index[ours] = near[:, :k], found.gather(1, order[:, :k])
        start += len(bank)
    check_enough(have, k)
    return distance, index


def _rows(points: Tensor, chosen: Tensor) -> Tensor:
    """points[chosen] of rows in ascending order; the points themselves where all are chosen."""
    return points if len(chosen) == len(points) else points[chosen]


def _candidate_search(queries: Tensor, bank: Tensor, rows: int, extremes: Tensor) -> Callable:
    """search(some queries, count) by FAISS: squared distances, indices, and the queries' norms.

    FAISS sees float32 points about the bank's mean, scaled to at most 1 where squares might
    overflow or vanish; (x - mean) keeps float32's relative precision whatever the offset. Distances
    and norms are in its units. extremes (m, d) bound the points' coordinates. `rows` at a time are
    copied, so that the index is all that is large.
    """
    import faiss

    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    total = torch.zeros(bank.shape[1], dtype=torch.float64, device=bank.device)
    for part in bank.split(rows):
        total += part.sum(0, dtype=torch.float32 if part.dtype == torch.float32 else torch.float64)
    if not total.isfinite().all():  # of float32 that are nearly too large for it
        total = torch.stack([part.sum(0, dtype=torch.float64) for part in bank.split(rows)]).sum(0)
    mean = (total / len(bank)).to(dtype)
    scale = (extremes.to(dtype) - mean).abs().max().item() if extremes.numel() else 0.0
    scale = scale if scale and not 1e-6 < scale < 1e6 else 1.0

    def centred(points: Tensor) -> Tensor:
        x = points.to(dtype).sub(mean)
        x = x if scale == 1.0 else x.div_(scale)
        return x.float().contiguous().cpu()

    m, d = bank.shape
    if faiss.get_num_gpus() > 0:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, queries.device.index or 0, faiss.IndexFlatL2(d))
        for part in bank.split(rows):
            index.add(centred(part).numpy())
        find = index.search
    else:  # without an index, which needs twice the memory of its points while they are added
        points, resources = np.empty((m, d), np.float32), None
        for start in range(0, m, rows):
            points[start : start + rows] = centred(bank[start : start + rows]).numpy()

        def compared(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            return faiss.knn(x, points, count)

        find = compared

    def search(some: Tensor, count: int, keep: object = resources) -> tuple[Tensor, Tensor, Tensor]:
        x = centred(some)
        distance, found = find(x.numpy(), count)
        to, norm = queries.device, x.norm(dim=1).double() * (1 + (d + 8) * 6e-8)  # no less than it
        distance, found = torch.from_numpy(distance).double(), torch.from_numpy(found)
        return distance.to(to), found.to(to), norm.to(to)

    return search


def _rerank(
    queries: Tensor, bank: Tensor, candidates: Tensor, needed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of each query's first `needed` (N,) candidates (N, n), by float64 distance."""
    distance = queries.new_empty(len(queries), k, dtype=torch.float64)
    index = queries.new_empty(len(queries), k, dtype=torch.long)
    order = needed.argsort()  # so that those of a block need about as many
    counts, start, d = needed[order].tolist(), 0, max(1, bank.shape[1])
    room = RERANK * torch.get_num_threads() if queries.device.type == "cpu" else AT_ONCE
    taken = bank.new_empty(max(room, d * max(counts, default=0)))  # memory that is new is slow
    wide = taken.new_empty(taken.shape, dtype=torch.float64)
    while start < len(order):
        rows = max(1, room // (counts[start] * d))
        while rows > 1 and rows * d * max(counts[start : start + rows]) > len(taken):
            rows //= 2
        block, most = order[start : start + rows], max(counts[start : start + rows])
        # in the order of indices, so that the stable sort leaves ties by index
        among = candidates[block, :most].sort(dim=1).values
        size, flat = among.numel() * bank.shape[1], among.flatten()
        torch.index_select(bank, 0, flat, out=taken[:size].view(len(flat), -1))
        near = wide[:size].copy_(taken[:size]).view(*among.shape, -1)
        squared = near.sub_(queries[block, None].double()).square_().sum(-1)
        squared, rank = squared.sort(dim=1, stable=True)
        distance[block], index[block] = squared[:, :k], among.gather(1, rank[:, :k])
        start += rows
    return distance, index


def _against_all(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the whole bank, by differences in float64."""
    rows = max(1, BLOCK // max(1, queries.numel()))
    among = (part.double() - queries[:, None].double() for part in bank.split(rows))
    squared = torch.cat([gap.square_().sum(-1) for gap in among], dim=1)  # (b, M)
    kth = squared.kthvalue(k, dim=1, keepdim=True).values
    nearer, level = squared < kth, squared == kth
    room = k - nearer.sum(1, keepdim=True)
    chosen = nearer | (level & (level.cumsum(1) <= room))  # of those level, the first ones
    index = chosen.nonzero()[:, 1].reshape(-1, k)
    squared, order = squared.gather(1, index).sort(dim=1, stable=True)
    return squared, index.gather(1, order)


def check_enough(have: Mapping[Any, int], k: int) -> None:
    """UserError unless there are k points of every class; None: of all classes together."""
    for label, count in have.items():
        if count < k:
            points = f"{count} points" + ("" if label is None else f" of class {label}")
            raise UserError(f"the bank has {points}, fewer than the k = {k} neighbours asked for")
