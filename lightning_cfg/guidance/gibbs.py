"""Gibbs-like guidance (CFGiG)."""

from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Between, Sigma, Steps
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import Scale, between, scale_at, two_passes
from lightning_cfg.interfaces import Denoiser, Guided


@method
def gibbs(
    model: Denoiser,
    *,
    scale: Scale = 2.0,
    rounds: Annotated[int, Between(0, 1000)] = 2,
    sigma: Sigma = 2.0,
    steps: Steps = 8,
) -> Denoiser:
    """A sample without guidance, then noised and denoised with CFG in turns (Moufad et al. 2025).

    x <- CFG's end from x + sigma n, `rounds` times, each in so many steps. CFG at high noise is not
    the score of any noisy p_u^(1-w) p_c^w; it is in the limit of low noise, where these rounds are,
    and the first sample has the conditional model's diversity.

    rounds  how many
    scale   w of the rounds; 1, or no rounds, is the conditional model and its steps alone
    sigma   the noise of a round
    steps   of the sampler in a round, between sigma and its lowest level
    Written from the abstract and the authors' code; which sigma and how many rounds they take we
    have not read. UserError for a model without classes or label dropout, and, where steps are
    taken, for a sampler without.
    """
    if rounds == 0 or (not isinstance(scale, Tensor) and scale == 1):
        return model
    require_null(model, "gibbs")
    now = 0

    def begin_round(i: int) -> None:
        nonlocal now
        now = i

    def guided(x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        if now == 0:
            return model(x, level, c)
        w = scale_at(scale, level)
        D_c, D_u = two_passes(model, x, level, c, w != 0, w != 1)
        return between(D_u, D_c, w)

    return Guided(guided, begin_round=begin_round, restarts=((sigma, steps),) * rounds)
