"""Gradient-free classifier guidance with autoguidance (ATG + GFCG)."""

from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Newer, Real, Share
from lightning_cfg.guidance.gfcg import Confidence, Input, Reference, check_input, confusion, is_one
from lightning_cfg.guidance.knock_outs import Strength, knocked_out
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_classes, require_null
from lightning_cfg.guidance.scales import Scale, between, evaluate_where, scale_at
from lightning_cfg.interfaces import NULL, Classifier, Denoiser


@method
def gfcg_autoguidance(
    model: Denoiser,
    weak: Denoiser,
    classifier: Classifier,
    *,
    scale: Scale = 2.0,
    atg_scale: Annotated[float, Real] | None = None,
    reference: Reference = "most_confused",
    confidence: Confidence = "pairwise",
    tau: Annotated[float, Share] = 0.01,
    classifier_input: Input = "denoised",
    strength: Annotated[Strength, Newer] = "own",
) -> Denoiser:
    """D_w = D(c) + (w - 1) (D(c) - D_weak(r)): ATG + GFCG (after Shenoy et al. 2024).

    The paper's is that the weak model's pass takes the reference label, so that the combination
    has as many passes as autoguidance. The rule is ours, as in `gfcg`: w = 1 + (scale - 1) u where
    u > tau; elsewhere r = c and w = atg_scale, which is autoguidance, and so is all of it with a
    classifier that is certain.

    scale      w where the classifier is confused altogether
    atg_scale  of autoguidance; left out, as scale: then 1 is the model itself
    reference, confidence, tau, classifier_input, strength  as of `gfcg`
    The errors too are those of `gfcg`; a weak model without classes is one.
    """
    require_classes(model, "gfcg_autoguidance")
    require_classes(weak, "gfcg_autoguidance, whose weak model takes a reference label,")
    if reference == "unconditional":
        require_null(weak, "gfcg_autoguidance with unconditional reference: the weak model")
    check_input(classifier, classifier_input, "gfcg_autoguidance")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w_max = scale_at(scale, sigma)
        w_atg = w_max if atg_scale is None else atg_scale
        D = model(x, sigma, c)
        if is_one(w_max) and is_one(w_atg):
            return D
        any_other = reference == "any_other"
        r, u = confusion(classifier, classifier_input, x, sigma, c, D, confidence, any_other)
        r = torch.full_like(c, NULL) if reference == "unconditional" else r
        u = knocked_out(u, strength)
        w = torch.where(u > tau, 1 + (w_max - 1) * u, w_atg)
        r = torch.where(u > tau, r, c)
        return between(evaluate_where(w != 1, weak, x, sigma, r), D, w)

    return guided
