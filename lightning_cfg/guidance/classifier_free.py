"""Classifier-free guidance (CFG)."""

from torch import Tensor

from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser


@method
def classifier_free(model: Denoiser, *, scale: Scale = 1.0) -> Denoiser:
    """D_w = D_u + w (D_c - D_u): classifier-free guidance (Ho & Salimans 2021).

    scale  w: 0 is the unconditional model, 1 the conditional one
    Raises UserError for a model without classes, or trained without label dropout.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "classifier_free")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        D_c, D_u = two_passes(model, x, sigma, c, w != 0, w != 1)
        return between(D_u, D_c, w)

    return guided
