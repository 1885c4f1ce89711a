"""A decoder without weights, a folder of a VAE, and zips of latents."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

REFERENCE = Path(__file__).parents[1] / "reference/edm2/edm2_vae.safetensors"
TOY = {"name": "helpers.latents.Toy"}


class Toy(nn.Module):
    """Latents (4, h, w) to images twice as large: of each 2 x 2 pixels the first three channels.

    Its bytes round; encode gives back means of 2 x 2 pixels, with a deviation of 0.25.
    """

    channels = 4

    def __init__(self, *, gain: float = 1.0):
        super().__init__()
        self.gain, self.most = gain, 0  # most: latents that it was given at once

    def decode(self, z: Tensor) -> Tensor:
        self.most = max(self.most, len(z))
        return self.gain * z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)

    def encode(self, y: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(y.float() / 127.5 - 1, 2)
        mean = torch.cat([mean, mean[:, :1]], 1)
        return torch.cat([mean, torch.full_like(mean, 0.25)], 1)


class OnlyDecodes(nn.Module):
    """No channels, no shape, no bytes, no encode: all as a contract has them."""

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :1].expand(-1, 3, -1, -1)


def reference() -> tuple[dict[str, Tensor], dict]:
    """The tensors of EDM2's own VAE code, and the config of its tiny AutoencoderKL."""
    with safe_open(REFERENCE, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}
        return held, json.loads(file.metadata()["config"])


def vae_folder(folder: Path, **config: object) -> Path:
    """That network as diffusers keeps it."""
    held, known = reference()
    weights = {k.removeprefix("weights/"): v for k, v in held.items() if k.startswith("weights/")}
    folder.mkdir()
    known = {"_class_name": "AutoencoderKL", **known, **config}
    (folder / "config.json").write_text(json.dumps(known))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def latent_zip(path: Path, raw: Tensor, labels: list[int] | None, *, listed: bool = True) -> Path:
    """Raw latents (n, 2 c, h, w) as EDM2's dataset_tool.py writes them."""
    with zipfile.ZipFile(path, "w") as file:
        names = [f"{i // 1000:05d}/img-mean-std-{i:08d}.npy" for i in range(len(raw))]
        for name, latent in zip(names, raw, strict=True):
            content = io.BytesIO()
            np.save(content, latent.numpy())
            file.writestr(name, content.getvalue())
        told = None if labels is None else list(zip(names, labels, strict=True))
        if listed:
            file.writestr("dataset.json", json.dumps({"labels": told}))
    return path
