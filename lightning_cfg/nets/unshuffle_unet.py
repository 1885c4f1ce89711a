"""A small UNet for images on few CPU cores: it works on 2 x 2 blocks of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import Depth, Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.embedding import ClassEmbedding, NoiseEmbedding, embedded, no_classes
from lightning_cfg.nets.layers import ChannelMult, Dropout, group_norm, zeroed


class Block(nn.Module):
    """Residual block: twice GroupNorm, SiLU and convolution, scaled and shifted by an embedding.

    x (B, channels_in, H, W), embedding (B, d) -> (B, channels_out, H, W)
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float):
        super().__init__()
        same = channels_in == channels_out
        self.enter = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.norm1 = group_norm(channels_out)
        self.conv1 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.enter(x)  # 1 x 1, so that concatenated skips cost no wide 3 x 3 convolution
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return x + self.conv2(self.dropout(F.silu(h)))


class UnshuffleUNet(nn.Module):
    """UNet on 2 x 2-pixel-unshuffled images: a quarter of the positions for a quarter of the time.

    Residual blocks as in Dhariwal & Nichol (2021, app. B), without attention, on pixel-unshuffled
    images (Shi et al. 2016); level i works at 1 / 2^(i + 1) of the resolution with
    channels * channel_mult[i] channels and `blocks` blocks on the way down and as many on the way
    up. The output layer starts at zero. 0.25 M parameters by default.

    shape (C, H, W) with H and W divisible by 2^len(channel_mult), otherwise UserError.
    num_classes + 1 class embeddings, the last one NULL's; num_classes = 0: none at all.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Width = 32,
        channel_mult: ChannelMult = (1, 2),
        blocks: Depth = 1,
        dropout: Dropout = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        widths = [channels * mult for mult in channel_mult]
        check(shape, widths, blocks)
        pixels, embedding = 4 * shape[0], 2 * channels

        self.noise = NoiseEmbedding(embedding)
        self.classes = ClassEmbedding(num_classes + 1, embedding) if num_classes else None
        self.mix = nn.Linear(embedding, embedding)

        self.enter = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before, skips = widths[0], []
        for i, width in enumerate(widths):
            level = nn.ModuleDict({"blocks": nn.ModuleList()})
            if i:
                level["resize"] = nn.Conv2d(before, before, 3, stride=2, padding=1)
            for _ in range(blocks):
                level["blocks"].append(Block(before, width, embedding, dropout))
                skips.append(width)
                before = width
            self.down.append(level)
        for width in reversed(widths):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(Block(before + skips.pop(), width, embedding, dropout))
                before = width
            self.up.append(level)
        self.norm = group_norm(before)
        self.leave = zeroed(nn.Conv2d(before, pixels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), noise (B,) in about [-2, 2], c (B,) long, NULL = -1 (None: all NULL)."""
        embedding = self.noise(noise.to(x.dtype))  # (B, 2 channels)
        if self.classes is not None:
            embedding = embedding + embedded(c, x, self.class_vectors)
        embedding = F.silu(self.mix(F.silu(embedding)))

        h = self.enter(F.pixel_unshuffle(x, 2))  # (B, channels, H/2, W/2)
        skips = []
        for level in self.down:
            h = level["resize"](h) if "resize" in level else h
            for block in level["blocks"]:
                h = block(h, embedding)
                skips.append(h)
        for i, level in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if i else h
            for block in level:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.leave(F.silu(self.norm(h)))  # (B, 4 C, H/2, W/2)
        return F.pixel_shuffle(h, 2)  # (B, C, H, W)

    def class_vectors(self, c: Tensor) -> Tensor:
        """Embeddings (B, 2 channels) of classes (B,), which `forward` also takes in their place."""
        if self.classes is None:
            raise no_classes(self)
        return self.classes(c)


def check(shape: tuple[int, ...], widths: list[int], blocks: int) -> None:
    if not widths or min(widths) < 1 or blocks < 1:
        raise UserError(
            "UnshuffleUNet: channels, channel_mult and blocks must be positive, "
            f"got widths {widths} and blocks {blocks}"
        )
    factor = 2 ** len(widths)
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        raise UserError(
            f"UnshuffleUNet: {len(widths)} levels (channel_mult) need images of shape (C, H, W) "
            f"with H and W divisible by {factor}, got {tuple(shape)}"
        )
