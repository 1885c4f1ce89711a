"""MNIST as published, read from where torchvision puts it."""

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Count, Place
from lightning_cfg.data.images import Half, Images, download
from lightning_cfg.errors import UserError


class MNIST(Images):
    """Handwritten digits (LeCun et al. 1998).

    60,000 images to train on, the "bank", and 10,000 that are never trained on, "held_out";
    shape (1, 28, 28), classes 0 ... 9.
    root   holds MNIST/raw; where it is absent, it is downloaded
    limit  only the first so many images of each class are there to train on
    half   first or second: only every other image of each class, from that one on, is there
    Nothing is read, or downloaded, before the first batch is asked for. UserError where the files
    are absent and cannot be had, or are damaged.
    """

    shape = (1, 28, 28)
    num_classes = 10

    def __init__(
        self,
        *,
        root: Annotated[str, Place] = "data",
        limit: Count | None = None,
        half: Half = None,
    ):
        self.root, self.limit, self.half = root, limit, half

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Bytes (N, 1, 28, 28) uint8 and labels (N,) long of one split."""
        from torchvision import datasets

        raw = Path(self.root, "MNIST", "raw")
        if any(not (raw / name).is_file() for name in FILES):
            download("MNIST", raw, FILES, "MNIST/raw", lambda to: datasets.MNIST(to, download=True))
        try:
            split = datasets.MNIST(self.root, train=train)
            y, c = split.data, split.targets
            whole = y.shape[1:] == self.shape[1:] and len(y) == len(c) > 0
            whole = whole and bool((torch.bincount(c, minlength=10) > 0).all()) and c.max() < 10
        except (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError):
            whole = False  # torchvision's answers to a file that is cut off or is something else
        if not whole:
            files = " or ".join(
                str(raw / name) for name in FILES if name.startswith("t10k") != train
            )
            raise UserError(f"MNIST: {files} is damaged; delete it to download it again")
        return y[:, None].contiguous(), c


FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
