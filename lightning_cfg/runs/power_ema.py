"""Averages of weights by a power of time, and any of them from a few that were kept.

Karras et al. (2024, EDM2, sec. 3 and app. C). After n images the average is the integral of
p(t) weight(t) with p(t) = (gamma + 1) t^gamma / n^(gamma + 1): gamma instead of a half-life, so its
width is a fixed share of the training, its relative standard deviation std.
"""

from typing import Annotated, Any

import numpy as np

from lightning_cfg.config import Between

# Of gamma = 0, the mean of all weights, it is sqrt(1 / 12) = 0.2887; at 0.001 an average is of the
# last thousandth of a training
Std = Annotated[float, Between(0.001, 0.288)]


def exponent_of(std: float) -> float:
    """gamma of a relative standard deviation, at most sqrt(1 / 12): the largest root of a cubic."""
    square = std**-2
    return np.roots([1, 7, 16 - square, 12 - square]).real.max()


def std_of(gamma: float) -> float:
    """sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))): `exponent_of`'s inverse."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


def beta(step: int, gamma: float) -> float:
    """What is kept of the average at step 1, 2, ...: (1 - 1 / step)^(gamma + 1), 0 at the first."""
    return (1 - 1 / step) ** (gamma + 1)


def products(n_a: Any, gamma_a: Any, n_b: Any, gamma_b: Any) -> Any:
    """The integrals of p_a p_b, broadcast: of averages after n images with exponents gamma."""
    ratio = n_a / n_b
    power = np.where(n_a < n_b, gamma_b, -gamma_a)
    share = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * np.maximum(n_a, n_b))
    return share * ratio**power


def solved(
    n: np.ndarray, std: np.ndarray, target_n: float, target_std: float
) -> tuple[np.ndarray, float, float]:
    """How much of each kept average makes the wanted one: coefficients (m,) of sum 1.

    n, std  of the kept averages, (m,): images seen and relative widths
    The coefficients are those of the least squares distance of the profiles p. Also what they miss,
    the root of |p - sum x_i p_i|^2 / |p|^2, and the condition number of the products.
    """
    n, gamma = np.asarray(n, np.float64), np.array([exponent_of(s) for s in std])
    wanted = np.float64(target_n), np.float64(exponent_of(target_std))
    A = products(n[:, None], gamma[:, None], n[None], gamma[None])
    b = products(n, gamma, *wanted)
    x = np.linalg.solve(A, b)
    x = x / x.sum()
    square = products(*wanted, *wanted)
    missed = max(0.0, square - 2 * x @ b + x @ A @ x)
    return x, float(np.sqrt(missed / square)), float(np.linalg.cond(A))
