"""Sampling from a model that has learned its own guidance."""

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, scale_at
from lightning_cfg.interfaces import Denoiser, Known


@method
def guidance_free(model: Denoiser, *, scale: Scale = 2.0) -> Denoiser:
    """D(x; sigma, c, w) of one pass, trained to be D_u + w (D_c - D_u): GFT (Chen et al. 2025).

    scale  w, up to what the model was trained for; 1 is the conditional model
    Raises UserError for a model other than a `GuidanceFree`.
    """
    told = Known(model).scaled_classes
    if told is None:
        raise UserError("guidance_free needs a model that was trained as model GuidanceFree")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        if not isinstance(w, Tensor):
            if w == 1:
                return model(x, sigma, c)
            w = torch.full_like(sigma, w)
        return model(x, sigma, told(c, w))

    return guided
