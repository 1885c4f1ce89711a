"""Pictures and texts in one space: logits of a picture for the names of all classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import Depth, Width
from lightning_cfg.nets.convnet import body, check
from lightning_cfg.nets.text import TextEmbedding

SCALE = 10.0  # of the cosines, before it is trained


class DualEncoder(nn.Module):
    """CLIP in small (Radford et al. 2021): logits (B, K) = s cos(image, text of each class).

    The picture goes through the convolutions of `ConvNet` and one layer over all of their
    positions, as what stands where matters to a text; the classes' names through a transformer. s
    is trained with them, by model `Contrastive`; noise and class are accepted and ignored.

    shape (C, H, W), H and W even and at least 4, otherwise UserError; so for data without
    class_names.
    width        of the space
    text_width   of the words' vectors, divisible by 4
    text_layers  of the transformer
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Width = 32,
        width: Width = 64,
        text_width: Width = 48,
        text_layers: Depth = 1,
    ):
        super().__init__()
        check("DualEncoder", shape, num_classes)
        self.num_classes = num_classes
        self.body = body(shape[0], channels)
        positions = (-(-shape[1] // 8)) * (-(-shape[2] // 8))
        self.image = nn.Linear(2 * channels * positions, width)
        self.text = TextEmbedding(width, width=text_width, layers=text_layers)
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())

    def take_class_names(self, names: list[str]) -> None:
        """The texts of the classes."""
        self.text.take(names)

    def texts(self) -> Tensor:
        """Unit vectors (K, width) of all classes' texts."""
        return F.normalize(self.text(torch.arange(self.num_classes, device=self.log_scale.device)))

    def features(self, x: Tensor) -> Tensor:
        """Unit vectors (B, width) of clean pictures x (B, *shape) in [-1, 1]."""
        return F.normalize(self.image(self.body(x).flatten(1)))

    def forward(self, x: Tensor, noise: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """Logits (B, K) of clean x (B, *shape)."""
        return self.log_scale.exp() * self.features(x) @ self.texts().T
