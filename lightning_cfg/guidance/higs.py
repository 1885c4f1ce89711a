"""History-guided sampling (HiGS)."""

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Between, NonNegative, Share, ordered
from lightning_cfg.diffusion.trajectories import time_of
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.composed import Of
from lightning_cfg.guidance.history import History
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, scale_at
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import Denoiser, as_guided, expand_like

SHARPNESS = 50.0  # lambda of the filter


@method
@ordered("t_min", "t_max")
def higs(
    model: Denoiser,
    *,
    of: Of = unguided,
    scale: Scale = 2.75,
    alpha: Annotated[float, Between(0, 1, above=True)] = 0.75,
    eta: Annotated[float, Share] = 0.0,
    t_min: Annotated[float, Share] = 0.4,
    t_max: Annotated[float, Share] = 1.0,
    cutoff: Annotated[float, NonNegative] | None = 0.05,
) -> Denoiser:
    """D + w(t) H(d), d = D - g, D another method's: history-guided sampling (Sadat et al. 2026).

    g is the average of D over the steps before, g <- alpha D + (1 - alpha) g from 0 on; of d the
    part along D is kept by the share eta; w(t) = (scale - 1) sqrt((t - t_min) / (t_max - t_min)) at
    t_min < t <= t_max and 0 elsewhere. H keeps of images the frequencies of their cosine transform
    above `cutoff`, by a sigmoid; points have none. No further pass; the first step is as it is.

    The paper has t from 0 to 1 and leaves open how that is scaled: here it is the DDPM's t/T. Of a
    step of Heun both evaluations have the g of the steps before, and the first one is remembered.

    scale   1 plus the paper's w; 1 changes nothing
    alpha   share of this step's D in g
    t_min, t_max  t/T between which something is added
    cutoff  R_c, in shares of the sampling frequency; null for no filter
    The defaults are the paper's for Stable Diffusion XL. UserError where a sampler has no steps.
    """
    if not t_min < t_max:
        raise UserError(f"guidance.t_min={t_min:g} must be below t_max={t_max:g}")
    within = as_guided(of(model))
    history = History("higs", within)

    def begin_step(i: int, sigma: float) -> None:
        history.begin_step(i, sigma)

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w, D = scale_at(scale, sigma), within(x, sigma, c)
        if not isinstance(w, Tensor) and w == 1:
            return D
        g = history.remember(lambda g: alpha * D if g is None else alpha * D + (1 - alpha) * g)
        if g is None:
            return D
        d = D - g
        along = (d * D).flatten(1).sum(1) / D.square().flatten(1).sum(1)
        d = d - (1 - eta) * expand_like(along, D) * D
        t = time_of(sigma)
        inside = (t > t_min) & (t <= t_max)
        weight = (w - 1) * ((t - t_min).clamp(min=0) / (t_max - t_min)).sqrt() * inside
        d = d if cutoff is None or d.ndim < 4 else high_pass(d, cutoff)
        return torch.where(expand_like(weight, x) == 0, D, D + expand_like(weight, x) * d)

    return replace(within, denoise=guided, begin_step=begin_step)


def high_pass(d: Tensor, cutoff: float) -> Tensor:
    """Images (B, C, H, W) without what is below `cutoff`, softly, of their 2-D cosine transform."""
    H, W = (cosines(n, d) for n in d.shape[-2:])
    u, v = (torch.arange(n, device=d.device, dtype=d.dtype) / n for n in d.shape[-2:])
    R = (u[:, None] ** 2 + v**2).sqrt()
    kept = (SHARPNESS * (R - cutoff)).sigmoid()
    return H.T @ (kept * (H @ d @ W.T)) @ W


def cosines(n: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix, (n, n)."""
    k = torch.arange(n, device=like.device, dtype=like.dtype)
    C = (2 / n) ** 0.5 * (math.pi / n * k[:, None] * (k + 0.5)).cos()
    C[0] /= 2**0.5
    return C
