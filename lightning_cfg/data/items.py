"""The items of a map-style Dataset as a split: images of whatever kind, and labels as classes."""

import math
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_cfg.data.alike import CHANNELS, Alike, Form, form_of
from lightning_cfg.data.image_files import UNREADABLE
from lightning_cfg.data.split import Labels, Split
from lightning_cfg.errors import UserError, one_line

IMAGE_KEYS = ("image", "img", "pixel_values")  # of a row that is a dict
LABEL_KEYS = ("label", "labels", "fine_label", "target")
TOGETHER = ("targets", "labels", "_labels")  # where torchvision's Datasets have all their labels

Floats = tuple[float, float] | None  # black and white


class Items(Split):
    """The images and classes of a map-style Dataset, see `MapStyle`.

    Items are asked for one after another, whoever asks: not every Dataset bears threads.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        alike: Alike,
        *,
        num_classes: int | None = None,
        floats: Floats = None,
        image: str | None = None,
        label: str | None = None,
    ):
        super().__init__(name, alike)
        self._dataset, self._name, self._floats = dataset, f"data {name}", floats
        self._asked, self._image, self._label = num_classes, image, label
        self._alone = threading.Lock()
        if floats is not None and floats[0] == floats[1]:
            raise UserError(f"data.floats={list(floats)} has one number for black and white")
        if len(self) == 0:
            raise UserError(f"{self._name} is empty")

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def shape(self) -> tuple[int, int, int]:
        mode, width, height = self._first[1]
        return CHANNELS[mode], height, width

    @cached_property
    def _first(self) -> tuple[Form, Form]:
        """What the first image is, and what becomes of it."""
        form = form_of(self._opened(0))
        return form, self.alike.form(form, self._item(0))

    def __getitem__(self, rows: Tensor) -> Tensor:
        y = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows.tolist()):
            y[i] = self._pixels(row)
        return torch.from_numpy(y)

    def _pixels(self, row: int) -> np.ndarray:
        image, (first, wanted) = self._opened(row), self._first
        form = form_of(image)
        if self.alike.form(form, self._item(row)) != wanted:
            raise self.alike.unlike(self._item(row), form, "item 0", first)
        try:
            return self.alike.pixels(image)
        except UNREADABLE as error:  # PIL decodes only now
            raise UserError(f"{self._item(row)} cannot be read: {one_line(error)}") from error

    def _opened(self, row: int) -> Image.Image:
        return as_picture(self._parts(row)[0], self._floats, self._item(row))

    def _parts(self, row: int) -> tuple[Any, Any]:
        """Image and label of an item, None where it has no label."""
        try:
            with self._alone:
                item = self._dataset[row]
        except Exception as error:  # whatever somebody's Dataset raises
            told = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{self._item(row)} cannot be read: {told}") from error
        if isinstance(item, Mapping):
            image, label = self._keys(list(item), row)
            return item[image], None if label is None else item[label]
        if isinstance(item, tuple | list) and item:
            return item[0], item[1] if len(item) > 1 else None
        return item, None

    def _keys(self, keys: list, row: int = 0) -> tuple[Any, Any]:
        """Which keys of a row are image and label; None for no label."""
        found = []
        for what, asked, usual in (
            ("image", self._image, IMAGE_KEYS),
            ("label", self._label, LABEL_KEYS),
        ):
            key = asked or next((one for one in usual if one in keys), None)
            if (asked or what == "image") and key not in keys:
                raise UserError(
                    f"{self._item(row)} has the keys {', '.join(map(str, keys))}: say which one is "
                    f"the {what}, by {what} of data MapStyle"
                )
            found.append(key)
        return found[0], found[1]

    @cached_property
    def labels(self) -> Labels:
        labels = None if self._asked == 0 else self._all_labels()
        if labels is None:
            return None, None
        names, last = self._names(), max(labels)
        known = self._asked or (len(names) if names else last + 1)
        if last >= known:
            raise UserError(f"{self._name} has label {last}, and only 0 ... {known - 1} are known")
        return labels, names if names and len(names) == known else None

    @cached_property
    def _classes(self) -> tuple[Tensor, int, list[str] | None]:
        """As of every split; but here a class may have no image, which `fit` tells."""
        labels, names = self.labels
        if labels is None:
            return torch.zeros(len(self), dtype=torch.long), 0, None
        known = self._asked or (len(names) if names else max(labels) + 1)
        return torch.tensor(labels), known, names

    @property
    def doubts(self) -> tuple[str, ...]:
        """Classes of which there is no image."""
        c, known, names = self._classes
        empty = [k for k in range(known) if not (c == k).any()]
        if not empty:
            return ()
        told = ", ".join(names[k] if names else str(k) for k in empty[:5])
        more = ", ..." * (len(empty) > 5)
        return (f"{self._name}: {len(empty)} of {known} classes have no image: {told}{more}",)

    def _all_labels(self) -> list[int] | None:
        """Of every item, as the Dataset has them together, or else item by item; None for none."""
        first = self._parts(0)[1]
        if first is None:
            return None
        first, last = self._class(first, 0), self._class(self._parts(len(self) - 1)[1], -1)
        for found in (self._column(), *(getattr(self._dataset, k, None) for k in TOGETHER)):
            if found is None or not hasattr(found, "__len__") or len(found) != len(self):
                continue
            labels = [self._class(label, row) for row, label in enumerate(found)]
            if (labels[0], labels[-1]) == (first, last):  # and not of before a target_transform
                return labels
        return [self._class(self._parts(row)[1], row) for row in range(len(self))]

    def _column(self) -> Any:
        """The labels of a Dataset of rows, without the images being decoded."""
        names = getattr(self._dataset, "column_names", None)
        key = self._keys(names)[1] if isinstance(names, list) else None
        return None if key is None else self._dataset[key]

    def _class(self, label: Any, row: int) -> int:
        """A label as a number; UserError for anything else."""
        if isinstance(label, Tensor | np.ndarray | np.generic) and math.prod(label.shape) == 1:
            label = label.item()
        if type(label) is not int or label < 0:
            raise UserError(
                f"{self._item(row % len(self))} has the label {label!r:.80}, not a whole number "
                "from 0; num_classes=0 of data MapStyle reads no labels"
            )
        return label

    def _names(self) -> list[str] | None:
        """Of the classes, where the Dataset says them."""
        names = getattr(self._dataset, "classes", None)
        features = getattr(self._dataset, "features", None)
        if isinstance(features, Mapping):
            names = getattr(features.get(self._keys(list(features))[1]), "names", None)
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return None
        return list(names)

    def _item(self, row: int) -> str:
        return f"{self._name}: item {row}"


def as_picture(image: Any, floats: Floats, name: str) -> Image.Image:
    """An image of whatever kind as PIL's; UserError, in its name, for what is none."""
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(
            f"{name} is a {type(image).__name__}, neither a PIL image nor a tensor (C, H, W) nor "
            "an array (H, W, C)"
        )
    tensor = isinstance(image, Tensor)
    pixels = image.detach().cpu().numpy() if tensor else image
    channels = pixels.shape[0 if tensor else -1] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3) or 0 in pixels.shape:
        asked = "tensor of shape (1 or 3, H, W)" if tensor else "array of shape (H, W, 1 or 3)"
        raise UserError(f"{name} has shape {tuple(pixels.shape)}, and is no {asked} or (H, W)")
    if tensor and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        pixels = _bytes(pixels, floats, name)
    if pixels.dtype != np.uint8:
        raise UserError(f"{name} holds {pixels.dtype}, neither bytes 0 ... 255 (uint8) nor floats")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _bytes(pixels: np.ndarray, floats: Floats, name: str) -> np.ndarray:
    """Floats from black to white as bytes, to the nearest."""
    low, high = float(pixels.min()), float(pixels.max())
    if floats is None:
        raise UserError(
            f"{name} holds floats, {low:.3g} ... {high:.3g}: give bytes, or say what is black and "
            "white, such as floats=[0,1] of data MapStyle"
        )
    black, white = floats
    share = (pixels.astype(np.float64) - black) / (white - black)
    if not np.isfinite(share).all() or share.min() < -1e-3 or share.max() > 1 + 1e-3:
        raise UserError(f"{name} has {low:.3g} ... {high:.3g}, beyond data.floats={list(floats)}")
    return (share * 255).round().clip(0, 255).astype(np.uint8)
