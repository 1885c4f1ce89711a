"""Small data sets and networks, found by dotted paths such as helpers.toys.Halves."""

import torch
from torch import Tensor, nn

from lightning_cfg.data.images import Images
from lightning_cfg.diffusion.draws import Draws, keyed

UNET = {"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1], "dropout": 0.3}


class Dropping(nn.Module):
    """A net with dropout, whose noise a resumed run has to repeat too."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, dropout: float = 0.3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(shape[0] + 2, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, shape[0])
        )

    def forward(self, x: Tensor, noise: Tensor, c: Tensor) -> Tensor:
        return self.body(torch.cat([x, noise[:, None], c[:, None].to(x)], 1))


class Dots:
    """Images of one bright pixel, its row the class; with `augment_dim` labels on request."""

    shape, num_classes, truth = (1, 8, 8), 2, None

    def __init__(self, *, augment_dim: int = 0, memory: bool = True, held_out: str | None = None):
        self.augment_dim = augment_dim

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        i = draws.permuted(16)
        y = -torch.ones(len(i), *self.shape)
        y[torch.arange(len(i)), 0, i % 2, i // 2] = 1.0
        batch = {"y": y, "c": i % 2}
        if self.augment_dim:
            batch["augment"] = draws.normal(self.augment_dim)
        return batch


class Halves(Images):
    """Noisy images, brighter in the left half (class 0) or in the right, 100 in either split."""

    shape, num_classes = (1, 8, 8), 2

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        c = torch.arange(100) % 2
        y = torch.randint(100, (100, *self.shape), generator=keyed("halves", train))
        bright = torch.arange(8) // 4 == c[:, None]
        return (y + 100 * bright[:, None, None, :]).to(torch.uint8), c
