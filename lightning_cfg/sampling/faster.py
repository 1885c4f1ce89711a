"""How networks are asked in sampling: at which precision, and compiled or not."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lightning_cfg.errors import UserError

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Speed:
    """A precision of networks, and whether they are compiled.

    A compiled network differs by rounding only; bfloat16 has 8 bits, a relative error of 0.4 % in
    each layer. The sampler's own steps stay in float64.
    """

    precision: Precision = "32-true"
    compile: bool = False

    def give(self, *models: nn.Module) -> None:
        """Let networks be asked so, in place; UserError where none of the models is a network."""
        if self == Speed():
            return
        own: list[Any] = [m for m in models if isinstance(getattr(m, "net", None), nn.Module)]
        if not own:
            raise UserError(
                f"precision={self.precision} compile={str(self.compile).lower()}: a closed form is "
                "no network, so this would change nothing"
            )
        for model in own:
            model.autocast = torch.bfloat16 if self.precision == "bf16-mixed" else None
            if self.compile:
                model.net.compile()
