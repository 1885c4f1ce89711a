"""Adaptive projected guidance (APG)."""

from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Positive, Real
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, Guided, expand_like


@method
def apg(
    model: Denoiser,
    *,
    scale: Scale = 2.0,
    eta: Annotated[float, Real] = 0.0,
    norm: Annotated[float, Positive] | None = None,
    momentum: Annotated[float, Real] = 0.0,
) -> Denoiser:
    """D_w = D_c + (w - 1) (d_orthogonal + eta d_parallel): APG (Sadat et al. 2025).

    d = D_c - D_u, plus momentum times its last value; then shortened to the length `norm` where it
    is longer; then split into what is parallel to D_c and what is orthogonal. Over all dimensions
    of a sample; on D, as published. With eta 1, no norm and momentum 0 it is CFG.

    scale     w; 1 is the conditional model
    norm      r, in units of the data; left out, as it is
    momentum  beta, negative in the paper. It does not say what the second evaluation of a step of
              Heun is: here both take the step before's d, and the first one is remembered
    Raises UserError for a model without classes, or trained without label dropout.
    """
    if isinstance(scale, Tensor) or scale != 1:
        require_null(model, "apg")
    before: Tensor | None = None  # the step before's d
    latest: Tensor | None = None  # this step's

    def begin_step(i: int, sigma: float) -> None:
        nonlocal before, latest
        before, latest = (latest if i else None), None

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal latest
        w = scale_at(scale, sigma)
        D_c, D_u = two_passes(model, x, sigma, c, True, w != 1)
        if not isinstance(w, Tensor) and w == 1:
            return D_c
        d = D_c - D_u
        if before is not None:
            d = d + momentum * before
        latest = d if latest is None else latest
        if norm is not None:
            length = d.flatten(1).norm(dim=1)
            d = d * expand_like((norm / length).clamp(max=1), d)
        along = (d * D_c).flatten(1).sum(1) / D_c.square().flatten(1).sum(1)
        parallel = expand_like(along, D_c) * D_c
        return D_c + expand_like(w - 1, x) * (d - parallel + eta * parallel)

    return guided if momentum == 0 else Guided(guided, begin_step=begin_step)
