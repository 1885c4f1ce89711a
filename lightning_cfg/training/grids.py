"""Pictures of samples while a training runs."""

from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_cfg.config import AtLeast, Between, Decode, Sampler, Scales
from lightning_cfg.config.check import check
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import classifier_free
from lightning_cfg.latents.pictures import pictures_of
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import DPI
from lightning_cfg.runs.files import write
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.sampling.prepared import within_limits
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner


class Grids(EachStep):
    """Writes samples of the averaged weights every `every` steps: figures/grid_<step>.png.

    The logger gets it too where it takes images. A row per class (the first 10), and the same
    noise, of the seeds 0, 1, ..., in every row and every grid. Training is not touched: the
    samples are drawn from a copy of the model, without the global generators.

    scales   of classifier-free guidance, side by side; 1 is unguided
    columns  samples per class and scale
    decode   what makes images of latents
    """

    def __init__(
        self,
        directory: Path,
        /,
        *,
        every: Annotated[int, AtLeast(1)] = 1000,
        scales: Scales = (1.0, 2.0),
        columns: Annotated[int, Between(1, 1000)] = 8,
        sampler: Sampler = {"name": "heun", "steps": 18},
        decode: Decode | None = None,
    ):
        self.directory, self.every, self.columns = directory / "figures", every, columns
        self.scales = list(scales)
        self.decode = check(Decode | None, decode, "grids.decode")
        # with the keys that were left out, or the limits of the model would not be put in
        self.sampler = check(Sampler, sampler, "grids.sampler")

    def check(self, learner: Learner, data: Any) -> None:
        """UserError if these samples cannot be drawn, before anything is trained."""
        self._pictures = pictures_of(self.decode, tuple(data.shape))
        if not drawable(self._pictures.shape):
            raise UserError(
                "grids needs grey or RGB images, (1 or 3, H, W), not "
                f"{tuple(data.shape)}: of latents grids.decode makes images"
            )
        check_generation("grids", learner, data, self.scales, self.sampler)

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if step % self.every == 0 and trainer.is_global_zero:
            figure = self.draw(learner, trainer.datamodule.data)
            show(figure, self.directory / f"grid_{step:06d}.png", "samples", trainer)

    @torch.no_grad()
    def draw(self, learner: Learner, data: Any) -> Any:
        """The contact sheet, a matplotlib Figure."""
        model, shape = learner.averaged(), tuple(data.shape)
        classes = max(1, min(data.num_classes, 10))
        c = torch.arange(classes).repeat_interleave(self.columns)
        limited, groups = within_limits(self.sampler, model), {}
        for scale in self.scales:
            seeds = [*range(self.columns)] * classes
            noise, _, draw = seeded(seeds, shape, classes, device=learner.device)
            denoise = classifier_free(model, scale=scale)
            *_, (_, x) = sample(limited, denoise, noise, c.to(learner.device), draw)
            x = x.float().cpu()
            groups[f"scale {scale:g}"] = self._pictures.first(x, c, self.columns, classes)
        return contact_sheet(groups, data.num_classes, columns=self.columns, names=data.class_names)


def check_generation(
    who: str, learner: Learner, data: Any, scales: list[float], sampler: dict
) -> None:
    """UserError, in the name of a section, if the model in training cannot generate like this."""
    model, shape = learner.model, tuple(data.shape)
    if data.has_sources or model.classifies:
        raise UserError(
            f"{who} needs a model that makes images of noise, not {type(model).__name__} "
            f"with learner {type(learner).__name__}"
        )
    for scale in scales:
        classifier_free(model, scale=scale)
    limited, noise = within_limits(sampler, model), torch.zeros(1, *shape)
    for _ in sample(limited, lambda x, sigma, c: x, noise, torch.zeros(1), lambda: noise):
        pass  # the sampler checks its own numbers


def show(figure: Any, path: Path, name: str, trainer: L.Trainer) -> None:
    """Write a figure, and hand it to the loggers that take images."""
    write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
