"""Data sets of images in a zip or a folder, as `image_files` describes them, or in an array."""

from typing import Annotated

from lightning_cfg.config import Count, Free, Infinite, Input, NonNegative, Share
from lightning_cfg.data.alike import Alike, Channels, Crop, Size
from lightning_cfg.data.arrays import Arrays
from lightning_cfg.data.image_files import Folder, Zip
from lightning_cfg.data.images import Half
from lightning_cfg.data.split import OfSplits, Split


class ImageZip(OfSplits):
    """Images and their classes in a zip, in the layout that `image_files` describes.

    path      the zip with the images to train on, the "bank"
    held_out  a zip with images that are never trained on, of the same shape and classes
    size      pixels a side that each image is resized to, by Lanczos as EDM's dataset_tool does;
              left out, all have to be of one size
    crop      center: the square in the middle of each first, as its center-crop
    channels  1: each becomes grey, 3: RGB, whatever it is; left out, all have to be one of these
    flip      mirror each training image with probability 1/2
    augment   probability of EDM's non-leaking augmentation, 0.12 as they have it; 0: none
    memory    GiB that a split may take as bytes to be decoded once and kept in each process;
              a larger one is decoded batch by batch, in threads, two batches ahead of the step
    limit     only the first so many images of each class are there to train on
    half      first or second: only every other image of each class, from that one on, is there
    UserError where a file is absent, damaged, not as described, or unlike the others.
    """

    _files: type[Split] = Zip

    def __init__(
        self,
        *,
        path: Annotated[str, Input()],
        held_out: Annotated[str | None, Input()] = None,
        flip: bool = False,
        augment: Annotated[float, Share] = 0.0,
        memory: Annotated[float, NonNegative, Infinite, Free] = 2.0,
        limit: Count | None = None,
        half: Half = None,
        size: Size = None,
        crop: Crop = None,
        channels: Channels = None,
    ):
        alike = Alike(size, crop, channels, keys="data")
        self._training = self._files(path, alike)
        self._other = None if held_out is None else self._files(held_out, alike)
        self.path, self.flip, self.memory = self._training.path, flip, memory
        self.limit, self.half = limit, half
        self.augmented(augment)


class ImageFolder(ImageZip):
    """`ImageZip` for a folder: path and held_out are folders."""

    _files = Folder


class ImageArray(ImageZip):
    """`ImageZip` for arrays: path and held_out are .npz of arr_0, arr_1, or .npy; see `arrays`."""

    _files = Arrays
