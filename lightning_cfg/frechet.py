"""Fréchet distance: two sets of features, each summed up by its mean and covariance."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_cfg.errors import UserError


class Moments:
    """Count, mean and scatter of features, in float64, gathered batch by batch.

        scatter = sum_i (f_i - mean)(f_i - mean)^T

    Kept about the mean and merged as in Chan, Golub & LeVeque 1983, rather than as plain sums:
    the covariance is then exact to rounding however far from the origin the features lie.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # (d,) float64
        self.scatter: Tensor | None = None  # (d, d) float64

    @classmethod
    def from_sums(cls, count: int, total: Tensor, outer: Tensor) -> "Moments":
        """Moments from sum_i f_i (d,) and sum_i f_i f_i^T (d, d)."""
        moments = cls()
        if count:
            moments.count, moments.mean = int(count), total / count
            moments.scatter = outer - torch.outer(total, moments.mean)
        return moments

    def add(self, features: Tensor) -> "Moments":
        """Take in a batch of features (N, d); returns itself."""
        for part in features.split(8192):  # a float64 copy of all of them at once would be large
            part, batch = part.double(), Moments()
            batch.count, batch.mean = len(part), part.mean(0)
            batch.scatter = (part - batch.mean).T @ (part - batch.mean)
            self.merge(batch)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another part of the same set gathered; returns itself.

        Raises UserError where the two have features of another size.
        """
        if other.count == 0:
            return self
        if self.count == 0:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return self
        _same_size(self, other)
        count, gap = self.count + other.count, other.mean.to(self.mean) - self.mean
        self.scatter = self.scatter + other.scatter.to(self.scatter)
        self.scatter = self.scatter + torch.outer(gap, gap) * (self.count * other.count / count)
        self.mean = self.mean + gap * (other.count / count)
        self.count = count
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d) float64, that is divided by N - 1."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments, *, allow_few: bool = False) -> float:
    """Squared Fréchet distance of the Gaussians with these moments (Dowson & Landau 1982).

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is taken from the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2),
    which are those of S_a S_b. In squared units of the features; "FID" when they are Inception's
    (Heusel et al. 2017). With N samples not above the feature dimension d the covariance is
    singular and the distance far too large: a UserError unless `allow_few`. Also raises UserError
    on features that are not finite or of two sizes.
    """
    if not (a.count and b.count):
        raise UserError("a Fréchet distance needs samples on both sides, and one side has none")
    _same_size(a, b)
    few, d = min(a.count, b.count), len(a.mean)
    if few <= d and not allow_few:
        raise UserError(
            f"a Fréchet distance in {d} dimensions needs more than {d} samples a side, got {few}"
            " (allow_few=true computes it all the same)"
        )
    cov_a, cov_b = a.covariance, b.covariance.to(a.mean.device)
    gap = a.mean - b.mean.to(a.mean.device)
    if not (gap.isfinite().all() and cov_a.isfinite().all() and cov_b.isfinite().all()):
        raise UserError("a Fréchet distance needs finite features, and these have NaN or inf")
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root_a @ cov_b @ root_a
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    trace_of_root = values.clamp(min=0).sqrt().sum()  # rounding leaves some just below zero
    distance = gap @ gap + cov_a.trace() + cov_b.trace() - 2 * trace_of_root
    return max(distance.item(), 0.0)


class FrechetDistance(Metric):
    """Fréchet distance between real and generated features, as a metric of Lightning's.

    The states are sums in float64 (count, sum of f, sum of f f^T, for either side), so that ranks
    reduce by addition and every sample counts once. Sums lose about (mean / deviation)^2 * 1e-16
    of the covariance: centre features that lie further out than 1e5 of their deviations.

    dimension: d, the size of the features. `update(features (N, d), real)`; `compute()` ->
    () float64; raises UserError as `frechet_distance` does.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, dimension: int, *, allow_few: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dimension, self.allow_few = dimension, allow_few
        zeros = torch.zeros(dimension, dtype=torch.float64)
        for side in ("real", "fake"):
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.outer(zeros, zeros), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Take in a batch of features (N, d) of the real or the generated side."""
        if features.ndim != 2 or features.shape[1] != self.dimension:
            shape = tuple(features.shape)
            raise UserError(f"expected features of shape (N, {self.dimension}), got {shape}")
        side, features = "real" if real else "fake", features.double()
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(features))
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + features.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + features.T @ features)

    def compute(self) -> Tensor:
        """Squared Fréchet distance of all that was taken in, () float64."""
        real = Moments.from_sums(int(self.real_count), self.real_sum, self.real_outer)
        fake = Moments.from_sums(int(self.fake_count), self.fake_sum, self.fake_outer)
        distance = frechet_distance(real, fake, allow_few=self.allow_few)
        return self.real_sum.new_tensor(distance)


def _same_size(a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise UserError(f"features of two sizes, {len(a.mean)} and {len(b.mean)}, do not compare")
