"""A network that somebody else has published, under our names: what `adopt` makes a run of."""

from dataclasses import dataclass, field

from torch import Tensor

from lightning_cfg.errors import UserError

# What weights do not say of their network, as keys of `adopt`
UNSAID = ("shape", "schedule", "num_heads", "head_channels", "attention_order")


@dataclass
class Published:
    """A network of somebody's, by sections of a config and weights under our names.

    weights  parameters and buffers by their names in the model: `net.` and the network's own
    step     of its training, where the file says it
    """

    kind: str
    net: dict
    model: dict
    shape: tuple[int, ...]
    num_classes: int
    weights: dict[str, Tensor] = field(repr=False)
    learner: str = "Diffusion"
    step: int = 0


def refuse_said(told: dict, kind: str, *but: str) -> None:
    """UserError for a key that is given although the file, or its kind, says it already."""
    for key, value in told.items():
        if value is not None and key not in but:
            raise UserError(
                f"{key}={value} does not count: a file of the kind {kind} says it itself"
            )
