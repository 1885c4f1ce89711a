"""Map-style Datasets as others write them: pairs, rows, tensors, arrays; some are wrong."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = [k % 3 for k in range(12)]


class Pairs(Dataset):
    """(image, label), the image as it is asked for; `wrong` items are something else."""

    def __init__(self, kind="pil", n=12, label=int, wrong=None, first=0, path=""):
        self.kind, self.n, self.label, self.wrong, self.first = kind, n, label, wrong, first

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        pixels, of = PIXELS[self.first + i], {"int": int, "tensor": torch.tensor, "str": str}
        made = KINDS[self.kind](pixels)
        if self.wrong is not None and i == 3:
            made = WRONG[self.wrong](pixels)
        return made, of.get(self.label, int)(LABELS[self.first + i])


class Targets(Pairs):
    """All labels together, as torchvision's have them, and the classes' names."""

    classes = ("ant", "bee", "cat", "dog")  # one more than there are images of

    def __init__(self, shift: int = 0):
        super().__init__()
        self.targets = [k + shift for k in LABELS]
        self.asked = 0

    def __getitem__(self, i):
        self.asked += 1
        return super().__getitem__(i)


class Rows:
    """As Hugging Face's: dataset[i] is a dict, dataset["label"] a column, features have names."""

    column_names = ["image", "label"]  # noqa: RUF012
    features = {"image": None, "label": SimpleNamespace(names=["ant", "bee", "cat"])}  # noqa: RUF012

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == "label":
            return LABELS
        return {"image": Image.fromarray(PIXELS[i]), "label": LABELS[i]}

    def batch(self, batch_size):
        """Which `datasets` has, and is no batch to train on."""


def rows(path: str, *, split: str | None = None, name: str | None = None, **others):
    """As `datasets.load_dataset`, whose own `name` is another's here."""
    return {"train": Rows(), "test": Rows()} if split is None else Rows()


def images_alone():
    return [Image.fromarray(one) for one in PIXELS]


def nothing():
    return 7


def _float(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


KINDS = {
    "pil": Image.fromarray,
    "array": np.asarray,
    "tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1),
    "unit": _float,
    "signed": lambda p: _float(p) * 2 - 1,
    "grey": lambda p: torch.from_numpy(p[..., 0]),
    "one": lambda p: torch.from_numpy(p[None, ..., 0]),
    "one_array": lambda p: p[..., :1],
}
WRONG = {
    "text": lambda p: "a.png",
    "last": lambda p: torch.from_numpy(p),
    "first": lambda p: p.transpose(2, 0, 1),
    "long": lambda p: torch.from_numpy(p).permute(2, 0, 1).long(),
    "small": lambda p: Image.fromarray(p[:5]),
    "mode": lambda p: Image.fromarray(p).convert("L"),
    "float": _float,
    "beyond": lambda p: 300 * _float(p),
    "nan": lambda p: _float(p) * torch.nan,
}


def brightness():
    """Features that are kept, as their weights are known: means over places and over columns."""
    from lightning_cfg.evaluation.features import Space

    about = {"extractor": "brightness", "weights": "none"}
    return Space(lambda x: torch.cat([x.mean((2, 3)), x.mean((1, 3))], 1), about)
