"""One function per metric: samples of one class against real points of that class.

A metric asks by name for what it needs, and the verb `evaluate` passes exactly that:

    x           (n, *shape)  float, the samples, all of one class
    y           (m, *shape)  held-out real points of that class, which nothing was trained on
    bank        (M, *shape)  the real points of that class that were there to be trained on
    c           int          the class
    truth       the exact mixture: .log_density, .logits, .sample
    quantile    the exact quantile(u, c) of one-dimensional data, (m,) -> (m,)
    features    Features     x -> (n, d) float32
    classifier  Classifier   logits (n, K) of x at sigma (n,)

and returns its columns by name. Keyword-only parameters are numbers with defaults. A metric of
your own is one more such function. What the real points alone decide is worked out once for each
tensor y, so hand over the same y for every row of a table.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_cfg.errors import UserError
from lightning_cfg.frechet import Moments, frechet_distance
from lightning_cfg.interfaces import Classifier, Features
from lightning_cfg.neighbours import nearest

MIXTURE = (  # the default where the truth is known
    "wasserstein",
    "frechet",
    "energy_distance",
    "negative_log_density",
    "outliers",
    "wrong_class",
    "nearest_real",
    "recall",
    "effective_targets",
)
IMAGES = ("frechet_features", "class_accuracy", "nearest_real", "recall", "effective_targets")


def needs(metric: Callable[..., dict[str, float]]) -> set[str]:
    """Names of what a metric must be given: its parameters without a default."""
    parameters = inspect.signature(metric).parameters.values()
    return {p.name for p in parameters if p.default is p.empty}


def frechet(x: Tensor, y: Tensor, *, allow_few: bool = False) -> dict[str, float]:
    """Squared Fréchet distance in plain coordinates, |mu_x - mu_y|^2 + tr(S_x + S_y - 2 root).

    In squared units of the data; see `frechet.frechet_distance`. Raises UserError where n or m is
    not above the dimension, unless `allow_few`.
    """
    moments = _known_of(y, "moments", lambda: Moments().add(y.flatten(1)))
    distance = frechet_distance(Moments().add(x.flatten(1)), moments, allow_few=allow_few)
    return {"frechet": distance}


def frechet_features(
    x: Tensor, y: Tensor, features: Features, *, allow_few: bool = False
) -> dict[str, float]:
    """Squared Fréchet distance of a classifier's features, f(x) against f(y).

    Falls with n and m, so compare it at one size only (the table's column n). Raises UserError
    where n or m is not above the feature dimension, unless `allow_few`.
    """
    real = _known_of(y, ("moments", features), lambda: _feature_moments(y, features))
    distance = frechet_distance(_feature_moments(x, features), real, allow_few=allow_few)
    return {"fd_classifier": distance}


def energy_distance(x: Tensor, y: Tensor) -> dict[str, float]:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013).

    In units of the data; zero in expectation, and only then, where both are one distribution: the
    last two are means over distinct pairs, so it scatters around zero there and may be negative.
    Differences are taken directly (no |x|^2 + |y|^2 - 2 x.y). Raises UserError for fewer than 2
    points.
    """
    within_x = _mean_distance_within(x)
    within_y = _known_of(y, "within", lambda: _mean_distance_within(y))
    across = _distances(x, y) / (len(x) * len(y))
    return {"energy_distance": 2 * across - within_x - within_y}


def wasserstein(x: Tensor, c: int, quantile: Callable) -> dict[str, float]:
    """Wasserstein-1 distance of one-dimensional samples to their exact conditional distribution.

        W1 = 1/n sum_i |x_(i) - Q((i - 1/2) / n)|,   x_(i) sorted, Q the quantiles of p(y|c)

    In units of the data; about 1.3 standard deviations / sqrt(n) for a fresh draw of a Gaussian.
    What n midpoints leave out of Q is of order 1/n.
    """
    x = x.flatten().double().sort().values
    u = (torch.arange(len(x), dtype=torch.float64, device=x.device) + 0.5) / len(x)
    return {"wasserstein": (x - quantile(u, c)).abs().mean().item()}


def negative_log_density(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Mean and median of -log p(x|c) in nats, under the class's own exact density.

    A fresh real draw has the entropy of p(y|c): lower than that is not better, it is too narrow.
    """
    nll = -_log_density(x, c, truth)
    return {"nll_mean": nll.mean().item(), "nll_median": nll.quantile(0.5).item()}


def outliers(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Share of samples less likely than all but 0.1 % of real points: log p(x|c) < q_0.001.

    The quantile is that of log p(y|c) over 100,000 draws of the truth, the same ones each time,
    so a fresh real draw has a share of 0.001, to about a tenth.
    """
    return {"outliers": _share(_log_density(x, c, truth) < _outlier_threshold(truth, c))}


def wrong_class(x: Tensor, c: int, truth: Any) -> dict[str, float]:
    """Share of samples that the exact posterior gives to another class: argmax p(k|x) != c.

    Where classes overlap, a fresh real draw has a share above zero: that is the floor.
    """
    guesses = [truth.logits(part, 0.0).argmax(1) for part in x.split(4096)]
    return {"wrong_class": _share(torch.cat(guesses) != c)}


def nearest_real(x: Tensor, y: Tensor) -> dict[str, float]:
    """Mean Euclidean distance from a sample to the nearest held-out real point.

    In units of the data; falls with m. A fresh real draw in place of x gives the floor, and less
    than that means copies or too narrow a distribution.
    """
    squared, _ = nearest(x, y, k=1)
    return {"nearest_real": squared.sqrt().mean().item()}


def recall(x: Tensor, y: Tensor, *, k: int = 5) -> dict[str, float]:
    """Improved recall (Kynkäänniemi et al. 2019): share of real points that samples cover.

        1/m sum_j [ |y_j - x_i| <= r_i for some i ],   r_i = distance of x_i to its k-th neighbour

    Over the first 10,000 of x and of y, in plain coordinates; rises with n, so compare it at one
    size only. Raises UserError for k samples or fewer.
    """
    x, y = x[:10_000].flatten(1), y[:10_000].flatten(1)
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


def effective_targets(x: Tensor, bank: Tensor) -> dict[str, float]:
    """Effective number of distinct real points that are nearest to some sample.

        exp(-sum_j p_j log p_j),   p_j = share of samples whose nearest bank point is b_j

    Between 1 (all samples at one target) and n; at one size only, and a fresh real draw in place
    of x shows how many there can be.
    """
    _, index = nearest(x, bank, k=1)
    share = index.flatten().bincount().double() / len(x)
    return {"effective_targets": torch.special.entr(share).sum().exp().item()}


def class_accuracy(x: Tensor, c: int, classifier: Classifier) -> dict[str, float]:
    """Share of samples that a classifier reads as their class c, one or (n,), at sigma = 0."""
    with torch.no_grad():
        guesses = [classifier(part, part.new_zeros(len(part))).argmax(1) for part in x.split(512)]
    return {"class_accuracy": _share(torch.cat(guesses) == c)}


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of points, as long as they live


def _known_of(points: Tensor, key: Any, compute: Callable[[], Any]) -> Any:
    """What `compute()` finds out about these points, worked out once for each tensor.

    A table has many rows over the same y, and y's own part can be the dearest (E|Y - Y'| over
    20,000 points has 200 million pairs); two metrics ask for the density of the same x.
    """
    version = 0 if points.is_inference() else points._version  # written into: other points
    key, known = (key, version), _known.setdefault(points, {})
    if key not in known:
        known[key] = compute()
    return known[key]


def _feature_moments(x: Tensor, features: Features) -> Moments:
    moments = Moments()
    with torch.no_grad():
        for part in x.split(512):
            moments.add(features(part))
    return moments


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

    return _known_of(x, ("log density", c, truth), compute)


@lru_cache(maxsize=64)
def _outlier_threshold(truth: Any, c: int) -> float:
    """The 0.1 % quantile of log p(y|c) of real points."""
    generator = torch.Generator().manual_seed(2**32 + c)  # beyond the seeds that samples have
    real = truth.sample(100_000, c, generator)
    return _log_density(real, c, truth).quantile(0.001).item()


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
