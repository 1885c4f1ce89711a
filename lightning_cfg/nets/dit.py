"""The diffusion transformer of Peebles & Xie (2023), of latents mostly.

Parameters carry the names of their published code, so a state dict of theirs loads as it is:
`x_embedder`, `pos_embed`, `t_embedder`, `y_embedder`, `blocks`, `final_layer`.

Their embedding of time takes timesteps from 0 to 1000: it is given 1000 * noise.
"""

from collections import OrderedDict
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import Depth, Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.embedding import (
    ClassEmbedding,
    TimeScale,
    embedded,
    no_classes,
    timesteps,
)
from lightning_cfg.nets.layers import zeroed

FREQUENCIES = 128  # of the embedding of time
WIDER = 4  # the layer inside a block, over its channels
L = TypeVar("L", nn.Linear, nn.Conv2d)


class DiTBlock(nn.Module):
    """x + g1 attention(norm(x) (1 + s1) + b1), and of that h: h + g2 mlp(norm(h) (1 + s2) + b2).

    The six vectors are one layer's answer to SiLU(embedding), and 0 at first (adaLN-Zero).
    x (B, N, width), embedding (B, width) -> (B, N, width)
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(
            {"qkv": xavier(nn.Linear(width, 3 * width)), "proj": xavier(nn.Linear(width, width))}
        )
        wide, back = nn.Linear(width, WIDER * width), nn.Linear(WIDER * width, width)
        layers = {"fc1": xavier(wide), "act": nn.GELU("tanh"), "fc2": xavier(back)}
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](layers))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(embedding)[:, None].chunk(6, 2)
        x = x + g1 * self.attention(torch.addcmul(b1, norm(x), 1 + s1))
        return x + g2 * self.mlp(torch.addcmul(b2, norm(x), 1 + s2))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Last(nn.Module):
    """A layer of norm(x) (1 + s) + b, s and b again of the embedding: (B, N, width) -> (B, N, n).

    It answers 0 until it is trained.
    """

    def __init__(self, width: int, n: int):
        super().__init__()
        self.linear = zeroed(nn.Linear(width, n))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        b, s = self.adaLN_modulation(embedding)[:, None].chunk(2, 2)
        return self.linear(torch.addcmul(b, norm(x), 1 + s))


class DiT(nn.Module):
    """The transformer of Peebles & Xie (2023): attention among patches, told by adaLN-Zero.

    channels          of each patch
    blocks            of attention and a small network, one after another
    num_heads         of attention
    patch             side of the squares of pixels that are worked on as one
    learned_variance  it answers as many channels more, which its authors' variance is; they are
                      left out
    time_scale        of the noise, where it is embedded: 1000 makes timesteps of [0, 1]

    shape (C, H, W) with H and W divisible by patch, otherwise UserError. The default is DiT-S/2.
    num_classes + 1 class embeddings, the last one NULL's; num_classes = 0: none at all.
    """

    pos_embed: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Width = 384,
        blocks: Depth = 12,
        num_heads: Width = 6,
        patch: Width = 2,
        learned_variance: bool = False,
        time_scale: TimeScale = 1000.0,
    ):
        super().__init__()
        check(shape, channels, num_heads, patch)
        self.num_classes, self.patch, self.time_scale = num_classes, patch, time_scale
        answered = shape[0] * (2 if learned_variance else 1)
        self.x_embedder = nn.ModuleDict(
            {"proj": xavier(nn.Conv2d(shape[0], channels, patch, patch))}
        )
        positions = place(channels, shape[1] // patch, shape[2] // patch)
        self.register_buffer("pos_embed", positions)  # their files hold it
        two = nn.Linear(2 * FREQUENCIES, channels), nn.Linear(channels, channels)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(two[0], nn.SiLU(), two[1])})
        table = ClassEmbedding(num_classes + 1, channels) if num_classes else None
        self.y_embedder = nn.ModuleDict({"embedding_table": table}) if table else None
        self.blocks = nn.ModuleList([DiTBlock(channels, num_heads) for _ in range(blocks)])
        self.final_layer = Last(channels, patch * patch * answered)
        for layer in (*two, *([table] if table else [])):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), noise (B,) in [0, 1], c (B,) long, NULL = -1 (None: all NULL)."""
        embedding = self.embed(noise, x)
        if self.y_embedder is not None:
            embedding = embedding + embedded(c, x, self.class_vectors)
        h = self.x_embedder["proj"](x)  # (B, channels, H / patch, W / patch)
        rows, columns = h.shape[2:]
        h = h.flatten(2).mT + self.pos_embed
        for block in self.blocks:
            h = block(h, embedding)
        h = self.final_layer(h, embedding).unflatten(1, (rows, columns))
        h = h.unflatten(3, (self.patch, self.patch, -1))  # (B, rows, columns, patch, patch, C')
        h = h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return h[:, : x.shape[1]]

    def embed(self, noise: Tensor, x: Tensor) -> Tensor:
        """noise (B,), dimensionless -> (B, channels) in the dtype of x."""
        told = timesteps(self.time_scale * noise.float(), FREQUENCIES)
        return self.t_embedder["mlp"](told.to(x.dtype))

    def class_vectors(self, c: Tensor) -> Tensor:
        """Embeddings (B, channels) of classes (B,), which `forward` also takes in their place."""
        if self.y_embedder is None:
            raise no_classes(self)
        return self.y_embedder["embedding_table"](c)


def xavier(layer: L) -> L:
    """The layer with Xavier's weights, of a convolution as of one matrix, and no bias."""
    nn.init.xavier_uniform_(layer.weight.flatten(1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def norm(x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def place(width: int, rows: int, columns: int) -> Tensor:
    """What tells patches where they are, (1, rows * columns, width).

    sin and cos of the column at width / 4 frequencies from 1 down to 1 / 10,000, then of the row.
    """
    quarter = width // 4
    frequencies = 1 / 10_000 ** (torch.arange(quarter).double() / quarter)

    def along(n: int) -> Tensor:
        phase = torch.arange(n).double()[:, None] * frequencies
        return torch.cat([phase.sin(), phase.cos()], 1)  # (n, width / 2)

    of_column = along(columns).expand(rows, columns, -1)
    of_row = along(rows)[:, None].expand(rows, columns, -1)
    return torch.cat([of_column, of_row], 2).flatten(0, 1)[None].float()


def check(shape: tuple[int, ...], channels: int, num_heads: int, patch: int) -> None:
    if channels % 4 or channels % num_heads:
        raise UserError(
            f"DiT: channels must be divisible by 4 and by num_heads, got {channels} and {num_heads}"
        )
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise UserError(
            f"DiT: patches of {patch} x {patch} need images of shape (C, H, W) with H and W "
            f"divisible by {patch}, got {tuple(shape)}"
        )
