"""CFG with a learned strength."""

from torch import Tensor

from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser


@method
def learned_weight(model: Denoiser, strength: Denoiser, *, scale: Scale = 2.0) -> Denoiser:
    """D_u + w (D_c - D_u), w = 1 + (scale - 1) (w(c, sigma) - 1), w(c, sigma) learned.

    Galashov et al. (2025) let a small network say the strength for every class and noise level: so
    it is at scale 2. Scale 1 is the conditional model, and beyond 2 what was learned is overdone.

    strength  a `GuidanceWeight` that was trained on this model, (x, sigma, c) -> w shaped like x
    Raises UserError for a model without classes, or trained without label dropout.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "learned_weight")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        how = scale_at(scale, sigma)
        if not isinstance(how, Tensor) and how == 1:
            return model(x, sigma, c)
        learned = strength(x, sigma, c).flatten(1)[:, 0].to(x.dtype)
        w = 1 + (how - 1) * (learned - 1)
        D_c, D_u = two_passes(model, x, sigma, c, w != 0, w != 1)
        return between(D_u, D_c, w)

    return guided
