"""Autoguidance (ATG)."""

from torch import Tensor

from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, between, evaluate_where, scale_at
from lightning_cfg.interfaces import Denoiser


@method
def autoguidance(model: Denoiser, weak: Denoiser, *, scale: Scale = 2.0) -> Denoiser:
    """D_w = D_weak + w (D - D_weak), same label (Karras et al. 2024).

    scale  w: 0 is the weak model, 1 the model itself
    weak   a smaller network that was trained less, or of the model's own run a checkpoint of
           before or an average of another half-life: models.weak: {path: ..., weights: ...}; one
           without classes is told none, and w is then the scale of CFG (EDM2's)
    """

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        D = evaluate_where(w != 0, model, x, sigma, c)
        D_weak = evaluate_where(w != 1, weak, x, sigma, c)
        return between(D_weak, D, w)

    return guided
