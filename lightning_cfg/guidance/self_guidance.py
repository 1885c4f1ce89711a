"""Guidance of another method by what the model loses when it is weakened."""

from dataclasses import replace

from torch import Tensor

from lightning_cfg.guidance.composed import Changed, Of
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, evaluate_where, scale_at
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import Denoiser, as_guided, expand_like


@method
def self_guidance(
    model: Denoiser, weak: Denoiser, *, of: Of = unguided, scale: Scale = 1.25
) -> Denoiser:
    """D_of + (w - 1) (D - D_weak), D_of another method's: S^2 and perturbed-attention guidance.

    Beside CFG as `of` that is the sum of both, as S^2-guidance (Chen et al. 2025) and PAG (Ahn et
    al. 2024) have it; without, it is `autoguidance`. The D that `of` has evaluated is used again.

    scale  w, 1 plus the papers' omega or s; 1 is the other method as it is
    weak   such as the model itself, weakened: models.weak: {path: ..., weaken: {name: skip}}
    Of S^2 the abstract and implementations' notes were read, omega 0.25 being one of theirs.
    """
    labels = D_c = None

    def remembered(x: Tensor, sigma: Tensor, c: Tensor, **rows: Tensor) -> Tensor:
        nonlocal D_c
        D = model(x, sigma, c, **rows)
        D_c = D if c is labels else D_c
        return D

    within = as_guided(of(Changed(model, remembered)))

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal labels, D_c
        labels, D_c = c, None
        w, D_of = scale_at(scale, sigma), within(x, sigma, c)
        if not isinstance(w, Tensor) and w == 1:
            return D_of
        D = model(x, sigma, c) if D_c is None else D_c
        D_weak = evaluate_where(w != 1, weak, x, sigma, c)
        return D_of + expand_like(w - 1, x) * (D - D_weak)

    return replace(within, denoise=guided)
