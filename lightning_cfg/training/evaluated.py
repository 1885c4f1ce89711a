"""Which samples an evaluation during a training scores: generated ones, or given ones to refine."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cfg.errors import UserError
from lightning_cfg.guidance import classifier_free
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.runs.units import check_units
from lightning_cfg.sampling.prepared import Prepared, within_limits
from lightning_cfg.sampling.sample import check_finite
from lightning_cfg.sampling.seeds import check_seeds
from lightning_cfg.training.grids import check_generation
from lightning_cfg.training.learners import Learner

Samples = dict[str, tuple[Tensor, Tensor]]  # by label: x (n, *shape) and c (n,)


@dataclass
class FromNoise:
    """A base model's samples of n seeds, the same at each scale of classifier-free guidance."""

    n: int
    seed: int
    scales: list[float]
    sampler: dict
    batch_size: int

    @property
    def labels(self) -> list[str]:
        return [f"scale_{scale:g}" for scale in self.scales]

    def check(self, learner: Learner, data: Any) -> None:
        """UserError if the model in training cannot make them."""
        check_seeds(self.seed, self.n, "evaluation.seed")
        check_generation("evaluation", learner, data, self.scales, self.sampler)
        self._shape, self._classes = tuple(data.shape), data.num_classes

    def share(self, model: nn.Module, device: torch.device, ranks: Ranks) -> Samples:
        """This rank's samples of every set."""
        seeds = ranks.share(torch.arange(self.seed, self.seed + self.n))
        pairs = zip(self.labels, self.scales, strict=True)
        return {label: self._at(scale, model, seeds, device) for label, scale in pairs}

    @torch.no_grad()
    def _at(
        self, scale: float, model: nn.Module, seeds: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        made = Prepared(
            networks={},
            denoise=classifier_free(model, scale=scale),
            sampler=within_limits(self.sampler, model),
            shape=self._shape,
            classes=self._classes,
            class_label=None,
            device=device,
        )
        xs, cs = [], []
        for some in seeds.split(self.batch_size):
            c, steps = made.start(some)
            *_, (_, x) = steps
            check_finite(x, some)
            xs.append(x.float().cpu())
            cs.append(c.cpu())
        return torch.cat(xs), torch.cat(cs)


@dataclass
class FromFiles:
    """The first n samples of each of these files or runs, which a refinement starts from."""

    n: int
    paths: dict[str, str]
    _read: Samples = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return list(self.paths)

    def check(self, learner: Learner, data: Any) -> None:
        """Read them; UserError if they are no samples like these data, or too few."""
        for label, path in self.paths.items():
            file = output_of(path, SAMPLES)
            samples = load_samples(file, data.shape, data.num_classes)
            check_units(file, samples["x"])
            if len(samples["x"]) < self.n:
                raise UserError(
                    f"{file} holds {len(samples['x'])} samples, not the {self.n} wanted"
                )
            self._read[label] = samples["x"][: self.n], samples["c"][: self.n]

    def share(self, model: nn.Module, device: torch.device, ranks: Ranks) -> Samples:
        """This rank's samples of every set."""
        return {label: (ranks.share(x), ranks.share(c)) for label, (x, c) in self._read.items()}
