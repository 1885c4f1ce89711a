"""Latents scored as the images that they stand for, decoded a batch at a time."""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.config import Decode, identity_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet
from lightning_cfg.latents.decoder import (
    Decoder,
    build_decoder,
    decoded_bytes,
    decoded_shape,
    is_latent,
)
from lightning_cfg.runs.manifests import content_hash
from lightning_cfg.runs.pngs import signed


class Decoding:
    """A decoder, and what results say of it.

    told   its name and the hash of what it reads
    known  what tells it from another: its settings and the hashes of what it reads
    """

    def __init__(self, decoder: Decoder, told: str, known: tuple[str, ...]):
        self.decoder, self.told, self.known = decoder, told, known

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether samples of this shape are latents; others are images already."""
        return is_latent(self.decoder, tuple(shape))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of their images."""
        return decoded_shape(self.decoder, shape)

    def __call__(self, z: Tensor) -> Tensor:
        """Latents as images in [-1, 1], as 8 bits have them."""
        return signed(decoded_bytes(self.decoder, z))

    def data(self, data: Any) -> Any:
        """The images of a data set of latents; one of images as it is."""
        return DecodedData(data, self.decoder) if self.takes(data.shape) else data


def decoding_of(section: dict | None, device: torch.device | str) -> Decoding | None:
    """The decoder of a section; kept from call to call, as weights are large."""
    return None if section is None else _decoding(json.dumps(section), _known(section), device)


def _known(section: dict) -> tuple[str, ...]:
    def verb(*, decode: Decode) -> None: ...

    found = identity_of(verb, {"decode": section})
    files = found.inputs | found.code
    return json.dumps(found.settings, sort_keys=True), *map(content_hash, files.values())


@lru_cache(maxsize=1)
def _decoding(section: str, known: tuple[str, ...], device: torch.device | str) -> Decoding:
    asked = json.loads(section)
    told = f"{asked['name']} {' '.join(digest[:12] for digest in known[1:])}"
    return Decoding(build_decoder(asked).to(device), told.strip(), known)


class DecodedData(DataSet):
    """The images of a data set of latents, by bytes that are decoded where they are asked for."""

    def __init__(self, data: Any, decoder: Decoder):
        self._data, self._decoder = data, decoder
        self.shape, self.num_classes = decoded_shape(decoder, data.shape), data.num_classes
        self.class_names, self.path = data.class_names, data.path
        _check_scale(data, decoder)

    def rows(self, split: str, per_class: int | None = None) -> tuple[Any, Tensor, Tensor]:
        """As `Images.rows`."""
        if self._data.rows is not None:
            z, rows, c = self._data.rows(split, per_class)
        else:
            z, c = self._data.real(split, per_class)
            rows = torch.arange(len(c))
        return _Bytes(z, self._decoder), rows, c

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """Images y (N, 3, H, W) in [-1, 1] and classes c (N,)."""
        y, rows, c = self.rows(split, per_class)
        return signed(y[rows]), c


class _Bytes:
    """bytes[rows] are those of images (b, 3, H, W) uint8."""

    def __init__(self, z: Any, decoder: Decoder):
        self._z, self._decoder = z, decoder

    def __getitem__(self, rows: Tensor) -> Tensor:
        return decoded_bytes(self._decoder, self._z[rows])


def _check_scale(data: Any, decoder: Any) -> None:
    """UserError where latents are scaled otherwise than they are decoded."""
    for key in ("scale", "bias"):
        here, there = getattr(data, key, None), getattr(decoder, key, None)
        if not isinstance(here, Tensor) or not isinstance(there, Tensor):
            continue
        if not torch.allclose(*torch.broadcast_tensors(here.cpu(), there.cpu()), rtol=1e-3):
            raise UserError(
                f"data.{key} and that of decode are not the same: latents are made with "
                f"{_said(here)} and decoded with {_said(there)}"
            )


def _said(values: Tensor) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values.flatten().tolist())}]"
