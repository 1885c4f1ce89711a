"""The scale w of a method: a number, one per sample, or a schedule; and passes that are skipped."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Choice
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, over

Schedule = Callable[[Tensor], Tensor]  # sigma (B,) -> w (B,)

# In a config a number, or a section {name: cosine, scale: 2} of lightning_cfg.guidance.schedules.
Scale = float | Annotated[Schedule, Choice("lightning_cfg.guidance.schedules")] | Tensor


def scale_at(scale: Scale, sigma: Tensor) -> float | Tensor:
    """w at these noise levels: a number as it is, otherwise (B,).

    Raises UserError for a tensor that is not of one number per sample.
    """
    w = scale(sigma) if callable(scale) else scale
    if isinstance(w, Tensor) and w.shape != sigma.shape:
        raise UserError(
            f"scale has shape {tuple(w.shape)}, not {tuple(sigma.shape)}, one number per sample"
        )
    return w


def pass_where(
    asked: bool | Tensor, network: Denoiser, x: Tensor, sigma: Tensor, c: Tensor
) -> Tensor:
    """network(x, sigma, c) of the samples that are asked for and 0 of the others: (B, *shape).

    Only those samples are evaluated, and where there is none the network is not called.
    asked  True or False for all, or (B,) bool
    """
    if not isinstance(asked, Tensor):
        return network(x, sigma, c) if asked else torch.zeros_like(x)
    if asked.all():
        return network(x, sigma, c)
    out = torch.zeros_like(x)
    if asked.any():
        # a network that keeps something of every sample must know which these are
        rows = {"rows": asked} if getattr(network, "takes_rows", False) else {}
        out[asked] = network(x[asked], sigma[asked], c[asked], **rows)
    return out


def between(D_0: Tensor, D_1: Tensor, w: float | Tensor) -> Tensor:
    """D_0 + w (D_1 - D_0), and D_1 to the last bit where w = 1; w a number or (B,)."""
    if not isinstance(w, Tensor):
        return D_1 if w == 1 else D_0 + w * (D_1 - D_0)
    w = over(w, D_1)
    return torch.where(w == 1, D_1, D_0 + w * (D_1 - D_0))
