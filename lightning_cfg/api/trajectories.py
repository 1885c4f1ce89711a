"""`lc.trajectory`: the whole way from noise to samples, and what can be measured along it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.api.networks import device_of
from lightning_cfg.api.samples import Labels, Samples, labels_of, ready_for, seeds_of
from lightning_cfg.diffusion.trajectories import straightness
from lightning_cfg.evaluation.traced import check_fits, check_noisy, traced
from lightning_cfg.interfaces import Classifier, Denoiser, Model
from lightning_cfg.sampling.batches import levels_of, made


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """The states of every sample on its way.

    path (n, levels, *shape) float32, sigma (levels,) falling to 0, c (n,), seed (n,)
    """

    path: Tensor
    sigma: Tensor
    c: Tensor
    seed: Tensor

    def __len__(self) -> int:
        return len(self.path)

    def __repr__(self) -> str:
        return f"Trajectories({len(self)} of shape {tuple(self.path.shape[1:])})"

    @property
    def samples(self) -> Samples:
        """Where they end."""
        return Samples(self.path[:, -1], self.c, self.seed)

    @property
    def straightness(self) -> Tensor:
        """Arc over chord of each in the plane of t/T and u = x / sqrt(1 + sigma^2), (n,): 1 is a
        straight line."""
        return straightness(self.path, self.sigma)

    @torch.inference_mode(False)
    def against(self, classifier: Classifier) -> list[dict[str, Any]]:
        """How they run past a noisy classifier's decision boundary: a row per class, as of
        `lc.verbs.trace`.

        UserError for a classifier of clean samples, or one that cannot read these.
        """
        held = {"path": self.path, "sigma": self.sigma, "c": self.c}
        check_noisy("the classifier", classifier)
        check_fits("trajectory", "the classifier", classifier, **held)
        return traced(classifier, **held, device=device_of(classifier))[0]


@torch.inference_mode(False)
def trajectory(
    denoiser: Denoiser,
    seeds: Iterable[int] | Tensor,
    *,
    sampler: str | dict[str, Any] = "heun",
    labels: Labels | None = None,
    like: Model | None = None,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
) -> Trajectories:
    """The samples of these seeds with all that led to them; see `lc.sample`.

    UserError as of `lc.sample`, and of a sampler that takes other steps in each batch.
    """
    ready, own = ready_for(denoiser, sampler, like, device), seeds_of(seeds)
    told = labels_of(labels, len(own), ready, like or denoiser)
    found, levels = made(ready, own, batch_size=batch_size, trajectories=True, labels=told)
    sigma = torch.tensor(levels_of([levels], ready.sampler["name"], len(own)), dtype=torch.float64)
    return Trajectories(found["path"], sigma, found["c"], own)
