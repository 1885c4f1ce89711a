"""The UNet of Dhariwal & Nichol (2021), and its encoder half as a classifier of noisy images.

Parameters carry the names of their published code (`guided_diffusion.unet`, there `UNetModel` and
`EncoderUNetModel`), so a state dict of theirs loads as it is: `time_embed`, `label_emb`,
`input_blocks`, `middle_block`, `output_blocks`, `out`. One that was made with
`use_new_attention_order` has the same names and other rows of `qkv`: `weights.adm` reorders them.
With a null class `label_emb` has one more row, the last one.

Their embedding of time takes timesteps from 0 to 1000: it is given 1000 * noise.
"""

from collections import OrderedDict
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import AtLeast, Depth, MultipleOf, Width
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets.embedding import (
    ClassEmbedding,
    TimeScale,
    embedded,
    no_classes,
    timesteps,
)
from lightning_cfg.nets.layers import ChannelMult, Dropout, zeroed

GROUPS = 32  # of every normalisation


class ResBlock(nn.Module):
    """skip(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + linear(SiLU(embedding))))).

    scale_shift  the embedding gives a scale and a shift of the second norm: norm(.) (1 + s) + t
    resample     "down" halves both x and what the first convolution sees, by means of 2 x 2, "up"
                 repeats their pixels
    x (B, channels_in, H, W), embedding (B, d) -> (B, channels_out, H, W)
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        dropout: float,
        *,
        scale_shift: bool = False,
        resample: str = "",
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels_in),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
        )
        told = 2 * channels_out if scale_shift else channels_out
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, told))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels_out),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1)),
        )
        same = channels_in == channels_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        *norm, conv = self.in_layers
        h = x
        for layer in norm:
            h = layer(h)
        x, h = resampled(x, self.resample), conv(resampled(h, self.resample))
        told = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            norm, *rest = self.out_layers
            scale, shift = told.chunk(2, 1)
            h = norm(h) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(x) + h


def resampled(x: Tensor, way: str) -> Tensor:
    """x (B, C, H, W) halved by means ("down"), doubled by repetition ("up"), or as it is ("")."""
    if way == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if way else x


class AttentionBlock(nn.Module):
    """Self-attention among the positions of x (B, C, H, W), and x added."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).mT  # (B, HW, C)
        # 1 x 1 convolutions are linear layers: so each position's numbers lie together, as the
        # fast kernels of attention want them
        qkv = F.linear(h, self.qkv.weight[..., 0], self.qkv.bias)  # (B, HW, 3 C)
        # the output channels are q, k, v of the first head, then of the second, ...
        q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, C / heads)
        h = h.transpose(1, 2).flatten(2)  # (B, HW, C)
        h = F.linear(h, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + h.mT.unflatten(2, x.shape[2:])


class AttentionPool(nn.Module):
    """Attention of the positions' mean to all positions, as in CLIP (Radford et al. 2021)."""

    def __init__(self, channels: int, positions: int, heads: int, outputs: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(
            torch.randn(channels, positions + 1) / channels**0.5
        )
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def pool(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C)."""
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.positional_embedding  # (B, C, HW + 1)
        # unlike in AttentionBlock: q of all heads, then k of all, then v
        q, k, v = self.qkv_proj(x).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        return F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, outputs)."""
        return self.c_proj(self.pool(x)[..., None])[..., 0]


class Layers(nn.Sequential):
    """One layer after the other; residual blocks are told the embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
        return h


class DownPath(nn.Module):
    """What the UNet and the encoder share: the embedding of time, the way down, the middle.

    The parameters are those of ADMUNet. `widths` are the channels per level, `heads` those of
    attention per level, 0 for none; the last entry is the middle's. `block` makes a residual block
    of (channels in, channels out).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int,
        blocks: int,
        channel_mult: tuple[int, ...],
        attention_resolutions: tuple[int, ...],
        num_heads: int,
        head_channels: int | None,
        dropout: float,
        scale_shift: bool,
        residual_resampling: bool,
        time_scale: float,
        time_channels: int | None,
    ):
        super().__init__()
        self.check(shape, channels, blocks, channel_mult, num_heads, head_channels, dropout)
        self.widths = widths = [channels * mult for mult in channel_mult]
        self.heads = heads = self.heads_of(attention_resolutions, num_heads, head_channels)
        self.time_scale, self.time_channels = time_scale, time_channels or channels
        if self.time_channels % 2:
            raise UserError(
                f"{type(self).__name__}: time_channels must be even, got {time_channels}"
            )
        self.residual_resampling, self.embedding = residual_resampling, 4 * self.time_channels
        self.time_embed = nn.Sequential(
            nn.Linear(self.time_channels, self.embedding),
            nn.SiLU(),
            nn.Linear(self.embedding, self.embedding),
        )
        self.block = partial(
            ResBlock, embedding=self.embedding, dropout=dropout, scale_shift=scale_shift
        )
        before = widths[0]
        self.input_blocks = nn.ModuleList([Layers(nn.Conv2d(shape[0], before, 3, padding=1))])
        self.skips = [before]  # channels of what each of them gives
        for i, width in enumerate(widths):
            if i:
                self.input_blocks.append(Layers(self.halving(before)))
                self.skips.append(before)
            for _ in range(blocks):
                layers = self.res_attention(before, width, heads[i])
                self.input_blocks.append(Layers(*layers))
                self.skips.append(width)
                before = width
        self.middle_block = Layers(
            *self.res_attention(before, before, heads[-1]), self.block(before, before)
        )

    def res_attention(self, channels_in: int, channels_out: int, heads: int) -> list[nn.Module]:
        """A residual block, and attention after it if there are heads for it."""
        block = self.block(channels_in, channels_out)
        return [block, AttentionBlock(channels_out, heads)] if heads else [block]

    def halving(self, channels: int) -> nn.Module:
        if self.residual_resampling:
            return self.block(channels, channels, resample="down")
        op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        return nn.Sequential(OrderedDict(op=op))

    def doubling(self, channels: int) -> nn.Module:
        if self.residual_resampling:
            return self.block(channels, channels, resample="up")
        repeat = nn.Upsample(scale_factor=2.0, mode="nearest")
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        return nn.Sequential(OrderedDict(repeat=repeat, conv=conv))

    def check(
        self,
        shape: tuple[int, ...],
        channels: int,
        blocks: int,
        channel_mult: tuple[int, ...],
        num_heads: int,
        head_channels: int | None,
        dropout: float,
    ) -> None:
        """UserError for numbers of which there is no such network."""
        net, numbers = type(self).__name__, [channels, blocks, num_heads, *channel_mult]
        numbers += [] if head_channels is None else [head_channels]
        if not channel_mult or min(numbers) < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"{net}: channels, blocks, channel_mult and heads must be positive and dropout in "
                f"[0, 1), got channels {channels}, blocks {blocks}, channel_mult "
                f"{list(channel_mult)}, num_heads {num_heads}, head_channels {head_channels}, "
                f"dropout {dropout}"
            )
        if channels % GROUPS:
            raise UserError(
                f"{net}: channels must be divisible by {GROUPS}, the groups of its normalisation, "
                f"got {channels}"
            )
        factor = 2 ** (len(channel_mult) - 1)
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise UserError(
                f"{net}: {len(channel_mult)} levels (channel_mult) need images of shape (C, H, W) "
                f"with H and W divisible by {factor}, got {tuple(shape)}"
            )

    def heads_of(
        self, attention_resolutions: tuple[int, ...], num_heads: int, head_channels: int | None
    ) -> list[int]:
        """Heads of attention per level, 0: none, and of the middle, which always has some."""
        net, factors = type(self).__name__, [2**i for i in range(len(self.widths))]
        for factor in attention_resolutions:
            if factor not in factors:
                raise UserError(
                    f"{net}: attention_resolutions are factors of downsampling, not pixels, here "
                    f"among {', '.join(map(str, factors))}; no level has {factor}"
                )
        name = "num_heads" if head_channels is None else "head_channels"
        by = num_heads if head_channels is None else head_channels
        attends = [*(factor in attention_resolutions for factor in factors), True]
        heads = []
        for width, here in zip([*self.widths, self.widths[-1]], attends, strict=True):
            if here and width % by:
                raise UserError(
                    f"{net}: {name} {by} does not divide {width} channels with attention"
                )
            heads.append(0 if not here else num_heads if head_channels is None else width // by)
        return heads

    def embed(self, noise: Tensor, x: Tensor) -> Tensor:
        """noise (B,), dimensionless -> (B, 4 channels) in the dtype of x."""
        told = timesteps(self.time_scale * noise.float(), self.time_channels // 2)
        return self.time_embed(told.to(x.dtype))

    def descend(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W) -> the middle's answer (B, C', H', W'), and what each input block gave."""
        h, outputs = x, []
        for block in self.input_blocks:
            h = block(h, embedding)
            outputs.append(h)
        return self.middle_block(h, embedding), outputs


class ADMUNet(DownPath):
    """The UNet of Dhariwal & Nichol (2021).

    Level i works at 1 / 2^i of the resolution with channels * channel_mult[i] channels; halving is
    a strided convolution, doubling repeats pixels and convolves. The middle always has attention.
    Theirs for ImageNet has scale_shift, residual_resampling and learned_variance.
    The last layer of every block and the output start at zero. As Zhao & Schwing (2025) count
    parameters (10 classes, no null class): MNIST blocks = 2, channel_mult = (1, 2), no
    attention_resolutions: 14,612,993; CIFAR-10 as the defaults: 35,751,427; blocks = 4: 58,692,867.

    channels               of the first level; where a level has 32, every channel is a group of its
                           own, and the normalisation removes what a block is told of time and class
    blocks                 residual blocks per level on the way down; one more on the way up
    attention_resolutions  the factors 2^i of the levels with attention, not their pixels
    num_heads              heads of attention where head_channels is not given
    head_channels          channels per head, as many heads as that makes
    null_class             one more embedding for NULL, which label dropout and classifier-free
                           guidance need; False: as published, and NULL is a UserError
    scale_shift            time and class scale and shift the second norm of every block; False:
                           they are added before it
    residual_resampling    halving and doubling are residual blocks, with means and repeated pixels
    learned_variance       as many output channels again, for the variance of a DDPM's step, which
                           are not part of the answer
    time_scale             the embedding of time is of time_scale * noise
    time_channels          of that embedding's first layer; null: channels

    shape (C, H, W) with H and W divisible by 2^(levels - 1), channels by 32, and the channels of
    levels with attention by their heads, otherwise UserError. num_classes = 0: no class part.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[Width, MultipleOf(GROUPS)] = 128,
        blocks: Depth = 2,
        channel_mult: ChannelMult = (1, 2, 2, 2),
        attention_resolutions: tuple[Annotated[int, AtLeast(1)], ...] = (2,),
        num_heads: Width = 4,
        head_channels: Width | None = None,
        dropout: Dropout = 0.1,
        null_class: bool = True,
        scale_shift: bool = False,
        residual_resampling: bool = False,
        learned_variance: bool = False,
        time_scale: TimeScale = 1000.0,
        time_channels: Width | None = None,
    ):
        super().__init__(
            shape, channels=channels, blocks=blocks, channel_mult=channel_mult,
            attention_resolutions=attention_resolutions, num_heads=num_heads,
            head_channels=head_channels, dropout=dropout, scale_shift=scale_shift,
            residual_resampling=residual_resampling, time_scale=time_scale,
            time_channels=time_channels,
        )  # fmt: skip
        widths, heads = self.widths, self.heads
        self.null_class, self.learned_variance = null_class, learned_variance
        classes = num_classes + null_class
        self.label_emb = ClassEmbedding(classes, self.embedding) if num_classes else None
        self.output_blocks = nn.ModuleList()
        skips, before = list(self.skips), widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            for j in range(blocks + 1):
                layers = self.res_attention(before + skips.pop(), width, heads[i])
                if i and j == blocks:
                    layers.append(self.doubling(width))
                self.output_blocks.append(Layers(*layers))
                before = width
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, before),
            nn.SiLU(),
            zeroed(nn.Conv2d(before, shape[0] * (1 + learned_variance), 3, padding=1)),
        )

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), noise (B,) in about [-2, 2], c (B,) long, NULL = -1 (None: all NULL)."""
        embedding = self.embed(noise, x)  # (B, 4 channels)
        if self.label_emb is not None:
            embedding = embedding + embedded(c, x, self.class_vectors)
        h, skips = self.descend(x, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), embedding)
        out = self.out(h)  # (B, C, H, W), or twice as many channels
        return out[:, : x.shape[1]] if self.learned_variance else out

    def class_vectors(self, c: Tensor) -> Tensor:
        """Embeddings (B, 4 channels) of classes (B,), which `forward` also takes in their place."""
        if self.label_emb is None:
            raise no_classes(self)
        if not self.null_class and (c == NULL).any():
            raise UserError(
                "ADMUNet: null_class=false has no embedding for 'no class' (NULL), which "
                "label_dropout and guidance without a class need; set net.null_class=true"
            )
        return self.label_emb(c)


class ADMEncoder(DownPath):
    """The UNet's way down and its middle as a classifier of noisy images, p(c | x; noise).

    As the classifiers of Dhariwal & Nichol (2021, sec. 4), but with the blocks of ADMUNet.

    pool  "attention": of the mean to all positions; "adaptive": the mean over positions
    attention_resolutions, num_heads, head_channels  as of ADMUNet, the attention pool's heads too
    scale_shift, residual_resampling, time_scale, time_channels  as of ADMUNet
    UserError as there, and for fewer than 2 classes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[Width, MultipleOf(GROUPS)] = 128,
        blocks: Depth = 2,
        channel_mult: ChannelMult = (1, 2, 2, 2),
        attention_resolutions: tuple[Annotated[int, AtLeast(1)], ...] = (2,),
        num_heads: Width = 4,
        head_channels: Width | None = None,
        dropout: Dropout = 0.0,
        pool: Literal["attention", "adaptive"] = "attention",
        scale_shift: bool = False,
        residual_resampling: bool = False,
        time_scale: TimeScale = 1000.0,
        time_channels: Width | None = None,
    ):
        super().__init__(
            shape, channels=channels, blocks=blocks, channel_mult=channel_mult,
            attention_resolutions=attention_resolutions, num_heads=num_heads,
            head_channels=head_channels, dropout=dropout, scale_shift=scale_shift,
            residual_resampling=residual_resampling, time_scale=time_scale,
            time_channels=time_channels,
        )  # fmt: skip
        if num_classes < 2:
            raise UserError(f"ADMEncoder: a classifier needs 2 classes or more, got {num_classes}")
        self.pool, width = pool, self.widths[-1]
        positions = shape[1] * shape[2] // 4 ** (len(self.widths) - 1)
        if pool == "attention":
            head = [AttentionPool(width, positions, self.heads[-1], num_classes)]
        else:
            logits = zeroed(nn.Conv2d(width, num_classes, 1))
            head = [nn.AdaptiveAvgPool2d(1), logits, nn.Flatten()]
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), *head)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits of x (B, *shape) at noise (B,) -> (B, num_classes); `c` is ignored."""
        h, _ = self.descend(x, self.embed(noise, x))
        return self.out(h)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees of clean x (B, *shape), at noise 0 -> (B, channels)."""
        h, _ = self.descend(x, self.embed(x.new_zeros(len(x)), x))
        h = self.out[:2](h)
        return self.out[2].pool(h) if self.pool == "attention" else h.mean((2, 3))
