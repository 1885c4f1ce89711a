"""Metrics in plain coordinates: samples of one class against real points of that class."""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import AtLeast
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.cached import cached_on
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.metrics.meaning import better, percent
from lightning_cfg.refinement.neighbours import nearest


@better(
    "lower",
    "squared Fréchet distance of the points' mean and covariance to held-out real ones', "
    "squared units of the data",
)
def frechet(x: Tensor, y: Tensor, *, allow_few: bool = False) -> dict[str, float]:
    """Squared Fréchet distance in plain coordinates, |mu_x - mu_y|^2 + tr(S_x + S_y - 2 root).

    In squared units of the data; see `moments.frechet_distance`. Raises UserError where n or m is
    not above the dimension, unless `allow_few`.
    """
    moments = cached_on(y, "moments", lambda: Moments().add(y.flatten(1)))
    distance = frechet_distance(Moments().add(x.flatten(1)), moments, allow_few=allow_few)
    return {"frechet": distance}


@better(
    "lower",
    "energy distance to held-out real points, units of the data; scatters around 0 for real data",
)
def energy_distance(x: Tensor, y: Tensor) -> dict[str, float]:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013).

    In units of the data; zero in expectation, and only then, where both are one distribution: the
    last two are means over distinct pairs, so it scatters around zero there and may be negative.
    Differences are taken directly (no |x|^2 + |y|^2 - 2 x.y). Raises UserError for fewer than 2
    points.
    """
    within_x = _mean_distance_within(x)
    within_y = cached_on(y, "within", lambda: _mean_distance_within(y))
    across = _distances(x, y) / (len(x) * len(y))
    return {"energy_distance": 2 * across - within_x - within_y}


@better(
    "lower",
    "Wasserstein-1 distance to the exact conditional distribution, units of the data; of a "
    "fresh draw it is the sampling error",
)
def wasserstein(x: Tensor, c: int, quantile: Callable) -> dict[str, float]:
    """Wasserstein-1 distance of one-dimensional samples to their exact conditional distribution.

        W1 = 1/n sum_i |x_(i) - Q((i - 1/2) / n)|,   x_(i) sorted, Q the quantiles of p(y|c)

    In units of the data; about 1.3 standard deviations / sqrt(n) for a fresh draw of a Gaussian.
    What n midpoints leave out of Q is of order 1/n.
    """
    x = x.flatten().double().sort().values
    u = (torch.arange(len(x), dtype=torch.float64, device=x.device) + 0.5) / len(x)
    return {"wasserstein": (x - quantile(u, c)).abs().mean().item()}


@better(
    "real", "mean of -log p(x given its class) under the exact density, nats", column="nll_mean"
)
@better("real", "median of the same, nats", column="nll_median")
def negative_log_density(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Mean and median of -log p(x|c) in nats, under the class's own exact density.

    A fresh real draw has the entropy of p(y|c): lower than that is not better, it is too narrow.
    """
    nll = -_log_density(x, c, truth)
    return {"nll_mean": nll.mean().item(), "nll_median": nll.quantile(0.5).item()}


@better("lower", "share of samples less likely than all but 0.1 % of real points", format=percent)
def outliers(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Share of samples less likely than all but 0.1 % of real points: log p(x|c) < q_0.001.

    The quantile is that of log p(y|c) over 100,000 draws of the truth, the same ones each time,
    so a fresh real draw has a share of 0.001, to about a tenth.
    """
    return {"outliers": _share(_log_density(x, c, truth) < _outlier_threshold(truth, c))}


@better("real", "share that the exact posterior gives to another class", format=percent)
def wrong_class(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Share of samples that the exact posterior gives to another class: argmax p(k|x) != c.

    Where classes overlap, a fresh real draw has a share above zero: that is the floor.
    """
    guesses = [truth.logits(part, 0.0).argmax(1) for part in x.split(4096)]
    return {"wrong_class": _share(torch.cat(guesses) != c)}


@better("higher", "mean log probability that the exact posterior gives to their class, nats")
def certainty(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Mean of log p(c|x) in nats, by the exact posterior of the clean data.

    What guidance raises, at a price in distance. A fresh real draw has minus the entropy of the
    class given the point.
    """
    parts = [truth.logits(part, 0.0).log_softmax(1)[:, c] for part in x.split(4096)]
    return {"certainty": torch.cat(parts).mean().item()}


@better("real", "mean distance to the nearest held-out real sample, units of the data")
def nearest_real(x: Tensor, y: Tensor) -> dict[str, float]:
    """Mean Euclidean distance from a sample to the nearest held-out real point.

    In units of the data; falls with m. A fresh real draw in place of x gives the floor, and less
    than that means copies or too narrow a distribution.
    """
    squared, _ = nearest(x, y, k=1)
    return {"nearest_real": squared.sqrt().mean().item()}


@better("higher", "share of real points within reach of samples (improved recall)", format=percent)
def recall(x: Tensor, y: Tensor, *, k: Annotated[int, AtLeast(1)] = 5) -> dict[str, float]:
    """Improved recall (Kynkäänniemi et al. 2019): share of real points that samples cover.

        1/m sum_j [ |y_j - x_i| <= r_i for some i ],   r_i = distance of x_i to its k-th neighbour

    In plain coordinates, over at most 10,000 of x and of y, evenly spaced in their order; rises
    with n, so compare it at one size only. Raises UserError for k samples or fewer.
    """
    x, y = (_at_most(points, 10_000).flatten(1) for points in (x, y))
    if len(x) <= k:
        raise UserError(f"recall with k = {k} neighbours needs more than {k} samples, got {len(x)}")
    radius, _ = nearest(x, x, k=k + 1)  # the first of them is the point itself
    centre = y.mean(0, dtype=torch.float64)
    x, y = x.double() - centre, y.double() - centre
    # |y_j|^2 + |x_i|^2 - 2 y_j.x_i <= r_i^2, solved for |y_j|^2; 1e-12 is for rounding, so that a
    # copy of x_i lies in its ball even where r_i is 0
    offset, covered = radius[:, -1] - (1 - 1e-12) * x.square().sum(1), []
    for part in y.split(128):
        farthest = torch.addmm(offset, part, x.T, alpha=2).amax(1)  # (b,)
        covered.append(farthest >= (1 - 1e-12) * part.square().sum(1))
    return {"recall": _share(torch.cat(covered))}


@better(
    "higher", "effective number of distinct real training points that are nearest to some sample"
)
def effective_targets(x: Tensor, bank: Tensor) -> dict[str, float]:
    """Effective number of distinct real points that are nearest to some sample.

        exp(-sum_j p_j log p_j),   p_j = share of samples whose nearest bank point is b_j

    Between 1 (all samples at one target) and n; at one size only, and a fresh real draw in place
    of x shows how many there can be.
    """
    _, index = nearest(x, bank, k=1)
    share = index.flatten().bincount().double() / len(x)
    return {"effective_targets": torch.special.entr(share).sum().exp().item()}


def _distances(x: Tensor, y: Tensor) -> float:
    """sum_ij |x_i - y_j|: differences in float32 or better, rows summed up in float64."""
    x, y = x.flatten(1), y.flatten(1).to(x)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in x.split(256):
        distance = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
        total += distance.sum(1).double().sum()  # a row in float32 is summed pairwise
    return total.item()


def _mean_distance_within(x: Tensor) -> float:
    """E|X - X'| over distinct pairs."""
    n, total = len(x), 0.0
    if n < 2:
        raise UserError(f"an energy distance needs at least 2 points a side, got {n}")
    for i in range(0, n, 1024):  # each block with itself, and twice with what comes after it
        block, rest = x[i : i + 1024], x[i + 1024 :]
        total += _distances(block, block) + 2 * _distances(block, rest)
    return total / (n * (n - 1))


def _log_density(x: Tensor, c: int, truth: Any) -> Tensor:
    """log p(x|c), (n,), in blocks: a thousand Gaussians for each of 100,000 points are 1 GB."""

    def compute() -> Tensor:
        label = torch.full((len(x),), c, dtype=torch.long, device=x.device)
        parts = zip(x.split(4096), label.split(4096), strict=True)
        return torch.cat([truth.log_density(part, k) for part, k in parts])

    return cached_on(x, ("log density", c, truth), compute)


@lru_cache(maxsize=64)
def _outlier_threshold(truth: Any, c: int) -> float:
    """The 0.1 % quantile of log p(y|c) of real points."""
    generator = torch.Generator().manual_seed(2**32 + c)  # beyond the seeds that samples have
    real = truth.sample(100_000, c, generator)
    return _log_density(real, c, truth).quantile(0.001).item()


def _at_most(points: Tensor, n: int) -> Tensor:
    """n of the points, evenly spaced in their order, or all of them."""
    if len(points) <= n:
        return points
    return points[torch.linspace(0, len(points) - 1, n, dtype=torch.float64).round().long()]


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
