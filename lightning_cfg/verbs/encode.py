"""`encode`: images become a zip of latents, as EDM2's dataset_tool.py writes it."""

import io
import json
import zipfile
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, Data, Decode, Free
from lightning_cfg.data.build import build_data
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import SampleSet, real_set
from lightning_cfg.latents.decoder import Decoder, build_decoder, encoded
from lightning_cfg.runs.files import write
from lightning_cfg.runs.names import LATENTS
from lightning_cfg.runs.pngs import drawable, quantised
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.sampling.prepared import pick_device


@verb(one_process=True)
def encode(
    run: Run,
    /,
    *,
    data: Data,
    decode: Decode,
    run_dir: str,
    split: Literal["bank", "held_out"] = "bank",
    batch_size: Annotated[int, AtLeast(1), Free] = 256,
    device: Annotated[str, Free] = "auto",
    force: bool = False,
) -> Path:
    """Encode images by a VAE; the run holds latents/latents.zip, which data LatentZip reads.

    The zip is stored and has img-mean-std-00000000.npy and so on, mean then deviation of each
    image's latents, in folders of 1,000, and dataset.json, with the classes' names if they have
    any. No augmentation is done. Printed, and
    in the manifest, are `scale` and `bias` by which latents of these images have mean 0 and
    deviation 0.5.

    data     images, such as ImageZip, ImageFolder, CIFAR10
    decode   the VAE, as it is to decode the latents later
    split    bank, the images to train on, or held_out
    force    does a finished run again
    """
    if run.finished_already():
        return run.directory
    decoder = build_decoder(decode).to(pick_device(device))
    data_set = build_data(data)
    if not drawable(tuple(data_set.shape)) or data_set.shape[0] != 3:
        raise UserError(f"encode needs RGB images, (3, H, W), and data have {data_set.shape}")
    images = real_set(data_set, split, None, in_order=True)
    first = encoded(decoder, quantised(next(images.batches(1))[0]))
    run.check_room(4.0 * len(images) * prod(first.shape))
    run.begin()
    sums = Sums(first.shape[1] // 2)
    labelled, names = data_set.num_classes > 0, data_set.class_names

    def save(temporary: Path) -> None:
        labels = _save(temporary, images, decoder, batch_size, sums)
        told = {"labels": labels if labelled else None}
        told |= {} if names is None else {"class_names": names}
        with zipfile.ZipFile(temporary, "a") as file:
            file.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(told))

    out, (scale, bias) = write(run.directory / LATENTS, save), sums.normalising()
    shape = [first.shape[1] // 2, *first.shape[2:]]
    run.finish(out, n=len(images), shape=shape, scale=scale, bias=bias)
    run.say(f"{len(images)} images, latents {shape}; mean 0 and deviation 0.5 with")
    run.say(f"scale: {_rounded(scale)}, bias: {_rounded(bias)}")
    return run.directory


def _save(
    path: Path, images: SampleSet, decoder: Decoder, rows: int, sums: "Sums"
) -> list[tuple[str, int]]:
    """The zip, a batch of images at a time; each file and its class."""
    with zipfile.ZipFile(path, "w") as file, progress(len(images), " images", shown=True) as bar:
        labels: list[tuple[str, int]] = []
        for y, c in images.batches(rows):
            raw = encoded(decoder, quantised(y))
            sums.add(raw)
            for latent, label in zip(raw, c.tolist(), strict=True):
                i = len(labels)
                name = f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
                file.writestr(zipfile.ZipInfo(name), _npy(latent))  # no date: the same every time
                labels.append((name, label))
            bar.update(len(y))
    return labels


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _npy(x: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, x.numpy(), allow_pickle=False)
    return file.getvalue()


class Sums:
    """Mean and deviation of drawn latents by channel, from those of their posteriors."""

    def __init__(self, channels: int):
        self.n, self.sums = 0, torch.zeros(2, channels, dtype=torch.float64)

    def add(self, raw: Tensor) -> None:
        """Raw latents (n, 2 c, h, w): E z^2 is mean^2 + deviation^2."""
        mean, std = raw.double().chunk(2, 1)
        self.n += mean[:, 0].numel()
        self.sums += torch.stack([mean.sum((0, 2, 3)), (mean**2 + std**2).sum((0, 2, 3))])

    def normalising(self) -> tuple[list[float], list[float]]:
        """scale and bias by which they have mean 0 and deviation 0.5."""
        mean, square = self.sums / self.n
        scale = 0.5 / (square - mean**2).sqrt()
        return scale.tolist(), (-mean * scale).tolist()
