"""Data sets; what each has to have, and may have, is `interfaces.DataSet`."""

from lightning_cfg.data.captions import Captions
from lightning_cfg.data.cifar import CIFAR10
from lightning_cfg.data.described import Described
from lightning_cfg.data.image_zip import ImageArray, ImageFolder, ImageZip
from lightning_cfg.data.latent_zip import LatentZip
from lightning_cfg.data.map_style import MapStyle
from lightning_cfg.data.mixtures import Fractal, Mixture
from lightning_cfg.data.mnist import MNIST
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.data.prompts import Prompts
from lightning_cfg.data.real_or_generated import RealOrGenerated
from lightning_cfg.data.reflow import Reflow

__all__ = [
    "CIFAR10",
    "MNIST",
    "Captions",
    "Described",
    "Fractal",
    "ImageArray",
    "ImageFolder",
    "ImageZip",
    "LatentZip",
    "MapStyle",
    "Mixture",
    "Pairs",
    "Prompts",
    "RealOrGenerated",
    "Reflow",
]
