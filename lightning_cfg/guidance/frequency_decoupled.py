"""Frequency-decoupled guidance (FDG)."""

from functools import cache
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, pad

from lightning_cfg.config import Real
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, expand_like

TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # of a Laplacian pyramid (Burt & Adelson 1983)


@method
def frequency_decoupled(
    model: Denoiser, *, scale: Scale = 10.0, low: Annotated[float, Real] = 4 / 9
) -> Denoiser:
    """D_c + (w_low - 1) L(d) + (w - 1) (d - L(d)), d = D_c - D_u: FDG (Sadat et al. 2025).

    L(d) is what of d survives halving the image and doubling it again, the upper level of a
    Laplacian pyramid of two: so low frequencies, which colour and composition are, can be guided
    less than high ones, which details are. More levels, and projections, are not here.

    scale  w of the high frequencies; 1 is the conditional model
    low    w_low = 1 + low (w - 1); 1 is CFG. 4/9 of scale 10 is w_low 5, the paper's for SDXL
    Written from the abstract and the diffusers library's description. UserError for data that are
    no images, and for a model without classes or label dropout.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "frequency_decoupled")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        D_c, D_u = two_passes(model, x, sigma, c, True, w != 1)
        if not isinstance(w, Tensor) and w == 1:
            return D_c
        if x.ndim != 4:
            raise UserError("frequency_decoupled is for images, which have frequencies")
        d = D_c - D_u
        below, w = low_frequencies(d), expand_like(w, x)
        D = D_c + (w - 1) * (low * below + (d - below))
        return torch.where(w == 1, D_c, D) if isinstance(w, Tensor) else D

    return guided


def low_frequencies(d: Tensor) -> Tensor:
    """Images (B, C, H, W) blurred, halved, doubled and blurred, all of which is linear."""
    H, W = (along_one_axis(n).to(d) for n in d.shape[-2:])
    return H @ d @ W.T


@cache
def along_one_axis(n: int) -> Tensor:
    """The same of n numbers as a matrix, (n, n) float64."""
    small = interpolate(blur(torch.eye(n, dtype=torch.float64)[:, None]), -(-n // 2), mode="linear")
    return blur(interpolate(small, n, mode="linear"))[:, 0].T


def blur(d: Tensor) -> Tensor:
    """By TAPS along the last axis of (B, 1, n), reflected at the border."""
    return conv1d(pad(d, (2, 2), mode="reflect"), torch.tensor(TAPS, dtype=d.dtype)[None, None])
