"""Classifier guidance (CG)."""

from typing import Literal

import torch
from torch import Tensor

from lightning_cfg.diffusion.differentiable import differentiable
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_classes, require_null
from lightning_cfg.guidance.scales import Scale, evaluate_where, scale_at
from lightning_cfg.interfaces import NULL, Classifier, Denoiser, expand_like


@method
def classifier_gradient(
    model: Denoiser,
    classifier: Classifier,
    *,
    scale: Scale = 1.0,
    base: Literal["unconditional", "conditional"] = "unconditional",
) -> Denoiser:
    """D_w = D_u + w sigma^2 grad log p(c|x; sigma): classifier guidance (Dhariwal & Nichol 2021).

    scale  w. On the unconditional base 0 is unguided and 1 is the conditional model only if
           denoiser and classifier are exact (Zhao & Schwing 2025, eq. 9).
    base   "conditional": D_c + (w - 1) sigma^2 grad log p(c|x; sigma), so that 1 is unguided
    Raises UserError for a model without classes, or an unconditional base that was trained without
    label dropout.
    """
    require_classes(model, "classifier_gradient")
    if base == "unconditional":
        require_null(model, "classifier_gradient with base=unconditional")

    def gradient(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        with differentiable(x, sigma, c) as (leaf, level, label):
            log_p = classifier(leaf, level).log_softmax(1).gather(1, label[:, None])
            return torch.autograd.grad(log_p.sum(), leaf)[0]

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w = scale_at(scale, sigma) - float(base == "conditional")
        D = model(x, sigma, torch.full_like(c, NULL) if base == "unconditional" else c)
        if not isinstance(w, Tensor) and w == 0:
            return D
        weight = expand_like(w * sigma**2, x)
        return D + weight * evaluate_where(w != 0, gradient, x, sigma, c)

    return guided
