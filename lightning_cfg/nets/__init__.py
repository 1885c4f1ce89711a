"""Networks: net(x (B, *shape), noise (B,), c (B,)) -> (B, *shape), or logits (B, classes)."""

from lightning_cfg.nets.adm_unet import ADMEncoder, ADMUNet
from lightning_cfg.nets.caption_unet import CaptionUNet
from lightning_cfg.nets.convnet import ConvNet
from lightning_cfg.nets.dit import DiT
from lightning_cfg.nets.dual_encoder import DualEncoder
from lightning_cfg.nets.edm2_unet import EDM2UNet
from lightning_cfg.nets.linear import Linear
from lightning_cfg.nets.mlp import MLP
from lightning_cfg.nets.resnet import ResNet
from lightning_cfg.nets.song_unet import SongUNet
from lightning_cfg.nets.unshuffle_unet import UnshuffleUNet

__all__ = [
    "MLP",
    "ADMEncoder",
    "ADMUNet",
    "CaptionUNet",
    "ConvNet",
    "DiT",
    "DualEncoder",
    "EDM2UNet",
    "Linear",
    "ResNet",
    "SongUNet",
    "UnshuffleUNet",
]
