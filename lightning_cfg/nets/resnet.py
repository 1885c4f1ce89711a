"""torchvision's ResNet as a classifier of images of any side: for published ImageNet weights."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cfg.config import Width
from lightning_cfg.errors import UserError

BLOCKS = {  # of each of the four levels, by depth
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
Depths = Literal[18, 34, 50, 101, 152]


class ResNet(nn.Module):
    """The residual network of He et al. (2016) for ImageNet, as torchvision builds it.

    Images are resized, antialiased, and normalised as its weights expect; the noise level and the
    class are accepted, as by every net, and ignored: this net judges finished images. Its batch
    normalisation is that of the published weights and does not learn.

    depth  18, 34, 50, 101 or 152: layers with weights
    side   to which images are resized
    shape (3, H, W), otherwise UserError.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, *, depth: Depths = 50, side: Width = 224
    ):
        super().__init__()
        if len(shape) != 3 or shape[0] != 3:
            raise UserError(f"ResNet: needs RGB images, (3, H, W), got {tuple(shape)}")
        if num_classes < 2:
            raise UserError(f"ResNet: a classifier needs 2 classes or more, got {num_classes}")
        from torchvision.models import resnet
        from torchvision.ops import FrozenBatchNorm2d

        block = resnet.BasicBlock if depth < 50 else resnet.Bottleneck
        blocks = list(BLOCKS[depth])
        body: Any = resnet.ResNet(block, blocks, num_classes, norm_layer=FrozenBatchNorm2d)
        body.fc, self.head = nn.Identity(), body.fc
        self.body = body
        self.side = side
        for name, values in (("mean", MEAN), ("std", STD)):
            own = torch.tensor(values).reshape(3, 1, 1)
            self.register_buffer(name, own, persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer of clean x (B, 3, H, W) in [-1, 1] -> (B, 512 or 2048)."""
        size = (self.side, self.side)
        x = F.interpolate((x + 1) / 2, size, mode="bilinear", antialias=True, align_corners=False)
        return self.body((x - self.mean) / self.std)

    def forward(self, x: Tensor, noise: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """Logits of clean x (B, 3, H, W) -> (B, num_classes); `noise` and `c` are ignored."""
        return self.head(self.features(x))
