"""torchvision's ResNets, of which the weights tell the depth."""

import re
from typing import Any

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.nets.resnet import BLOCKS
from lightning_cfg.weights.published import Published, refuse_said

NAMES = {"conv1.weight", "layer4.1.conv2.weight", "fc.weight"}


def published(state: dict[str, Tensor], **told: Any) -> Published:
    """The classifier of a state dict; UserError where its shape is not said, or is no RGB image's.

    shape  of the images that it is to read, which it resizes itself
    """
    refuse_said(told, "torchvision", "shape")
    if told["shape"] is None:
        raise UserError("its weights do not tell shape=: of the images, such as [3, 512, 512]")
    counts = [_blocks(state, level) for level in range(1, 5)]
    narrow = "layer1.0.conv3.weight" not in state
    depths = [d for d, blocks in BLOCKS.items() if list(blocks) == counts and (d < 50) == narrow]
    if not depths:
        raise UserError(f"its blocks, {counts}, are of none of torchvision's ResNets")
    net = {"name": "ResNet", "depth": depths[0], "side": 224}
    weights = {_ours(k): v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    classes, shape = len(state["fc.weight"]), tuple(told["shape"])
    model = {"name": "NoisyClassifier", "clean": True, "schedule": "linear"}
    return Published("torchvision", net, model, shape, classes, weights, "Classification")


def _blocks(state: dict[str, Tensor], level: int) -> int:
    return len({m[1] for k in state if (m := re.match(rf"layer{level}\.(\d+)\.", k))})


def _ours(name: str) -> str:
    return f"net.head.{name[3:]}" if name.startswith("fc.") else f"net.body.{name}"
