"""What may be asked of a decoder, and latents decoded with it a part at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cfg.config import build
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import complete
from lightning_cfg.runs.pngs import drawable, quantised

AT_ONCE = 2**21  # pixels that are decoded or encoded at once: 8 images of 512 x 512


class Decoder(nn.Module):
    """What may be asked of a decoder of latents, a torch.nn.Module.

    One of one's own has `decode`; what it leaves out is as here. Images are RGB.
    """

    channels: int | None = None  # of its latents; None: whatever has other channels than an image

    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, c, h, w) as images (n, 3, H, W) in [-1, 1], which may overshoot.

        Gradients flow through, where they are asked for.
        """
        raise NotImplementedError

    def bytes(self, z: Tensor) -> Tensor:
        """Latents as images of 8 bits, (n, 3, H, W) uint8."""
        return quantised(self.decode(z))

    def encode(self, y: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 as mean and deviation of raw latents, (n, 2 c, h, w)."""
        raise UserError(f"decode {type(self).__name__} lacks encode: it only decodes")

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the image that latents of this shape stand for; by default it is tried."""
        with torch.no_grad():
            return tuple(self.decode(torch.zeros(1, *shape)).shape[1:])


def build_decoder(section: dict) -> Decoder:
    """The decoder of a section, frozen; UserError where one of one's own is none."""
    made, who = build("lightning_cfg.latents", section), f"decode {section['name']}"
    if not isinstance(made, nn.Module):
        raise UserError(f"{who} makes a {type(made).__name__}, which is no torch.nn.Module")
    decoder: Any = complete(made.eval().requires_grad_(False), Decoder, who, "decode")
    return decoder


def is_latent(decoder: Decoder, shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are latents of the decoder rather than images."""
    if decoder.channels is None:
        return bool(shape) and not drawable(shape)
    return len(shape) == 3 and shape[0] == decoder.channels


def decoded_shape(decoder: Decoder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the images of such latents; UserError, naming both shapes, where they are none of its."""
    name, shape = type(decoder).__name__, tuple(shape)
    if not is_latent(decoder, shape):
        asked = "latents" if decoder.channels is None else f"latents ({decoder.channels}, h, w)"
        raise UserError(f"decode {name} takes {asked}, not samples of shape {shape}")
    try:
        found = tuple(decoder.image_shape(shape))
    except (RuntimeError, ValueError, IndexError) as error:  # of one of one's own
        reason = str(error).splitlines()[0]
        raise UserError(f"decode {name} fails for latents of shape {shape}: {reason}") from error
    if not drawable(found):
        raise UserError(f"decode {name} makes {found} of latents {shape}, which is no image")
    return found


@torch.no_grad()
def decoded_bytes(decoder: Decoder, z: Tensor) -> Tensor:
    """Latents anywhere as images of 8 bits on the CPU, a part at a time on the decoder's device."""
    return _in_parts(decoder, decoder.bytes, z, decoder.image_shape(tuple(z.shape[1:])))


@torch.no_grad()
def encoded(decoder: Decoder, y: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 as raw latents on the CPU, a part at a time."""
    return _in_parts(decoder, decoder.encode, y, tuple(y.shape[1:]))


def _in_parts(
    decoder: Decoder, work: Callable[[Tensor], Tensor], x: Tensor, image: tuple[int, ...]
) -> Tensor:
    first = next(decoder.parameters(), torch.zeros(()))
    return torch.cat([work(part.to(first.device)).cpu() for part in x.split(at_once(image))])


def at_once(image: tuple[int, ...]) -> int:
    """So many images of this shape are decoded at once, whatever the batch."""
    return max(1, AT_ONCE // (image[1] * image[2]))
