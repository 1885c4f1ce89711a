"""The DDPM++ and NCSN++ networks of Song et al. (2021) as Karras et al. (2022, EDM) use them.

Modules have the names of EDM's own networks, so that published weights fit: see `from_edm`.
"""

import math
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import AtLeast, Between, Depth, Filled, MultipleOf, Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.embedding import embedded, no_classes
from lightning_cfg.nets.layers import ChannelMult, Dropout

Tap = Annotated[int, Between(-1000, 1000)]  # of a filter that is divided by its sum
HALF = math.sqrt(0.5)  # the sum of two branches of equal variance times this keeps the variance


class SongUNet(nn.Module):
    """The UNet of Song et al. (2021, app. H) in the form of Karras et al. (2022, app. F).

    The defaults are EDM's DDPM++ for CIFAR-10; with 10 classes and augment_dim = 9 it has
    55,735,299 parameters. EDM's NCSN++ is embedding = "fourier", encoder = "residual",
    resample_filter = (1, 3, 3, 1).

    channels               of the first convolution; a multiple of 4
    channel_mult           level i works at 1 / 2^i of the resolution, channels * channel_mult[i]
    blocks                 residual blocks per level on the way down, one more on the way up
    attention_resolutions  levels, by their H, with self-attention (one head); the middle of the
                           network always has it
    dropout                in every residual block
    augment_dim            augmentation labels per sample, 9 with data.augment.AugmentPipe; 0: none
    encoder                "residual" adds the image, downsampled, to every lower level
    embedding              of the noise level: "positional" sines and cosines of fixed geometric
                           frequencies, or "fourier" ones of twice as many random frequencies
    resample_filter        separable filter of halving and doubling, of even length

    A class enters as a one-hot row through a linear layer; NULL = -1 is the row of zeros and costs
    no parameter. num_classes = 0: no such layer. The last convolutions of the residual branches,
    of attention and of the network start at 1e-5 of the usual scale.

    shape (C, H, H), H divisible by 2^(levels - 1). UserError for a shape or setting that cannot be.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[Width, MultipleOf(4)] = 128,
        channel_mult: ChannelMult = (2, 2, 2),
        blocks: Depth = 4,
        attention_resolutions: tuple[Annotated[int, AtLeast(1)], ...] = (16,),
        dropout: Dropout = 0.13,
        augment_dim: Annotated[int, Between(0, 16_384)] = 0,
        encoder: Literal["standard", "residual"] = "standard",
        embedding: Literal["positional", "fourier"] = "positional",
        resample_filter: Annotated[tuple[Tap, ...], Filled] = (1, 1),
    ):
        super().__init__()
        check_sizes(shape, channels, channel_mult, blocks, augment_dim)
        sizes = [shape[-1] >> level for level in range(len(channel_mult))]
        check_options(sizes, attention_resolutions, dropout, resample_filter)
        self.num_classes, self.augment_dim = num_classes, augment_dim

        mapped = 2 * channels if embedding == "fourier" else channels
        width = 4 * channels
        self.map_noise = (Fourier if embedding == "fourier" else Positional)(mapped)
        self.map_label = linear(num_classes, mapped) if num_classes else None
        self.map_augment = linear(augment_dim, mapped, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = linear(mapped, width), linear(width, width)

        block = partial(Block, width=width, dropout=dropout, taps=resample_filter)

        widths = [channels * mult for mult in channel_mult]
        levels = [(f"{n}x{n}", n, after) for n, after in zip(sizes, widths, strict=True)]
        self.enc = nn.ModuleDict({f"{levels[0][0]}_conv": Conv(shape[0], channels, 3)})
        skips, image = [channels], shape[0]
        for name, size, after in levels:
            if size < sizes[0]:
                self.enc[f"{name}_down"] = block(skips[-1], skips[-1], resample="down")
                if encoder == "residual":
                    aux = ResidualDown(image, skips[-1], resample_filter)
                    self.enc[f"{name}_aux_residual"], image = aux, skips[-1]
                skips.append(skips[-1])
            for i in range(blocks):
                attention = size in attention_resolutions
                self.enc[f"{name}_block{i}"] = block(skips[-1], after, attention=attention)
                skips.append(after)

        self.dec, before = nn.ModuleDict(), skips[-1]
        for name, size, after in reversed(levels):
            if size == sizes[-1]:
                self.dec[f"{name}_in0"] = block(before, before, attention=True)
                self.dec[f"{name}_in1"] = block(before, before)
            else:
                self.dec[f"{name}_up"] = block(before, before, resample="up")
            for i in range(blocks + 1):
                attention = i == blocks and size in attention_resolutions
                wide = before + skips.pop()
                self.dec[f"{name}_block{i}"] = block(wide, after, attention=attention)
                before = after
        self.dec[f"{levels[0][0]}_aux_norm"] = group_norm(before)
        self.dec[f"{levels[0][0]}_aux_conv"] = Conv(before, shape[0], 3, gain=1e-5)

    def forward(
        self, x: Tensor, noise: Tensor, c: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """x (B, C, H, H), noise (B,) in about [-2, 2] -> (B, C, H, H).

        c (B,) long, NULL = -1 (None: all NULL); augment (B, augment_dim), 0 where nothing was done
        (None: nowhere). UserError for labels that the network has no place for.
        """
        embedding = self.embed(noise.to(x.dtype), c, augment)  # (B, 4 channels)

        h = image = x
        skips = []
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                h = image = skips[-1] = (h + layer(image)) * HALF
            else:
                h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
                skips.append(h)

        *blocks, (_, norm), (_, leave) = self.dec.items()
        for name, block in blocks:
            h = torch.cat([h, skips.pop()], dim=1) if "_block" in name else h
            h = block(h, embedding)
        return leave(F.silu(norm(h)))

    def class_vectors(self, c: Tensor) -> Tensor:
        """Embeddings (B, mapped) of classes (B,), which `forward` also takes in their place."""
        if self.map_label is None:
            raise no_classes(self)
        one_hot = c[:, None] == torch.arange(self.num_classes, device=c.device)  # NULL: zeros
        # times sqrt(classes): then the row has variance 1, as other inputs of a layer
        weight = self.map_label.weight
        return self.map_label(one_hot.to(weight) * math.sqrt(self.num_classes))

    def embed(self, noise: Tensor, c: Tensor | None, augment: Tensor | None) -> Tensor:
        embedding = self.map_noise(noise)
        if self.map_label is not None:
            embedding = embedding + embedded(c, noise, self.class_vectors)
        if augment is not None and augment.shape != (len(noise), self.augment_dim):
            raise UserError(
                f"SongUNet: augmentation labels of shape {tuple(augment.shape)} for a batch of "
                f"{len(noise)} and net.augment_dim {self.augment_dim}"
            )
        if self.map_augment is not None:
            # zeros rather than nothing, so that the layer is always used (DDP wants that)
            augment = noise.new_zeros(len(noise), self.augment_dim) if augment is None else augment
            embedding = embedding + self.map_augment(augment.to(noise))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))


class Block(nn.Module):
    """Residual block: twice group norm, SiLU and convolution, then attention if asked for.

    h = sqrt(1/2) (skip(x) + conv1(dropout(silu(norm1(conv0(silu(norm0(x))) + affine(embedding))))))
    and with attention h <- sqrt(1/2) (h + proj(softmax(q k^T / sqrt(C)) v)), q, k, v of norm2(h).
    x (B, before, H, W), embedding (B, width) -> (B, after, ...), H and W halved or doubled by
    resample "down" or "up".
    """

    def __init__(
        self,
        before: int,
        after: int,
        width: int,
        dropout: float,
        taps: tuple[int, ...],
        *,
        resample: str = "",
        attention: bool = False,
    ):
        super().__init__()
        self.norm0 = group_norm(before)
        self.conv0 = Conv(before, after, 3, resample=resample, taps=taps)
        self.affine = linear(width, after)
        self.norm1 = group_norm(after)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Conv(after, after, 3, gain=1e-5)
        same = before == after and not resample
        self.skip = nn.Identity() if same else Conv(before, after, 1, resample=resample, taps=taps)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(after)
            self.qkv = Conv(after, 3 * after, 1, gain=math.sqrt(0.2))
            self.proj = Conv(after, after, 1, gain=1e-5)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = (self.skip(x) + self.conv1(self.dropout(h))) * HALF
        return (h + self.attend(h)) * HALF if self.attention else h

    def attend(self, h: Tensor) -> Tensor:
        # EDM's order of the 3 C channels: q, k and v of the first channel, of the second, ...
        qkv = self.qkv(self.norm2(h)).reshape(len(h), 1, h.shape[1], 3, -1)  # (B, 1, C, 3, H W)
        q, k, v = (part.mT for part in qkv.unbind(3))  # (B, 1, H W, C)
        if h.is_cuda:  # whose fast kernels want the numbers of each position side by side
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return self.proj(F.scaled_dot_product_attention(q, k, v).mT.reshape(h.shape))


class Conv(nn.Conv2d):
    """Convolution with EDM's initialisation, behind a halving or doubling of H and W if asked for.

    Weights are uniform with Glorot & Bengio's (2010) variance times gain^2, biases zero.
    """

    resample_filter: Tensor

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        *,
        gain: float = 1.0,
        resample: str = "",
        taps: tuple[int, ...] = (),
    ):
        super().__init__(before, after, kernel, padding=kernel // 2)
        nn.init.xavier_uniform_(self.weight, gain)
        nn.init.zeros_(self.bias)
        self.resample = resample
        if resample:
            f = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (f.outer(f) / f.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.resample:
            n, f = x.shape[1], self.resample_filter
            f = f.expand(n, -1, -1, -1)
            pad = (f.shape[-1] - 1) // 2
            if self.resample == "down":
                x = F.conv2d(x, f, stride=2, padding=pad, groups=n)
            else:
                x = F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=n)
        return super().forward(x)


class ResidualDown(Conv):
    """3 x 3 convolution and then halving: the image's own way down in NCSN++'s encoder."""

    def __init__(self, before: int, after: int, taps: tuple[int, ...]):
        super().__init__(before, after, 3, resample="down", taps=taps)

    def forward(self, x: Tensor) -> Tensor:
        f = self.resample_filter.expand(self.out_channels, -1, -1, -1)
        # The border of the filter is convolved too, from zeros beyond the image.
        x = F.conv2d(x, self.weight, self.bias, padding=1 + (f.shape[-1] - 1) // 2)
        return F.conv2d(x, f, stride=2, groups=self.out_channels)


class Positional(nn.Module):
    """sin and cos of f noise, n / 2 geometric frequencies f from 1 to 1 / 10000; (B,) -> (B, n)."""

    frequencies: Tensor

    def __init__(self, n: int):
        super().__init__()
        frequencies = 10000.0 ** -torch.linspace(0, 1, n // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        phase = noise[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], 1)


class Fourier(nn.Module):
    """sin and cos of 2 pi f noise, n / 2 frequencies f ~ N(0, 16^2); noise (B,) -> (B, n)."""

    freqs: Tensor

    def __init__(self, n: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(n // 2))

    def forward(self, noise: Tensor) -> Tensor:
        phase = 2 * math.pi * noise[:, None] * self.freqs
        return torch.cat([phase.sin(), phase.cos()], 1)


def linear(before: int, after: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(before, after, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    if channels % groups:
        raise UserError(
            f"SongUNet: a layer of {channels} channels does not divide into {groups} groups; a "
            "multiple of 32 for net.channels always does"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def from_edm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a published EDM network under SongUNet's names: `model.` is taken away.

    Everything behind it is the same: model.enc.32x32_conv.weight -> enc.32x32_conv.weight.
    `net.load_state_dict(from_edm(safetensors.torch.load_file(path)))` is strict: settings that
    are not those of the weights are an error. UserError for a name that is not EDM's.

    `python -m lightning_cfg.adopt FILE.pkl` reads NVIDIA's pickles, which would run the code inside
    them if Python opened them.
    """
    foreign = [name for name in state if not name.startswith("model.")]
    if foreign or not state:
        raise UserError(
            "from_edm: the names of an EDM network begin with 'model.', got "
            + (f"'{foreign[0]}'" if foreign else "no weights at all")
        )
    return {name.removeprefix("model."): weight for name, weight in state.items()}


def check_sizes(
    shape: tuple[int, ...],
    channels: int,
    channel_mult: tuple[int, ...],
    blocks: int,
    augment_dim: int,
) -> None:
    if not channel_mult or min(channels, blocks, *channel_mult) < 1 or augment_dim < 0:
        raise UserError(
            "SongUNet: channels, channel_mult and blocks must be positive and augment_dim not "
            f"negative, got {channels}, {list(channel_mult)}, {blocks} and {augment_dim}"
        )
    if channels % 4:
        raise UserError(f"SongUNet: channels must be a multiple of 4, got {channels}")
    factor = 2 ** (len(channel_mult) - 1)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % factor:
        raise UserError(
            f"SongUNet: {len(channel_mult)} levels (channel_mult) need square images of shape "
            f"(C, H, H) with H divisible by {factor}, got {tuple(shape)}"
        )


def check_options(
    sizes: list[int],
    attention_resolutions: tuple[int, ...],
    dropout: float,
    resample_filter: tuple[int, ...],
) -> None:
    if not set(attention_resolutions) <= set(sizes):
        raise UserError(
            f"SongUNet: attention_resolutions must be among the levels' {sizes}, "
            f"got {list(attention_resolutions)}"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"SongUNet: dropout must be at least 0 and below 1, got {dropout}")
    if len(resample_filter) % 2 or sum(resample_filter) <= 0:
        raise UserError(
            "SongUNet: resample_filter must be of even length with a positive sum, such as "
            f"[1, 1] or [1, 3, 3, 1], got {list(resample_filter)}"
        )
