"""The magnitude-preserving UNet of Karras et al. (2024, EDM2), written from its equations.

Modules have the names of EDM2's own networks, so that published weights fit: see `from_edm2`.
"""

from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import AtLeast, Between, Depth, Filled, Positive, Width
from lightning_cfg.diffusion.magnitude import (
    MPFourier,
    MPLayer,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
)
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets.embedding import embedded, no_classes
from lightning_cfg.nets.layers import ChannelMult, Dropout

Tap = Annotated[int, Between(-1000, 1000)]  # of a filter that is divided by its sum
# the share of the second of two that are added; at 0 or 1 one of them would be without effect
Balance = Annotated[float, Between(0, 1, above=True, below=True)]


class EDM2UNet(nn.Module):
    """The UNet of Karras et al. (2024, app. B.1, config G), without biases and group norms.

    The defaults are EDM2-S for 64x64x4 latents of ImageNet: 280,212,709 parameters with 1000
    classes, and 128 more of `models.EDM2`'s uncertainty head. Other sizes differ in `channels`: XXS
    64, XS 128, M 256, L 320, XL 384, XXL 448; from M on dropout is 0.1.

    channels             level i works at 1 / 2^i of the resolution with channels * channel_mult[i]
    blocks               per level on the way down, one more on the way up
    attention            levels, by their H, with self-attention; the middle always has it
    channels_per_head    of attention; a level of C channels has C // channels_per_head heads
    noise_channels       Fourier features of the noise level; null: the first level's channels
    embedding_channels   of noise and class together; null: the widest level's
    label_balance        share of the class in the embedding; without classes not used
    res_balance, attention_balance   share of a residual branch, and of attention
    concat_balance       share of what comes from the way down, on the way up
    clip                 activations are clamped to +-clip after every block; null: as they are
    filter               separable filter of halving and doubling, of even length
    null_class           whether NULL was, or is to be, trained by label dropout; EDM2's own
                         networks were not

    The vector of a class is its column of the normalised label weight, and NULL = -1 is the vector
    of zeros; both add nothing to the parameters. shape (C, H, H), H divisible by 2^(levels - 1).
    UserError for a shape or setting that cannot be, or would be without effect.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Width = 192,
        channel_mult: ChannelMult = (1, 2, 3, 4),
        blocks: Depth = 3,
        attention: tuple[Annotated[int, AtLeast(1)], ...] = (16, 8),
        dropout: Dropout = 0.0,
        channels_per_head: Width = 64,
        noise_channels: Width | None = None,
        embedding_channels: Width | None = None,
        label_balance: Balance = 0.5,
        res_balance: Balance = 0.3,
        attention_balance: Balance = 0.3,
        concat_balance: Balance = 0.5,
        clip: Annotated[float, Positive] | None = 256.0,
        filter: Annotated[tuple[Tap, ...], Filled] = (1, 1),
        null_class: bool = False,
    ):
        super().__init__()
        check_shape(shape, len(channel_mult))
        sizes = [shape[-1] >> level for level in range(len(channel_mult))]
        widths = [channels * mult for mult in channel_mult]
        check_options(sizes, widths, attention, channels_per_head, filter)
        self.num_classes, self.null_class = num_classes, null_class
        self.label_balance, self.concat_balance = label_balance, concat_balance
        noise, width = noise_channels or widths[0], embedding_channels or max(widths)

        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier, self.emb_noise = MPFourier(noise), MPLayer(noise, width)
        self.emb_label = MPLayer(num_classes, width) if num_classes else None

        block = partial(
            Block,
            width=width,
            dropout=dropout,
            taps=filter,
            channels_per_head=channels_per_head,
            balances=(res_balance, attention_balance),
            clip=clip,
        )
        levels = [(f"{n}x{n}", n in attention, w) for n, w in zip(sizes, widths, strict=True)]
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        for name, attends, after in levels:
            if not skips:  # a channel of ones is in the place of biases
                self.enc[f"{name}_conv"] = MPLayer(shape[0] + 1, after, 3)
                skips.append(after)
            else:
                self.enc[f"{name}_down"] = block(skips[-1], skips[-1], down=True, resample="down")
                skips.append(skips[-1])
            for i in range(blocks):
                made = block(skips[-1], after, down=True, attention=attends)
                self.enc[f"{name}_block{i}"] = made
                skips.append(after)

        self.dec, before = nn.ModuleDict(), skips[-1]
        for name, attends, after in reversed(levels):
            if not self.dec:
                self.dec[f"{name}_in0"] = block(before, before, attention=True)
                self.dec[f"{name}_in1"] = block(before, before)
            else:
                self.dec[f"{name}_up"] = block(before, before, resample="up")
            for i in range(blocks + 1):
                wide = before + skips.pop()
                self.dec[f"{name}_block{i}"] = block(wide, after, attention=attends)
                before = after
        self.out_conv = MPLayer(before, shape[0], 3)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, C, H, H), noise (B,) = ln(sigma) / 4, c (B,) long -> (B, C, H, H).

        c  NULL = -1 (None: all NULL) is the vector of zeros; vectors (B, d) stand for themselves
        """
        embedding = self.embed(noise, c).to(x.dtype)
        h, skips = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for layer in self.enc.values():
            h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for name, layer in self.dec.items():
            h = mp_cat(h, skips.pop(), self.concat_balance) if "_block" in name else h
            h = layer(h, embedding)
        return self.out_conv(h, self.out_gain)

    def class_vectors(self, c: Tensor) -> Tensor:
        """Vectors (B, d) of classes (B,), which `forward` also takes in their place."""
        if self.emb_label is None:
            raise no_classes(self)
        columns = self.emb_label.unit().T
        return torch.where(c[:, None] == NULL, 0.0, columns[c.clamp(min=0)])

    def embed(self, noise: Tensor, c: Tensor | None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            vectors = embedded(c, embedding, self.class_vectors)
            embedding = mp_sum(embedding, vectors, self.label_balance)
        return mp_silu(embedding)


class Block(nn.Module):
    """Residual block, of the way down or up, then attention if asked for.

    down: h = N(skip(h)), N the pixel norm, the residual branch is of that; up: the branch is of h
    itself. y = conv1(dropout(mp_silu((emb_gain L(embedding) + 1) conv0(mp_silu(h))))),
    h <- mp_sum(h, y), h <- mp_sum(h, proj(attention(h))), clamped to +-clip.
    h (B, before, H, W), embedding (B, width) -> (B, after, ...), H and W halved or doubled by
    resample "down" or "up".
    """

    taps: Tensor

    def __init__(
        self,
        before: int,
        after: int,
        *,
        width: int,
        dropout: float,
        taps: tuple[int, ...],
        channels_per_head: int,
        balances: tuple[float, float],
        clip: float | None,
        down: bool = False,
        resample: str = "",
        attention: bool = False,
    ):
        super().__init__()
        self.down, self.resample, self.dropout, self.clip = down, resample, dropout, clip
        self.balance, self.attention_balance = balances
        self.heads = after // channels_per_head if attention else 0
        if resample:
            f = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("taps", f / f.sum(), persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPLayer(after if down else before, after, 3)
        self.emb_linear = MPLayer(width, after)
        self.conv_res1 = MPLayer(after, after, 3)
        self.conv_skip = MPLayer(before, after, 1) if before != after else None
        if attention:
            self.attn_qkv = MPLayer(after, 3 * after, 1)
            self.attn_proj = MPLayer(after, after, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = resampled(h, self.taps, self.resample) if self.resample else h
        if self.down:
            h = normalised(h if self.conv_skip is None else self.conv_skip(h), (1,))
        y = self.conv_res0(mp_silu(h))
        y = mp_silu(y * (self.emb_linear(embedding, self.emb_gain) + 1)[:, :, None, None].to(y))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        if not self.down and self.conv_skip is not None:
            h = self.conv_skip(h)
        h = mp_sum(h, y, self.balance)
        h = mp_sum(h, self.attend(h), self.attention_balance) if self.heads else h
        return h if self.clip is None else h.clamp(-self.clip, self.clip)

    def attend(self, h: Tensor) -> Tensor:
        # EDM2's order of the 3 C channels: q, k and v of the first channel, of the second, ...
        qkv = self.attn_qkv(h).reshape(len(h), self.heads, h.shape[1] // self.heads, 3, -1)
        q, k, v = (part.mT for part in normalised(qkv, (2,)).unbind(3))  # (B, heads, H W, d)
        if h.is_cuda:  # whose fast kernels want the numbers of each position side by side
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return self.attn_proj(F.scaled_dot_product_attention(q, k, v).mT.reshape(h.shape))


def resampled(x: Tensor, taps: Tensor, way: str) -> Tensor:
    """x (B, C, H, W) halved ("down") or doubled ("up") by a separable filter of sum 1."""
    n, f = x.shape[1], taps.outer(taps).to(x.dtype)
    f, pad = f.expand(n, 1, -1, -1), (len(taps) - 1) // 2
    if way == "down":
        return F.conv2d(x, f, stride=2, padding=pad, groups=n)
    return F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=n)


def from_edm2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a published EDM2 network under the names of `models.EDM2` of an `EDM2UNet`.

    `unet.` becomes `net.`, and `logvar_fourier` and `logvar_linear` are as they were:
    `model.load_state_dict(from_edm2(safetensors.torch.load_file(path)))` is strict, so settings
    that are not those of the weights are an error. UserError for a name that is not EDM2's.
    """
    foreign = [name for name in state if not name.startswith(("unet.", "logvar_"))]
    if foreign or not state:
        raise UserError(
            "from_edm2: the names of an EDM2 network begin with 'unet.' or 'logvar_', got "
            + (f"'{foreign[0]}'" if foreign else "no weights at all")
        )
    return {
        f"net.{name.removeprefix('unet.')}" if name.startswith("unet.") else name: weight
        for name, weight in state.items()
    }


def check_shape(shape: tuple[int, ...], levels: int) -> None:
    factor = 2 ** (levels - 1)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % factor:
        raise UserError(
            f"EDM2UNet: {levels} levels (channel_mult) need square images of shape (C, H, H) with "
            f"H divisible by {factor}, got {tuple(shape)}"
        )


def check_options(
    sizes: list[int],
    widths: list[int],
    attention: tuple[int, ...],
    channels_per_head: int,
    taps: tuple[int, ...],
) -> None:
    if not set(attention) <= set(sizes):
        raise UserError(
            f"EDM2UNet: attention must be among the levels' {sizes}, got {list(attention)}"
        )
    for size, width in zip(sizes, widths, strict=True):
        if size not in attention and size != sizes[-1]:
            continue
        heads = width // channels_per_head
        if heads == 0 or width % heads:
            raise UserError(
                f"EDM2UNet: attention at {size}x{size} has {width} channels, of which "
                f"channels_per_head={channels_per_head} makes {heads} heads: "
                + ("give it at most as many" if heads == 0 else "they must divide the channels")
            )
    if len(taps) % 2 or sum(taps) <= 0:
        raise UserError(
            "EDM2UNet: filter must be of even length with a positive sum, such as [1, 1] or "
            f"[1, 3, 3, 1], got {list(taps)}"
        )
