"""The candidates of a neighbour search by torch on a GPU, where FAISS has none of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cfg.runs.precision import matmul
from lightning_cfg.runs.ranks import launched

AT_ONCE = 1 << 27  # distances held at once: 512 MiB in float32
ROOM = 0.8  # of the GPU's free memory that points and their copies may take


def gpu_for(queries: Tensor, bank: Tensor) -> torch.device | None:
    """The GPU on which to search for these: their own, or this process's if they fit on it."""
    if queries.is_cuda:
        return queries.device
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", launched().local_rank % torch.cuda.device_count())
    # as they are, centred in float32, and the distances with what finds the least of them
    numbers = sum(points.numel() * (points.element_size() + 4) for points in (queries, bank))
    free, _ = torch.cuda.mem_get_info(device)
    return device if numbers + 16 * max(AT_ONCE, len(bank)) < ROOM * free else None


def candidate_search(queries: Tensor, bank: Tensor, rows: int) -> Callable:
    """search(some queries, count) as FAISS' IndexFlatL2 does it, on the points' own device.

    |q|^2 + |b|^2 - 2 q.b in float32, never in TF32, of points about the bank's mean that are scaled
    to at most 1: squared distances and indices (n, count), rising, and the queries' norms (n,).
    queries (N, d), bank (M, d); `rows` at a time are copied.
    """
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    total = torch.zeros(bank.shape[1], dtype=torch.float64, device=bank.device)
    for part in bank.split(rows):
        total += part.sum(0, dtype=torch.float64)
    mean = (total / len(bank)).to(dtype)
    blocks = (part for points in (queries, bank) for part in points.split(rows) if part.numel())
    scale = max((part.to(dtype) - mean).abs().max().item() for part in blocks) or 1.0

    def centred(points: Tensor) -> Tensor:
        return points.to(dtype).sub(mean).div_(scale).float()

    near = torch.empty(bank.shape, device=bank.device)
    length = torch.empty(len(bank), device=bank.device)
    for start in range(0, len(bank), rows):
        block = slice(start, start + rows)
        near[block] = centred(bank[block])
        length[block] = near[block].double().square().sum(1).float()

    def search(some: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        x = centred(some)
        norm, found = x.double().norm(dim=1), []
        with matmul("highest"):  # what the bound on its rounding is for
            for block in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // len(near))):
                squared = torch.addmm(length, x[block], near.T, alpha=-2)
                squared += norm[block].square().float()[:, None]
                found.append(squared.topk(count, dim=1, largest=False, sorted=True))
        distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distance.double(), index, norm

    return search
