"""Tangential classifier-free guidance (TCFG)."""

import torch
from torch import Tensor

from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, expand_like


@method
def tangential(model: Denoiser, *, scale: Scale = 2.0) -> Denoiser:
    """CFG from a damped unconditional score: TCFG (Kwon et al. 2025).

    Of e_u = (x - D_u) / sigma only the part along v is kept, the first right singular vector of the
    rows e_c and e_u: what both scores share. Then e = e_u' + w (e_c - e_u'). Over all dimensions of
    a sample.

    scale  w; 1 is the conditional model
    Written from the diffusers library's description. UserError for a model without classes, or
    trained without label dropout.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "tangential")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        D_c, D_u = two_passes(model, x, sigma, c, True, w != 1)
        if not isinstance(w, Tensor) and w == 1:
            return D_c
        s = expand_like(sigma, x)
        e = torch.stack([((x - D) / s).flatten(1) for D in (D_c, D_u)], 1).double()
        _, _, V = torch.linalg.svd(e, full_matrices=False)
        v = V[:, 0]
        shared = (e[:, 1] * v).sum(1, keepdim=True) * v
        return between(x - s * shared.reshape(x.shape).to(x.dtype), D_c, w)

    return guided
