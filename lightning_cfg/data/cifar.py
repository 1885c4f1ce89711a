"""CIFAR-10 as published, read from where torchvision puts it."""

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Count, Place, Share
from lightning_cfg.data.images import Half, Images, download
from lightning_cfg.errors import UserError


class CIFAR10(Images):
    """Small photographs (Krizhevsky 2009).

    50,000 images to train on, the "bank", and 10,000 that are never trained on, "held_out";
    shape (3, 32, 32), classes 0 ... 9 from airplane to truck.
    root     holds cifar-10-batches-py; where it is absent, the 163 MB are downloaded
    flip     mirror each training image with probability 1/2
    augment  probability of EDM's non-leaking augmentation, 0.12 as they have it; 0: none
    limit    only the first so many images of each class are there to train on
    half     first or second: only every other image of each class, from that one on, is there
    Nothing is read, or downloaded, before the first batch is asked for. UserError where the files
    are absent and cannot be had, or are not the published ones.
    """

    shape = (3, 32, 32)
    num_classes = 10

    def __init__(
        self,
        *,
        root: Annotated[str, Place] = "data",
        flip: bool = False,
        augment: Annotated[float, Share] = 0.0,
        limit: Count | None = None,
        half: Half = None,
    ):
        self.class_names = list(CLASSES)
        self.root, self.flip, self.limit, self.half = root, flip, limit, half
        self.augmented(augment)

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Bytes (N, 3, 32, 32) uint8 and labels (N,) long of one split."""
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        folder, md5 = Path(self.root, FOLDER), _md5()
        if any(not (folder / name).is_file() for name in md5):
            download("CIFAR10", folder, md5, FOLDER, lambda to: datasets.CIFAR10(to, download=True))
        for name, published in md5.items():  # the files are pickles: only the published ones
            if not check_integrity(folder / name, published):
                raise UserError(
                    f"CIFAR10: {folder / name} is damaged or not the published file; "
                    "delete it to download it again"
                )
        split = datasets.CIFAR10(self.root, train=train)
        y = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
        return y, torch.tensor(split.targets)


CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FOLDER = "cifar-10-batches-py"


def _md5() -> dict[str, str]:
    """The published files and their md5, as torchvision knows them."""
    from torchvision.datasets import CIFAR10 as published

    names = dict([*published.train_list, *published.test_list])
    return {**names, published.meta["filename"]: published.meta["md5"]}
