"""Measures of trajectories where geometry or closed-form boundaries know the answer."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_cfg.diffusion.mixture import GaussianMixture
from lightning_cfg.diffusion.models import NoisyClassifier
from lightning_cfg.diffusion.noise import linear_beta_sigmas
from lightning_cfg.diffusion.samplers import heun
from lightning_cfg.diffusion.trajectories import (
    along,
    boundary,
    closest,
    margin,
    nearest_zero,
    over_time,
    scaled,
    straightness,
    time_of,
)
from lightning_cfg.guidance import classifier_free, classifier_gradient
from lightning_cfg.metrics import wasserstein
from lightning_cfg.nets import Linear
from lightning_cfg.reports import trajectories

F64 = torch.float64
S = 0.2236  # of the paper's classes, N(+-1, .05) and the closer pairs
PAIRS = (1.0, 0.5, 0.1)
LEVELS = torch.tensor([150.0, 30.0, 5.0, 1.0, 0.3, 0.05, 0.0], dtype=F64)


def gaussians(means, std=S, weights=None, labels=None, dimensions=1):
    """Isotropic Gaussians with means on the first axis, each a class if `labels` says no other."""
    mu = torch.zeros(len(means), dimensions, dtype=F64)
    mu[:, 0] = torch.tensor(means, dtype=F64)
    weights = torch.tensor([1.0] * len(means) if weights is None else weights, dtype=F64)
    covariances = (std**2 * torch.eye(dimensions, dtype=F64)).expand(len(means), -1, -1)
    labels = torch.arange(len(means)) if labels is None else torch.tensor(labels)
    return GaussianMixture(weights, mu, covariances, labels)


def sigma_at(t):
    """Noise levels (levels,) of which t/T is t, for 0 <= t <= 1; t = 0 becomes the very end."""
    logs = linear_beta_sigmas().log().numpy()
    sigma = np.exp(np.interp(np.asarray(t) * (len(logs) - 1), np.arange(len(logs)), logs))
    return torch.tensor(np.where(np.asarray(t) == 0, 0.0, sigma))


def through(t, u):
    """(path, sigma) of one trajectory through points of the plane: t (levels,), u (levels, d)."""
    sigma = sigma_at(t)
    u = torch.as_tensor(np.asarray(u), dtype=F64)
    return (u * (1 + sigma**2).sqrt()[:, None])[None], sigma


def at_each_level(u, sigma=LEVELS):
    """The same positions u (n,) at every noise level, as a path (n, levels, 1)."""
    return u[:, None, None] * (1 + sigma**2).sqrt()[:, None]


# The plane: t/T across, x / sqrt(1 + sigma^2) up


def test_time_runs_from_one_at_the_ddpms_last_level_to_zero_without_noise():
    table = linear_beta_sigmas()
    torch.testing.assert_close(time_of(table), torch.arange(1000, dtype=F64) / 999)
    ends = torch.tensor([0.0, table[0], table[-1], 1e6], dtype=F64)
    assert time_of(ends).tolist() == [0, 0, 1, 1]
    assert time_of(torch.ones(2, device="meta")).device.type == "meta"  # it follows sigma
    t = np.linspace(0, 1, 57)
    np.testing.assert_allclose(time_of(sigma_at(t)), t, atol=1e-12)


def test_positions_are_scaled_by_the_spread_of_the_noise():
    path, sigma = torch.randn(3, 2, 1, 4, 5), torch.tensor([2.0, 0.0])
    u = scaled(path, sigma)
    assert u.shape == (3, 2, 20)
    torch.testing.assert_close(u[:, 0], path[:, 0].flatten(1).double() / math.sqrt(5))
    torch.testing.assert_close(u[:, 1], path[:, 1].flatten(1).double())


@pytest.mark.parametrize("slope", [0.0, -0.7, 40.0])
def test_a_straight_line_has_straightness_one(slope):
    t = np.linspace(1, 0, 30) ** 2
    u = np.stack([0.3 + slope * t, 2 - 0.5 * slope * t], 1)
    assert straightness(*through(t, u)).item() == pytest.approx(1, abs=1e-12)


def test_a_right_angle_has_its_legs_over_the_hypotenuse():
    """Along t at constant u, then along u, half of it between the last levels where t stays 0."""
    path, sigma = through([1.0, 0.5, 0.25, 0.25 - 1e-12, 0.0], [[0.0], [0.0], [0.0], [1.0], [1.0]])
    assert straightness(path, sigma).item() == pytest.approx(2 / math.sqrt(2), abs=1e-9)
    both = torch.cat([path, 3 * path])  # legs of 1 and 3
    expected = torch.tensor([2 / math.sqrt(2), 4 / math.sqrt(10)], dtype=F64)
    torch.testing.assert_close(straightness(both, sigma), expected, rtol=0, atol=1e-9)


def test_a_semicircle_has_half_of_pi():
    angle = np.linspace(0, math.pi, 2001)
    path = through((1 + np.cos(angle)) / 2, np.sin(angle)[:, None] / 2)
    assert straightness(*path).item() == pytest.approx(math.pi / 2, rel=1e-5)


def test_all_dimensions_count():
    """A helix of one turn: arc sqrt(1 + (2 pi r)^2) over a chord of 1."""
    t, r = np.linspace(1, 0, 4001), 0.4
    helix = np.stack([r * np.cos(2 * math.pi * t), r * np.sin(2 * math.pi * t)], 1)
    expected = math.sqrt(1 + (2 * math.pi * r) ** 2)
    assert straightness(*through(t, helix)).item() == pytest.approx(expected, rel=1e-5)


def test_more_points_on_the_same_lines_change_nothing():
    t = np.array([1.0, 0.8, 0.55, 0.3, 0.0])
    u = np.random.RandomState(0).randn(5, 3)
    fine = np.linspace(0, 4, 41)
    t_fine = np.interp(fine, np.arange(5), t)
    u_fine = np.stack([np.interp(fine, np.arange(5), column) for column in u.T], 1)
    coarse = straightness(*through(t, u)).item()
    assert coarse > 1.5
    assert straightness(*through(t_fine, u_fine)).item() == pytest.approx(coarse, rel=1e-12)


def test_one_gaussian_has_the_straightness_of_its_known_solution():
    """x = mu + (x_T - mu) sqrt((s^2 + sigma^2) / (s^2 + sigma_T^2)), its arc by quadrature."""
    mu, std, top = 0.7, S, 150.0
    logs = linear_beta_sigmas().log().numpy()
    ends = np.append(logs[logs < math.log(top)], math.log(top))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half = np.diff(ends)[:, None] / 2
    sigma = np.exp(ends[:-1, None] + half * (1 + nodes))
    dt = 1 / 999 / np.diff(logs)[: len(half), None]  # per unit of log sigma
    end = (ends[-1] - logs[len(half) - 1]) / (logs[len(half)] - logs[len(half) - 1])
    start_t = (len(half) - 1 + end) / 999

    noise = torch.tensor([-2.0, -0.3, 0.0, 0.5, 2.5], dtype=F64)
    expected = []
    for x_T in (top * noise).tolist():
        gap = (x_T - mu) / math.sqrt(std**2 + top**2)

        def x(sigma, gap=gap):
            return mu + gap * np.sqrt(std**2 + sigma**2)

        slope = sigma * gap / np.sqrt(std**2 + sigma**2) / np.sqrt(1 + sigma**2)
        slope = sigma * (slope - x(sigma) * sigma / (1 + sigma**2) ** 1.5)  # du / d log sigma
        arc = (half * weights * np.hypot(dt, slope)).sum()
        low = math.exp(ends[0])
        arc += abs(x(0.0) - x(low) / math.sqrt(1 + low**2))  # below the first level t stays 0
        chord = math.hypot(start_t, x(0.0) - x_T / math.sqrt(1 + top**2))
        expected.append(arc / chord)

    assert max(expected) > 1.2  # they do bend
    levels = torch.cat([torch.logspace(math.log10(top), -3, 20_001, dtype=F64), torch.zeros(1)])
    gap = (top * noise[:, None] - mu) / math.sqrt(std**2 + top**2)
    known = (mu + gap * (std**2 + levels**2).sqrt())[..., None]
    np.testing.assert_allclose(straightness(known, levels), expected, rtol=1e-6)

    c = torch.zeros(5, dtype=torch.long)
    steps = heun(gaussians([mu]), noise[:, None], c, steps=400, sigma_min=0.01, sigma_max=top)
    levels, xs = zip(*steps, strict=True)
    found = straightness(torch.stack(xs, 1), torch.tensor(levels))
    np.testing.assert_allclose(found, expected, rtol=3e-4)


# Margin, confidence, distance


@pytest.mark.parametrize("mean", PAIRS)
def test_a_symmetric_pair_has_its_boundary_at_zero_at_every_noise_level(mean):
    truth = gaussians([-mean, mean])
    path = torch.randn(40, len(LEVELS), 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    path = path * (1 + LEVELS**2).sqrt()[:, None]
    u = scaled(path, LEVELS)[..., 0]
    for c, side in ((0, -1), (1, 1)):
        seen = along(truth.logits, path, LEVELS, c)
        assert [len(zeros) for zeros in seen.zeros] == [1] * len(LEVELS)
        assert torch.cat(seen.zeros).abs().max() < 1e-11
        torch.testing.assert_close(seen.distance, side * u, rtol=0, atol=1e-11)
        assert torch.equal(seen.margin > 0, side * u > 0)


@pytest.mark.parametrize(
    "means, weights", [((-0.3, 1.1), (0.8, 0.2)), ((0.4, 0.5), (0.45, 0.55)), ((-1, 1), (0.1, 0.9))]
)
def test_the_boundary_of_two_gaussians_is_where_the_formula_says(means, weights):
    """x* = (mu_0 + mu_1) / 2 + (s^2 + sigma^2) ln(w_0 / w_1) / (mu_1 - mu_0)."""
    (m0, m1), (w0, w1) = means, weights
    sigma = torch.tensor([8.0, 2.0, 0.5, 0.1, 0.0], dtype=F64)
    at = (m0 + m1) / 2 + (S**2 + sigma**2) * math.log(w0 / w1) / (m1 - m0)
    at = at / (1 + sigma**2).sqrt()
    u = torch.linspace(-25, 25, 31, dtype=F64)
    path = at_each_level(u, sigma)
    truth = gaussians(means, weights=weights)
    for c, side in ((0, -1), (1, 1)):
        seen = along(truth.logits, path, sigma, c)
        torch.testing.assert_close(torch.stack(seen.zeros), at[:, None], rtol=0, atol=1e-9)
        expected = side * (u[:, None] - at)
        torch.testing.assert_close(seen.distance, expected, rtol=0, atol=1e-9)


def test_the_middle_one_of_three_classes_has_two_boundaries():
    truth = gaussians([-1.0, 0.0, 1.0])
    x = torch.linspace(-1.4, 1.4, 29, dtype=F64)
    path = x[:, None, None].expand(-1, len(LEVELS), 1)
    size = (1 + LEVELS**2).sqrt()
    middle = along(truth.logits, path, LEVELS, 1)
    ends = torch.tensor([-0.5, 0.5], dtype=F64) / size[:, None]
    torch.testing.assert_close(torch.stack(middle.zeros), ends, rtol=0, atol=1e-9)
    expected = (0.5 - x.abs())[:, None] / size  # above 0 inside, below 0 outside
    torch.testing.assert_close(middle.distance, expected, rtol=0, atol=1e-9)
    left = along(truth.logits, path, LEVELS, 0)
    torch.testing.assert_close(left.distance, (-0.5 - x)[:, None] / size, rtol=0, atol=1e-9)


def test_margin_and_confidence_are_those_of_the_posterior():
    truth = gaussians([-1.0, 0.2, 1.0], weights=[0.2, 0.5, 0.3])
    path = at_each_level(torch.linspace(-3, 3, 13, dtype=F64))
    for c in range(3):
        seen = along(truth.logits, path, LEVELS, c)
        for i, s in enumerate(LEVELS.tolist()):
            one = torch.tensor([[k] * 13 for k in range(3)])
            joint = [truth.log_density(path[:, i], k, s) for k in one]
            joint = torch.stack(joint, 1).exp() * truth.class_weights
            p = joint / joint.sum(1, keepdim=True)
            torch.testing.assert_close(seen.confidence[:, i], p[:, c], rtol=1e-9, atol=0)
            others = p[:, [k for k in range(3) if k != c]].amax(1)
            torch.testing.assert_close(seen.margin[:, i], (p[:, c] / others).log())


def flat(x, sigma):
    """Class 0 always wins by 2, whatever x."""
    return torch.stack([2 + 0 * x.flatten(1)[:, 0], 0 * x.flatten(1)[:, 0]], 1)


@pytest.mark.parametrize("shape", [(1,), (2,)])
def test_without_a_boundary_there_is_no_distance_to_it(shape):
    path = torch.randn(5, len(LEVELS), *shape, generator=torch.Generator().manual_seed(0))
    for c, margin_of_c in ((0, 2.0), (1, -2.0)):
        seen = along(flat, path, LEVELS, c)
        assert (seen.margin == margin_of_c).all()
        assert seen.distance.isnan().all()
        assert all(len(zeros) == 0 for zeros in seen.zeros)
        assert over_time(seen.distance, LEVELS).isnan().all()
        assert closest(seen.distance, LEVELS).isnan().all()


def test_levels_without_a_boundary_are_left_out_of_the_means():
    """x > 1 below sigma = 1 and nowhere above: only the low levels have a distance."""

    def classifier(x, sigma):
        gap = torch.where(sigma < 1, x[:, 0] - 1, 0 * x[:, 0] - 1)
        return torch.stack([-gap, gap], 1)

    path = torch.full((4, len(LEVELS), 1), 3.0, dtype=F64)
    seen = along(classifier, path, LEVELS, 1)
    known = LEVELS < 1
    assert torch.equal(~seen.distance.isnan(), known.expand(4, -1))
    expected = (3 - 1) / (1 + LEVELS[known] ** 2).sqrt()
    torch.testing.assert_close(seen.distance[:, known], expected.expand(4, -1))
    t = time_of(LEVELS[known]).numpy()
    mean = -np.trapezoid(expected.numpy(), t) / (t[0] - t[-1])
    np.testing.assert_allclose(over_time(seen.distance, LEVELS), mean, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 28, 28)])
def test_distance_to_a_linear_classifiers_plane_is_exact(shape):
    """(A u + b) / |A| for the plane A u + b = 0 at each noise level."""
    torch.manual_seed(0)
    classifier = NoisyClassifier(Linear(shape, 2)).requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    path = torch.randn(6, len(LEVELS), *shape, generator=g, dtype=F64) * LEVELS.max()
    net = classifier.net.linear.double()
    A, b = net.weight[0] - net.weight[1], net.bias[0] - net.bias[1]
    noise = time_of(LEVELS) * 999 / 1000  # what the network is told: t of 0 ... 999 over T = 1000
    plane = scaled(path, LEVELS) @ A[:-1] + A[-1] * noise + b
    for c, side in ((0, 1), (1, -1)):
        seen = along(classifier, path, LEVELS, c)
        torch.testing.assert_close(seen.distance, side * plane / A[:-1].norm())
        assert seen.zeros == []


def test_first_order_distance_is_the_exact_one_near_the_boundary():
    """A curved margin: the error falls with the square of the distance."""
    asked = {"labels": [0, 1, 1], "weights": [0.4, 0.5, 0.1]}
    means, sigma = [-1.0, 1.0, 1.8], torch.tensor([0.5], dtype=F64)
    line, plane = gaussians(means, **asked), gaussians(means, **asked, dimensions=2)
    (zero,) = boundary(line.logits, sigma, 1, 3.0)[0].tolist()
    errors = []
    for off in (0.08, 0.04, 0.02):
        u = torch.tensor([zero - off, zero + off], dtype=F64)
        path = at_each_level(u, sigma)
        exact = along(line.logits, path, sigma, 1).distance
        torch.testing.assert_close(exact, (u - zero)[:, None], rtol=0, atol=1e-12)
        in_two = torch.cat([path, torch.zeros_like(path)], 2)
        first = along(plane.logits, in_two, sigma, 1).distance
        errors.append((first - exact).abs().max().item())
    assert 1e-5 < errors[0] < 0.08**2
    for before, after in pairwise(errors):
        assert before / after == pytest.approx(4, rel=0.1)


def test_gradients_are_had_under_no_grad_and_none_is_left():
    torch.manual_seed(0)
    classifier = NoisyClassifier(Linear((3,), 4))  # of parameters that do ask for gradients
    path = torch.randn(5, len(LEVELS), 3)
    outside = along(classifier, path, LEVELS, 2)
    with torch.no_grad():
        inside = along(classifier, path, LEVELS, 2)
    for one, other in zip(outside[:3], inside[:3], strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
        assert one.dtype == F64
    assert all(p.grad is None for p in classifier.parameters())


def test_margin_is_over_the_best_other_class():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, -1.0]])
    assert margin(logits, 0).tolist() == [-4, 4]
    assert margin(logits, 1).tolist() == [3, -4]
    assert margin(logits, 2).tolist() == [-3, -5]


def test_all_zeros_within_reach_are_found_at_each_level():
    """sin(k u) with another k at each level, zeros at the multiples of pi / k."""
    sigma, k = torch.tensor([3.0, 1.0, 0.0], dtype=F64), torch.tensor([20.0, 7.0, 1.5], dtype=F64)

    def classifier(x, s):
        frequency = k[(s[:, None] == sigma).long().argmax(1)]
        wave = torch.sin(frequency * x[:, 0] / (1 + s**2).sqrt() + 0.3)
        return torch.stack([wave, -wave], 1)

    found = boundary(classifier, sigma, 0, 2.0)
    for zeros, frequency in zip(found, k.tolist(), strict=True):
        n = torch.arange(-50, 51, dtype=F64)
        expected = (n * math.pi - 0.3) / frequency
        expected = expected[expected.abs() < 2]
        torch.testing.assert_close(zeros, expected, rtol=0, atol=1e-9)  # rising, too
    assert [len(zeros) for zeros in boundary(classifier, sigma, 0, 0.15)] == [2, 1, 0]


def test_distance_is_to_the_nearest_zero():
    u = torch.tensor([[0.0, 1.0, 5.0], [2.4, -1.0, 5.0]], dtype=F64)
    zeros = [torch.tensor(at, dtype=F64) for at in ([-1.0, 3.0], [0.5], [])]
    found = nearest_zero(u, zeros)
    torch.testing.assert_close(found[:, :2], torch.tensor([[1.0, 0.5], [0.6, 1.5]], dtype=F64))
    assert found[:, 2].isnan().all()


# Means over time, the closest approach


def test_means_over_time_are_trapezoids():
    g = torch.Generator().manual_seed(0)
    values = torch.randn(4, len(LEVELS), generator=g, dtype=F64)
    t = time_of(LEVELS).numpy()
    expected = -np.trapezoid(values.numpy(), t, axis=1) / (t[0] - t[-1])
    np.testing.assert_allclose(over_time(values, LEVELS), expected, rtol=1e-12)
    assert over_time(values[0], LEVELS).item() == pytest.approx(expected[0], rel=1e-12)
    constant = torch.full((len(LEVELS),), 0.7, dtype=F64)
    assert over_time(constant, LEVELS).item() == pytest.approx(0.7, rel=1e-12)


def test_means_over_time_leave_out_what_is_not_known():
    g = torch.Generator().manual_seed(0)
    values, t = torch.randn(3, len(LEVELS), generator=g, dtype=F64), time_of(LEVELS).numpy()
    values[0, :2] = torch.nan  # at the start: the mean over the rest of the time
    values[1, 3] = torch.nan  # in the middle: over the two parts
    values[2, 1::2] = torch.nan  # no two neighbours are known
    v = values.numpy()
    found = over_time(values, LEVELS)
    expected = -np.trapezoid(v[0, 2:], t[2:]) / (t[2] - t[-1])
    assert found[0].item() == pytest.approx(expected, rel=1e-12)
    area = np.trapezoid(v[1, :3], t[:3]) + np.trapezoid(v[1, 4:], t[4:])
    assert found[1].item() == pytest.approx(-area / (t[0] - t[2] + t[4] - t[-1]), rel=1e-12)
    assert found[2].isnan()


def test_the_closest_approach_counts_in_the_second_half_only():
    t = [1.0, 0.6, 0.5, 0.2, 0.0]
    nan = math.nan
    distance, expected = zip(
        ([9.0, 0.1, 3.0, 2.0, 4.0], 2.0),  # 0.1 is at t = .6
        ([-1.0, -0.1, 3.0, 2.0, 1.0], 1.0),  # crosses before the half
        ([1.0, 1.0, -3.0, -2.0, 1.0], 0.0),  # crosses and comes back
        ([1.0, 1.0, -3.0, -2.0, -5.0], 2.0),  # wrong all the way
        ([1.0, 1.0, 3.0, 0.0, 5.0], 0.0),  # touches
        ([1.0, 1.0, nan, 0.5, nan], 0.5),
        ([1.0, 1.0, -2.0, nan, 3.0], 0.0),
        ([1.0, 1.0, nan, nan, nan], nan),
        strict=True,
    )
    found = closest(torch.tensor(distance, dtype=F64), sigma_at(t))
    np.testing.assert_array_equal(found, expected)


# The paper's pairs, with exact denoiser and exact posterior


def guided(truth, method, scale, n=2000):
    """Trajectories of class 1 and their noise levels, from the same noise each time."""
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(5), dtype=F64)
    networks = (truth, truth.logits) if method is classifier_gradient else (truth,)
    c = torch.ones(n, dtype=torch.long)
    limits = {"steps": 40, "sigma_min": 0.005, "sigma_max": 500.0}
    levels, xs = zip(*heun(method(*networks, scale=scale), noise, c, **limits), strict=True)
    return torch.stack(xs, 1), torch.tensor(levels, dtype=F64)


@pytest.mark.parametrize("mean", PAIRS)
def test_with_exact_parts_classifier_guidance_at_scale_one_is_the_conditional_model(mean):
    """The same samples, as far from the truth as a fresh draw of it is."""
    truth = gaussians([-mean, mean])
    path, _ = guided(truth, classifier_gradient, 1.0)
    same, _ = guided(truth, classifier_free, 1.0)
    torch.testing.assert_close(path, same, rtol=1e-9, atol=1e-9)
    draws = [
        wasserstein(truth.sample(2000, 1, torch.Generator().manual_seed(k)), 1, truth.quantile)
        for k in range(50)
    ]
    fresh = torch.tensor([draw["wasserstein"] for draw in draws])
    limit = (fresh.mean() + 3 * fresh.std()).item()
    assert wasserstein(path[:, -1], 1, truth.quantile)["wasserstein"] < limit
    guided_away, _ = guided(truth, classifier_gradient, 3.0)
    assert wasserstein(guided_away[:, -1], 1, truth.quantile)["wasserstein"] > 2 * limit


@pytest.mark.parametrize("mean", PAIRS)
def test_guidance_pushes_trajectories_away_from_the_boundary(mean):
    truth = gaussians([-mean, mean])
    away = []
    for scale in (1.0, 3.0):
        path, sigma = guided(truth, classifier_gradient, scale, n=300)
        seen = along(truth.logits, path, sigma, 1)
        away.append(over_time(seen.distance, sigma).mean().item())
    assert away[1] > away[0] + 0.05


def test_classifiers_that_cannot_be_right_are_told_apart(monkeypatch):
    """Of a linear one every sample is 1 away, of the others .1; another denoiser is .1 away."""
    where = {"linear": 1.0, "mlp": 0.1, "exact": 0.0}
    models = [(m, c) for m in ("exact", "base") for c in where]
    methods = {
        f"{m}_{c}": {"models": {"model": m, "classifier": c}, "guidance": {"name": "g"}}
        for m, c in models
    }
    other = {"generation": {"sampler": {"name": "ddpm"}}}  # whose difference would be told too
    methods["other_mlp"] = {**methods["exact_mlp"], **other}

    def apart(case, a, b, scale):
        (m, c), (n, d) = (name.split("_") for name in (a, b))
        return torch.full((5,), abs(where[c] - where[d]) + 0.1 * (m != n))

    monkeypatch.setattr(trajectories, "displacement", apart)
    fits = {"linear": {"net": {"name": "Linear"}, "model": {"name": "NoisyClassifier"}},
            "mlp": {"net": {"name": "MLP"}, "model": {"name": "NoisyClassifier"}}}  # fmt: skip
    wrong = trajectories.wrong_by_construction(fits)
    assert wrong == ["linear"]
    [said] = trajectories.dominance(None, methods, [1.0], wrong)
    mean = (1.0 + 0.9 + 0.1) / 3
    assert f"{mean:.3g} on average (6 comparisons), another denoiser by 0.1" in said
    assert f"{mean / 0.1:.3g} : 1. Without those that are wrong by construction (linear) it" in said
    assert said.endswith(
        "0.1 on average (2 comparisons) and 0.1 on average (2 comparisons), 1 : 1."
    )
