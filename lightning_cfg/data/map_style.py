"""Anyone's map-style Dataset, as torchvision and Hugging Face have them, as images and classes."""

from collections.abc import Mapping
from typing import Annotated, Any

from lightning_cfg.config import (
    AtLeast,
    Count,
    Data,
    Free,
    Infinite,
    NonNegative,
    Real,
    Share,
    build,
)
from lightning_cfg.data.alike import Alike, Channels, Crop, Size
from lightning_cfg.data.images import Half
from lightning_cfg.data.items import Items
from lightning_cfg.data.split import OfSplits
from lightning_cfg.errors import UserError


class MapStyle(OfSplits):
    """Images and classes of a map-style Dataset: dataset[i] is (image, label), a row, or an image.

    An image is a PIL image, a tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W), of bytes
    0 ... 255 or, with `floats`, of floats, which become bytes. A row is a dict such as
    {image, label}, as Hugging Face's. A label is a whole number from 0. An item has to be the same
    each time it is asked for. A Dataset's own section in the place of this one is as `of` alone.

    of           the Dataset to train on, by its dotted path and its own keys
    held_out     one that is never trained on, of the same shape and classes
    num_classes  left out, it is found, by the Dataset's names of its classes or its labels; 0: no
                 labels are read
    floats       what is black and what is white in images of floats: [0, 1] after ToTensor, [-1, 1]
    image        the key of a row that is the image; left out, image, img or pixel_values
    label        the key of a row that is the label; left out, label, labels, fine_label or target
    size         pixels a side that each image is resized to, by Lanczos as EDM's dataset_tool does;
                 left out, all have to be of one size
    crop         center: the square in the middle of each first, as its center-crop
    channels     1: each becomes grey, 3: RGB, whatever it is; left out, all have to be one of these
    flip         mirror each training image with probability 1/2
    augment      probability of EDM's non-leaking augmentation, 0.12 as they have it; 0: none
    memory       GiB that a split may take as bytes to be kept in each process; of a larger one
                 items are asked for as they are needed, one after another, ahead of the step
    limit        only the first so many images of each class are there to train on
    half         first or second: only every other image of each class, from that one on, is there
    UserError where it is no map-style Dataset, or an item is not as described.
    """

    def __init__(
        self,
        *,
        of: Data,
        held_out: Data | None = None,
        num_classes: Annotated[int, AtLeast(0)] | None = None,
        floats: tuple[Annotated[float, Real], Annotated[float, Real]] | None = None,
        image: str | None = None,
        label: str | None = None,
        size: Size = None,
        crop: Crop = None,
        channels: Channels = None,
        flip: bool = False,
        augment: Annotated[float, Share] = 0.0,
        memory: Annotated[float, NonNegative, Infinite, Free] = 2.0,
        limit: Count | None = None,
        half: Half = None,
    ):
        alike = Alike(size, crop, channels, keys="data")
        how = {"num_classes": num_classes, "floats": floats, "image": image, "label": label}
        self._training = Items(*_made(of), alike, **how)
        self._other = None if held_out is None else Items(*_made(held_out), alike, **how)
        self.flip, self.memory, self.limit, self.half = flip, memory, limit, half
        self.augmented(augment)


def is_map_style(made: Any) -> bool:
    """Whether it has items by number, and is no data set in the sense of `interfaces.DataSet`."""
    own = {"batch", "num_classes"} <= {*dir(made)}  # dir: a property may read files
    return not own and hasattr(made, "__getitem__") and hasattr(made, "__len__")


def _made(of: Any) -> tuple[Any, str]:
    """The Dataset of a section, or one that is there already, and its name; UserError for none."""
    name = of["name"] if isinstance(of, dict) else type(of).__name__
    made = build("lightning_cfg.data", of) if isinstance(of, dict) else of
    if isinstance(made, Mapping):  # such as a DatasetDict
        splits = [str(key) for key in made]
        raise UserError(
            f"data {name} has the splits {', '.join(splits)}: say which one, split={splits[0]}"
        )
    if not is_map_style(made):
        raise UserError(
            f"data {name} makes a {type(made).__name__}, which is no map-style Dataset: it lacks "
            "__getitem__ or __len__"
        )
    return made, name
