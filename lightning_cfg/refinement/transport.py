"""Samples matched with real points by optimal transport: each goes where all of them fit.

Neighbours bring a sample to where data are; how many come to each place they leave as it is.
Transport moves as much mass to each place as the data have there, by the least squared distance:

    min over P of sum_ij P_ij |x_i - y_j|^2,   P >= 0, rows sum to 1/n, columns to 1/m

exactly (Kuhn 1955), or with an entropy by Sinkhorn's iteration (Cuturi 2013). It is solved in
blocks of some thousands, as it takes their cube, or their square: a block's plan is that of a
sample of the data, which biases it towards longer ways, the less the larger the block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError

MARGINS = 1e-3  # to which relative error Sinkhorn's rows sum to what they should
ROUNDS = 20_000  # after which it is given up


@dataclass(frozen=True)
class Block:
    """Samples and real points that are matched with each other, by their numbers."""

    samples: Tensor  # (n,)
    points: Tensor  # (m,), m = n where they are matched one to one


def blocks(
    label: Tensor, part: Tensor, points_label: Tensor, *, size: int, seed: int, one_to_one: bool
) -> list[Block]:
    """The blocks of samples (N,) of these labels and parts, with points (M,) of the same label.

    Both sides are in a random order that the seed determines. A label's samples, one part after
    another, have its points in turn, each once before one comes up again: with as many points as
    samples or more no two samples share one, and parts share none. What is left of the points is
    not used where samples are matched one to one, and otherwise shared out evenly.
    UserError for a label that has no points.
    """
    out = []
    for c in label.unique().tolist():
        points = (points_label == c).nonzero()[:, 0]
        if not len(points):
            raise UserError(f"coupling=transport: no real point of class {c} to go to")
        own = label == c
        n = int(own.sum())
        random = keyed("transport", seed, c)
        turns = _in_turn(points, n if one_to_one else max(n, len(points)), random)
        begin = 0
        for p in part[own].unique().tolist():
            samples = (own & (part == p)).nonzero()[:, 0]
            samples = samples[torch.randperm(len(samples), generator=random)]
            end = begin + len(samples)
            theirs = turns[len(turns) * begin // n : len(turns) * end // n]
            count = -(-len(samples) // size)
            pairs = zip(samples.tensor_split(count), theirs.tensor_split(count), strict=True)
            out += [Block(*pair) for pair in pairs]
            begin = end
    return out


def _in_turn(points: Tensor, n: int, random: torch.Generator) -> Tensor:
    """n of the points, every one before any comes up again."""
    turns = -(-n // len(points))
    order = [points[torch.randperm(len(points), generator=random)] for _ in range(turns)]
    return torch.cat(order)[:n]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (n, m) float64, of x (n, d) and y (m, d)."""
    return torch.cdist(x.double(), y.double()).square_()


def assigned(cost: Tensor) -> Tensor:
    """The column of each row, (n,), by which the sum of the cost (n, n) is smallest."""
    from scipy.optimize import linear_sum_assignment

    _, column = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(column).to(cost.device)


def sinkhorn(cost: Tensor, epsilon: float) -> Tensor:
    """The plan (n, m) of least cost minus epsilon times its entropy: exp((f_i + g_j - C_ij) / eps).

    cost (n, m), epsilon in its units; rows sum to 1/n, columns to 1/m, within 1e-3 of these. In
    logarithms, so that a small epsilon underflows nowhere. UserError where it does not get there.
    """
    n, m = cost.shape
    log_k = -cost / epsilon
    g = cost.new_zeros(m)
    log_n, log_m = torch.tensor([float(n), float(m)], dtype=cost.dtype).log().tolist()
    for i in range(1, ROUNDS + 1):
        f = -log_n - (log_k + g).logsumexp(1)
        g = -log_m - (log_k + f[:, None]).logsumexp(0)
        if i % 10 == 0:  # columns are exact now
            rows = (log_k + f[:, None] + g).logsumexp(1).add(log_n).exp()
            if (rows - 1).abs().max() <= MARGINS:
                return (log_k + f[:, None] + g).exp()
    raise UserError(
        f"coupling=transport: after {ROUNDS} rounds the plan is not yet even within {MARGINS:g}: "
        "raise epsilon, or leave it out, which solves it exactly"
    )


def largest(plan: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the k columns with most of its mass (n, k), their shares, and what is left out.

    The shares sum to 1; left out is the share of the row's mass (n,) that other columns have.
    """
    mass, column = (plan / plan.sum(1, keepdim=True)).topk(k, dim=1)
    kept = mass.sum(1, keepdim=True)
    return column, mass / kept, 1 - kept[:, 0]
