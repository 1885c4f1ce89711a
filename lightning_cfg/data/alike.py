"""Images of many sizes and kinds, made alike: decoded, converted, cropped, resized, as bytes."""

import io
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lightning_cfg.config import Between, Newer
from lightning_cfg.errors import UserError

MOST_PIXELS = 2**26  # of an image, 8192 x 8192
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KINDS = {  # by first bytes
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}
CHANNELS = {"L": 1, "RGB": 3}  # of PIL's modes
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # where that is asked for
BITS_PER_SAMPLE = 258  # the tag of a TIFF

Size = Annotated[Annotated[int, Between(1, 8192)] | None, Newer]
Crop = Annotated[Literal["center"] | None, Newer]
Channels = Annotated[Literal[1, 3] | None, Newer]

Form = tuple[str, int, int]  # mode, width and height


def said(form: Form) -> str:
    mode, width, height = form
    return f"{width} x {height} {mode}"


def opened(data: bytes) -> Image.Image:
    """The image in a file's content, its pixels not decoded yet; ValueError for no such kind."""
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
    if kind is None or (kind is WebPImageFile and data[8:12] != b"WEBP"):
        raise ValueError("it is neither PNG, JPEG, WebP, BMP nor TIFF")
    return kind(io.BytesIO(data))  # not by Image.open, which warns of what is refused here


def form_of(image: Image.Image, data: bytes = b"") -> Form:
    """Mode, width and height; of colours of more than 8 bits, which PIL cuts, "16-bit RGB"."""
    bits = 8
    if image.format == "PNG" and len(data) > 24:
        bits = data[24]
    elif isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))
    deep = bits > 8 and image.mode in CONVERTED
    return (f"{bits}-bit " * deep + image.mode, *image.size)


@dataclass(frozen=True)
class Alike:
    """What is done to images so that they are alike; by itself nothing.

    size      each is resized to so many pixels a side, by Lanczos as EDM's dataset_tool does
    crop      center: of each the square in the middle, before that, as its center-crop
    channels  1: each becomes grey, 3: RGB, whatever it is, as PIL converts it
    keys      where these keys stand in a config, to name them; "" where there are none
    """

    size: int | None = None
    crop: Literal["center"] | None = None
    channels: Literal[1, 3] | None = None
    keys: str = ""

    def form(self, form: Form, name: str) -> Form:
        """What becomes of an image of this form; UserError where it cannot be read or made so."""
        mode, width, height = form
        if width * height > MOST_PIXELS:
            raise UserError(
                f"{name} is {said(form)}, more than the {MOST_PIXELS} pixels that an image may have"
            )
        if mode not in (CHANNELS if self.channels is None else CONVERTED):
            asked = "" if mode not in CONVERTED else self._hint("channels=3 makes RGB of it")
            raise UserError(
                f"{name} is {said(form)}; only 8-bit grey and RGB images without transparency or "
                f"palette can be read{asked}"
            )
        if self.crop is not None:
            width = height = min(width, height)
        if self.size is not None:
            if width != height:
                hint = self._hint("crop=center takes the square in its middle")
                raise UserError(
                    f"{name} is {said(form)}, which size={self.size} would stretch{hint}"
                )
            width = height = self.size
        if self.channels is not None:
            mode = "L" if self.channels == 1 else "RGB"
        return mode, width, height

    def unlike(self, name: str, form: Form, first: str, other: Form) -> UserError:
        """What a user is told of an image of one form among those of another."""
        keys = [f"size={min(other[1:])} crop=center"] if form[1:] != other[1:] else []
        keys += [f"channels={CHANNELS.get(other[0], 3)}"] if form[0] != other[0] else []
        hint = self._hint(f"{' '.join(keys)} makes them so")
        told = f"{name} is {said(form)}, but {first} is {said(other)}; all images must be alike"
        return UserError(told + hint)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The bytes of an image, (C, H, W) or, for C = 1, (H, W)."""
        if self.channels is not None:
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.crop is not None:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _hint(self, text: str) -> str:
        """Which keys help, where there are such; "size=64" is data.size=64."""
        if not self.keys:
            return ""
        words = (f"{self.keys}.{word}" if "=" in word else word for word in text.split())
        return f": {' '.join(words)}"
