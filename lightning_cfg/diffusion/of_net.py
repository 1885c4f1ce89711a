"""What models share: a network, asked in its own dtype."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL, Model, Net, complete


class OfNet(Model):
    """A model that is a network and a parametrisation, with label dropout for CFG."""

    def __init__(self, net: nn.Module, label_dropout: float = 0.0, inner_weight: float = 0.0):
        super().__init__()
        self.net = net = complete(net, Net, f"net {type(net).__name__}")
        if (net.inside is not None) != (inner_weight > 0):
            raise UserError(
                "a head inside the network (net.inner, of an MLP) and what trains it "
                "(model.inner_weight above 0, of EDM) go together: give both or none"
            )
        self.label_dropout = label_dropout
        if label_dropout > 0 and not net.null_class:
            raise UserError(
                f"model.label_dropout={label_dropout} needs a network with a null class: "
                "net.null_class=true, or model.label_dropout=0"
            )

    @property
    def class_vectors(self) -> Callable[[Tensor], Tensor] | None:
        """The network's embedding of classes, (B,) -> (B, d), which it also takes as c."""
        return self.net.class_vectors

    def run(self, x: Tensor, noise: Tensor, c: Tensor | None, *augment: Tensor) -> Tensor:
        """The network in its own dtype, its answer in x's: (B, *shape), or (B, classes).

        Where `autocast` is a dtype, its products are computed in that one.
        UserError for another shape, which would be broadcast and trained on without a word.
        """
        dtype = next(self.net.parameters()).dtype
        net = self.net
        if self.autocast is not None:
            net = torch.autocast(x.device.type, self.autocast)(net)
        answer = net(x.to(dtype), noise.to(dtype), c, *(a.to(dtype) for a in augment))
        shape = x.shape
        if self.classifies:
            shape = len(x), *((self.num_classes,) if self.num_classes else answer.shape[-1:])
        if answer.shape != shape:
            raise UserError(
                f"net {type(self.net).__name__} answers x of shape {tuple(x.shape)} with shape "
                f"{tuple(answer.shape)}, and not {tuple(shape)}"
            )
        return answer.to(x.dtype)


def drop_labels(c: Tensor, rate: float, draws: Draws) -> Tensor:
    """Each sample's class becomes NULL with probability `rate` (Ho & Salimans 2021)."""
    return c if rate == 0 else torch.where(onto(draws.uniform(), c.device) < rate, NULL, c)
