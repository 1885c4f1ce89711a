"""CFG with Feynman-Kac correctors."""

from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import Between, Real, Share
from lightning_cfg.errors import UserError
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import between, two_passes
from lightning_cfg.interfaces import Denoiser, Draw, Guided


@method
def feynman_kac(
    model: Denoiser,
    *,
    scale: Annotated[float, Real] = 2.0,
    particles: Annotated[int, Between(1, 10_000)] = 8,
    threshold: Annotated[float, Share] = 0.5,
) -> Denoiser:
    """CFG by several weighted particles of each sample, some of which go on (Skreta et al. 2025).

    CFG's D_w = D_u + w (D_c - D_u) has the score of p_u^(1-w) p_c^w at every noise level, and yet
    its samples are not of that at 0. With the weights d log W = w (w - 1) / 2 |s_c - s_u|^2
    d(sigma^2), s the scores (D - x) / sigma^2, the particles are, exactly in the limit of many
    steps and particles. From s to t that is w (w - 1) / 2 |D_c - D_u|^2 (1 / t^2 - 1 / s^2), what
    p_u^(1-w) p_c^w of the two models' ancestral steps has beyond D_w's; in the last step, to 0,
    1 / s^2. Where few carry the weight they are drawn anew by it (systematically), and at the end
    one is drawn as the sample. Noise and draws come from the sample's own seed; the paper's
    particles are a batch's, of one condition. Of the paper the abstract was read, and its equation
    derived anew from the Fokker-Planck equation.

    scale      w, a number; 1 is the conditional model, of one particle
    particles  of each sample; 1 is CFG with ancestral steps
    threshold  they are drawn anew where the effective number, 1 / sum W^2, is at most this share of
               them: 0 never, and only at the end; 1 always
    Raises UserError for a model without classes or label dropout, and for a sampler whose steps
    have no fresh noise.
    """
    if scale == 1:
        return model
    require_null(model, "feynman_kac")
    square: Tensor | None = None  # |D_c - D_u|^2 at the step's beginning
    log_W: Tensor | None = None  # (samples, particles)
    uniform: Draw | None = None

    def draw_from(draw: Draw) -> None:
        nonlocal uniform
        uniform = draw.other("feynman_kac", ())

    def begin_step(i: int, sigma: float) -> None:
        nonlocal log_W, square
        log_W, square = (log_W if i else None), None

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal square
        D_c, D_u = two_passes(model, x, sigma, c, scale != 0, True)
        if scale != 0 and square is None:
            square = (D_c - D_u).flatten(1).square().sum(1).double()
        return between(D_u, D_c, scale)

    def resample(s: float, t: float) -> Tensor | None:
        nonlocal log_W
        if square is not None:  # None where another method has taken this step
            steps = 1 / t**2 - 1 / s**2 if t > 0 else 1 / s**2
            gained = scale * (scale - 1) / 2 * steps * square.reshape(-1, particles)
            log_W = gained if log_W is None else log_W + gained
        if uniform is None:
            raise UserError("feynman_kac draws particles: give it the samples' own noise")
        # one of each sample at every step, so that it does not matter which others need theirs
        u = torch.special.ndtr(uniform()).reshape(-1, particles)[:, :1]
        if log_W is None:
            return None
        W = log_W.softmax(1)
        few = 1 / W.square().sum(1) <= threshold * particles
        if t > 0 and not few.any():
            return None
        offsets = torch.arange(particles, device=u.device) + u
        at = offsets / particles if t > 0 else u.expand_as(W)
        chosen = torch.searchsorted(W.cumsum(1), at.contiguous()).clamp(max=particles - 1)
        if t > 0:
            stay = torch.arange(particles, device=u.device).expand_as(W)
            chosen = torch.where(few[:, None], chosen, stay)
            log_W = torch.where(few[:, None], 0.0, log_W)
        first = torch.arange(len(W), device=u.device)[:, None] * particles
        return (first + chosen).flatten()

    if particles == 1:
        return guided
    return Guided(
        guided, draw_from=draw_from, begin_step=begin_step, particles=particles, resample=resample
    )
