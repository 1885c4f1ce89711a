"""Distances between two sets of features: Fréchet's, its limit of endless samples, the kernel's."""

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, Between
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.metrics.meaning import better

ROWS = 64  # of a subset of the kernel distance that are worked on at once, in a cache


@better("lower", "squared Fréchet distance in this feature space; falls with n", column="fd")
@better("lower", "Fréchet distance in Inception's features", column="fid")
@better("lower", "Fréchet distance in DINOv2's features", column="fd_dinov2")
def frechet_features(
    moments_x: Moments, moments_y: Moments, *, allow_few: bool = False
) -> dict[str, float]:
    """Squared Fréchet distance of features: FID in Inception's (Heusel et al. 2017), FD_DINOv2 ...

    Falls with n and m, so compare it at one size only. Raises UserError where n or m is not above
    the feature dimension, unless `allow_few`.
    """
    return {"fd": frechet_distance(moments_x, moments_y, allow_few=allow_few)}


@better("lower", "squared Fréchet distance, extrapolated to endless samples", column="fd_infinity")
def frechet_infinity(
    features_x: Tensor, moments_y: Moments, *, points: Annotated[int, Between(2, 10_000)] = 15
) -> dict[str, float]:
    """The Fréchet distance that endless samples would have (Chong & Forsyth 2020).

    The intercept of a line through (1 / N, FD of N samples), N at `points` evenly spaced sizes from
    a tenth of them (at most 5000, and more than d) to all n, since the bias of the distance is
    linear in 1 / N. Samples are drawn without replacement, always the same ones.
    points  of the line
    Raises UserError for fewer than 2 points, or n not above d + points.
    """
    n, d = features_x.shape
    if points < 2:
        raise UserError(f"frechet_infinity needs at least 2 points, not {points}")
    if n <= d + points:
        raise UserError(
            f"frechet_infinity in {d} dimensions with {points} points needs more than {d + points} "
            f"samples, got {n}"
        )
    first = max(min(5000, n // 10), d + 1)
    sizes = torch.linspace(first, n, points, dtype=torch.float64).long()
    generator, distances = keyed("frechet_infinity"), []
    for size in sizes.tolist():
        some = torch.randperm(n, generator=generator)[:size].to(features_x.device)
        distances.append(frechet_distance(Moments().add(features_x[some]), moments_y))
    line = torch.stack([torch.ones(points, dtype=torch.float64), 1 / sizes.double()], 1)
    found = torch.linalg.lstsq(line, torch.tensor(distances, dtype=torch.float64)[:, None])
    return {"fd_infinity": found.solution[0].item()}


@better("lower", "kernel distance in this feature space, mean over random subsets", column="kd")
@better("lower", "kernel distance in Inception's features, mean over random subsets", column="kid")
def kernel_distance(
    features_x: Tensor,
    features_y: Tensor,
    *,
    subsets: Annotated[int, AtLeast(1)] = 100,
    size: Annotated[int, AtLeast(2)] = 1000,
) -> dict[str, float]:
    """Kernel distance, KID in Inception's features (Bińkowski et al. 2018): mean and deviation.

        MMD^2 with k(f, g) = (f.g / d + 1)^3, unbiased, over random subsets of `size` from each side

    The subsets are torch-fidelity's (seed 2020). Products are float32 of centred features and all
    sums float64: within 1e-6 of float64 throughout, relative to it or to its deviation if that is
    larger, where float32 throughout is off by 1e-4. Unbiased, so it may be just below zero.
    subsets  how many
    size     samples in each, of either side
    Raises UserError for fewer than `size` samples.
    """
    n, m, d = len(features_x), len(features_y), features_x.shape[1]
    if features_y.shape[1] != d:
        raise UserError(f"features of two sizes, {d} and {features_y.shape[1]}, do not compare")
    if not 2 <= size <= min(n, m):
        raise UserError(
            f"a kernel distance over subsets of size={size} needs as many samples a side, and 2 or "
            f"more; got {n} and {m}"
        )
    if subsets < 1:
        raise UserError(f"a kernel distance needs subsets of 1 or more, not {subsets}")
    # k = (f'.g' + s_f + s_g) / d, f' = f - mu, s_f = f'.mu + (|mu|^2 + d) / 2, and so for g: with
    # mu near the mean, f'.g' is small, and with it what float32 loses. All of it is in numpy, as
    # its threads and torch's would wait for each other.
    sides = [features.cpu().contiguous().numpy() for features in (features_x, features_y)]
    mu = sides[1][np.random.RandomState(0).choice(m, size)].mean(0, dtype=np.float32)
    level = (np.square(mu, dtype=np.float64).sum() + d) / 2
    random, distances = np.random.RandomState(2020), []
    subset = [np.empty((size, d), side.dtype) for side in sides]  # new memory each time is slower
    held = np.empty((size, size), np.float32), np.empty((2, ROWS * size))
    for _ in range(subsets):
        for f, side in zip(subset, sides, strict=True):
            rows = random.choice(len(side), size, replace=False)
            for start in range(0, size, ROWS):
                some = f[start : start + ROWS]
                # mode, or else it takes new memory after all
                np.take(side, rows[start : start + ROWS], 0, out=some, mode="clip")
                some -= mu
        a, b = (f.astype(np.float32, copy=False) for f in subset)
        s, t = (f @ mu + level for f in (a, b))
        within = _cubes(a, s, a, s, held, pairs=True) + _cubes(b, t, b, t, held, pairs=True)
        across = _cubes(a, s, b, t, held, pairs=False)
        distances.append(2 * (within / (size * (size - 1)) - across / size**2) / d**3)
    return {"kd": float(np.mean(distances)), "kd_std": float(np.std(distances))}


def _cubes(
    a: np.ndarray,
    s: np.ndarray,
    b: np.ndarray,
    t: np.ndarray,
    held: tuple[np.ndarray, np.ndarray],
    *,
    pairs: bool,
) -> float:
    """sum_ij (a_i.b_j + s_i + t_j)^3, of i < j only where a and b are the same, as `pairs` says.

    held  memory for the products, and in float64 for twice ROWS rows of them
    """
    products, total = held[0], 0.0
    np.matmul(a, b.T, out=products)  # numpy computes one half only of a product with itself
    above = np.triu(np.ones((ROWS, ROWS)), 1)
    for start in range(0, len(a), ROWS):
        block, after = slice(start, start + ROWS), start if pairs else 0
        some = products[block, after:]
        k, square = (part[: some.size].reshape(some.shape) for part in held[1])
        np.copyto(k, some)  # a sum of float32 and float64 would convert it more slowly
        k += t[after:]
        k += s[block, None]
        if pairs:
            k[:, :ROWS] *= above[: len(k), : len(k)]
        np.multiply(k, k, out=square)
        total += np.vdot(square, k)
    return float(total)
