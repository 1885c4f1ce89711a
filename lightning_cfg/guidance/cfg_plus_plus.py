"""CFG++."""

from typing import Literal

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, Guided


@method
def cfg_plus_plus(
    model: Denoiser,
    *,
    scale: Scale = 0.6,
    base: Literal["unconditional", "conditional"] = "unconditional",
) -> Denoiser:
    """x <- D_w + k (x - D_u), D_w = D_u + w (D_c - D_u): CFG++ (Chung et al. 2025).

    k is what a first-order step keeps of the noise, t/s from s to t, and (t/s)^2 in an ancestral
    step. So the guided estimate is renoised with the unguided noise. The same step in the form
    x <- D + k (x - D) has D = D_u + w / (1 - k) (D_c - D_u), which is what this returns: CFG with
    another scale at every step.

    scale  w from 0 to 1, the paper's lambda; 0 is unguided, and none is the conditional model
    base   "conditional", which is ours: x <- D_w + k (x - D_c), so that 1 is unguided
    Raises UserError for a model without classes, or trained without label dropout, and where a
    sampler's step has no such form.
    """
    require_null(model, "cfg_plus_plus")
    kept: float | None = None

    def keep_noise(share: float) -> None:
        nonlocal kept
        kept = share

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if kept is None:
            raise UserError("cfg_plus_plus is for the steps of a sampler, which has not begun one")
        w, unguided = scale_at(scale, sigma), float(base == "conditional")
        w = unguided + (w - unguided) / (1 - kept)
        D_c, D_u = two_passes(model, x, sigma, c, w != 0, w != 1)
        return between(D_u, D_c, w)

    return Guided(guided, keep_noise=keep_noise)
