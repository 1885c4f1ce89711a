"""Power-function averages and schedules against EDM2's numbers (reference/edm2/edm2_phema.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import assert_same, logged
from scipy.integrate import quad
from torch import nn

from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.runs.power_ema import beta, exponent_of, products, solved, std_of
from lightning_cfg.training.ema import EMA
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.training.learning_rate import share
from lightning_cfg.verbs.fit import fit

EDM2 = np.load(Path(__file__).parent / "reference/edm2/edm2_phema.npz")
WEIGHTS = [key.removeprefix("run/weights/") for key in EDM2 if key.startswith("run/weights/")]
BATCH = 128


# Formulas


def test_exponents_are_the_originals():
    for std, gamma in zip(EDM2["formula/std"], EDM2["formula/exp_of_std"], strict=True):
        assert exponent_of(std) == pytest.approx(gamma, rel=1e-9)
        assert std_of(gamma) == pytest.approx(std, rel=1e-9)
    for gamma, std in zip(EDM2["formula/exp"], EDM2["formula/std_of_exp"], strict=True):
        assert std_of(gamma) == pytest.approx(std, rel=1e-9)
    for n, betas in zip(
        EDM2["formula/beta_t_next"], EDM2["formula/beta_std_0.05_0.10"], strict=True
    ):
        for std, expected in zip((0.05, 0.10), betas, strict=True):
            assert beta(n // BATCH, exponent_of(std)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_std_is_the_deviation_of_the_profile(std):
    """p(t) = (gamma + 1) t^gamma on [0, 1], by quadrature."""
    gamma = exponent_of(std)
    mean = quad(lambda t: t * (gamma + 1) * t**gamma, 0, 1)[0]
    square = quad(lambda t: t**2 * (gamma + 1) * t**gamma, 0, 1)[0]
    assert (square - mean**2) ** 0.5 == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("a, b", [((3, 2.0), (5, 7.0)), ((5, 7.0), (3, 2.0)), ((4, 1.5), (4, 3.0))])
def test_products_are_the_integrals_of_two_profiles(a, b):
    (n_a, g_a), (n_b, g_b) = a, b

    def p(t, n, g):
        return (g + 1) * t**g / n ** (g + 1)

    expected = quad(lambda t: p(t, n_a, g_a) * p(t, n_b, g_b), 0, min(n_a, n_b))[0]
    assert products(*map(np.float64, (n_a, g_a, n_b, g_b))) == pytest.approx(expected, rel=1e-9)


# The averages of a real run of EDM2's own loop


def test_averages_of_a_training_are_the_originals():
    net = nn.Module()
    for i, name in enumerate(WEIGHTS):
        shape = EDM2[f"run/weights/{name}"].shape[1:]
        net.register_parameter(f"w{i}", nn.Parameter(torch.full(shape, 77.0)))
    ema = EMA(net, [], stds=[0.05, 0.1])
    for step in range(1, 65):
        assert EDM2["run/nimg"][step - 1] == step * BATCH
        with torch.no_grad():
            for i, name in enumerate(WEIGHTS):
                weight = torch.as_tensor(EDM2[f"run/weights/{name}"][step - 1])
                getattr(net, f"w{i}").copy_(weight)
        ema.update(step, BATCH)
        if step == 1:  # where it began is forgotten at once
            close = {k: v["w0"] for k, v in ema.state_dict().items()}
            torch.testing.assert_close(close[0.05], net.w0.detach(), rtol=0, atol=1e-5)
    for std in (0.05, 0.1):
        for i, name in enumerate(WEIGHTS):
            expected = torch.as_tensor(EDM2[f"checkpoint/ema_{std:.3f}/{name}"])
            found = ema.state_dict()[std][f"w{i}"]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [4096, 8192])
def test_coefficients_and_reconstructions_are_the_originals(n):
    used = EDM2["in/nimg"] <= n
    for column, std in enumerate(EDM2["out/std"]):
        x, _, condition = solved(EDM2["in/nimg"][used], EDM2["in/std"][used], n, std)
        np.testing.assert_allclose(x, EDM2[f"out/coefficients_{n}"][:, column], rtol=0, atol=1e-9)
        assert x.sum() == pytest.approx(1)
        if n == 8192:
            assert condition == pytest.approx(535, abs=1)
        for name in WEIGHTS:
            kept = EDM2[f"in/ema_float16/{name}"][used].astype(np.float64)
            expected = EDM2[f"out/{n}/{std:g}/{name}"]
            np.testing.assert_allclose(np.tensordot(x, kept, 1), expected, rtol=1e-3, atol=1e-4)


def test_what_is_missed_foretells_the_error():
    """|p - sum x_i p_i| / |p| by quadrature, and the error of the real run is of that size."""
    n, std = EDM2["in/nimg"], EDM2["in/std"]
    for target, error in ((0.03, 0.118), (0.07, 0.0079), (0.15, 0.0100), (0.25, 0.082)):
        x, missed, _ = solved(n, std, 8192, target)
        t = (np.arange(400_000) + 0.5) / 400_000 * 8192

        def p(n, std, t=t):
            gamma = exponent_of(std)
            return np.where(t < n, (gamma + 1) * t**gamma / float(n) ** (gamma + 1), 0)

        wanted = p(8192, target)
        left = wanted - sum(share * p(*one) for share, *one in zip(x, n, std, strict=True))
        expected = np.sqrt((left**2).sum() / (wanted**2).sum())
        assert missed == pytest.approx(expected, rel=2e-2)
        assert 0.25 * missed < error < 1.5 * missed


def test_a_kept_average_is_itself():
    x, missed, _ = solved([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 200, 0.1)
    np.testing.assert_allclose(x, [0, 0, 0, 1], atol=1e-12)
    assert missed < 1e-7


# In a training


def test_the_rate_is_the_originals():
    """lr .01, 10e6 images of warm-up, 70,000 (35,000) batches of 2048 before it falls."""
    for name, after in (("img512_s", 70_000), ("img64_s", 35_000)):
        for n, lr in zip(EDM2["lr/nimg"], EDM2[f"lr/{name}"], strict=True):
            found = share(n / 2048, n, warmup_images=10_000_000, decay_after=after)
            assert 0.01 * found == pytest.approx(lr, rel=1e-9)


def test_the_rate_of_a_training(call, training):
    learner = {"name": "Diffusion", "lr": 1e-2, "warmup_images": 128, "decay_after": 10}
    learner |= {"betas": [0.8, 0.99]}
    config = training(learner=learner, log_every=1)
    assert call(fit, config, "run_dir=run", "trainer.max_steps=9").status == 0
    assert call(fit, config, "run_dir=run").status == 0
    found = [row["lr"] for row in logged("run")]
    slow = [1e-2 * min(1, 32 * n / 128) for n in range(20)]
    expected = [lr / max(1, n / 10) ** 0.5 for n, lr in enumerate(slow)]
    assert found == pytest.approx(expected)
    assert expected[0] == 0 < expected[-1] < 1e-2
    assert load("run")["optimizer_states"][0]["param_groups"][0]["betas"] == (0.8, 0.99)


class SomeNaN(Diffusion):
    """A learner of which two gradients are not finite, each in one place, at steps 3 and 4."""

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        step, leave = self.trainer.global_step, self.model.net.leave
        if step in (3, 4):
            leave.weight.grad[0, 0] = float("nan")
            leave.bias.grad[1] = float("inf" if step == 3 else "-inf")
        super().configure_gradient_clipping(optimizer, *args, **kwargs)


def test_zeros_in_place_of_what_is_not_finite(call, training):
    learner = {"name": "test_power_ema.SomeNaN", "betas": [0.0, 0.0], "ema_half_life": [100]}
    config = training(learner={**learner, "bad_gradients": "zero"}, log_every=1)
    for run, steps in (("before", 3), ("after", 5), ("clipped", 5)):
        clip = ["learner.gradient_clip=0.5"] if run == "clipped" else []
        assert call(fit, config, f"run_dir={run}", f"trainer.max_steps={steps}", *clip).status == 0
    before, after, clipped = (load(run)["state_dict"] for run in ("before", "after", "clipped"))
    weight, bias = "model.net.leave.weight", "model.net.leave.bias"
    moved = after[weight] != before[weight]
    assert not moved[0, 0]
    assert moved[0, 1:].float().mean() > 0.5  # some inputs are 0
    assert clipped[weight].isfinite().all()
    assert after[bias][1] == before[bias][1]
    assert after[bias][0] != before[bias][0]
    assert [row["bad_gradients"] for row in logged("after")] == [0, 0, 0, 1, 2]


class LossNaN(Diffusion):
    """A learner whose loss is NaN at step 3, by one bias alone."""

    def losses(self, batch, draws):
        bias = self.model.net.leave.bias
        return super().losses(batch, draws) + (bias[1] * float("nan") if draws.step == 3 else 0)


def test_a_loss_that_is_not_finite_still_says_something_of_other_weights(call, training):
    learner = {"name": "test_power_ema.LossNaN", "betas": [0.0, 0.0], "ema_half_life": [100]}
    for run, steps, bad in (("before", 3, "zero"), ("after", 4, "zero"), ("skipped", 4, "skip")):
        config = training(learner={**learner, "bad_gradients": bad}, log_every=1)
        assert call(fit, config, f"run_dir={run}", f"trainer.max_steps={steps}").status == 0
    before, after, skipped = (load(run)["state_dict"] for run in ("before", "after", "skipped"))
    moved = after["model.net.leave.bias"] != before["model.net.leave.bias"]
    assert moved.tolist() == [True, False]
    assert all(torch.equal(skipped[name], before[name]) for name in before)


AVERAGED = {"name": "Diffusion", "lr": 1e-2, "ema_half_life": [100], "ema_std": [0.05, 0.1]}


@pytest.mark.parametrize("half_lives", [[100], None])
def test_power_averages_resume_bit_for_bit(call, training, half_lives):
    config = training(learner={**AVERAGED, "ema_half_life": half_lives})
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=10").status == 0
    assert call(fit, config, "run_dir=parts").status == 0
    assert_same("whole", "parts")
    assert list(load("whole")["ema"]) == [*(half_lives or ()), 0.05, 0.1]
    first = next(iter(load("whole")["ema"].values()))
    for name, p in restore("whole").named_parameters():
        assert torch.equal(p, first[name])


def test_no_average_at_all_is_refused(call, training):
    learner = {"name": "Diffusion", "ema_half_life": None}
    refused = call(fit, training(learner=learner), "run_dir=run")
    assert refused.status == 2
    assert "learner.ema_std" in refused.err
    assert not Path("run").exists()


@pytest.mark.parametrize("std", [0.0005, 0.289, 0.0])
def test_a_width_that_no_average_has_is_refused(call, training, std):
    refused = call(fit, training(learner={**AVERAGED, "ema_std": [0.05, std]}), "run_dir=run")
    assert refused.status == 2
    assert "learner.ema_std[1] must be float from 0.001 to 0.288" in refused.err
