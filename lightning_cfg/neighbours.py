"""Nearest neighbours by Euclidean distance: FAISS proposes, float64 decides."""

import torch
from torch import Tensor

from lightning_cfg.errors import UserError

BLOCK = 1 << 22  # numbers held at once where all of the bank is compared: 32 MiB in float64
RERANK = 1 << 18  # the same while re-ranking, 2 MiB: six times faster in a cache than beyond it
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
    one. Raises UserError where k is not in 1..M, shapes differ, or a point has NaN or inf.
    """
    if queries.shape[1:] != bank.shape[1:]:
        shapes = f"{tuple(queries.shape[1:])} and {tuple(bank.shape[1:])}"
        raise UserError(f"queries and bank must have points of one shape, got {shapes}")
    queries, bank = queries.detach().flatten(1), bank.detach().flatten(1).to(queries.device)
    (n, d), m = queries.shape, len(bank)
    if not 1 <= k <= m:
        raise UserError(f"k = {k} neighbours asked of a bank of {m} points; k must be in 1..{m}")
    for name, points in (("queries", queries), ("bank", bank)):
        if not points.isfinite().all():
            raise UserError(f"the {name} of a neighbour search must be finite, got NaN or inf")
    distance = queries.new_empty(n, k, dtype=torch.float64)
    index = queries.new_empty(n, k, dtype=torch.long)

    search, norm = _candidate_search(queries, bank)
    pending = torch.arange(n, device=queries.device)
    count = min(2 * k + 40, m)
    # A point within R of q lies within |q| + R of the centre, so that FAISS has its squared
    # distance to within (d + 8) u (2 |q| + R)^2, u half of float32's epsilon (Higham 2002, sec.
    # 3.1). The k proposed first are within R, and so is every point nearer than one of them.
    unit = (d + 8) * 6e-8
    while len(pending) and count <= MOST and unit < 0.5:
        proposed, candidates = search(pending, count)
        kth, q = proposed[:, k - 1].clamp(min=0), norm[pending]
        R = (kth.sqrt() + 2 * unit**0.5 * q) / (1 - unit**0.5)
        slack = unit * ((2 * q + R).square() + 1e-30)  # 1e-30: underflow
        limit = kth + 2 * slack  # nothing beyond it can be among the k nearest
        needed = (proposed <= limit[:, None]).sum(1).clamp(min=k)
        found = _rerank(queries[pending], bank, candidates, needed, k)
        distance[pending], index[pending] = found
        settled = (limit < proposed[:, -1]) | (count == m)
        pending, count = pending[~settled], min(4 * count, m)
    for block in pending.split(max(1, BLOCK // m)):
        distance[block], index[block] = _against_all(queries[block], bank, k)
    return distance, index


def nearest_in_class(
    queries: Tensor, c: Tensor, bank: Tensor, bank_c: Tensor, *, k: int
) -> tuple[Tensor, Tensor]:
    """`nearest` among the bank's points of each query's own class; indices into the whole bank.

    queries (N, *shape) of classes c (N,), bank (M, *shape) of classes bank_c (M,). Raises
    UserError, naming the class, where the bank has fewer than k points of it.
    """
    distance = queries.new_empty(len(queries), k, dtype=torch.float64)
    index = queries.new_empty(len(queries), k, dtype=torch.long)
    for label in c.unique().tolist():
        ours, members = (c == label).nonzero()[:, 0], (bank_c == label).nonzero()[:, 0]
        if len(members) < k:
            have = f"{len(members)} points of class {label}"
            raise UserError(f"the bank has {have}, fewer than the k = {k} neighbours asked for")
        ours, members = ours.to(queries.device), members.to(bank.device)
        distance[ours], found = nearest(queries[ours], bank[members], k=k)
        index[ours] = members.to(found.device)[found]
    return distance, index


def _candidate_search(queries: Tensor, bank: Tensor):
    """search(rows, count) by FAISS, in its own units, and the queries' norms (N,) in the same.

    FAISS sees float32 points about the bank's mean, scaled to at most 1 so that no square
    overflows; (x - mean) keeps float32's relative precision whatever the offset.
    """
    import faiss

    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    mean = bank.mean(0, dtype=torch.float64).to(dtype)
    queries, bank = queries.to(dtype) - mean, bank.to(dtype) - mean
    largest = [points.abs().max().item() for points in (queries, bank) if points.numel()]
    scale = max(largest) or 1.0
    queries, bank = ((points / scale).float().contiguous() for points in (queries, bank))

    index = faiss.IndexFlatL2(bank.shape[1])
    resources = None
    if faiss.get_num_gpus() > 0:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, queries.device.index or 0, index)
    index.add(bank.cpu().numpy())

    def search(rows: Tensor, count: int, keep=resources) -> tuple[Tensor, Tensor]:
        distance, found = index.search(queries[rows].cpu().numpy(), count)
        to = queries.device
        return torch.from_numpy(distance).double().to(to), torch.from_numpy(found).to(to)

    return search, queries.double().norm(dim=1)


def _rerank(
    queries: Tensor, bank: Tensor, candidates: Tensor, needed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of each query's first `needed` (N,) candidates (N, n), by float64 distance."""
    distance = queries.new_empty(len(queries), k, dtype=torch.float64)
    index = queries.new_empty(len(queries), k, dtype=torch.long)
    order = needed.argsort()  # so that those of a block need about as many
    start = 0
    while start < len(order):
        rows = max(1, RERANK // (int(needed[order[start]]) * max(1, bank.shape[1])))
        block = order[start : start + rows]
        # in the order of indices, so that the stable sort leaves ties by index
        among = candidates[block, : int(needed[block].max())].sort(dim=1).values
        squared = (bank[among].double() - queries[block, None].double()).square_().sum(-1)
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
