"""Multistep samplers: one evaluation a step, and the steps before are used again."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import numpy as np
from torch import Tensor

from lightning_cfg.config import Between, Share
from lightning_cfg.diffusion.noise import karras
from lightning_cfg.diffusion.ode import per_sample
from lightning_cfg.diffusion.stepping import Trajectory, along, begin_step, derivative
from lightning_cfg.interfaces import Guided


@along(karras, steps=35)
def dpmpp_2m(denoise: Guided, noise: Tensor, c: Tensor, levels: list[float]) -> Trajectory:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): second order in lambda = -ln sigma.

    x <- (t/s) x + (1 - t/s) D', D' = D + h / (2 h_before) (D - D_before), h = ln(s/t). The first
    step and the last, to 0, are of first order.
    """
    return _2m(denoise, noise, c, levels, None, 0.0, "dpmpp_2m")


@along(karras, steps=35)
def dpmpp_2m_sde(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    draw: Callable[[], Tensor],
    *,
    eta: Annotated[float, Share] = 1.0,
) -> Trajectory:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, sec. 5; eta is k-diffusion's).

    x <- (t/s) e^(-eta h) x + (1 - (t/s) e^(-eta h)) D' + t sqrt(1 - e^(-2 eta h)) n, D' as of
    `dpmpp_2m`; the factor of its second term is the midpoint's, as in k-diffusion.
    eta  0 is `dpmpp_2m`, 1 the SDE of the ancestral samplers
    """
    return _2m(denoise, noise, c, levels, draw, eta, "dpmpp_2m_sde")


def _2m(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    draw: Callable[[], Tensor] | None,
    eta: float,
    who: str,
) -> Trajectory:
    x, before, h_before = noise * levels[0], None, 0.0
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, None, who)
        D = denoise(x, per_sample(s, x), c)
        h = math.log(s / t) if t > 0 else math.inf
        ahead = D if before is None or t == 0 else D + h / (2 * h_before) * (D - before)
        kept = t / s * math.exp(-eta * h) if t > 0 else 0.0
        x = kept * x + (1 - kept) * ahead
        if draw is not None and eta > 0 and t > 0:
            x = x + t * (1 - math.exp(-2 * eta * h)) ** 0.5 * draw()
        before, h_before = D, h
        yield t, x


@along(karras, steps=35)
def lms(
    denoise: Guided,
    noise: Tensor,
    c: Tensor,
    levels: list[float],
    *,
    order: Annotated[int, Between(1, 8)] = 4,
) -> Trajectory:
    """Linear multistep (Adams-Bashforth with any steps) in sigma (k-diffusion's sample_lms).

    x <- x + the integral from s to t of the polynomial through the last `order` derivatives.
    order  of convergence; the first steps have fewer derivatives; 1 is `euler`
    """
    x, slopes = noise * levels[0], []
    yield levels[0], x
    for i, (s, t) in enumerate(pairwise(levels)):
        begin_step(denoise, i, s, None, "lms")
        slopes = [derivative(denoise, x, s, c), *slopes[: order - 1]]
        at = levels[i::-1][: len(slopes)]
        for weight, slope in zip(adams_weights(at, s, t), slopes, strict=True):
            x = x + weight * slope
        yield t, x


def adams_weights(at: list[float], start: float, end: float) -> list[float]:
    """The integrals from start to end of the Lagrange polynomials of the points `at`.

    With start as the origin, so that little is lost to rounding.
    """
    weights = []
    for j, own in enumerate(at):
        others = [
            p - start for k, p in enumerate(at) if k != j
        ]  # shifted: less is lost to rounding
        scale = math.prod(own - start - p for p in others)
        whole = np.polyint(np.poly(others) if others else np.ones(1))
        weights.append(float(np.polyval(whole, end - start)) / scale)
    return weights
