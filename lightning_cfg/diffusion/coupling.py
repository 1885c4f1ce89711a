"""Which noise goes with which point of a batch, where a flow is trained from noise."""

from typing import Literal

import torch
from torch import Tensor

Coupling = Literal["independent", "transport", "transport_by_class"]


def coupled(x0: Tensor, y: Tensor, c: Tensor, coupling: Coupling) -> Tensor:
    """x0 in another order, (B, *shape): that of the least sum of |x0 - y|^2 (Tong et al. 2024).

    Minibatch optimal transport, exactly: of equally many points on either side the plan is a
    permutation, and it is taken as it is, where the paper draws pairs of it. Classes go along with
    their y, so that of one class the noise is no longer a whole normal: right for the mixture of
    all, and what the paper does; "transport_by_class" permutes within each class, so that it stays
    one. Only what a process holds at once is permuted, so the number of processes and of
    micro-batches matters; and the points go to the CPU, for which a GPU waits.
    """
    if coupling == "independent":
        return x0
    parts = [c == k for k in c.unique()] if coupling == "transport_by_class" else [c == c]
    out = x0.clone()
    for rows in parts:
        out[rows] = x0[rows][nearest(x0[rows], y[rows])]
    return out


def nearest(x0: Tensor, y: Tensor) -> Tensor:
    """For each y the x0 of the assignment with the least sum of squares, (n,) long."""
    from scipy.optimize import linear_sum_assignment

    squares = torch.cdist(y.flatten(1).double(), x0.flatten(1).double()).square()
    _, chosen = linear_sum_assignment(squares.cpu().numpy())
    return torch.from_numpy(chosen).to(x0.device)
