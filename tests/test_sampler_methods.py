"""EDM's stochastic sampler, multistep ones, DDIM with eta, torchdiffeq's: against their papers."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from test_edm2 import read
from test_edm2_sampling import HEUN, networks  # noqa: F401
from test_guidance_methods import parts
from test_samplers import (  # noqa: F401
    F64,
    GAUSS_MEAN,
    GAUSS_STD,
    gauss,
    last,
    mixture,
    solution,
    tiny,
    z_scores,
)

from lightning_cfg.config import load
from lightning_cfg.diffusion import samplers
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.diffusion.multistep import adams_weights
from lightning_cfg.diffusion.noise import karras, noise_levels
from lightning_cfg.diffusion.samplers import (
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm_stochastic,
    euler,
    euler_ancestral,
    fixed_step,
    heun,
    lms,
)
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import cfg_plus_plus, interval, unguided
from lightning_cfg.nets import MLP
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import evaluations_of, sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.generate import generate

C5 = torch.zeros(5, dtype=torch.long)


def noise_of(n, shape=(1,)):
    noise, c, draw = seeded(list(range(n)), shape, 1)
    return noise, c, draw


# --- EDM's churn ---


def test_churn_is_edm2s_own_code(networks, tmp_path):  # noqa: F811
    """Its normals are drawn as ours are, and so are the samples the same but for rounding."""
    values, churned = read("edm2_sampling")[0], read("edm2_churn")[0]
    _, _, draw = seeded(values["seeds"].tolist(), (4, 16, 16), 10)
    for normals in churned["normals_4x4"]:
        assert torch.equal(draw().float()[..., :4, :4], normals)
    churn = {"S_churn": 4, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    sampler = {**HEUN, "name": "edm_stochastic", **churn}
    models = {"model": networks["main"], "weak": networks["weak"]}
    guidance = {"name": "autoguidance", "scale": 2.3}
    made = []
    for seed, n in ((0, 3), (12345, 1)):  # another batch of each
        keys = {"models": models, "guidance": guidance, "sampler": sampler, "device": "cpu"}
        run = generate(**keys, seed=seed, n=n, run_dir=str(tmp_path / f"{seed}"))
        made.append(load_tensors(run / "samples/samples.safetensors", "x", "c", "seed")["x"])
    expected = churned["sample/churn_autoguidance_2.3/float32"]
    assert (expected - values["sample/autoguidance_2.3/float32"]).abs().max() > 0.1
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(torch.cat(made), expected, rtol=0, atol=limit)


def test_without_churn_it_is_heun(tiny):  # noqa: F811
    noise, c, draw = seeded(list(range(6)), (2,), 2)
    plain = list(heun(tiny, noise, c, steps=9))
    found = list(edm_stochastic(tiny, noise, c, draw, steps=9, S_churn=0.0))
    for (s, x), (t, y) in zip(plain, found, strict=True):
        assert s == t
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    outside = edm_stochastic(tiny, noise, c, draw, steps=9, S_min=100.0, S_max=200.0)
    torch.testing.assert_close(last(outside), plain[-1][1], rtol=0, atol=1e-12)


def test_a_step_adds_at_most_the_papers_bound(gauss):  # noqa: F811
    """The first evaluation is at (1 + gamma) sigma, gamma = min(S_churn / N, sqrt(2) - 1)."""
    for churn, gamma in ((1.0, 0.1), (80.0, 2**0.5 - 1)):
        seen = []

        def denoise(x, sigma, c, seen=seen):
            seen.append(sigma[0].item())
            return gauss(x, sigma, c)

        noise, c, draw = noise_of(5)
        last(edm_stochastic(denoise, noise, c, draw, steps=10, S_churn=churn, S_max=100.0))
        assert seen[0] == pytest.approx(80 * (1 + gamma))
        assert seen[-1] == pytest.approx(0.002)  # below S_min: as it is


# --- steps in the papers' own coordinates ---


def vp(sigma):
    """alpha and sigma of the variance-preserving process at sigma / alpha."""
    alpha = 1 / (1 + sigma**2) ** 0.5
    return alpha, alpha * sigma


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("which", [ddim, euler_ancestral])
def test_eta_is_that_of_the_ddim_paper(gauss, which, eta):  # noqa: F811
    """Eq. 12 with sigma_t of eq. 16 (Song et al. 2021), on x sqrt(abar)."""
    noise, c, _ = noise_of(5)
    ones = torch.ones_like(noise)
    for sign in (-1, 1):
        path = list(which(gauss, noise, c, lambda v=sign: v * ones, steps=20, eta=eta))
        for (s, x), (t, following) in list(pairwise(path))[3:12]:
            (a_s, sd_s), (a_t, sd_t) = vp(s), vp(t)
            abar_s, abar_t = a_s**2, a_t**2
            noisy = eta * ((1 - abar_t) / (1 - abar_s)) ** 0.5 * (1 - abar_s / abar_t) ** 0.5
            D = gauss(x, torch.full((5,), s, dtype=F64), c)
            eps = (a_s * x - a_s * D) / sd_s
            expected = a_t * D + (sd_t**2 - noisy**2) ** 0.5 * eps + noisy * sign * ones
            torch.testing.assert_close(a_t * following, expected)


def test_eta_0_is_ddim_and_eta_1_is_ddpm(tiny):  # noqa: F811
    noise, c, draw = seeded(list(range(6)), (2,), 2)
    plain = last(ddim(tiny, noise, c, steps=12))
    assert torch.equal(last(ddim(tiny, noise, c, draw, steps=12, eta=0.0)), plain)
    _, _, draw = seeded(list(range(6)), (2,), 2)
    found = last(ddim(tiny, noise, c, draw, steps=12, eta=1.0))
    _, _, draw = seeded(list(range(6)), (2,), 2)
    torch.testing.assert_close(found, last(ddpm(tiny, noise, c, draw, steps=12)))
    still = last(euler_ancestral(tiny, noise, c, draw, steps=12, eta=0.0))
    torch.testing.assert_close(still, last(euler(tiny, noise, c, steps=12)))


@pytest.mark.parametrize("stochastic", [False, True])
def test_2m_is_the_dpm_solver_papers_step(tiny, stochastic):  # noqa: F811
    """Alg. 2 and SDE-DPM-Solver++(2M) (Lu et al. 2022), in alpha, sigma and lambda."""
    noise, c, _ = seeded(list(range(5)), (2,), 2)
    ones = torch.ones_like(noise)
    for sign in (-1, 1) if stochastic else (0,):
        if stochastic:
            path = list(dpmpp_2m_sde(tiny, noise, c, lambda v=sign: v * ones, steps=9))
        else:
            path = list(dpmpp_2m(tiny, noise, c, steps=9))
        before = None
        for (s, x), (t, following) in list(pairwise(path))[:-1]:
            (a_s, sd_s), (a_t, sd_t) = vp(s), vp(t)
            lam_s, lam_t = math.log(a_s / sd_s), math.log(a_t / sd_t)
            h = lam_t - lam_s
            D = tiny(x, torch.full((5,), s, dtype=F64), c)
            z = a_s * x
            if stochastic:
                decay = 1 - math.exp(-2 * h)
                expected = sd_t / sd_s * math.exp(-h) * z + a_t * decay * D
                expected = expected + sd_t * decay**0.5 * sign * ones
                if before is not None:
                    r = (lam_s - before[0]) / h
                    expected = expected + a_t * decay / (2 * r) * (D - before[1])
            else:
                ahead = D
                if before is not None:
                    r = (lam_s - before[0]) / h
                    ahead = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * before[1]
                expected = sd_t / sd_s * z - a_t * (math.exp(-h) - 1) * ahead
            torch.testing.assert_close(a_t * following, expected)
            before = lam_s, D
        (s, x), (_, end) = path[-2:]
        torch.testing.assert_close(end, tiny(x, torch.full((5,), s, dtype=F64), c))


def test_2m_sde_without_noise_is_2m(tiny):  # noqa: F811
    noise, c, draw = seeded(list(range(5)), (2,), 2)
    still = last(dpmpp_2m_sde(tiny, noise, c, draw, steps=9, eta=0.0))
    assert torch.equal(still, last(dpmpp_2m(tiny, noise, c, steps=9)))


def test_the_weights_of_lms_are_integrals_of_lagrange_polynomials():
    at, start, end = [3.0, 5.0, 9.0, 20.0], 3.0, 1.7
    for j, found in enumerate(adams_weights(at, start, end)):

        def lagrange(x, j=j):
            return math.prod((x - p) / (at[j] - p) for k, p in enumerate(at) if k != j)

        assert found == pytest.approx(quad(lagrange, start, end, epsrel=1e-10)[0], rel=1e-8)
    # of equal steps they are Adams-Bashforth's
    assert adams_weights([0.0, -1.0], 0.0, 1.0) == pytest.approx([3 / 2, -1 / 2])
    four = adams_weights([0.0, -1.0, -2.0, -3.0], 0.0, 1.0)
    assert four == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])


def test_lms_of_order_1_is_euler(tiny):  # noqa: F811
    noise, c, _ = seeded(list(range(5)), (2,), 2)
    found = last(lms(tiny, noise, c, steps=9, order=1))
    torch.testing.assert_close(found, last(euler(tiny, noise, c, steps=9)))


# --- orders of convergence ---

ORDERS = [
    (dpmpp_2m, {}, 2, (32, 64, 128, 256)),
    (lms, {"order": 2}, 2, (64, 128, 256)),
    (lms, {"order": 3}, 3, (64, 128, 256)),
    (lms, {"order": 4}, 4, (64, 128, 256)),
    (fixed_step, {"method": "euler"}, 1, (64, 128, 256)),
    (fixed_step, {"method": "midpoint"}, 2, (64, 128, 256)),
    (fixed_step, {"method": "heun2"}, 2, (64, 128, 256)),
    (fixed_step, {"method": "heun3"}, 3, (64, 128, 256)),
    (fixed_step, {"method": "rk4"}, 4, (64, 128, 256)),
    (edm_stochastic, {"S_churn": 0.0}, 2, (64, 128, 256)),
]


@pytest.mark.parametrize("sampler, options, order, steps", ORDERS)
def test_samplers_converge_at_their_order_on_the_exact_mixture(
    tiny,  # noqa: F811
    sampler,
    options,
    order,
    steps,
):
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(16, 2, generator=g, dtype=F64)
    c, ends = torch.zeros(16, dtype=torch.long), {"sigma_min": 0.05, "sigma_max": 10}
    draw = [lambda: noise] if sampler is edm_stochastic else []
    exact = list(fixed_step(tiny, noise, c, steps=1024, method="rk4", **ends))[-2][1]
    errors = []
    for n in steps:  # up to sigma_min: the last step, to 0, is of first order
        *_, (_, x), _ = sampler(tiny, noise, c, *draw, steps=n, **options, **ends)
        errors.append((x - exact).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.3), errors


def test_adams_converges_along_equal_steps_of_t(gauss):  # noqa: F811
    noise = torch.linspace(-2.0, 2.0, 9, dtype=F64)[:, None]
    c, errors = torch.zeros(9, dtype=torch.long), []
    for n in (64, 128, 256):
        t = np.linspace(1 / 11, 1 / 1.3, n)
        levels = (1 / t - 1).tolist()
        path = fixed_step(gauss, noise, c, levels=levels, method="explicit_adams")
        *_, (_, x), _ = path
        errors.append((x - solution(noise, 10.0, 0.3)).abs().max().item())
    assert -np.polyfit(np.log([64, 128, 256]), np.log(errors), 1)[0] > 3.5, errors
    with pytest.raises(UserError, match=r"explicit_adams needs equal steps of t.*uniform_t"):
        last(fixed_step(gauss, noise, c, method="explicit_adams"))


@pytest.mark.parametrize(
    "section",
    [
        {"name": "edm_stochastic", "steps": 64, "S_churn": 20.0, "S_noise": 1.0},
        {"name": "euler_ancestral", "steps": 400, "sigma_min": 0.01},
        {"name": "ddim", "steps": 400, "sigma_min": 0.01, "eta": 0.5},
        {"name": "dpmpp_2m_sde", "steps": 100},
        {"name": "dpmpp_2m_sde", "steps": 100, "eta": 0.5},
    ],
    ids=lambda s: f"{s['name']} {s.get('eta', '')}",
)
def test_stochastic_samplers_have_the_mixtures_marginal(tiny, section):  # noqa: F811
    noise, labels, draw = seeded(range(1000), (2,), 2, class_label=0)
    x = last(sample(section, tiny, noise, labels, draw))
    assert z_scores(x, tiny, 0).abs().max() < 4
    assert z_scores(x, tiny, 1).abs().max() > 10


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_the_variance_on_one_gaussian_is_that_of_the_linear_recursion(gauss, eta):  # noqa: F811
    """Every step is linear, so mean and variance follow by hand: and tend to the data's."""
    found = []
    for steps in (20, 40, 80):
        levels = noise_levels(karras, steps=steps, sigma_min=0.02, sigma_max=20.0)[:-1]
        mean, variance = 0.0, levels[0] ** 2
        for s, t in pairwise(levels):
            h, r = math.log(s / t), GAUSS_STD**2 / (GAUSS_STD**2 + s**2)
            up = eta * t * (1 - t**2 / s**2) ** 0.5
            k = (t**2 - up**2) ** 0.5 / s
            a = k + (1 - k) * r
            mean, variance = a * mean + (1 - a) * GAUSS_MEAN, a**2 * variance + up**2
        found.append(abs(variance**0.5 - (GAUSS_STD**2 + t**2) ** 0.5))
        assert h > 0
    assert found[0] > 1.7 * found[1] > 1.7 * 1.7 * found[2]  # first order, weakly
    noise, c, draw = noise_of(4000)
    path = list(euler_ancestral(gauss, noise, c, draw, steps=80, sigma_min=0.02, sigma_max=20.0))
    assert path[-2][1].std().item() == pytest.approx(variance**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["fixed_step", "dpmpp_2m", "euler_ancestral", "ddim"])
def test_the_last_step_is_a_denoising_from_the_last_level(tiny, name):  # noqa: F811
    noise, c, draw = seeded(list(range(5)), (2,), 2)
    section = {"name": name, "steps": 7, "sigma_min": 0.3}
    *_, (s, x), (zero, end) = sample(section, tiny, noise, c, draw)
    assert (round(s, 9), zero) == (0.3, 0.0)
    torch.testing.assert_close(end, tiny(x, torch.full((5,), s, dtype=F64), c))


# --- seeds, and what the guidance is told ---

STOCHASTIC = ["edm_stochastic", "euler_ancestral", "dpmpp_2m_sde", "ddim"]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_same_seeds_give_the_same_stochastic_samples_in_any_batch(tiny, name):  # noqa: F811
    section = {"name": name, "steps": 40} | ({"eta": 0.7} if name == "ddim" else {})

    def run(seeds):
        noise, c, draw = seeded(seeds, (2,), 2)
        return last(sample(section, tiny, noise, c, draw))

    whole = run(list(range(40, 54)))
    for size in (1, 5):
        parts = torch.cat([run(list(range(i, min(i + size, 54)))) for i in range(40, 54, size)])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


ALL = [
    ("euler", 12, 12), ("heun", 12, 23), ("ddim", 12, 12), ("ddpm", 12, 12),
    ("edm_stochastic", 12, 23), ("euler_ancestral", 12, 12), ("dpmpp_2m", 12, 12),
    ("dpmpp_2m_sde", 12, 12), ("lms", 12, 12), ("fixed_step", 12, 4 * 11 + 1),
]  # fmt: skip


@pytest.mark.parametrize("name, steps, evaluations", ALL)
def test_evaluations_are_counted_right(gauss, name, steps, evaluations):  # noqa: F811
    section, denoise = {"name": name, "steps": steps}, Counted(gauss)
    noise, c, draw = noise_of(3)
    path = list(sample(section, denoise, noise, c, draw))
    assert denoise.evaluations == 3 * evaluations == 3 * evaluations_of(section)
    assert len(path) == steps + 1
    assert path[0][0] == path[0][1][0].item() / noise[0].item()
    assert evaluations_of({"name": "dopri5"}) is None


@pytest.mark.parametrize("name", [name for name, *_ in ALL])
def test_every_sampler_with_steps_tells_them(gauss, name):  # noqa: F811
    told = []

    def denoise(x, sigma, c):
        return gauss(x, sigma, c)

    denoise.begin_step = lambda i, sigma: told.append((i, sigma))
    denoise.take_levels = lambda levels: told.append(levels)
    noise, c, draw = noise_of(3)
    path = list(sample({"name": name, "steps": 5}, denoise, noise, c, draw))
    levels, *steps = told
    assert [sigma for sigma, _ in path] == levels
    assert steps == list(enumerate(levels[:-1]))


def test_ancestral_steps_take_cfg_plus_plus(request):
    """x <- D_w + k (x - D_u) + u n, as its paper has it for steps of first order."""
    noise, c, draw = seeded(list(range(6)), (2,), 4)
    guided = cfg_plus_plus(request.getfixturevalue("four"), scale=0.6)
    path = list(euler_ancestral(guided, noise, c, draw, steps=6, eta=0.5))
    _, _, draw = seeded(list(range(6)), (2,), 4)
    for (s, x), (t, following) in pairwise(path):
        D_c, D_u = parts(x, s, c)
        up = 0.5 * t * (1 - (t / s) ** 2) ** 0.5
        k = (t**2 - up**2) ** 0.5 / s
        expected = D_u + 0.6 * (D_c - D_u) + k * (x - D_u)
        if t > 0:
            expected = expected + up * draw()
        torch.testing.assert_close(following, expected)


@pytest.fixture
def four():
    from test_guidance_methods import FOUR

    return FOUR


@pytest.mark.parametrize(
    "name", ["edm_stochastic", "dpmpp_2m", "dpmpp_2m_sde", "lms", "fixed_step"]
)
def test_steps_of_another_form_refuse_cfg_plus_plus(four, name):
    noise, c, draw = seeded([0], (2,), 4)
    with pytest.raises(UserError, match=f"cfg_plus_plus is for steps .* which {name}'s are not"):
        list(sample({"name": name, "steps": 4}, cfg_plus_plus(four), noise, c, draw))


def test_an_interval_is_switched_in_every_stage_of_rk4(four):
    model = Counted(four)
    levels = karras(6, 0.002, 10.0)
    guided = interval(model, of=unguided, sigma_low=levels[3].item(), sigma_high=levels[1].item())
    noise, c, draw = seeded([0, 1], (2,), 4)
    section = {"name": "fixed_step", "steps": 6, "sigma_max": 10.0}
    list(sample(section, guided, noise, c, draw))
    assert model.evaluations == 2 * (4 * 5 + 1)


# --- one step ---


def test_one_step_of_a_flow_is_its_velocity_from_the_noise():
    """x0 + v(x0, 0), where sigma_max is so large that t = 0 but for 1 / (1 + sigma_max)."""
    torch.manual_seed(0)
    flow = Flow(MLP((2,), 2, width=16, blocks=1)).double()
    torch.nn.init.normal_(flow.net.leave.weight, std=0.3)
    noise, c, draw = seeded(list(range(5)), (2,), 2)
    with torch.no_grad():
        t = 1 / (1 + 500.0)
        x_t = 500.0 * t * noise
        expected = x_t + (1 - t) * flow.velocity(x_t, torch.full((5,), t, dtype=F64), c)
        for name in ("euler", "heun", "dpmpp_2m", "lms", "fixed_step", "edm_stochastic"):
            section = {"name": name, "steps": 1, "levels": "uniform_t", "sigma_max": 500.0}
            section |= {"S_churn": 0.0} if name == "edm_stochastic" else {}
            *start, (_, x) = sample(section, flow, noise, c, draw)
            assert len(start) == 1
            torch.testing.assert_close(x, expected)
    with pytest.raises(UserError, match="at least 2, not 1: one step of a flow is levels"):
        last(euler(flow, noise, c, steps=1))


# --- docs/samplers.md ---

GUIDE = (Path(__file__).parent.parent / "docs/samplers.md").read_text()
SECTIONS = re.findall(r"```yaml\nsampler: (.*)\n```", GUIDE)


def test_the_guide_has_every_sampler():
    table = re.findall(r"^\| `(\w+)` \|", GUIDE.split("## Error")[0], re.MULTILINE)
    assert sorted(table) == sorted(samplers.__all__)


@pytest.mark.parametrize("line", SECTIONS)
def test_the_guides_lines_work(tmp_path, line):
    file = tmp_path / "config.yaml"
    data = "{name: Mixture, means: [[-1.0], [1.0]], stds: [0.3, 0.3], labels: [0, 1]}"
    text = f"models: {{model: exact}}\nguidance: unguided\ndata: {data}\nn: 5\nsampler: {line}\n"
    file.write_text(text + f"run_dir: {tmp_path / 'run'}\n")
    config = load(generate, file)
    run = generate(**config)
    spent = json.loads((run / "manifest.json").read_text())["evaluations"]
    assert spent == {"model": evaluations_of(config["sampler"])}
