"""Gradient-free classifier guidance (GFCG), alone and with CFG."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Newer, Real, Share
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.knock_outs import Strength, knocked_out
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_classes, require_null
from lightning_cfg.guidance.scales import Scale, between, evaluate_where, scale_at, two_passes
from lightning_cfg.interfaces import NULL, Classifier, Denoiser, Known, expand_like

Reference = Literal["most_confused", "any_other", "unconditional"]
Confidence = Literal["pairwise", "complement"]
Input = Literal["denoised", "noisy"]


@method
def gfcg(
    model: Denoiser,
    classifier: Classifier,
    *,
    scale: Scale = 2.0,
    reference: Reference = "most_confused",
    confidence: Confidence = "pairwise",
    tau: Annotated[float, Share] = 0.01,
    classifier_input: Input = "denoised",
    combine: Literal["additive", "mixed"] | None = None,
    cfg_scale: Annotated[float, Real] | None = None,
    strength: Annotated[Strength, Newer] = "own",
) -> Denoiser:
    """D_w = D_c + (w - 1) (D_c - D_r), w = 1 + (scale - 1) u: GFCG (after Shenoy et al. 2024).

    The paper's is that the reference D_r is the same model under another class, and that label r
    and weight w of each sample are chosen afresh at every evaluation from how confused the
    classifier is, which runs forward only. The rule itself we could not read; this one is ours.
    On two classes, with tau 0, noisy input and the exact posterior, it is CFG at w = scale.

    scale             w where the classifier is confused altogether; 1 is unguided
    reference         r: the most probable other class that may be taken for c (`confusable` of the
                      classifier: of prompts those of another meaning), of any_other the most
                      probable of all others; or no class
    confidence        u: p_r / (p_r + p_c), r being the most probable other class, or 1 - p_c
    tau               samples with u <= tau get no reference pass
    classifier_input  D_c at sigma 0, or x at sigma
    combine           with CFG: additive, + (w_cfg - 1) (D_c - D_null); mixed, the reference is
                      null at w_cfg where u <= tau and r elsewhere
    cfg_scale         w_cfg; left out, as scale
    strength          own, or a knock-out in the place of u: that of another sample of the batch
                      (permuted), the batch's mean (level_mean), a number; see `knock_outs`.
                      Without its reference it is knocked out by reference: unconditional
    Raises UserError for a model without classes, or without "no class" where that is needed, and
    for noisy input to a classifier of clean samples.
    """
    require_classes(model, "gfcg")
    if combine is not None or reference == "unconditional":
        require_null(model, f"gfcg with {f'{combine=}' if combine else 'unconditional reference'}")
    if combine is None and cfg_scale is not None:
        raise UserError("guidance.cfg_scale needs guidance.combine, additive or mixed")
    check_input(classifier, classifier_input, "gfcg")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        w_max = scale_at(scale, sigma)
        w_cfg = 1.0 if combine is None else w_max if cfg_scale is None else cfg_scale
        D, D_null = two_passes(model, x, sigma, c, True, combine == "additive" and w_cfg != 1)
        D_w = D
        if not (is_one(w_max) and (combine != "mixed" or is_one(w_cfg))):
            any_other = reference == "any_other"
            r, u = confusion(classifier, classifier_input, x, sigma, c, D, confidence, any_other)
            r = torch.full_like(c, NULL) if reference == "unconditional" else r
            u = knocked_out(u, strength)
            confused, w = u > tau, 1 + (w_max - 1) * u
            w = torch.where(confused, w, w_cfg if combine == "mixed" else 1.0)
            r = torch.where(confused, r, NULL)
            D_w = between(evaluate_where(w != 1, model, x, sigma, r), D, w)
        if combine == "additive":
            D_w = D_w if is_one(w_cfg) else D_w + expand_like(w_cfg - 1, x) * (D - D_null)
        return D_w

    return guided


@torch.no_grad()
def confusion(
    classifier: Classifier,
    given: Input,
    x: Tensor,
    sigma: Tensor,
    c: Tensor,
    D: Tensor,
    confidence: Confidence,
    any_other: bool = False,
) -> tuple[Tensor, Tensor]:
    """The most probable other class r of each sample, (B,), and how confused u in [0, 1], (B,).

    Where the classifier has `confusable` (K, K), r is one that may be taken for c, unless
    `any_other` says that any may.
    """
    if given == "noisy":
        logits = classifier(x, sigma)
    else:
        logits = classifier(D.detach(), torch.zeros_like(sigma))
    may_be = None if any_other else Known(classifier).confusable
    if may_be is not None:
        others = may_be.to(c.device)[c].scatter(1, c[:, None], True)
        logits = logits.masked_fill(~others, -torch.inf)
    own = logits.gather(1, c[:, None])[:, 0]
    other, r = logits.scatter(1, c[:, None], -torch.inf).max(1)
    if confidence == "pairwise":
        return r, (other - own).sigmoid().to(sigma.dtype)
    return r, 1 - (own - logits.logsumexp(1)).exp().to(sigma.dtype)


def check_input(classifier: Classifier, given: Input, method: str) -> None:
    """UserError if the classifier was trained on clean samples only and is to read noisy ones."""
    if given == "noisy" and Known(classifier).clean:
        raise UserError(
            f"{method} with classifier_input=noisy needs a noisy classifier; this one was trained "
            "with model.clean: true, on samples without noise"
        )


def is_one(w: float | Tensor) -> bool:
    """Whether nothing is guided; of one number per sample that is looked at later."""
    return not isinstance(w, Tensor) and w == 1
