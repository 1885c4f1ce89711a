"""A small classifier of clean images, and the feature space that comes with it."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.layers import group_norm


class ConvNet(nn.Module):
    """Classifier of clean images whose penultimate layer measures Frechet distances.

    Five convolutions on 2 x 2-pixel-unshuffled images, the mean over positions, 64 features, a
    linear head. The noise level and the class are accepted, as by every net, and ignored: this
    net judges finished images.

    shape (C, H, W), H and W even and at least 4, num_classes >= 2, otherwise UserError.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, channels: Width = 32):
        super().__init__()
        check("ConvNet", shape, num_classes)
        self.body = body(shape[0], channels)
        m = 2 * channels
        self.penultimate = nn.Linear(m, 64)
        self.head = nn.Linear(64, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer of clean x (B, *shape) in [-1, 1] -> (B, 64)."""
        return F.silu(self.penultimate(self.body(x).mean((2, 3))))

    def forward(self, x: Tensor, noise: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """Logits of clean x (B, *shape) -> (B, num_classes); `noise` and `c` are ignored."""
        return self.head(self.features(x))


def body(depth: int, channels: int) -> nn.Sequential:
    """Five convolutions: (B, depth, H, W) -> (B, 2 channels, H / 8, W / 8), rounded up."""
    n, m = channels, 2 * channels
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4 * depth, n, 3, padding=1), group_norm(n), nn.SiLU(),
        nn.Conv2d(n, n, 3, padding=1), group_norm(n), nn.SiLU(),
        nn.Conv2d(n, m, 3, padding=1, stride=2), group_norm(m), nn.SiLU(),
        nn.Conv2d(m, m, 3, padding=1), group_norm(m), nn.SiLU(),
        nn.Conv2d(m, m, 3, padding=1, stride=2), group_norm(m), nn.SiLU(),
    )  # fmt: skip


def check(net: str, shape: tuple[int, ...], num_classes: int) -> None:
    """UserError unless a classifier of these can begin with `body`."""
    if len(shape) != 3 or shape[1] % 2 or shape[2] % 2 or min(shape[1:]) < 4:
        raise UserError(
            f"{net}: needs images of shape (C, H, W) with even H and W of at least 4, "
            f"got {tuple(shape)}"
        )
    if num_classes < 2:
        raise UserError(f"{net}: a classifier needs 2 classes or more, got {num_classes}")
