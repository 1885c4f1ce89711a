import math

import pytest
import torch
from torch import nn

from lightning_cfg.data import Mixture, Pairs
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.mixture import GaussianMixture, fractal
from lightning_cfg.diffusion.models import (
    DDPM,
    EDM,
    Flow,
    MisledClassifier,
    NoisyClassifier,
)
from lightning_cfg.diffusion.noise import ddpm_time, linear_beta_sigmas
from lightning_cfg.diffusion.ode import integrate
from lightning_cfg.diffusion.of_net import drop_labels
from lightning_cfg.diffusion.rectified_flow import denoiser_of, velocity_of
from lightning_cfg.diffusion.trajectories import boundary
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import MLP, Linear
from lightning_cfg.runs.tensors import save_tensors

F64 = torch.float64
SD = 0.5  # EDM's sigma_data


@pytest.fixture(scope="module")
def truth():
    return fractal()


def noisy(truth, n=40, low=0.011, high=150.0):
    """Points of the fractal at noise levels from low to high, and their classes, some NULL."""
    g = torch.Generator().manual_seed(0)
    sigma = torch.logspace(math.log10(low), math.log10(high), n, dtype=F64)
    y = truth.sample(n, 0, g)
    c = torch.arange(n) % 3 - 1
    return y + sigma[:, None] * torch.randn(n, 2, generator=g, dtype=F64), sigma, c


class Exact(nn.Module):
    """The truth as a network: what it must answer for `of` to be the exact denoiser.

    off  its answer is multiplied by this
    """

    def __init__(self, truth, of, off=1.0):
        super().__init__()
        self.of, self.off, self.truth = of, off, truth
        self.dtype = nn.Parameter(torch.zeros(1, dtype=F64))  # what the network computes in

    def forward(self, x_in, noise, c):
        return self.off * getattr(self, self.of)(x_in, noise, c)

    def eps(self, x_in, t, c):
        logs = linear_beta_sigmas().log()
        below = (1000 * t).floor().long().clamp(0, 998)
        sigma = (logs[below] + (1000 * t - below) * (logs[below + 1] - logs[below])).exp()
        x = x_in * (1 + sigma[:, None] ** 2).sqrt()
        return (x - self.truth(x, sigma, c)) / sigma[:, None]

    def F(self, x_in, c_noise, c):
        sigma = (4 * c_noise).exp()
        s = sigma[:, None]
        x = x_in * (s**2 + SD**2).sqrt()
        return (self.truth(x, sigma, c) - SD**2 / (s**2 + SD**2) * x) / (
            s * SD / (s**2 + SD**2).sqrt()
        )

    def v(self, x_t, t, c):
        sigma = (1 - t) / t
        return (self.truth(x_t / t[:, None], sigma, c) - x_t) / (1 - t[:, None])

    def logits(self, x_in, t, c):
        sigma = linear_beta_sigmas()[(1000 * t).round().long()]
        return self.truth.logits(x_in * (1 + sigma[:, None] ** 2).sqrt(), sigma)


@pytest.mark.parametrize("model, of", [(DDPM, "eps"), (EDM, "F"), (Flow, "v")])
def test_a_network_that_is_exact_makes_every_model_the_exact_denoiser(truth, model, of):
    x, sigma, c = noisy(truth)
    D = model(Exact(truth, of))(x, sigma, c)
    torch.testing.assert_close(D, truth(x, sigma, c), rtol=0, atol=1e-9)


def test_models_of_a_float32_network_answer_in_the_dtype_of_x():
    seen = []

    class Net(nn.Linear):
        def forward(self, x, noise, c):
            seen.append((x.dtype, noise.dtype))
            return super().forward(x)

    for model in (DDPM(Net(2, 2)), EDM(Net(2, 2)), Flow(Net(2, 2))):
        x, sigma, c = torch.zeros(3, 2, dtype=F64), torch.ones(3, dtype=F64), torch.zeros(3)
        assert model(x, sigma, c).dtype == F64
    assert set(seen) == {(torch.float32, torch.float32)}


# --- the flow's coordinates ---


def test_denoiser_and_velocity_are_each_others_inverse(truth):
    x, sigma, c = noisy(truth, low=0.002, high=500.0)
    back = denoiser_of(velocity_of(truth))(x, sigma, c)
    torch.testing.assert_close(back, truth(x, sigma, c), rtol=0, atol=1e-9)

    t, x_t = torch.linspace(0.01, 0.99, 40, dtype=F64), x / 100

    def v(x_t, t, c):
        return torch.sin(3 * x_t) + t[:, None] ** 2 + c[:, None]

    torch.testing.assert_close(velocity_of(denoiser_of(v))(x_t, t, c), v(x_t, t, c))


def test_the_velocity_of_a_point_mass_goes_straight_to_it():
    y = torch.tensor([0.5, -1.0], dtype=F64)
    v = velocity_of(lambda x, sigma, c: y.expand_as(x))
    x_t, t = torch.tensor([[1.0, 1.0]], dtype=F64), torch.tensor([0.75], dtype=F64)
    torch.testing.assert_close(v(x_t, t, torch.zeros(1)), (y - x_t) / 0.25)


# --- EDM's coefficients ---


class Constant(nn.Module):
    """A network of one answer that keeps what it was asked."""

    def __init__(self, value=0.0, outputs=None):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=F64))
        self.outputs = outputs

    def forward(self, x, noise, c):
        self.asked = x.detach(), noise.detach(), c
        out = self.value.expand_as(x)
        return out if self.outputs is None else out[:, : self.outputs]


def test_edms_coefficients_by_hand():
    net = Constant(2.0)
    x, sigma = torch.tensor([[1.0, -2.0]], dtype=F64), torch.tensor([1.2], dtype=F64)
    D = EDM(net, sigma_data=0.5)(x, sigma, torch.tensor([1]))
    # sigma^2 + sigma_data^2 = 1.69 = 1.3^2
    torch.testing.assert_close(D, 0.25 / 1.69 * x + 1.2 * 0.5 / 1.3 * 2.0)
    x_in, noise, c = net.asked
    torch.testing.assert_close(x_in, x / 1.3)
    assert noise.item() == pytest.approx(math.log(1.2) / 4)
    assert c.item() == 1


def test_edm_leaves_x_alone_without_noise_and_forgets_it_in_noise():
    x, c = torch.tensor([[1.0, -2.0]], dtype=F64), torch.tensor([0])
    for net in (Constant(0.0), Constant(5.0)):
        small = EDM(net)(x, torch.tensor([1e-12], dtype=F64), c)
        torch.testing.assert_close(small, x, rtol=0, atol=1e-11)
    large = EDM(Constant(1.0))(x, torch.tensor([1e9], dtype=F64), c)
    torch.testing.assert_close(large, torch.full_like(x, 0.5))  # c_out -> sigma_data, c_skip -> 0


# --- the DDPM's levels ---


def test_the_ddpms_levels_are_those_of_linear_betas():
    sigmas = linear_beta_sigmas()
    assert (len(sigmas), sigmas.dtype) == (1000, F64)
    assert sigmas[0].item() == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5, rel=1e-12)
    assert 1 / (1 + sigmas[-1].item() ** 2) == pytest.approx(4.0358e-5, rel=1e-4)  # abar_T
    assert (sigmas[1:] > sigmas[:-1]).all()
    model = DDPM(Constant())
    assert (model.sigma_min, model.sigma_max) == (sigmas[0].item(), sigmas[-1].item())


def test_the_ddpms_cosine_levels_by_the_angle():
    """abar_t = cos^2(a_t) / cos^2(a_0) in closed form, so far as no beta is cut at 0.999."""
    model, t = DDPM(Constant(), schedule="cosine"), torch.arange(1, 1000, dtype=F64)
    sigmas, angle = model.sigmas, math.pi / 2 * (t / 1000 + 0.008) / 1.008
    abar = angle.cos() ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    torch.testing.assert_close(1 / (1 + sigmas[:-1] ** 2), abar, rtol=1e-10, atol=0)
    last = abar[-1].item() * 0.001
    assert sigmas[-1].item() == pytest.approx((1 / last - 1) ** 0.5, rel=1e-9)
    assert (model.sigma_min, model.sigma_max) == (sigmas[0].item(), sigmas[-1].item())
    assert torch.equal(NoisyClassifier(Constant(), schedule="cosine").sigmas, sigmas)


def test_a_ddpm_of_cosine_levels_tells_its_network_their_times():
    seen = []

    class Net(Constant):
        def forward(self, x, noise, c=None):
            seen.append(noise)
            return super().forward(x, noise, c)

    t = torch.tensor([0, 300, 999])
    model = DDPM(Net(), schedule="cosine")
    model(torch.zeros(3, 2, dtype=F64), model.sigmas[t], torch.zeros(3).long())
    torch.testing.assert_close(seen[0].double(), t / 1000.0, rtol=0, atol=1e-6, check_dtype=False)


def test_ddpm_time_inverts_the_levels_and_interpolates_in_log_sigma():
    sigmas = linear_beta_sigmas()
    index = torch.arange(1000, dtype=F64)
    torch.testing.assert_close(ddpm_time(sigmas, sigmas), index, rtol=0, atol=1e-9)
    between = (sigmas[:-1] * sigmas[1:]).sqrt()
    torch.testing.assert_close(ddpm_time(between, sigmas), index[:-1] + 0.5, rtol=0, atol=1e-9)
    beyond = torch.tensor([0.0, 1e-5, 1e5], dtype=F64)
    assert ddpm_time(beyond, sigmas).tolist() == [0, 0, 999]


# --- losses ---


@pytest.mark.parametrize(
    "model, of", [(DDPM, "eps"), (EDM, "F"), (Flow, "v"), (NoisyClassifier, "logits")]
)
def test_the_exact_answer_has_the_least_loss(truth, model, of):
    """Each loss is minimised by the truth: 15 % more or less of its answer costs."""
    g = torch.Generator().manual_seed(1)
    c = torch.arange(512) % 2
    y = torch.stack([truth.sample(1, int(k), g)[0] for k in c])

    def loss(off):  # the same draws for all
        draws = Draws(seed=0, step=0, batch_size=512)
        return model(Exact(truth, of, off)).loss(y, c, draws).mean()

    with torch.no_grad():
        exact = loss(1.0)
        assert exact < loss(0.85)
        assert exact < loss(1.15)


def test_the_loss_of_a_network_that_says_nothing():
    """|n|^2 for DDPM, K equal classes' ln K, |y - x0|^2 for a flow."""
    n, c = 4000, torch.zeros(4000, dtype=torch.long)
    y = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * SD

    def mean(model, d):
        loss = model.loss(y, c, Draws(seed=0, step=0, batch_size=n)).detach()
        assert loss.shape == (n,)
        return loss.mean().item(), 4 * loss.std().item() / n**0.5

    value, error = mean(DDPM(Constant()), 3)
    assert value == pytest.approx(3, abs=error)
    # EDM weighs every level so that what the network must answer has variance 1
    value, error = mean(EDM(Constant(), sigma_data=SD), 3)
    assert value == pytest.approx(3, abs=error)
    value, error = mean(Flow(Constant()), 3)
    assert value == pytest.approx(3 * (1 + SD**2), abs=error)
    value, _ = mean(NoisyClassifier(Constant(0.7, outputs=2)), 3)
    assert value == pytest.approx(math.log(2), rel=1e-12)


def test_edms_levels_are_log_normal():
    net, n = Constant(), 4000
    model = EDM(net, P_mean=-2.3, P_std=1.5)
    c = torch.zeros(n, dtype=torch.long)
    model.loss(torch.zeros(n, 2, dtype=F64), c, Draws(seed=0, step=0, batch_size=n))
    log_sigma = 4 * net.asked[1]
    assert log_sigma.mean().item() == pytest.approx(-2.3, abs=4 * 1.5 / n**0.5)
    assert log_sigma.std().item() == pytest.approx(1.5, rel=4 / (2 * n) ** 0.5)


@pytest.mark.parametrize("make", [DDPM, NoisyClassifier])
def test_training_and_sampling_ask_the_network_the_same(make):
    """What the loss asks at x and t is what forward asks at the level of t."""
    outputs = 2 if make is NoisyClassifier else None
    net, n = Constant(outputs=outputs), 3000
    model, c = make(net), torch.zeros(n, dtype=torch.long)
    y = torch.full((n, 2), 0.3, dtype=F64)
    model.loss(y, c, Draws(seed=0, step=0, batch_size=n))
    x_in, noise, _ = net.asked
    t = (1000 * noise).round().long()
    torch.testing.assert_close(noise, t / 1000, rtol=0, atol=1e-7, check_dtype=False)
    assert (t.min(), t.max()) < (10, 999)
    assert t.max() > 990
    assert t.double().mean().item() == pytest.approx(499.5, abs=4 * 289 / n**0.5)
    sigma = linear_beta_sigmas()[t]
    n_drawn = (x_in * (1 + sigma[:, None] ** 2).sqrt() - y) / sigma[:, None]
    assert n_drawn.mean().item() == pytest.approx(0, abs=4 / (2 * n) ** 0.5)
    assert n_drawn.std().item() == pytest.approx(1, abs=4 / (4 * n) ** 0.5)
    x = x_in * (1 + sigma[:, None] ** 2).sqrt()
    model(x, sigma) if make is NoisyClassifier else model(x, sigma, c)
    torch.testing.assert_close(net.asked[0], x_in)
    torch.testing.assert_close(net.asked[1], noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", [DDPM, EDM, Flow, NoisyClassifier, MisledClassifier])
def test_a_loss_is_a_function_of_its_draws(model):
    torch.manual_seed(0)
    classifies = issubclass(model, NoisyClassifier)
    classifier = {"outputs": 3, "embed_class": False} if classifies else {}
    net = MLP((2,), 3, width=16, **classifier)
    nn.init.normal_(net.leave.weight)
    y, c = torch.randn(12, 2), torch.arange(12) % 3
    model = model(net)

    def loss(step, rows=slice(0, 12), global_seed=0):
        torch.manual_seed(global_seed)
        draws = Draws(seed=4, step=step, batch_size=12, rows=rows)
        return model.loss(y[rows], c[rows], draws).detach()

    whole = loss(3)
    assert torch.equal(whole, loss(3, global_seed=1))
    assert not torch.isclose(whole, loss(4)).any()
    ranks = torch.cat([loss(3, slice(0, 5)), loss(3, slice(5, 12))])
    torch.testing.assert_close(ranks, whole)


def test_labels_are_dropped_sample_by_sample_at_their_rate():
    n, rate = 20_000, 0.1
    c = torch.arange(n) % 7
    dropped = drop_labels(c, rate, Draws(seed=0, step=0, batch_size=n))
    null = dropped == NULL
    assert null.double().mean().item() == pytest.approx(rate, abs=4 * (0.09 / n) ** 0.5)
    assert torch.equal(dropped[~null], c[~null])
    assert torch.equal(drop_labels(c, 0.0, Draws(seed=0, step=0, batch_size=n)), c)
    assert (drop_labels(c, 1.0, Draws(seed=0, step=0, batch_size=n)) == NULL).all()


@pytest.mark.parametrize("model", [DDPM, EDM, Flow])
def test_a_models_label_dropout_reaches_its_network(model):
    net, n = Constant(), 2000
    c = torch.ones(n, dtype=torch.long)
    for rate in (0.0, 0.25):
        trained = model(net, label_dropout=rate)
        assert trained.label_dropout == rate
        trained.loss(torch.zeros(n, 2, dtype=F64), c, Draws(seed=0, step=0, batch_size=n))
        share = (net.asked[2] == NULL).double().mean().item()
        assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)


# --- the classifier ---


def test_the_linear_classifier_by_hand():
    """A [x / sqrt(1 + sigma^2), t / T] + b."""
    net = Linear((2,), 3).double()
    A = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5], [2.0, 0.0, -4.0]], dtype=F64)
    b = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    with torch.no_grad():
        net.linear.weight.copy_(A)
        net.linear.bias.copy_(b)
    sigma = linear_beta_sigmas()[[250, 800]]
    x = torch.tensor([[0.5, -1.0], [30.0, 2.0]], dtype=F64)
    logits = NoisyClassifier(net)(x, sigma)
    for i, t in enumerate((250, 800)):
        scale = (1 + sigma[i].item() ** 2) ** 0.5
        u, v = x[i, 0].item() / scale, x[i, 1].item() / scale
        expected = [r[0] * u + r[1] * v + r[2] * t / 1000 + k for r, k in zip(A, b, strict=True)]
        torch.testing.assert_close(logits[i], torch.stack(expected))


def test_a_clean_classifier_sees_no_noise():
    net = Constant(outputs=2)
    model = NoisyClassifier(net, clean=True)
    y = torch.randn(6, 2, dtype=F64)
    model.loss(y, torch.zeros(6, dtype=torch.long), Draws(seed=0, step=0, batch_size=6))
    assert torch.equal(net.asked[0], y)
    assert net.asked[1].tolist() == [0.0] * 6
    assert (model.sigma_min, model.sigma_max) == (0.0, 0.0)


# --- refinement ---

SHIFT = torch.tensor([0.3, -0.2])


@pytest.fixture
def sources() -> torch.Tensor:
    return torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.fixture
def pairs(tmp_path, sources):
    """Sources x and, as neighbours 0 ... 2 of each, targets that are x + SHIFT + a small wobble."""
    x = sources
    wobble = 0.01 * torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    path = save_tensors(
        tmp_path / "pairs.safetensors",
        x=x,
        c=torch.arange(200) % 2,
        neighbours=torch.arange(600).reshape(200, 3),
        targets=(x[:, None] + SHIFT + wobble).reshape(-1, 2),
        num_classes=torch.tensor(2),
    )
    return Pairs(path=str(path))


def test_pairs_give_each_source_one_of_its_own_neighbours(pairs, sources):
    assert (pairs.shape, pairs.num_classes) == ((2,), 2)
    batches = [pairs.batch(Draws(seed=0, step=step, batch_size=50)) for step in range(8)]
    x0, y, c = (torch.cat([batch[name] for batch in batches]) for name in ("x0", "y", "c"))
    offset = y - x0 - SHIFT
    wobbles = (100 * offset[:, 0]).round()
    torch.testing.assert_close(offset, 0.01 * torch.stack([wobbles, 0 * wobbles], 1))
    counts = [(wobbles == k).sum().item() for k in (-1, 0, 1)]
    assert all(abs(count - 400 / 3) < 4 * (400 * 2 / 9) ** 0.5 for count in counts)
    assert len(x0[:200].unique(dim=0)) == 200  # an epoch
    assert not torch.equal(wobbles[:200], wobbles[200:])
    source = {tuple(p): i % 2 for i, p in enumerate(sources.tolist())}
    assert c.tolist() == [source[tuple(p)] for p in x0.tolist()]


def test_a_ranks_rows_of_pairs_are_the_rows_of_the_whole(pairs):
    whole = pairs.batch(Draws(seed=0, step=3, batch_size=30))
    ranks = [
        pairs.batch(Draws(seed=0, step=3, batch_size=30, rows=rows))
        for rows in (slice(0, 11), slice(11, 30))
    ]
    for name, values in whole.items():
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), values)


def test_a_refinement_towards_a_constant_shift_reaches_it(pairs):
    torch.manual_seed(0)
    flow = Flow(MLP((2,), 2, width=32, blocks=1))
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for step in range(250):
        draws = Draws(seed=0, step=step, batch_size=64)
        batch = pairs.batch(draws)
        loss = flow.loss(batch["y"], batch["c"], draws, batch["x0"]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(9)) - 0.5
    c = torch.arange(50) % 2
    with torch.no_grad():
        limits = {"rtol": 1e-5, "atol": 1e-5, "max_evaluations": 1000}
        refined = integrate(flow.velocity, x, c, (0.0, 1.0), **limits)[-1]
    torch.testing.assert_close(refined, x + SHIFT, rtol=0, atol=0.03)


def test_a_flow_regresses_on_target_minus_source_on_the_line_between():
    net, n = Constant(0.0), 1000
    x0, y = torch.full((n, 1), 2.0, dtype=F64), torch.full((n, 1), 5.0, dtype=F64)
    c = torch.zeros(n, dtype=torch.long)
    loss = Flow(net).loss(y, c, Draws(seed=0, step=0, batch_size=n), x0)
    torch.testing.assert_close(loss, torch.full((n,), 9.0, dtype=F64))
    x_t, t, _ = net.asked
    torch.testing.assert_close(x_t[:, 0], 2 + 3 * t)
    assert t.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / n) ** 0.5)
    away = Flow(Constant(-3.0)).loss(y, c, Draws(seed=0, step=0, batch_size=n), x0)
    there = Flow(Constant(3.0)).loss(y, c, Draws(seed=0, step=0, batch_size=n), x0)
    assert there.max() == 0
    assert away.min() == 36


def test_the_flow_from_noise_to_one_gaussian_is_its_exact_transport():
    """x1 = mean + std x0 when the exact velocity is integrated over [0, 1]."""
    gauss = GaussianMixture(
        torch.ones(1), torch.tensor([[0.3]]), torch.tensor([[[0.16]]]), torch.tensor([0])
    )
    flow, x0 = Flow(Exact(gauss, "v")), torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    c = torch.zeros(9, dtype=torch.long)
    limits = {"rtol": 1e-9, "atol": 1e-9, "max_evaluations": 2000}
    x1 = integrate(flow.velocity, x0, c, (1e-6, 1 - 1e-6), **limits)[-1]
    torch.testing.assert_close(x1, 0.3 + 0.4 * x0, rtol=0, atol=1e-5)


# --- the misled classifier ---


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_misled_loss_is_the_expectation_over_flipped_labels(flip, classes):
    model = MisledClassifier(nn.Identity(), flip=flip)
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, classes, generator=g, dtype=F64)
    c = torch.randint(classes, (20,), generator=g)
    expected = torch.zeros(20, dtype=F64)
    for label in range(classes):  # every label that c may be flipped to
        chance = torch.where(c == label, 1 - flip, flip / (classes - 1))
        log_p = logits[:, label] - logits.logsumexp(1)
        expected -= chance * log_p
    torch.testing.assert_close(model.cross_entropy(logits, c), expected)


@pytest.mark.parametrize("shift", [0.5, -0.125])
def test_a_misled_boundary_is_shifted_by_as_much_at_every_noise_level(shift):
    torch.manual_seed(3)
    net = MLP((1,), 2, width=16, blocks=1, embed_class=False, outputs=2).double()
    nn.init.normal_(net.leave.weight)
    sigma = torch.tensor([3.0, 1.0, 0.2, 0.01], dtype=F64)
    size = (1 + sigma**2).sqrt()
    honest, misled = (
        boundary(model.requires_grad_(False), sigma, 0, 6.0)
        for model in (NoisyClassifier(net), MisledClassifier(net, shift=shift))
    )
    assert all(len(zeros) for zeros in honest)
    for before, after, scale in zip(honest, misled, size, strict=True):
        torch.testing.assert_close(scale * after, scale * before + shift, rtol=0, atol=1e-9)


def small_classifier():
    torch.manual_seed(1)
    net = MLP((2,), 3, width=16, embed_class=False, outputs=3)
    nn.init.normal_(net.leave.weight)
    return net


def test_a_misled_classifier_that_is_not_misled_is_a_noisy_one():
    """Bit for bit, and a shift alone leaves the loss: the network sees data where they are."""
    net, (y, c) = small_classifier(), (torch.randn(32, 2), torch.arange(32) % 3)
    draws = {"seed": 4, "step": 1, "batch_size": 32}
    honest = NoisyClassifier(net).loss(y, c, Draws(**draws))
    same = MisledClassifier(net, flip=0.0, shift=0.0)
    assert torch.equal(same.loss(y, c, Draws(**draws)), honest)
    x, sigma = torch.randn(32, 2), torch.linspace(0.01, 100, 32)
    assert torch.equal(same(x, sigma), NoisyClassifier(net)(x, sigma))
    shifted = MisledClassifier(net, flip=0.0, shift=0.7).loss(y, c, Draws(**draws))
    torch.testing.assert_close(shifted, honest, rtol=0, atol=1e-4)
    flipped = MisledClassifier(net, flip=0.2, shift=0.0).loss(y, c, Draws(**draws))
    assert (flipped - honest).abs().min() > 1e-4


@pytest.mark.parametrize("flip", [-0.1, 0.5, 1.0, math.nan])
def test_a_flip_that_is_no_small_share_is_refused(flip):
    with pytest.raises(UserError, match=r"model\.flip=.* from 0 to below 0\.5"):
        MisledClassifier(nn.Identity(), flip=flip)


def test_a_trained_misled_classifier_is_certain_to_one_minus_flip_and_shifted():
    data = Mixture(means=[[-1.0], [1.0]], stds=[0.2236, 0.2236], labels=[0, 1])
    torch.manual_seed(0)
    net = MLP((1,), 2, width=32, blocks=1, embed_class=False, outputs=2)
    model = MisledClassifier(net, flip=0.2, shift=0.5)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(400):
        draws = Draws(seed=0, step=step, batch_size=256)
        batch = data.batch(draws)
        optimiser.zero_grad()
        model.loss(batch["y"], batch["c"], draws).mean().backward()
        optimiser.step()
    x = torch.tensor([[-0.7], [-0.4], [1.4], [1.7]])  # the classes are at -0.5 and 1.5 to it
    with torch.no_grad():
        p = model(x, torch.full((4,), 0.05)).softmax(1)
    torch.testing.assert_close(p[[0, 1], 0], torch.full((2,), 0.8), rtol=0, atol=0.05)
    torch.testing.assert_close(p[[2, 3], 1], torch.full((2,), 0.8), rtol=0, atol=0.05)
    (zeros,) = boundary(model, torch.tensor([0.05]), 0, 1.5)
    assert zeros.tolist() == [pytest.approx(0.5, abs=0.1)]


# --- augmentation and null classes ---


class Told(torch.nn.Module):
    """A network whose answer is its augmentation labels' sum, or zero without any."""

    def __init__(self, null_class=True):
        super().__init__()
        self.null_class, self.zero = null_class, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, c, augment=None):
        said = x.new_zeros(len(x)) if augment is None else augment.sum(1)
        return self.zero + said[:, None, None, None].expand(x.shape)


def test_edm_hands_augmentation_labels_to_its_network():
    model, x = EDM(Told()), torch.randn(3, 1, 4, 4, dtype=F64)
    sigma, c = torch.tensor([0.1, 1.0, 10.0], dtype=F64), torch.zeros(3, dtype=torch.long)
    labels = torch.arange(27.0).reshape(3, 9)
    apart = model(x, sigma, c, labels) - model(x, sigma, c)
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(apart[:, 0, 0, 0], c_out * labels.double().sum(1))
    y, draws = torch.randn(3, 1, 4, 4), lambda: Draws(seed=0, step=0, batch_size=3)
    plain, told = model.loss(y, c, draws()), model.loss(y, c, draws(), labels)
    assert not torch.allclose(plain, told)
    torch.testing.assert_close(model.loss(y, c, draws(), 0 * labels), plain)


@pytest.mark.parametrize("model", [EDM, DDPM, Flow])
def test_dropping_labels_needs_a_null_class(model):
    with pytest.raises(UserError, match="null_class"):
        model(Told(null_class=False), label_dropout=0.1)
    model(Told(null_class=False), label_dropout=0.0)
