"""A small AutoencoderKL trained by `fit`, and the folder of diffusers that `decode` reads.

PYTHONPATH=docs/results/latents python -m lightning_cfg.fit --config docs/results/latents/vae.yaml
PYTHONPATH=docs/results/latents python docs/results/latents/vae.py RUN FOLDER
"""

import sys
from typing import Annotated

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lightning_cfg.config import Positive
from lightning_cfg.config.trust import trust
from lightning_cfg.data import LatentZip
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.interfaces import Model
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.tensors import save_tensors

SCALE = [0.3486, 0.3407, 0.2912, 0.4091]  # as `encode` has printed them
BIAS = [0.04655, -0.006771, 0.08203, 0.05479]


class Net(nn.Module):
    """AutoencoderKL of images to latents of a quarter of their side and four channels."""

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.vae = AutoencoderKL(
            in_channels=shape[0],
            out_channels=shape[0],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[32, 48, 64],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=shape[1],
        )

    def forward(self, x: Tensor, noise: Tensor, c: Tensor) -> Tensor:
        """Images of their mean latents."""
        return self.vae.decode(self.vae.encode(x).latent_dist.mean).sample


class Autoencoder(Model):
    """-log p(x | z) - log p(z) + log q(z | x), z ~ q: pixels in [0, 1], Gaussian about the decoded.

    deviation  of that Gaussian: the smaller, the more the latents say
    """

    def __init__(self, net: Net, *, deviation: Annotated[float, Positive] = 0.03):
        super().__init__()
        self.net, self.deviation = net, deviation

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return self.net(x, sigma, c)

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """Of each image, nats a pixel (B,)."""
        x = (y + 1) / 2
        q = self.net.vae.encode(x).latent_dist
        z = q.mean + q.std * draws.normal(*q.mean.shape[1:]).to(q.mean)
        error = (self.net.vae.decode(z).sample - x).square().flatten(1).sum(1)
        return (error / (2 * self.deviation**2) + q.kl()) / x[0].numel()


def export(run: str, folder: str) -> None:
    """The averaged network of a run as diffusers keeps it."""
    trust(["vae"])
    restore(run).net.vae.save_pretrained(folder, safe_serialization=True)


def draw(run: str, file: str, per_class: int = 200) -> None:
    """Latents of real images as samples: no model of them can do better than their images."""
    x, c = LatentZip(path=run, scale=SCALE, bias=BIAS).real("bank", per_class)
    save_tensors(file, x=x, c=c, seed=torch.arange(len(x)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"export": export, "draw": draw}[sys.argv[1]](*sys.argv[2:])
