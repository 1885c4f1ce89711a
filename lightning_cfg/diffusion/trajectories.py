"""Trajectories: how straight they are, and where they run past a classifier's decision boundary.

A trajectory is a path of x (n, levels, *shape) at falling noise levels sigma (levels,), the last of
which is 0. It is measured in the plane of the figures of Zhao & Schwing (2025): t/T of the DDPM
across and u = x / sqrt(1 + sigma^2) up, so that all noise levels have about the same size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cfg.diffusion.differentiable import differentiable
from lightning_cfg.diffusion.noise import ddpm_time, linear_beta_sigmas
from lightning_cfg.interfaces import Classifier

GRID = 2049  # points of u at which the margin's sign is looked at: boundaries closer than
REACH = 1.5  # 2 * REACH * (largest |u|) / GRID to each other are not told apart


def time_of(sigma: Tensor) -> Tensor:
    """t/T in [0, 1] of the DDPM with linear betas at noise level sigma, (levels,) float64."""
    table = linear_beta_sigmas().to(sigma.device)
    return ddpm_time(sigma.double(), table) / (len(table) - 1)


def scaled(path: Tensor, sigma: Tensor) -> Tensor:
    """u = x / sqrt(1 + sigma^2), flattened: (n, levels, d) float64."""
    return path.double().flatten(2) / (1 + sigma.double() ** 2).sqrt()[:, None]


def straightness(path: Tensor, sigma: Tensor) -> Tensor:
    """Arc over chord of each trajectory in the plane of t/T and u, (n,): 1 is a straight line."""
    u = scaled(path, sigma)
    t = time_of(sigma)[:, None].expand(len(u), -1, 1)
    points = torch.cat([t, u], 2)
    arc = points.diff(dim=1).norm(dim=2).sum(1)
    return arc / (points[:, -1] - points[:, 0]).norm(dim=1)


class Along(NamedTuple):
    """What a classifier says along trajectories of one class c.

    margin      log p(c | x; sigma) - max over k != c of log p(k | x; sigma), (n, levels) float64
    confidence  p(c | x; sigma), (n, levels) float64
    distance    signed distance in u to the decision boundary of c, where the margin is zero:
                above 0 on c's own side. In one dimension that to the nearest zero, NaN at levels
                that have none; otherwise to first order, margin / |its gradient|, which is exact
                for linear classifiers and NaN where the gradient is zero. (n, levels) float64
    zeros       in one dimension the boundary itself, rising u at each of the levels; otherwise []
    """

    margin: Tensor
    confidence: Tensor
    distance: Tensor
    zeros: list[Tensor]


def along(classifier: Classifier, path: Tensor, sigma: Tensor, c: int) -> Along:
    """Margin, confidence and distance to the boundary along trajectories of class c."""
    margins, confidences, distances = [], [], []
    for x, s in zip(path.double().unbind(1), sigma.double(), strict=True):
        with differentiable(x, s) as (leaf, level):
            logits = classifier(leaf, level.expand(len(x)))
            m = margin(logits, c)
            (gradient,) = torch.autograd.grad(m.sum(), leaf)
        slope = gradient.flatten(1).norm(dim=1) * (1 + s**2).sqrt()  # |d margin / du|
        margins.append(m.detach().double())
        confidences.append(logits.detach().double().softmax(1)[:, c])
        distances.append(torch.where(slope > 0, margins[-1] / slope, torch.nan))
    margins, confidences, distances = (
        torch.stack(columns, 1) for columns in (margins, confidences, distances)
    )
    if path[0, 0].numel() > 1:
        return Along(margins, confidences, distances, [])
    u = scaled(path, sigma)[..., 0]
    zeros = boundary(classifier, sigma, c, REACH * u.abs().max().item())
    return Along(margins, confidences, nearest_zero(u, zeros) * margins.sign(), zeros)


def margin(logits: Tensor, c: int) -> Tensor:
    """Logit of class c over the best other one's, (n, K) -> (n,)."""
    others = torch.cat([logits[:, :c], logits[:, c + 1 :]], 1)
    return logits[:, c] - others.amax(1)


def boundary(classifier: Classifier, sigma: Tensor, c: int, reach: float) -> list[Tensor]:
    """Where the margin of class c is zero in one dimension: rising u at each of the levels.

    sigma (levels,); looked for in |u| < reach, on a grid, then by bisection.
    """
    sigma = sigma.double()
    grid = torch.linspace(-reach, reach, GRID, dtype=torch.float64, device=sigma.device)
    u = grid.repeat(len(sigma))
    level = torch.arange(len(sigma), device=sigma.device).repeat_interleave(GRID)

    def positive(u: Tensor, level: Tensor) -> Tensor:
        s = sigma[level]
        x = (u * (1 + s**2).sqrt())[:, None]
        logits = torch.cat(
            [classifier(*part) for part in zip(x.split(65536), s.split(65536), strict=True)]
        )
        return margin(logits, c) > 0

    with torch.no_grad():
        signs = positive(u, level).reshape(len(sigma), GRID)
        level, left = (signs[:, 1:] != signs[:, :-1]).nonzero().unbind(1)
        low, high, before = grid[left], grid[left + 1], signs[level, left]
        for _ in range(40):
            middle = (low + high) / 2
            same = positive(middle, level) == before
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    zeros = (low + high) / 2
    return [zeros[level == i] for i in range(len(sigma))]


def nearest_zero(u: Tensor, zeros: list[Tensor]) -> Tensor:
    """|u - the nearest of the level's zeros|, u (n, levels) -> (n, levels); NaN without any."""
    columns = [
        (u[:, i, None] - at).abs().amin(1) if len(at) else torch.full_like(u[:, i], torch.nan)
        for i, at in enumerate(zeros)
    ]
    return torch.stack(columns, 1)


def over_time(values: Tensor, sigma: Tensor) -> Tensor:
    """The mean over t/T of values (..., levels), by the trapezoid rule; NaN levels left out."""
    t = time_of(sigma).expand_as(values)
    known = ~values.isnan()
    both = known[..., 1:] & known[..., :-1]
    steps = (t[..., :-1] - t[..., 1:]) * both
    middles = (values.nan_to_num()[..., 1:] + values.nan_to_num()[..., :-1]) / 2
    return (middles * steps).sum(-1) / steps.sum(-1)


def closest(distance: Tensor, sigma: Tensor) -> Tensor:
    """The smallest |distance| of each trajectory at t/T <= 1/2, (n,); 0 if it crosses there.

    At higher noise no classifier knows anything, the boundary of a trained one is anywhere, and
    every other trajectory starts beyond it. distance (n, levels); NaN for one that has none there.
    """
    distance = distance[:, time_of(sigma) <= 0.5]
    known = ~distance.isnan()
    crosses = ((distance > 0) & known).any(1) & ((distance < 0) & known).any(1)
    least = distance.abs().where(known, torch.inf).amin(1)
    return torch.where(crosses, 0.0, least).where(known.any(1), torch.nan)
