"""Real points and generated samples as two classes, from which a discriminator learns."""

from functools import cached_property

import torch
from torch import Tensor

from lightning_cfg.config import Data
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.inputs import SampleFile
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import quantised, signed
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.runs.units import check_units


class RealOrGenerated(DataSet):
    """Class 1, real points as they are trained on; class 0, generated samples; half of each.

    With learner Classification and model NoisyClassifier that is the discriminator of Kim et al.
    (2023). Images are generated as 8 bits have them, or the rounding would tell them apart.

    real  a data set, without augmentation
    path  a run directory of `generate` or `refine`, or its samples.safetensors
    UserError where the samples have another shape than the points.
    """

    num_classes = 2

    def __init__(self, *, real: Data, path: SampleFile):
        self.points = build_data(real)
        if self.points.augment_dim:
            raise UserError("data.real.augment: only real images would be augmented; leave it out")
        self.path = self._file = output_of(path, SAMPLES)
        self.shape = tuple(self.points.shape)

    @property
    def reads_files(self) -> bool:
        return self.points.reads_files

    @cached_property
    def _generated(self) -> Tensor:
        x = load_tensors(self._file, "x")["x"]
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(
                f"{self._file} has samples of shape {tuple(x.shape[1:])}, not {self.shape}"
            )
        check_units(self._file, x)
        return signed(quantised(x)) if len(self.shape) == 3 else x

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """y (b, *shape) float32 and c (b,), 1 for real."""
        real = self.points.batch(draws)["y"]
        generated = self._generated[draws.integers(len(self._generated))]
        c = draws.integers(2)
        chosen = c.reshape(-1, *[1] * len(self.shape)) == 1
        return {"y": torch.where(chosen.to(real.device), real, generated.to(real)), "c": c}

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """The real points of a split alone, all of class 1."""
        y, _ = self.points.real(split, per_class)
        return y, torch.ones(len(y), dtype=torch.long)
