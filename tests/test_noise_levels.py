"""Levels are an argument of every sampler: schedule x sampler, lists and functions of one's own."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from lightning_cfg.config import identity_difference, load
from lightning_cfg.diffusion.noise import (
    karras,
    linear_betas,
    noise_levels,
    steps_of,
    uniform_t,
)
from lightning_cfg.diffusion.ode import integrate_in_steps
from lightning_cfg.diffusion.rectified_flow import Flow, velocity_of
from lightning_cfg.diffusion.samplers import ddim, ddpm, dopri5, euler, heun
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.provenance import told
from lightning_cfg.nets import MLP
from lightning_cfg.sampling.prepared import within_limits
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.generate import generate

F64 = torch.float64
NOISE = torch.tensor([[0.5], [-1.25]], dtype=F64)
C = torch.zeros(2, dtype=torch.long)


def gauss(x, sigma, c, mean=0.3, std=0.4):
    """The exact denoiser of one Gaussian."""
    s = sigma[:, None]
    return (std**2 * x + s**2 * mean) / (std**2 + s**2)


def solution(x, start, sigma, mean=0.3, std=0.4):
    """Its probability flow from x at noise level `start` to sigma."""
    return mean + (x - mean) * math.sqrt((std**2 + sigma**2) / (std**2 + start**2))


# What the samplers gave before levels were an argument, of D = (x + 0.3 s^2) / (1 + s^2): how many
# are yielded, the second level, and both samples; `draw` gives half the noise
BEFORE = [
    ("euler", {}, 65, [73.31952762968997, 0.7763467783832445, -0.903465538333486]),
    (
        "euler",
        {"steps": 7, "sigma_min": 0.05, "sigma_max": 20.0, "rho": 5.0},
        8,
        [10.773407849912704, 0.6703356763910566, -0.6659270734735804],
    ),
    ("heun", {}, 19, [57.58598472124816, 0.8184466867642884, -1.009828782933454]),
    (
        "heun",
        {"steps": 9, "sigma_max": 10.0},
        10,
        [5.248612952548949, 0.8117160524349813, -1.0936096747165445],
    ),
    ("heun", {"rho": 3.0}, 19, [67.06285398985861, 0.8257037964373842, -1.0281634957851267]),
    ("ddim", {}, 51, [67.05083517650351, 0.7792887158988511, -0.9108981915530167]),
    (
        "ddim",
        {"steps": 6, "sigma_min": 0.02, "sigma_max": 30.0},
        7,
        [8.83437250530419, 0.6619551441375463, -0.6307417992108344],
    ),
    ("ddpm", {"steps": 20}, 21, [51.11375286199418, 1.0715283035683107, -1.6289847957900145]),
    (
        "ddpm",
        {"steps": 5, "sigma_max": 200.0},
        6,
        [17.27979368156029, 0.505707825450132, -0.21431193983786698],
    ),
    ("dopri5", {"sigma_max": 10.0}, 3, [0.002, 0.7676661385578181, -0.9736439518170257]),
    (
        "dopri5",
        {"points": 4, "sigma_min": 0.01},
        6,
        [19.813775587848156, 0.7961765113338346, -0.9535643346796975],
    ),
]


@pytest.mark.parametrize("name, keys, yielded, numbers", BEFORE)
def test_old_spellings_give_what_they_gave(name, keys, yielded, numbers):
    denoise = partial(gauss, mean=0.3, std=1.0)
    path = list(sample({"name": name, **keys}, denoise, NOISE, C, lambda: NOISE / 2))
    assert len(path) == yielded
    found = [path[1][0], *path[-1][1][:, 0].tolist()]
    assert found == pytest.approx(numbers, rel=1e-11 if name != "dopri5" else 1e-8)


@pytest.mark.parametrize("steps, low, high, rho", [(2, 0.002, 80, 7), (9, 0.05, 20, 5)])
def test_karras_levels_by_hand(steps, low, high, rho):
    a, b = high ** (1 / rho), low ** (1 / rho)
    expected = [(a + i / (steps - 1) * (b - a)) ** rho for i in range(steps)]
    assert karras(steps, low, high, rho=rho).tolist() == pytest.approx([*expected, 0])


def test_uniform_t_by_hand():
    """From t = 1/10 in three steps of 3/10: t = 0.4 and 0.7 are sigma = 1.5 and 3/7."""
    assert uniform_t(3, 0.002, 9.0).tolist() == pytest.approx([9, 1.5, 3 / 7, 0])
    assert uniform_t(1, 0.002, 9.0).tolist() == [9, 0]
    with pytest.raises(UserError, match="steps must be at least 1, not 0"):
        uniform_t(0, 0.002, 9.0)


# --- schedule x sampler ---

SCHEDULES = {
    "karras": karras,
    "karras_rho_3": {"name": "karras", "rho": 3.0},
    "linear_betas": {"name": "linear_betas"},
    "uniform_t": uniform_t,
}
LIMITS = {"sigma_min": 0.05, "sigma_max": 10.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler, order", [(euler, 1), (ddim, 1), (heun, 2)])
def test_every_sampler_converges_along_every_schedule(schedule, sampler, order):
    """Up to the last level above 0, which the Euler step to 0 follows whatever the sampler."""
    limits = {**LIMITS, "sigma_min": 1e-4} if schedule == "uniform_t" else LIMITS
    counts, errors = [40, 80, 160, 320], []
    for steps in counts:
        (start, x), *_, (low, end), _ = sampler(
            gauss, NOISE, C, levels=SCHEDULES[schedule], steps=steps, **limits
        )
        assert start == pytest.approx(10.0)
        errors.append((end - solution(x, start, low)).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2), errors


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_samples_have_the_moments_of_the_data_along_every_schedule(schedule):
    noise, c, draw = seeded(list(range(2000)), (1,), 1)
    levels = SCHEDULES[schedule]
    *_, (_, x) = ddpm(gauss, noise, c, draw, levels=levels, steps=400, sigma_min=0.001)
    assert abs(x.mean() - 0.3) < 4 * 0.4 / 2000**0.5
    # at finite steps it is a little too narrow: the kernel's variance is that of a known y
    assert abs(x.std() / 0.4 - 1) < 4 / 4000**0.5 + 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dopri5_gives_its_trajectory_at_every_schedule(schedule):
    noise = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    keys = {"levels": SCHEDULES[schedule], "points": 7, "rtol": 1e-9, "atol": 1e-9, **LIMITS}
    path = list(dopri5(gauss, noise, torch.zeros(5).long(), **keys))
    expected = noise_levels(karras, levels=SCHEDULES[schedule], steps=8, **LIMITS)
    assert [sigma for sigma, _ in path] == expected
    for sigma, x in path[:-1]:
        at = solution(noise * expected[0], expected[0], sigma)
        torch.testing.assert_close(x, at, rtol=1e-6, atol=1e-6)


def test_euler_along_uniform_t_is_euler_on_the_flow():
    """The same numbers as equal steps of dx_t/dt = v from t = 1 / (1 + sigma_max) to 1."""
    *_, (_, end) = euler(gauss, NOISE, C, levels=uniform_t, steps=12, sigma_max=9.0)
    x_t = NOISE * 9.0 / 10.0
    flow = integrate_in_steps(velocity_of(gauss), x_t, C, 0.1, 1.0, steps=12, order=1)
    torch.testing.assert_close(end, flow, rtol=1e-12, atol=1e-12)


# --- levels of one's own ---


@pytest.mark.parametrize(
    "levels", [[10.0, 3.0, 0.2], [10, 3.0, 0.2, 0], torch.tensor([10, 3, 0.2])]
)
def test_a_list_of_levels_is_stepped_along(levels):
    path = list(euler(gauss, NOISE, C, levels=levels))
    assert [sigma for sigma, _ in path] == pytest.approx([10.0, 3.0, 0.2, 0.0])
    x = 10 * NOISE
    for s, t in ((10.0, 3.0), (3.0, 0.2), (0.2, 0.0)):
        D = gauss(x, torch.full((2,), s, dtype=F64), C)
        x = D + t / s * (x - D)
    torch.testing.assert_close(path[-1][1], x)


def test_one_level_is_one_denoising():
    for sampler in (euler, heun, ddim):
        (_, x), (_, end) = sampler(gauss, NOISE, C, levels=[7.0])
        torch.testing.assert_close(x, 7 * NOISE)
        torch.testing.assert_close(end, gauss(x, torch.full((2,), 7.0, dtype=F64), C))


def test_a_list_is_where_dopri5_starts_ends_and_looks():
    path = list(dopri5(gauss, NOISE, C, levels=[20.0, 2.0, 0.01], rtol=1e-9, atol=1e-9))
    assert [sigma for sigma, _ in path] == [20.0, 2.0, 0.01, 0.0]
    for sigma, x in path[:-1]:
        torch.testing.assert_close(x, solution(20 * NOISE, 20.0, sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [0.0],
        [1.0, 2.0],
        [2.0, 1.0, 1.0],
        [2.0, 0.0, 1.0],
        [2.0, 1.0, 0.0, 0.0],
        [2.0, -1.0],
        [math.inf, 1.0],
        [2.0, math.nan],
    ],
)
@pytest.mark.parametrize("sampler", [euler, heun, ddim, dopri5])
def test_levels_that_do_not_fall_to_0_are_refused(sampler, levels):
    with pytest.raises(UserError, match=r"sampler\.levels must be finite noise levels above 0"):
        next(sampler(gauss, NOISE, C, levels=levels))


OWN = """
import torch


def halved(steps, sigma_min, sigma_max, *, factor: float = 2.0):
    return torch.tensor([sigma_max / factor**i for i in range(steps)])
"""


def test_a_schedule_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_levels.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = read(tmp_path, "{name: heun, steps: 4, levels: {name: own_levels.halved, factor: 4}}")
    path = sample({**config["sampler"], "sigma_max": 64.0}, gauss, NOISE, C, lambda: NOISE)
    assert [sigma for sigma, _ in path] == [64.0, 16.0, 4.0, 1.0, 0.0]
    with pytest.raises(UserError, match=r"from 80 to 0\.0003052, outside .* 0\.002 \.\.\. 80"):
        next(sample({**config["sampler"], "steps": 10}, gauss, NOISE, C, lambda: NOISE))
    with pytest.raises(UserError, match=r"did you mean 'sampler\.levels\.factor'"):
        read(tmp_path, "{name: heun, levels: {name: own_levels.halved, facto: 4}}")


def test_equal_steps_of_t_that_end_below_the_models_levels_are_refused():
    with pytest.raises(UserError, match=r"outside the noise levels 0\.002 .* fewer steps"):
        next(euler(gauss, NOISE, C, levels=uniform_t, steps=1000))


# --- in a config ---

FILE = """
models: {model: exact}
data: {name: Mixture, means: [[-1.0], [1.0]], stds: [0.5, 0.5], labels: [0, 1]}
guidance: unguided
n: 6
run_dir: out
sampler: """


def read(tmp_path, sampler, *overrides):
    file = tmp_path / "config.yaml"
    file.write_text(FILE + sampler)
    return load(generate, file, list(overrides))


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "ddpm", "dopri5"])
def test_every_sampler_has_the_key(tmp_path, name):
    config = read(tmp_path, name, "sampler.levels=uniform_t")
    assert config["sampler"]["levels"] == {"name": "uniform_t"}
    config = read(tmp_path, name, "sampler.levels=[80, 1, 0.002]")
    assert config["sampler"]["levels"] == [80.0, 1.0, 0.002]
    config = read(tmp_path, f"{{name: {name}, levels: {{name: karras}}}}", "sampler.levels.rho=5")
    assert config["sampler"]["levels"] == {"name": "karras", "rho": 5.0}
    *_, (sigma, x) = sample(config["sampler"], gauss, NOISE, C, lambda: NOISE)
    assert sigma == 0
    assert x.isfinite().all()


@pytest.mark.parametrize(
    "sampler, words",
    [
        ("{name: heun, levels: karas}", "no 'karas' in lightning_cfg.diffusion.noise; did you"),
        ("{name: heun, levels: {name: uniform_t, rho: 5}}", "unknown key 'sampler.levels.rho'"),
        (
            "{name: heun, levels: [80, high]}",
            "sampler.levels[1] must be float of at least 0, not 'high'",
        ),
        ("{name: ddim, rho: 5}", "unknown key 'sampler.rho'"),
    ],
)  # fmt: skip
def test_a_mistake_in_levels_is_named(tmp_path, sampler, words):
    with pytest.raises(UserError) as error:
        read(tmp_path, sampler)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"levels": [9.0, 1.0], "steps": 7}, r"sampler\.steps=7 .*: a list says all itself"),
        ({"levels": [9.0, 1.0], "sigma_max": 9.0}, r"sampler\.sigma_max=9.0 does not count"),
        ({"levels": {"name": "uniform_t"}, "rho": 5.0}, r"rho=5.0 .*: write sampler\.levels\.rho"),
    ],
)
def test_what_does_not_count_beside_levels_is_refused(keys, words):
    with pytest.raises(UserError, match=words):
        next(sample({"name": "heun", **keys}, gauss, NOISE, C, lambda: NOISE))
    with pytest.raises(UserError, match=r"sampler\.points=3 does not count"):
        next(dopri5(gauss, NOISE, C, levels=[9.0, 1.0], points=3))


def test_levels_must_lie_within_the_models_limits():
    model = Flow(MLP((1,), 2))
    section = {"name": "heun", "steps": 18, "sigma_min": None, "sigma_max": None, "rho": 7.0}
    given = within_limits({**section, "levels": [500.0, 1.0, 0.002, 0.0]}, model)
    assert (given["sigma_min"], given["sigma_max"]) == (None, None)
    assert len(list(sample(given, gauss, NOISE, C, lambda: NOISE))) == 4
    named = within_limits({**section, "levels": {"name": "uniform_t"}}, model)
    assert (named["sigma_min"], named["sigma_max"]) == (0.002, 500.0)
    for levels in ([600.0, 1.0], [80.0, 0.001]):
        with pytest.raises(UserError, match=r"sampler.levels=.* outside .* 0\.002 \.\.\. 500"):
            within_limits({**section, "levels": levels}, model)


def test_a_run_without_levels_is_the_run_that_it_was(tmp_path):
    before = {"name": "heun", "steps": 18, "sigma_min": None, "sigma_max": None, "rho": 7.0}
    now = read(tmp_path, "heun")["sampler"]
    assert identity_difference(before, now) is None
    other = read(tmp_path, "{name: heun, levels: uniform_t}")["sampler"]
    assert "levels" in identity_difference(before, other)


def test_a_result_tells_the_levels(tmp_path):
    def words(sampler):
        section = read(tmp_path, sampler)["sampler"]
        return told({"sampler": section, "guidance": {"name": "unguided"}, "weights": "ema"})

    assert words("heun")["sampler"] == "heun steps=18 rho=7.0"
    named = words("{name: ddim, levels: {name: karras, rho: 5}}")["sampler"]
    assert named == "ddim levels=(karras rho=5.0) steps=50"
    # a list has its own number of steps, and not the one that stands there by default
    assert words("{name: heun, levels: [80, 1]}")["sampler"] == "heun levels=[80.0, 1.0]"


def test_the_number_of_steps_of_a_section():
    assert steps_of({"name": "heun", "steps": 18}) == 18
    assert steps_of({"name": "heun", "steps": 18, "levels": {"name": "karras"}}) == 18
    assert steps_of({"name": "heun", "steps": 18, "levels": [80.0, 1.0, 0.1, 0.0]}) == 3
    assert linear_betas(3, 0.01, 80.0).shape == (4,)
