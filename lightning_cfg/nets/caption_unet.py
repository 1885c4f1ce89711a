"""A small text-to-image network: the UNet on 2 x 2 blocks, told its class by the class's name."""

from lightning_cfg.config import Depth, Width
from lightning_cfg.errors import UserError
from lightning_cfg.nets.layers import ChannelMult, Dropout
from lightning_cfg.nets.text import TextEmbedding
from lightning_cfg.nets.unshuffle_unet import UnshuffleUNet


class CaptionUNet(UnshuffleUNet):
    """`UnshuffleUNet` whose class vectors a transformer makes of the classes' names, their texts.

    Both are trained together, so that it may be asked for a class whose words it knows of others.
    shape (C, H, W) and the keys of the UNet as there; UserError for data without class_names.
    text_width   of the words' vectors, divisible by 4
    text_layers  of the transformer
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Width = 32,
        channel_mult: ChannelMult = (1, 2),
        blocks: Depth = 1,
        dropout: Dropout = 0.0,
        text_width: Width = 48,
        text_layers: Depth = 1,
    ):
        if num_classes == 0:
            raise UserError("CaptionUNet: the data have no classes whose names are texts")
        super().__init__(
            shape,
            num_classes,
            channels=channels,
            channel_mult=channel_mult,
            blocks=blocks,
            dropout=dropout,
        )
        self.classes = TextEmbedding(2 * channels, width=text_width, layers=text_layers)

    def take_class_names(self, names: list[str]) -> None:
        """The texts, of which class vectors are made."""
        self.classes.take(names)
