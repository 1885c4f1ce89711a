"""Which of its real neighbours a sample is paired with, how often, and how many are used at all."""

import torch
from torch import Tensor


def balanced(index: Tensor, *, rounds: int = 100) -> Tensor:
    """Weights of each sample's neighbours by which all targets are drawn equally often.

        w_ij = b_j / sum of b over i's neighbours,   b such that sum_i w_ij is the same for all j

    as far as being neighbours allows: Sinkhorn's iteration (Cuturi 2013) on the graph of
    neighbours, which keeps the weights' entropy as large as that leaves it. A rectified flow ends
    in the distribution of its targets (Liu et al. 2023, th. 3.3): real data only if they are even.

    index (N, k) long -> (N, k) float32, rows sum to 1.
    """
    _, target = index.unique(return_inverse=True)
    b = torch.ones(int(target.max()) + 1, dtype=torch.float64, device=index.device)
    for _ in range(rounds):
        w = b[target] / b[target].sum(1, keepdim=True)
        drawn = torch.zeros_like(b).index_add(0, target.flatten(), w.flatten())
        b = b / (drawn * len(b) / len(index))
    return (b[target] / b[target].sum(1, keepdim=True)).float()


def used_targets(
    distance: Tensor,
    index: Tensor,
    c: Tensor,
    source: Tensor,
    names: list[str],
    weights: Tensor | None = None,
) -> list[dict]:
    """A row per source and class, and one for all: how far the neighbours are, and how many.

    distance, index, weights (N, k); c and source (N,). `effective_targets` is exp of the entropy of
    how often each target is drawn, `used_once` the share of targets that one sample alone has.
    """
    rows = []
    weights = torch.ones_like(distance) if weights is None else weights
    groups = [(i, int(label)) for i in range(len(names)) for label in c.unique()]
    for i, label in [*groups, ("all", "all")]:
        own = torch.ones(len(c), dtype=torch.bool) if i == "all" else (source == i) & (c == label)
        if not own.any():
            continue
        rows.append(
            {
                "source": names[i] if i != "all" else "all",
                "class": label,
                "n": int(own.sum()),
                "nearest": distance[own, 0].mean().item(),
                "mean_distance": distance[own].mean().item(),
                "distinct_targets": len(index[own].unique()),
                "effective_targets": effective(index[own], weights[own]),
                "used_once": used_once(index[own]),
            }
        )
    return rows


def effective(index: Tensor, weights: Tensor | None = None) -> float:
    """exp(-sum_j p_j log p_j), p_j the share of the draws in which target j comes up."""
    _, target = index.unique(return_inverse=True)
    w = torch.ones_like(target, dtype=torch.float64) if weights is None else weights.double()
    drawn = torch.zeros(int(target.max()) + 1, dtype=torch.float64)
    drawn = drawn.index_add(0, target.flatten().cpu(), w.flatten().cpu())
    return torch.special.entr(drawn / drawn.sum()).sum().exp().item()


def used_once(index: Tensor) -> float:
    """Share of targets that are a neighbour of one sample only."""
    _, counts = index.unique(return_counts=True)
    return (counts == 1).double().mean().item()
