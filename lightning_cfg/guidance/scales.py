"""The scale w of a method: a number, one per sample, or a schedule; and passes that are skipped."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Choice, Real
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Changed
from lightning_cfg.interfaces import NULL, Denoiser, expand_like

Schedule = Callable[[Tensor], Tensor]  # sigma (B,) -> w (B,)

TOGETHER = 4  # so many samples at most have their two passes run as one batch; see `two_passes`

# In a config a number, or a section {name: cosine, scale: 2} of lightning_cfg.guidance.schedules.
Scale = (
    Annotated[float, Real]
    | Annotated[Schedule, Choice("lightning_cfg.guidance.schedules")]
    | Tensor
)


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


def evaluate_where(
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
        told = isinstance(network, Changed) and network.takes_rows
        rows = {"rows": asked} if told else {}
        out[asked] = network(x[asked], sigma[asked], c[asked], **rows)
    return out


def two_passes(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    c: Tensor,
    conditional: bool | Tensor,
    unconditional: bool | Tensor,
) -> tuple[Tensor, Tensor]:
    """D_c and D_u of the samples that are asked for, as by two calls of `evaluate_where`.

    Up to TOGETHER samples that all need both are one pass of the doubled batch, the same but for
    rounding: at 1 and at 4 samples 0.5 and 0.6 times the time of two with an MLP, 0.7 and 0.9 with
    an UnshuffleUNet, 0.9 and 1.0 with an ADMUNet, on a CPU core. Of more samples two passes were
    as fast or faster with the UNets (benchmarks/guidance.py --together; GPUs were not measured).
    """
    null = torch.full_like(c, NULL)
    asked = conditional & unconditional
    # a changed model may tell passes apart by their labels, or keep something of every sample
    small = len(x) <= TOGETHER and not isinstance(model, Changed)
    if small and torch.as_tensor(asked).all():
        D = model(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([c, null]))
        return D[: len(x)], D[len(x) :]
    D_c = evaluate_where(conditional, model, x, sigma, c)
    return D_c, evaluate_where(unconditional, model, x, sigma, null)


def between(D_0: Tensor, D_1: Tensor, w: float | Tensor) -> Tensor:
    """D_0 + w (D_1 - D_0), and D_1 to the last bit where w = 1; w a number or (B,)."""
    if not isinstance(w, Tensor):
        return D_1 if w == 1 else D_0 + w * (D_1 - D_0)
    w = expand_like(w, D_1)
    return torch.where(w == 1, D_1, D_0 + w * (D_1 - D_0))
