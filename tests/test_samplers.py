import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cfg.diffusion.mixture import GaussianMixture, fractal
from lightning_cfg.diffusion.models import EDM
from lightning_cfg.diffusion.noise import karras, linear_beta_sigmas, linear_betas, noise_levels
from lightning_cfg.diffusion.ode import integrate
from lightning_cfg.diffusion.samplers import (
    ddim,
    ddpm,
    dopri5,
    euler,
    heun,
)
from lightning_cfg.errors import UserError
from lightning_cfg.nets import MLP
from lightning_cfg.runs.precision import matmul
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import Draw, seeded

F64 = torch.float64
EDMS = np.load(Path(__file__).parent / "reference" / "edm_sampler.npz")


def mixture(weights, means, stds, labels):
    """A mixture of round Gaussians in float64."""
    means = torch.tensor(means, dtype=F64)
    eye = torch.eye(means.shape[1], dtype=F64)
    covariances = torch.tensor(stds, dtype=F64)[:, None, None] ** 2 * eye
    weights = torch.tensor(weights, dtype=F64)
    return GaussianMixture(weights, means, covariances, torch.tensor(labels))


@pytest.fixture(scope="module")
def tiny():
    """Three Gaussians of two classes in the plane."""
    return mixture(
        [0.5, 0.2, 0.3], [[-0.5, 0.2], [0.1, -0.4], [0.6, 0.3]], [0.2, 0.3, 0.1], [0, 1, 0]
    )


GAUSS_MEAN, GAUSS_STD = 0.3, 0.4


@pytest.fixture(scope="module")
def gauss():
    """One Gaussian, whose probability flow has the `solution` below."""
    return mixture([1.0], [[GAUSS_MEAN]], [GAUSS_STD], [0])


def last(path):
    *_, (sigma, x) = path
    assert sigma == 0
    return x


# --- against EDM's own code ---


def test_the_18_levels_are_edms():
    levels = karras(18, 0.002, 80)
    np.testing.assert_allclose(levels[:-1], EDMS["sigmas_18"], rtol=1e-12)
    assert levels[-1] == 0


def test_noise_and_labels_of_a_seed_are_edms():
    noise, labels, _ = seeded(EDMS["seeds"].tolist(), (3, 32, 32), 10)
    np.testing.assert_array_equal(noise[:, :, :4, :4].float(), EDMS["noise_4x4"])
    np.testing.assert_array_equal(labels, EDMS["labels"])


def test_heun_is_edms():
    pixel = mixture([0.3, 0.7], [[-0.6], [0.7]], [0.2, 0.2], [0, 0])
    noise = torch.tensor(EDMS["noise_4x4"]).double().reshape(-1, 1)
    x = last(heun(pixel, noise, torch.zeros(len(noise), dtype=torch.long), steps=18))
    np.testing.assert_allclose(x.reshape(4, 3, 4, 4), EDMS["heun18_mixture"], atol=1e-9)


# --- levels ---


def test_the_limits_and_rho_of_the_levels():
    levels = karras(5, 0.1, 10, rho=1)
    torch.testing.assert_close(levels, torch.tensor([10, 7.525, 5.05, 2.575, 0.1, 0], dtype=F64))
    assert noise_levels(karras, steps=5)[:-1][::4] == pytest.approx([80, 0.002])


def test_1000_levels_with_linear_betas_are_the_ddpms_own():
    sigmas = linear_beta_sigmas()
    levels = linear_betas(1000, sigmas[0].item(), sigmas[-1].item())
    torch.testing.assert_close(levels[:-1], sigmas.flip(0), rtol=1e-12, atol=0)
    assert levels[-1] == 0


def test_fewer_levels_with_linear_betas_keep_the_limits_and_step_evenly_in_t():
    sigmas = linear_beta_sigmas()
    levels = linear_betas(4, sigmas[0].item(), sigmas[-1].item())
    torch.testing.assert_close(levels[:-1], sigmas[[999, 666, 333, 0]])
    wide = linear_betas(4, 0.0, math.inf)
    torch.testing.assert_close(wide, levels)
    narrow = linear_betas(7, 0.02, 80)
    torch.testing.assert_close(narrow[[0, -2]], torch.tensor([80, 0.02], dtype=F64))


@pytest.mark.parametrize("levels, steps", [(karras, 1), (karras, 0), (karras, -3)])
def test_too_few_karras_levels_are_refused(levels, steps):
    with pytest.raises(UserError, match=rf"steps must be at least 2, not {steps}"):
        levels(steps, 0.002, 80.0)


@pytest.mark.parametrize("steps", [-1, 0, 1, 1001])
def test_too_few_or_too_many_ddpm_levels_are_refused(gauss, steps):
    noise, c, draw = seeded([0], (1,), 1)
    for path in (ddim(gauss, noise, c, steps=steps), ddpm(gauss, noise, c, draw, steps=steps)):
        with pytest.raises(UserError, match=rf"steps must be from 2 to 1000, not {steps}"):
            next(path)


# --- the shape of a path ---


@pytest.mark.parametrize("sampler, evaluations", [(euler, 12), (heun, 23), (ddim, 12), (ddpm, 12)])
def test_a_sampler_yields_the_start_and_every_step(gauss, sampler, evaluations):
    noise, c, draw = seeded(range(3), (1,), 1)
    denoise = Counted(gauss)
    path = list(sampler(denoise, noise, c, *[draw] * (sampler is ddpm), steps=12))
    levels = karras if sampler in (euler, heun) else linear_betas
    sigmas, path = zip(*path, strict=True)
    assert list(sigmas) == noise_levels(levels, steps=12)
    torch.testing.assert_close(path[0], noise * sigmas[0], rtol=0, atol=0)
    assert denoise.evaluations == 3 * evaluations
    assert all(x.shape == noise.shape and x.dtype == F64 for x in path)
    assert all(not torch.equal(a, b) for a, b in pairwise(path))


@pytest.mark.parametrize("sampler", [euler, heun, ddim, dopri5])
def test_the_state_has_the_dtype_of_the_noise(gauss, sampler):
    noise, c, _ = seeded(range(3), (1,), 1)
    single, double = (last(sampler(gauss, x, c)) for x in (noise.float(), noise))
    assert (single.dtype, double.dtype) == (torch.float32, F64)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3)
    assert not torch.equal(single.double(), double)


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "ddpm", "dopri5"])
def test_a_sampler_runs_from_its_section_and_passes_the_classes(tiny, name):
    noise, _, _ = seeded(range(4), (2,), 2)
    ends = []
    for c in (0, 1):
        labels = torch.full((4,), c)
        _, _, draw = seeded(range(4), (2,), 2)
        seen = []

        def denoise(x, sigma, c, seen=seen):
            seen.append((sigma, c))
            return tiny(x, sigma, c)

        ends.append(last(sample({"name": name}, denoise, noise, labels, draw)))
        assert all(torch.equal(c, labels) and sigma.shape == (4,) for sigma, c in seen)
    assert (ends[0] - ends[1]).abs().max() > 0.1


# --- against solutions ---


def solution(noise, sigma_max, sigma):
    """The probability flow of one Gaussian, from sigma_max noise to sigma."""
    ratio = math.sqrt((GAUSS_STD**2 + sigma**2) / (GAUSS_STD**2 + sigma_max**2))
    return GAUSS_MEAN + (sigma_max * noise - GAUSS_MEAN) * ratio


@pytest.mark.parametrize(
    "sampler, options, tolerance",
    [
        (euler, {"steps": 2000, "sigma_max": 80.0}, 2e-2),
        (ddim, {"steps": 1000, "sigma_min": 0.01, "sigma_max": 80.0}, 2e-2),
        (heun, {"steps": 64, "sigma_max": 80.0}, 2e-2),
        (heun, {"steps": 1000, "sigma_max": 80.0}, 1e-4),
        (dopri5, {"sigma_max": 80.0}, 1e-3),
        (dopri5, {"sigma_max": 80.0, "rtol": 1e-10, "atol": 1e-10}, 1e-7),
    ],
)
def test_samplers_follow_the_flow_of_one_gaussian(gauss, sampler, options, tolerance):
    noise = torch.linspace(-2.5, 2.5, 11, dtype=F64)[:, None]
    c = torch.zeros(11, dtype=torch.long)
    *_, (low, before), (_, end) = sampler(gauss, noise, c, **options)
    assert low == pytest.approx(options.get("sigma_min", 0.002), rel=1e-4)
    torch.testing.assert_close(before, solution(noise, 80.0, low), rtol=0, atol=tolerance)
    # the last step, to 0, is first-order: x (1 - 1/2 (low / std)^2) becomes x (1 - (low / std)^2)
    last_step = (low / GAUSS_STD) ** 2
    torch.testing.assert_close(end, solution(noise, 80.0, 0), rtol=0, atol=tolerance + last_step)


STEPS = [64, 128, 256, 512]


@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("which", ["gauss", "tiny"])
def test_samplers_converge_at_their_order(request, which, sampler, order):
    truth = request.getfixturevalue(which)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(16, *truth.shape, generator=g, dtype=F64)
    c = torch.zeros(16, dtype=torch.long)
    if which == "gauss":
        exact = solution(noise, 10.0, 0.01)
    else:
        exact = list(heun(truth, noise, c, steps=4096, sigma_min=0.01, sigma_max=10))[-2][1]
    errors = []
    for steps in STEPS:  # up to sigma_min: the Euler step to 0 is the same for all of them
        *_, (_, x), _ = sampler(truth, noise, c, steps=steps, sigma_min=0.01, sigma_max=10)
        errors.append((x - exact).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15), errors


def test_dopri5_is_a_fine_heun(tiny):
    noise, c, _ = seeded(range(50), (2,), 2)
    fine = last(heun(tiny, noise, c, steps=2000))
    tight = last(dopri5(tiny, noise, c, rtol=1e-8, atol=1e-8))
    torch.testing.assert_close(tight, fine, rtol=0, atol=1e-4)
    usual = last(dopri5(tiny, noise, c))
    torch.testing.assert_close(usual, fine, rtol=0, atol=5e-3)


def test_ddim_is_euler_along_the_same_levels(tiny):
    noise, c, _ = seeded(range(6), (2,), 2)
    levels = linear_betas(30, 0.02, 80).tolist()
    path = [x := noise * levels[0]]
    for s, t in pairwise(levels):
        D = tiny(x, torch.full((6,), s, dtype=F64), c)
        path.append(x := x + (t - s) * (x - D) / s)
    ours = [x for _, x in ddim(tiny, noise, c, steps=30, sigma_min=0.02, sigma_max=80)]
    torch.testing.assert_close(ours, path, rtol=0, atol=1e-12)


def test_ddim_is_the_papers_step_in_its_own_coordinates(gauss):
    """x_{t-1} = sqrt(abar_{t-1}) y + sqrt(1 - abar_{t-1}) eps (Song et al. 2021, eq. 12)."""
    noise, c, _ = seeded(range(5), (1,), 1)
    x, following, s, t = _two_steps(ddim(gauss, noise, c, steps=1000, sigma_max=200.0))
    abar_s, abar_t = 1 / (1 + s**2), 1 / (1 + t**2)
    D = gauss(x, torch.full((5,), s, dtype=F64), c)
    eps = (x * abar_s**0.5 - abar_s**0.5 * D) / (1 - abar_s) ** 0.5
    expected = abar_t**0.5 * D + (1 - abar_t) ** 0.5 * eps
    torch.testing.assert_close(following * abar_t**0.5, expected)


def test_ddpm_is_the_papers_step_in_its_own_coordinates(gauss):
    """Mean and variance of q(x_{t-1} | x_t, y) (Ho et al. 2020, eqs. 6 and 7)."""
    noise, c, _ = seeded(range(5), (1,), 1)
    ones = torch.ones_like(noise)
    for level in (-1, 1):  # the draw is +-1, so that half the difference is the deviation
        x, following, s, t = _two_steps(
            ddpm(gauss, noise, c, lambda v=level: v * ones, sigma_max=200.0)
        )
        abar_s, abar_t = 1 / (1 + s**2), 1 / (1 + t**2)
        alpha, beta = abar_s / abar_t, 1 - abar_s / abar_t
        D = gauss(x, torch.full((5,), s, dtype=F64), c)
        mean = abar_t**0.5 * beta / (1 - abar_s) * D
        mean = mean + alpha**0.5 * (1 - abar_t) / (1 - abar_s) * x * abar_s**0.5
        deviation = ((1 - abar_t) / (1 - abar_s) * beta) ** 0.5
        torch.testing.assert_close(following * abar_t**0.5, mean + level * deviation * ones)


def _two_steps(path):
    """x at the DDPM's level 500, at level 499, and the two levels."""
    path, sigmas = list(path), linear_beta_sigmas()
    (s, x), (t, following) = path[999 - 500], path[999 - 499]
    assert [s, t] == pytest.approx(sigmas[[500, 499]].tolist())
    return x, following, s, t


# --- moments ---


def z_scores(x, truth, c):
    """How many standard errors the first two moments of x are off from class c's."""
    mean, covariance = truth.mean_and_covariance(c)
    values = torch.cat([x, (x[:, :, None] * x[:, None, :]).flatten(1)], 1)
    expected = torch.cat([mean, (covariance + mean[:, None] * mean).flatten()])
    return (values.mean(0) - expected) / (values.std(0) / len(x) ** 0.5)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "euler", "steps": 256},
        {"name": "heun", "steps": 64},
        {"name": "ddim", "steps": 256, "sigma_min": 0.01},
        {"name": "ddpm", "steps": 1000, "sigma_min": 0.01},
        {"name": "dopri5"},
    ],
    ids=lambda section: section["name"],
)
@pytest.mark.parametrize("c", [0, 1])
def test_samplers_reach_the_moments_of_a_mixture(tiny, section, c):
    noise, labels, draw = seeded(range(1000), (2,), 2, class_label=c)
    x = last(sample(section, tiny, noise, labels, draw))
    assert z_scores(x, tiny, c).abs().max() < 4
    assert z_scores(x, tiny, 1 - c).abs().max() > 10


def test_samplers_reach_the_moments_of_the_fractal():
    truth = fractal()
    noise, c, _ = seeded(range(300), (2,), 2)
    x = last(heun(truth, noise, c, steps=64, sigma_max=5.0))
    for label in (0, 1):
        assert z_scores(x[c == label], truth, label).abs().max() < 4
    # and its fine structure: as likely under the truth as real points are
    real = torch.cat([truth.sample(400, k, torch.Generator().manual_seed(k)) for k in (0, 1)])
    ours, reals = (
        -truth.log_density(x, c),
        -truth.log_density(real, torch.arange(2).repeat_interleave(400)),
    )
    assert abs(ours.mean() - reals.mean()) < 4 * math.hypot(
        ours.std() / 300**0.5, reals.std() / 800**0.5
    )


# --- seeds ---


class Rough(EDM):
    """A float32 network with weights of ordinary size: an untrained MLP's last layer is zero."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(MLP((2,), 2, width=64, blocks=2, fourier=16, fourier_std=2.0))
        nn.init.normal_(self.net.leave.weight, std=0.1)


def test_same_seeds_give_the_same_noise_and_labels_in_any_batch():
    seeds = list(range(100, 100 + 4096))
    noise, labels, draw = seeded(seeds, (2,), 10)
    later = torch.stack([draw() for _ in range(3)], 1)
    assert labels.unique().tolist() == list(range(10))
    for size in (1, 7):
        parts = [seeded(seeds[i : i + size], (2,), 10) for i in range(0, 700, size)]
        assert torch.equal(torch.cat([part[0] for part in parts]), noise[:700])
        assert torch.equal(torch.cat([part[1] for part in parts]), labels[:700])
        drawn = [torch.stack([part[2]() for _ in range(3)], 1) for part in parts]
        assert torch.equal(torch.cat(drawn), later[:700])
    fixed, threes, _ = seeded(seeds[:50], (2,), 10, class_label=3)
    assert torch.equal(fixed, noise[:50])
    assert threes.tolist() == [3] * 50


def test_seeds_are_taken_modulo_2_to_the_32_and_differ_otherwise():
    noise, _, _ = seeded([5, 5 + 2**32, 6], (4,), 2)
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_overriding_the_label_leaves_the_later_noise_as_it_was():
    _, _, own = seeded([3], (2,), 10)
    _, _, overridden = seeded([3], (2,), 10, class_label=7)
    assert torch.equal(own(), overridden())


def test_later_noise_is_standard_normal_and_new_at_every_call():
    generators = [torch.Generator().manual_seed(seed) for seed in range(50)]
    draw = Draw(generators, (2,), "cpu")
    x = torch.stack([draw() for _ in range(3 * Draw.BLOCK)])  # (96, 50, 2), over three blocks
    assert x.dtype == F64
    assert len(x.flatten().unique()) > 0.999 * x.numel()
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / x.numel()) ** 0.5


@torch.no_grad()
def test_same_seeds_give_the_same_samples_in_any_batch():
    model, seeds = Rough(), list(range(4096))

    def run(seeds):
        noise, c, _ = seeded(seeds, (2,), 2)
        return last(heun(model, noise, c, steps=12))

    whole = run(seeds)
    assert whole.dtype == F64
    for size, n in ((1, 100), (7, 1400)):
        parts = torch.cat([run(seeds[i : i + size]) for i in range(0, n, size)])
        close = ((parts - whole[:n]).abs() < 1e-3).all(1)
        assert close.double().mean() >= 0.999
    assert (whole[:-1] - whole[1:]).abs().max(1).values.gt(1e-3).double().mean() > 0.99


def test_same_seeds_give_the_same_ancestral_samples_in_any_batch(tiny):
    seeds = list(range(40, 54))

    def run(seeds, steps=100):  # more steps than draws made at once
        noise, c, draw = seeded(seeds, (2,), 2)
        return last(ddpm(tiny, noise, c, draw, steps=steps))

    whole = run(seeds)
    for size in (1, 7):
        parts = torch.cat([run(seeds[i : i + size]) for i in range(0, 14, size)])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


# --- integrate, and its cap ---


def test_a_constant_field_shifts_by_itself():
    shift, x = torch.tensor([0.25, -3.0], dtype=F64), torch.randn(5, 2, dtype=F64)
    c = torch.arange(5)
    limits = {"rtol": 1e-5, "atol": 1e-5, "max_evaluations": 100}
    end = integrate(lambda x, t, c: shift.expand_as(x), x, c, (0.0, 1.0), **limits)[-1]
    torch.testing.assert_close(end, x + shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-8), (torch.float32, 1e-5)])
def test_a_linear_field_is_integrated_to_its_solution(dtype, tolerance):
    """dx/dt = c J x turns x by the angle c t, and dx/dt = 2 t shifts it by t^2."""
    x = torch.tensor([[1.0, 0.0], [0.5, -2.0], [0.0, 1.0]], dtype=dtype)
    c = torch.tensor([1, 2, 3])
    limits = {"rtol": tolerance, "atol": tolerance, "max_evaluations": 2000}
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=dtype)

    def turning(x, t, c):
        return c[:, None] * (x @ turn.T)

    def shifting(x, t, c):
        assert (t.shape, t.dtype) == ((3,), dtype)
        return 2 * t[:, None].expand_as(x)

    end = integrate(turning, x, c, (0.0, 1.5), **limits)[-1]
    angle = 1.5 * c.to(dtype)
    rotation = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)],
        1,
    )
    expected = (rotation @ x[..., None])[..., 0]
    torch.testing.assert_close(end, expected, rtol=0, atol=100 * tolerance)
    end = integrate(shifting, x, c, (0.0, 1.5), **limits)[-1]
    torch.testing.assert_close(end, x + 1.5**2, rtol=0, atol=100 * tolerance)


def test_tighter_tolerances_cost_evaluations_and_buy_accuracy(gauss):
    noise, c, _ = seeded(range(5), (1,), 1)
    errors, costs = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        denoise = Counted(gauss)
        *_, (_, x), _ = dopri5(denoise, noise, c, rtol=tolerance, atol=tolerance)
        errors.append((x - solution(noise, 80.0, 0.002)).abs().max().item())
        costs.append(denoise.evaluations)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert costs[0] < costs[1] < costs[2]


def test_dopri5_gives_its_trajectory_without_further_evaluations(gauss):
    noise, c, _ = seeded(range(5), (1,), 1)
    options = {"sigma_max": 80.0, "rtol": 1e-8, "atol": 1e-8}
    short, long = Counted(gauss), Counted(gauss)
    ends = list(dopri5(short, noise, c, **options))
    path = list(dopri5(long, noise, c, points=16, **options))
    assert (len(ends), len(path)) == (3, 18)
    assert short.evaluations == long.evaluations
    assert torch.equal(ends[-1][1], path[-1][1])
    assert [sigma for sigma, _ in ends] == [80.0, 0.002, 0.0]
    for sigma, x in path[:-1]:
        torch.testing.assert_close(x, solution(noise, 80.0, sigma), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="points must be at least 1, not 0"):
        next(dopri5(gauss, noise, c, points=0))


def test_too_many_evaluations_stop_with_a_clear_error(gauss):
    noise, c, _ = seeded(range(5), (1,), 1)
    denoise = Counted(gauss)
    with pytest.raises(UserError, match="max_evaluations=30"):
        last(dopri5(denoise, noise, c, max_evaluations=30))
    assert denoise.evaluations == 30 * 5
    with pytest.raises(UserError, match="sigma_min must be above 0"):
        last(dopri5(gauss, noise, c, sigma_min=0.0))


def test_an_adaptive_step_is_not_chosen_by_tf32s_rounding():
    """On a GPU its noise of 1e-3 would look like a field too rough for rtol 1e-5."""
    seen = set()

    def field(x, t, c):
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return -x

    with matmul("high"):
        x, c = torch.ones(2, 1), torch.zeros(2, dtype=torch.long)
        integrate(field, x, c, [0.0, 1.0], rtol=1e-5, atol=1e-5, max_evaluations=100)
    assert seen == {("highest", False)}
