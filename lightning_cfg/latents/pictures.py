"""Samples as images: as they are, or decoded as they leave."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cfg.latents.decoder import Decoder, build_decoder, decoded_bytes, decoded_shape
from lightning_cfg.runs.pngs import quantised, signed


@dataclass(frozen=True)
class Pictures:
    """The images of samples.

    shape    of an image, or of a sample that is none
    decoder  that makes them of latents; None where samples are images already
    """

    shape: tuple[int, ...]
    decoder: Decoder | None = None

    def bytes(self, x: Tensor) -> Tensor:
        """Samples as images of 8 bits, (n, 1 or 3, H, W)."""
        return quantised(x) if self.decoder is None else decoded_bytes(self.decoder, x)

    def first(self, x: Tensor, c: Tensor, columns: int, classes: int) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and classes of those samples that a contact sheet shows."""
        if self.decoder is None:
            return x, c
        some = torch.arange(min(len(x), 10 * columns))
        if classes > 1:
            of_each = [(c == k).nonzero()[:columns, 0] for k in range(min(classes, 10))]
            some = torch.cat(of_each)
        return signed(self.bytes(x[some])), c[some]


def pictures_of(
    decode: dict | None, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Pictures:
    """The images of samples of this shape; UserError where they are no latents of `decode`."""
    if decode is None:
        return Pictures(tuple(shape))
    decoder = build_decoder(decode).to(device)
    return Pictures(decoded_shape(decoder, shape), decoder)
