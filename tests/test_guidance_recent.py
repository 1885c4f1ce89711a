"""The methods of 2025 and 2026 against their papers' equations and on exact mixtures."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.fft import dctn, idctn
from test_guidance_methods import FOUR, STEPS, counts, mixture, networks, noisy, run  # noqa: F401
from torch.distributions import Normal

from lightning_cfg.diffusion.noise import karras, noise_levels
from lightning_cfg.diffusion.samplers import ddpm, euler
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import (
    classifier_free,
    feedback,
    feynman_kac,
    higs,
    interval,
    momentum,
    unguided,
)
from lightning_cfg.guidance.feedback import misfit, rates
from lightning_cfg.guidance.higs import high_pass
from lightning_cfg.interfaces import NULL, Guided, as_guided
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

F64 = torch.float64
CFG = {"name": "classifier_free", "scale": 2.0}

# Every method at its neutral value

NEUTRAL = {  # section: what makes it neutral
    "feedback": ({"name": "feedback", "pi": 0.9}, {"scale": 1.0}),
    "feedback by pi": ({"name": "feedback", "pi": 0.9}, {"pi": 1.0}),
    "higs": ({"name": "higs", "of": CFG}, {"scale": 1.0, "of": {**CFG, "scale": 1.0}}),
    "momentum": ({"name": "momentum", "of": CFG}, {"scale": 1.0, "of": {**CFG, "scale": 1.0}}),
}


@pytest.mark.parametrize("method", NEUTRAL)
def test_the_neutral_value_is_the_conditional_model_without_another_pass(networks, method):  # noqa: F811
    section, neutral = NEUTRAL[method]
    plain = run(FOUR)
    assert torch.equal(run(guide({**section, **neutral}, networks)), plain)
    assert counts(networks) == {"model": 8 * STEPS}
    assert (run(guide(section, networks)) - plain).abs().max() > 0.01


@pytest.mark.parametrize("method", ["feedback", "higs", "momentum"])
def test_a_batch_of_mixed_scales_equals_the_separate_runs(networks, method):  # noqa: F811
    section = NEUTRAL[method][0]
    scales = torch.tensor([1.0, 2.0, 1.0, 3.5, 1.25, 1.0, 3.5, 2.0], dtype=F64)
    mixed = run(guide({**section, "scale": scales}, networks))
    for scale in scales.unique():
        own = scales == scale
        whole = run(guide({**section, "scale": scale.item()}, networks))
        torch.testing.assert_close(mixed[own], whole[own], rtol=0, atol=1e-12)
    assert as_guided(guide(section, networks)).begin_step is not None


@pytest.mark.parametrize("method", [feedback, higs, momentum])
def test_what_knows_its_steps_is_refused_by_a_sampler_without(method):
    with pytest.raises(UserError, match=f"{method.__name__} must know the sampler's steps"):
        run(method(FOUR), "dopri5")
    x, sigma, c = torch.ones(1, 2), torch.ones(1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(UserError, match="has not begun one"):
        method(FOUR)(x, sigma, c)


# Feedback


@pytest.mark.parametrize("name", ["euler", "ddpm", "heun"])
def test_feedback_follows_the_likelihood_ratio_of_its_steps(name):
    """w of every step from the normal densities of the two models' backward transitions."""
    pi, most, asked, levels = 0.9, 4.0, [], []
    guided = feedback(FOUR, scale=most, pi=pi, t_0=0.5, t_1=0.7)

    def listening(x, sigma, c):
        asked.append((len(levels), x, sigma[0].item(), c, guided(x, sigma, c)))
        return asked[-1][-1]

    def begin_step(i, sigma):
        levels.append(sigma)
        guided.begin_step(i, sigma)

    listening.take_levels, listening.begin_step = guided.take_levels, begin_step
    run(listening, name, range(8), steps=12)
    tau, delta = rates(levels, pi, 0.5, 0.7)
    log_p, before, done, weights = torch.zeros(8, dtype=F64), None, 0, []
    for step, x, s, labels, D_w in asked:
        sigma = torch.full((8,), s, dtype=F64)
        D_c, D_u = FOUR(x, sigma, labels), FOUR(x, sigma, torch.full_like(labels, NULL))
        if step > done:  # a step's first evaluation; the second of Heun has the same weight
            if before is not None:
                x0, s0, c0, u0 = before
                k = s**2 / s0**2
                deviation = s * (1 - k) ** 0.5
                of_c = Normal(k * x0 + (1 - k) * c0, deviation).log_prob(x).sum(1)
                of_u = Normal(k * x0 + (1 - k) * u0, deviation).log_prob(x).sum(1)
                log_p = log_p + tau * (of_c - of_u) + delta
                log_p = log_p.clamp(min=math.log((1 - pi) * most / (most - 1)), max=3.0)
            before, done = (x, s, D_c, D_u), step
            weights.append(log_p.exp() / (log_p.exp() - (1 - pi)))
        torch.testing.assert_close(D_w, D_u + weights[-1][:, None] * (D_c - D_u))
    spread = torch.stack(weights)
    assert 1.2 < spread.max() <= most + 1e-9
    assert spread.std(1).max() > 0.01  # by samples too


def test_the_misfits_of_exact_models_add_up_to_the_posterior():
    """Without guidance their sum is log p(c | x) / p(c), as the paths' densities' ratio is."""
    noise, c, draw = seeded(list(range(50)), (2,), 4)
    path = list(ddpm(FOUR, noise, c, draw, steps=1000, sigma_min=0.02, sigma_max=60.0))
    total = torch.zeros(50, dtype=F64)
    for (s, x), (t, following) in list(pairwise(path))[:-1]:
        sigma = torch.full((50,), s, dtype=F64)
        parts = FOUR(x, sigma, c), FOUR(x, sigma, torch.full_like(c, NULL))
        total = total - misfit((x, s, *parts), following, t)
    exact = FOUR.log_density(following, c, t) - FOUR.log_density(following, None, t)
    assert (total - exact).abs().mean() < 0.05
    assert exact.std() > 0.2


def test_the_rates_by_hand():
    """Four levels: delta = ln(1.5 (1 - pi)) / (4 (1 - t_0)); v(t_1) between the last two steps."""
    levels, pi = [8.0, 4.0, 2.0, 1.0], 0.8
    tau, delta = rates(levels, pi, 0.5, 0.375)
    assert delta == pytest.approx(math.log(0.2 * 1.5) / 2)
    v = [(4 - 1) * 1 / 4, (16 - 4) * 4 / 16]  # of the last and the last but one
    assert tau == pytest.approx(2 * (v[0] + v[1]) / 2 * abs(delta) / 10)
    with pytest.raises(UserError, match=r"scale=0\.5 of feedback is the largest w"):
        feedback(FOUR, scale=0.5)


# HiGS


def told(guided, i, sigma):
    guided.begin_step(i, sigma)
    return guided


@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_higs_by_hand(eta):
    """Three steps of D = x: g = a x1, then a x2 + (1 - a) a x1; t/T from the DDPM's own levels."""
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
    levels = ((1 - abar) / abar).sqrt()
    guided = higs(lambda x, s, c: x, scale=3.0, alpha=0.6, eta=eta, t_min=0.2, t_max=0.9)
    xs = [torch.tensor([v], dtype=F64) for v in ([1.0, 2.0], [3.0, -1.0], [0.5, 0.5])]
    c = torch.zeros(1, dtype=torch.long)
    g = None
    for i, (x, t) in enumerate(zip(xs, (850, 600, 300), strict=True)):
        sigma = levels[t][None]
        told(guided, i, sigma.item())
        for D in (x, 2 * x + 1):  # Heun's second evaluation has the same history, and leaves none
            expected = D
            if g is not None:
                d = D - g
                parallel = (d @ D.T) / (D @ D.T) * D
                d = d - parallel + eta * parallel
                expected = D + 2 * ((t / 999 - 0.2) / 0.7) ** 0.5 * d
            torch.testing.assert_close(guided(D, sigma, c), expected)
        g = 0.6 * x if g is None else 0.6 * x + 0.4 * g
    for t in (100, 950):  # outside it is D itself
        assert torch.equal(told(guided, 3, 1.0)(xs[0], levels[t][None], c), xs[0])
    assert torch.equal(told(guided, 0, 1.0)(xs[1], levels[500][None], c), xs[1])  # and anew


def test_the_filter_is_scipys_cosine_transform():
    d = torch.randn(3, 2, 8, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    u, v = torch.arange(8)[:, None] / 8, torch.arange(6) / 6
    kept = 1 / (1 + torch.exp(-50 * ((u**2 + v**2).sqrt() - 0.2)))
    whole = dctn(d.numpy(), axes=(2, 3), norm="ortho") * kept.numpy()
    expected = torch.tensor(idctn(whole, axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(high_pass(d, 0.2), expected)
    flat = high_pass(torch.ones(1, 1, 8, 8, dtype=F64), 0.2)
    assert flat.abs().max() < 1e-4  # a colour is nothing but low frequency


def test_higs_filters_images_and_its_cutoff_null_does_not():
    x = torch.randn(2, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    c, sigma = torch.zeros(2, dtype=torch.long), torch.full((2,), 3.0, dtype=F64)
    out = {}
    for cutoff in (0.3, None):
        guided = higs(lambda x, s, c: x + 1, scale=2.0, eta=1.0, cutoff=cutoff)
        told(guided, 0, 3.0)(2 * x, sigma, c)
        out[cutoff] = told(guided, 1, 3.0)(x, sigma, c) - (x + 1)
    torch.testing.assert_close(out[0.3], high_pass(out[None], 0.3))
    assert (out[0.3] - out[None]).abs().max() > 0.1


# Momentum


def test_momentum_is_the_papers_algorithm_on_the_flow():
    """Z <- Z + dt (v + alpha (v - m)), m <- (1 - beta) v + beta m, m = v at first."""
    noise, c, _ = seeded(list(range(6)), (2,), 4)
    inner = classifier_free(FOUR, scale=1.7)
    guided = momentum(FOUR, of=partial(classifier_free, scale=1.7), scale=1.8, beta=0.3)
    path = list(euler(guided, noise, c, steps=16, levels="uniform_t", sigma_max=50.0))
    t = 1 / 51
    Z, m, dt, moved = 50 * noise * t, None, (1 - t) / 16, 0
    for sigma, x in path[:-1]:
        t = 1 / (1 + sigma)
        torch.testing.assert_close(x * t, Z)
        v = (inner(Z / t, torch.full((6,), sigma, dtype=F64), c) - Z) / (1 - t)
        m = v if m is None else m
        alpha = 0.8 if 0.05 <= t <= 0.7 else 0.0
        moved += alpha > 0
        Z = Z + dt * (v + alpha * (v - m))
        m = 0.7 * v + 0.3 * m
    torch.testing.assert_close(path[-1][1], Z)
    assert 8 < moved < 14


def test_of_a_step_of_heun_the_first_velocity_is_remembered():
    guided = momentum(lambda x, s, c: 0 * x, scale=2.0, beta=0.0, from_t=0.0, to_t=1.0)
    sigma, c = torch.ones(1, dtype=F64), torch.zeros(1, dtype=torch.long)
    one, other = (torch.full((1, 2), v, dtype=F64) for v in (1.0, 3.0))  # D = 0: v = -x at t = 1/2
    told(guided, 0, 1.0)
    for x in (one, other):
        assert torch.equal(guided(x, sigma, c), 0 * x)
    told(guided, 1, 1.0)
    for x, expected in ((one, 0.0), (other, (-3.0 + 1.0) / 2)):  # (1 - t) (v - m), m = -1
        torch.testing.assert_close(guided(x, sigma, c), torch.full_like(x, expected))


def test_histories_cost_no_pass_and_start_anew(networks):  # noqa: F811
    for name in ("higs", "momentum"):
        model = Counted(FOUR)
        guided = guide({"name": name, "of": CFG}, {"model": model})
        first = run(guided, "heun")
        assert model.evaluations == 2 * 8 * (2 * STEPS - 1)
        assert torch.equal(run(guided, "heun"), first)  # the next trajectory remembers nothing
        inside = {"name": "interval", "of": {"name": name, "of": CFG}}
        inside |= {"sigma_low": 0.0, "sigma_high": 99.0}
        assert torch.equal(run(guide(inside, networks), "heun"), first)


# Feynman-Kac


def test_the_weights_are_what_the_density_lacks(noisy):  # noqa: F811
    """For p = p_u^(1-w) p_c^w and its score s, in backward time sigma^2 falls by itself:
    d log W / d(-sigma^2) = d log p / d(-sigma^2) + (div s + |s|^2) / 2, on the exact mixture."""
    x, sigma, c = (of[8:24] for of in noisy)
    w, h = 2.5, 1e-4

    def log_p(x, variance):
        level = variance.sqrt()
        return (1 - w) * FOUR.log_density(x, None, level) + w * FOUR.log_density(x, c, level)

    variance = sigma**2
    rate = (log_p(x, variance * (1 - h)) - log_p(x, variance * (1 + h))) / (2 * h * variance)
    leaf = x.clone().requires_grad_()
    s = torch.autograd.grad(log_p(leaf, variance).sum(), leaf, create_graph=True)[0]
    div = sum(torch.autograd.grad(s[:, k].sum(), leaf, retain_graph=True)[0][:, k] for k in (0, 1))
    expected = rate + (div + s.square().sum(1)).detach() / 2

    guided = feynman_kac(FOUR, scale=w, particles=2, threshold=0.0)
    _, _, draw = seeded(list(range(8)), (2,), 4)
    guided.draw_from(draw.particles(2))
    guided.begin_step(0, 1.0)
    guided(x, sigma, c)
    log_W = log_weights(guided, 2.0, 1.0)  # of |D_c - D_u|^2 (1 - 1/4), which is sigma^4 |s|^2
    assert log_W.shape == (8, 2)
    found = log_W.flatten() / 0.75 / sigma**4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.max() > 0.1


def log_weights(guided, s, t):
    """What the method has of its particles after a step from s to t, read off its closure."""
    assert guided.resample(s, t) is None
    names = guided.resample.__code__.co_freevars
    return dict(zip(names, guided.resample.__closure__, strict=True))["log_W"].cell_contents


def two_gaussians(mean_c, std_c, std_u):
    """A denoiser of N(mean_c, std_c^2) for a class and of N(0, std_u^2) for none."""

    def denoise(x, sigma, c):
        s = sigma[:, None] ** 2
        none = c[:, None] == NULL
        mean, v = torch.where(none, 0.0, mean_c), torch.where(none, std_u**2, std_c**2)
        return mean + v / (v + s) * (x - mean)

    return denoise


MEAN_C, STD_C, STD_U, W = 0.5, 0.6, 1.0, 3.0
PRECISION = (1 - W) / STD_U**2 + W / STD_C**2  # of p_u^(1-w) p_c^w, a Gaussian too
MEAN = W * MEAN_C / STD_C**2 / PRECISION


def weighted_law(levels):
    """Mean and variance of the weighted particles in closed form: all is linear and Gaussian."""
    precision, b = 1 / levels[0] ** 2, 0.0  # the density is exp(-precision x^2 / 2 + b x)
    for s, t in pairwise(levels):
        a_c, a_u = (v / (v + s**2) for v in (STD_C**2, STD_U**2))  # D = a x + e
        e_c = (1 - a_c) * MEAN_C
        g = W * (W - 1) / 2 * (1 / t**2 - 1 / s**2 if t > 0 else 1 / s**2)
        precision, b = precision - 2 * g * (a_c - a_u) ** 2, b + 2 * g * (a_c - a_u) * e_c
        k = (t / s) ** 2
        a, e = k + (1 - k) * (a_u + W * (a_c - a_u)), (1 - k) * W * e_c
        mean, variance = a * b / precision + e, a**2 / precision + t**2 * (1 - k)
        precision, b = 1 / variance, mean / variance
    return mean, variance


def test_particles_have_the_tilted_density_where_cfg_has_not():
    """In closed form to the steps' first order, and in samples as the closed form has it."""
    off = []
    for steps in (60, 120, 240):
        levels = noise_levels(karras, steps=steps, sigma_min=0.002, sigma_max=20.0)
        mean, variance = weighted_law(levels)
        off.append(1 - variance * PRECISION)
        assert abs(mean - MEAN) * PRECISION**0.5 < 0.02
    assert off == pytest.approx([0.134, 0.0723, 0.0375], abs=1e-3)  # halves with the steps
    model = two_gaussians(MEAN_C, STD_C, STD_U)
    n, section = 800, {"name": "euler_ancestral", "steps": 60, "sigma_max": 20.0}
    mean, variance = weighted_law(noise_levels(karras, steps=60, sigma_max=20.0))
    for name, guided in (
        ("cfg", classifier_free(model, scale=W)),
        ("fkc", feynman_kac(model, scale=W, particles=64)),
    ):
        noise, c, draw = seeded(list(range(n)), (1,), 1)
        *_, (_, x) = sample(section, guided, noise, c, draw)
        assert x.shape == (n, 1)
        z = (x - mean) / variance**0.5
        far = abs(z.mean().item()) * n**0.5, abs(z.var().item() - 1) / (2 / n) ** 0.5
        assert max(far) < 4 if name == "fkc" else max(far) > 5, (name, far)


def test_the_first_particle_is_the_sample_that_there_would_be_without_the_others():
    """Where none is drawn anew, it is kept; and the others are others."""
    noise, c, draw = seeded(list(range(6)), (2,), 4)
    seen, section = [], {"name": "ddpm", "steps": 12}

    def denoise(x, sigma, c):
        seen.append(x)
        return FOUR(x, sigma, c)

    *_, (_, x) = sample(section, Guided(denoise, particles=3), noise, c, draw)
    _, _, draw = seeded(list(range(6)), (2,), 4)
    *_, (_, plain) = sample(section, FOUR, noise, c, draw)
    assert torch.equal(x, plain)
    for of_all in (seen[0], seen[5]):
        assert of_all.shape == (18, 2)
        assert len(of_all[:, 0].unique()) == 18


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral"])
def test_a_sample_of_particles_is_its_seed(name):
    guided = feynman_kac(FOUR, scale=3.0, particles=4, threshold=0.9)
    section = {"steps": 20, "sigma_max": 10.0}
    whole = run(guided, name, range(14), **section)
    for size in (1, 5):
        rows = [
            run(guided, name, range(i, min(i + size, 14)), **section) for i in range(0, 14, size)
        ]
        torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=1e-9)
    assert (
        whole - run(classifier_free(FOUR, scale=3.0), name, range(14), **section)
    ).abs().max() > 0.1
    one = feynman_kac(FOUR, scale=3.0, particles=1)
    plain = run(classifier_free(FOUR, scale=3.0), name, range(14), **section)
    assert torch.equal(run(one, name, range(14), **section), plain)
    model = Counted(FOUR)
    assert torch.equal(run(feynman_kac(model, scale=1.0), name), run(FOUR, name))
    assert model.evaluations == 8 * STEPS


def test_the_trajectory_of_the_kept_particle_is_a_trajectory():
    """Each of its steps has the noise between, whatever was drawn anew: ddpm's is within 6 std."""
    noise, c, draw = seeded(list(range(40)), (2,), 4)
    guided = feynman_kac(FOUR, scale=2.0, particles=8, threshold=1.0)
    section = {"name": "ddpm", "steps": 30, "sigma_max": 10.0}
    path = list(sample(section, guided, noise, c, draw, rows=7))
    assert [len(x) for _, x in path] == [7] * 30 + [40]
    for (s, x), (t, following) in pairwise(path):
        k, sigma = (t / s) ** 2, torch.full((7,), s, dtype=F64)
        D = classifier_free(FOUR, scale=2.0)(x, sigma, c[:7])
        off = (following[:7] - k * x - (1 - k) * D).norm(dim=1)
        assert (off <= 6 * t * (1 - k) ** 0.5 + 1e-9).all()


def test_particles_are_drawn_by_their_weights():
    """One of two has all the weight: it alone goes on, and is kept in the end."""

    def model(x, sigma, c):  # the scores differ by x
        return torch.where(c[:, None] == NULL, 0.0, x * sigma[:, None] ** 2)

    _, _, draw = seeded([0, 1], (1,), 1)
    guided = feynman_kac(model, scale=2.0, particles=2)
    guided.draw_from(draw.particles(2))
    x = torch.tensor([[0.0], [30.0], [20.0], [0.0]], dtype=F64)
    for t, expected in ((0.5, [1, 1, 2, 2]), (0.0, [1, 1, 2, 2])):
        guided.begin_step(0, 1.0)
        guided(x, torch.ones(4, dtype=F64), torch.zeros(4, dtype=torch.long))
        assert guided.resample(1.0, t).tolist() == expected
    even = torch.full_like(x, 3.0)
    guided.begin_step(0, 1.0)
    guided(even, torch.ones(4, dtype=F64), torch.zeros(4, dtype=torch.long))
    assert guided.resample(1.0, 0.5) is None  # all count the same


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ddim", "dopri5"])
def test_particles_need_fresh_noise(name):
    with pytest.raises(UserError, match=r"feynman_kac (weighs particles|must know)"):
        run(feynman_kac(FOUR), name)


def test_particles_within_an_interval_are_drawn_by_their_weights_at_the_end():
    """Where the last steps are not guided, the weights of before still count."""
    inner = partial(feynman_kac, scale=3.0, particles=16, threshold=0.0)
    guided = interval(FOUR, of=inner, sigma_low=1.0, sigma_high=20.0)
    plain = interval(FOUR, of=partial(classifier_free, scale=3.0), sigma_low=1.0, sigma_high=20.0)
    found, other = (run(one, "ddpm", range(40), steps=30) for one in (guided, plain))
    assert (found != other).any(1).double().mean() > 0.7  # mostly another particle than the first
    assert unguided(FOUR) is FOUR
