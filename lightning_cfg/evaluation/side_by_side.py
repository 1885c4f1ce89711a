"""A classifier of single things as one of pictures in which they stand side by side."""

from typing import Any

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet, Model
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.inputs import Checkpoint


class SideBySide(Model):
    """log p(prompt | picture) = sum over the parts i of log p(part i is what the prompt says).

    The picture is cut in as many columns of equal width as the data's prompts have parts
    (`DataSet.parts`), and each is read by itself: so it knows no picture as a whole, and none that
    it was not trained on is new to it. Prompts that say the same are equally probable.

    path  a run of `fit` of a clean classifier of single parts, such as of MNIST's digits
    UserError for another one, for data without parts, or with others.
    """

    classifies, clean = True, True
    parts: Tensor

    def __init__(self, *, path: Checkpoint):
        super().__init__()
        self.of_one = checkpoints.restore(path)
        if not (self.of_one.classifies and self.of_one.clean):
            raise UserError(f"SideBySide: {path} is no classifier of clean samples")
        self.step, self.num_classes = self.of_one.step, 0
        self.shape = None  # type: ignore[assignment]  # not known before the data are

    def take_data(self, data: DataSet | None) -> None:  # type: ignore[override]
        """What stands where in each class."""
        if data is None or data.parts is None:
            raise UserError("SideBySide: the data say nothing of parts, as Captions do")
        (n, (depth, height, width)), known = (data.parts.shape[1], data.shape), self.of_one
        if (depth, height, width) != (known.shape[0], known.shape[1], n * known.shape[2]):
            told = f"{n} of {tuple(known.shape)} make no picture of shape {tuple(data.shape)}"
            raise UserError(f"SideBySide: {told}")
        if int(data.parts.max()) >= known.num_classes:
            raise UserError(
                f"SideBySide: a part is {int(data.parts.max())}, and the classifier knows "
                f"{known.num_classes} classes"
            )
        self.shape, self.num_classes = tuple(data.shape), len(data.parts)
        self.register_buffer("parts", data.parts)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K) of clean x (B, *shape)."""
        columns: Any = x.chunk(self.parts.shape[1], 3)
        of_each = [self.of_one(part, sigma).log_softmax(1) for part in columns]
        return torch.stack([p[:, c] for p, c in zip(of_each, self.parts.T, strict=True)]).sum(0)
