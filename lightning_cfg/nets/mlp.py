"""A residual MLP for data of a few dimensions: time and class embedded, Fourier features of x."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import Between, Newer, Positive, Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.embedding import ClassEmbedding, NoiseEmbedding, embedded, no_classes


class MLP(nn.Module):
    """Residual MLP over flattened x, conditioned on the noise level and, if asked, the class.

    width        of every layer
    blocks       residual blocks of two layers
    fourier      number of random Fourier features of x, cos and sin(2 pi f x); 0: plain coordinates
    fourier_std  standard deviation of the frequencies f, in cycles per unit of x: fine structure
                 of size s needs about 1 / (2 pi s)
    embed_class  False removes the class part
    inner        a second head answers after so many of the blocks, which a model trains by its
                 `inner_weight`: what the network knows half way, for guidance by `weaken: inner`
    outputs      numbers per sample when it is not x that is wanted, such as a classifier's logits
    """

    frequencies: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        width: Width = 128,
        blocks: Annotated[int, Between(0, 1000)] = 3,
        fourier: Annotated[int, Between(0, 16_384)] = 0,
        fourier_std: Annotated[float, Positive] = 10.0,
        embed_class: bool = True,
        outputs: Width | None = None,
        inner: Annotated[Annotated[int, Between(1, 1000)] | None, Newer] = None,
    ):
        super().__init__()
        if inner is not None and not 0 < inner < blocks:
            raise UserError(f"net.inner={inner} must be from 1 to below net.blocks={blocks}")
        d = math.prod(shape)
        self.output_shape = shape if outputs is None else (outputs,)
        # A buffer, not a parameter: the frequencies stay as drawn, and travel in the checkpoint.
        self.register_buffer("frequencies", fourier_std * torch.randn(d, fourier))
        self.noise_embedding = NoiseEmbedding(width)
        embed_class = embed_class and num_classes > 0
        self.class_embedding = ClassEmbedding(num_classes + 1, width) if embed_class else None
        self.enter = nn.Linear(d + 2 * fourier, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.leave = nn.Linear(width, math.prod(self.output_shape))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.inner, self.inside = inner, None if inner is None else False
        if inner is not None:  # of the same kind, and drawn after all others
            self.leave_inside = nn.Linear(width, math.prod(self.output_shape))
            nn.init.zeros_(self.leave_inside.weight)
            nn.init.zeros_(self.leave_inside.bias)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, *shape), noise (B,) in about [-2, 2], c (B,), None for NULL -> (B, *shape)."""
        x = x.flatten(1)
        if self.frequencies.numel():
            phase = 2 * math.pi * (x @ self.frequencies)
            x = torch.cat([x, phase.cos(), phase.sin()], 1)
        embedding = self.noise_embedding(noise)
        if self.class_embedding is not None:
            embedding = embedding + embedded(c, x, self.class_vectors)
        h = self.enter(x)
        embedding = nn.functional.silu(embedding)
        for block in self.blocks[: self.inner] if self.inside else self.blocks:
            h = block(h, embedding)
        leave = self.leave_inside if self.inside else self.leave
        return leave(nn.functional.silu(h)).reshape(-1, *self.output_shape)

    def class_vectors(self, c: Tensor) -> Tensor:
        """Embeddings (B, width) of classes (B,), which `forward` also takes in their place."""
        if self.class_embedding is None:
            raise no_classes(self, ": net.embed_class=false, or data without any")
        return self.class_embedding(c)


class Block(nn.Module):
    """h + W2 silu(W1 silu(h) + W3 embedding)."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.embed = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(h)) + self.embed(embedding)
        return h + self.second(nn.functional.silu(inner))
