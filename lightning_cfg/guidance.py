"""Guidance: functions from denoisers to a denoiser, one per method, each readable alone.

`scale` = 1 is the unguided conditional model, above 1 is guided, and a pass that would be
multiplied by zero is skipped. Positional parameters are networks, keyword-only ones are numbers.
To add a method, write such a function anywhere and name it in the config by its dotted path.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL, Classifier, Denoiser, over

__all__ = [
    "autoguidance",
    "classifier_free",
    "classifier_gradient",
    "unguided",
]  # what a config can name


def unguided(model: Denoiser) -> Denoiser:
    """D(x; sigma, c): the conditional model as it is."""
    return model


def classifier_free(model: Denoiser, *, scale: float = 1.0) -> Denoiser:
    """D_w = D_u + w (D_c - D_u): classifier-free guidance (Ho & Salimans 2021).

    scale  w: 0 is the unconditional model, 1 the conditional one
    Raises UserError for a model without classes, or trained without label dropout.
    """
    if scale != 1:
        require_null(model, "classifier_free")

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        null = torch.full_like(c, NULL)
        if scale == 1:
            return model(x, sigma, c)
        if scale == 0:
            return model(x, sigma, null)
        D_c, D_u = model(x, sigma, c), model(x, sigma, null)
        return D_u + scale * (D_c - D_u)

    return guided


def classifier_gradient(
    model: Denoiser,
    classifier: Classifier,
    *,
    scale: float = 1.0,
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
    weight = scale if base == "unconditional" else scale - 1

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        D = model(x, sigma, torch.full_like(c, NULL) if base == "unconditional" else c)
        if weight == 0:
            return D
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_p = classifier(leaf, sigma).log_softmax(1).gather(1, c[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
        return D + weight * over(sigma, x) ** 2 * gradient

    return guided


def autoguidance(model: Denoiser, weak: Denoiser, *, scale: float = 2.0) -> Denoiser:
    """D_w = D_weak + w (D - D_weak), same label (Karras et al. 2024).

    scale  w: 0 is the weak model, 1 the model itself
    """

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if scale == 1:
            return model(x, sigma, c)
        if scale == 0:
            return weak(x, sigma, c)
        D, D_weak = model(x, sigma, c), weak(x, sigma, c)
        return D_weak + scale * (D - D_weak)

    return guided


def require_classes(model: Denoiser, method: str) -> None:
    """UserError if the model says that its data have no classes."""
    if getattr(model, "num_classes", None) == 0:
        raise UserError(
            f"{method} needs a model that knows classes; this one was trained on data without any"
        )


def require_null(model: Denoiser, method: str) -> None:
    """UserError if the model never learned the class "no class", or its data have no classes."""
    require_classes(model, method)
    if getattr(model, "label_dropout", 1.0) == 0:
        raise UserError(
            f"{method} needs a model trained with label dropout; this one has "
            "model.label_dropout: 0, so it has no unconditional part (train with 0.1)"
        )
