"""The Fréchet distance as a metric of torchmetrics; here alone, as that import takes seconds."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_cfg.errors import UserError
from lightning_cfg.metrics.frechet import Moments, frechet_distance, gram


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
    real_count: Tensor
    real_sum: Tensor
    real_outer: Tensor
    fake_count: Tensor
    fake_sum: Tensor
    fake_outer: Tensor

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
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + gram(features))

    def compute(self) -> Tensor:
        """Squared Fréchet distance of all that was taken in, () float64."""
        real = Moments.from_sums(int(self.real_count), self.real_sum, self.real_outer)
        fake = Moments.from_sums(int(self.fake_count), self.fake_sum, self.fake_outer)
        distance = frechet_distance(real, fake, allow_few=self.allow_few)
        return self.real_sum.new_tensor(distance)
