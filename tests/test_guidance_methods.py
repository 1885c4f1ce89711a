"""The methods beyond CFG, classifier guidance and autoguidance: known answers, mostly exact."""

import math
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_cfg.config import load
from lightning_cfg.diffusion.mixture import GaussianMixture, fractal
from lightning_cfg.diffusion.models import EDM, NoisyClassifier
from lightning_cfg.diffusion.noise import karras
from lightning_cfg.diffusion.samplers import ddim, ddpm, euler, heun
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import (
    apg,
    autoguidance,
    cads,
    cfg_plus_plus,
    cfg_zero_star,
    classifier_free,
    classifier_gradient,
    discriminator_gradient,
    gfcg,
    gfcg_autoguidance,
    gibbs,
    interval,
    rejection,
    rescale,
    scales,
    unguided,
)
from lightning_cfg.guidance.schedules import constant, cosine, exponential, linear, step
from lightning_cfg.interfaces import NULL, as_guided
from lightning_cfg.nets import MLP, ADMUNet, DiT, Linear, SongUNet, UnshuffleUNet
from lightning_cfg.sampling.guided import guide, with_scale
from lightning_cfg.sampling.prepared import Counted, ExactClassifier
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.generate import generate

F64 = torch.float64
STEPS = 6


@pytest.fixture(autouse=True)
def two_coordinates_will_do(monkeypatch):
    """For `rescale`, whose formula is that of two as of many."""
    monkeypatch.setattr(sys.modules["lightning_cfg.guidance.rescale"], "LEAST", 2)


def mixture(means, std=0.35, labels=None):
    """Round Gaussians in the plane, a class each unless `labels` says otherwise."""
    means = torch.tensor(means, dtype=F64)
    covariances = std**2 * torch.eye(2, dtype=F64).expand(len(means), 2, 2)
    labels = torch.arange(len(means)) if labels is None else torch.tensor(labels)
    return GaussianMixture(torch.ones(len(means), dtype=F64), means, covariances, labels)


# four classes, of two Gaussians each, that lie among each other
FOUR = mixture(
    [
        [-0.6, 0.1],
        [0.5, -0.3],
        [0.2, 0.6],
        [-0.3, -0.5],
        [0.7, 0.4],
        [-0.7, -0.2],
        [0, 0],
        [0.1, 1],
    ],
    labels=[0, 1, 2, 3, 0, 1, 2, 3],
)
WEAK = mixture([[-0.4, 0.1], [0.4, -0.2], [0.2, 0.4], [-0.2, -0.4]], std=0.6)


@pytest.fixture
def networks():
    return {
        "model": Counted(FOUR),
        "weak": Counted(WEAK),
        "classifier": Counted(ExactClassifier(FOUR)),
        "discriminator": Counted(lambda x, sigma: torch.stack([x[:, 0], x[:, 1] ** 2], 1)),
    }


def counts(networks):
    return {role: net.evaluations for role, net in networks.items() if net.evaluations}


def run(denoise, name="euler", seeds=range(8), steps=STEPS, **more):
    """Samples of these seeds, as `generate` makes them."""
    noise, c, draw = seeded(list(seeds), (2,), 4)
    section = {"name": name, "sigma_max": 10.0, **more}
    section |= {} if name == "dopri5" else {"steps": steps}
    *_, (_, x) = sample(section, denoise, noise, c, draw)
    return x


@pytest.fixture(scope="module")
def noisy():
    """Points of four classes at noise levels from 0.02 to 20."""
    g = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-1.7, 1.3, 40, dtype=F64)
    c = torch.arange(40) % 4
    y = torch.cat([FOUR.sample(1, int(k), g) for k in c])
    return y + sigma[:, None] * torch.randn(40, 2, generator=g, dtype=F64), sigma, c


# Every method at its neutral value, and beyond it

CFG = {"name": "classifier_free", "scale": 2.0}
METHODS = {  # section: what makes it neutral
    "classifier_free": (CFG, {"scale": 1.0}),
    "scheduled": (
        {**CFG, "scale": {"name": "constant", "scale": 2.0}},
        {"scale": {"name": "step", "scale": 1.0}},
    ),
    "classifier_gradient": (
        {"name": "classifier_gradient", "base": "conditional", "scale": 2.0},
        {"scale": 1.0},
    ),
    "autoguidance": ({"name": "autoguidance", "scale": 2.0}, {"scale": 1.0}),
    "gfcg": ({"name": "gfcg", "scale": 2.0}, {"scale": 1.0}),
    "gfcg_noisy": ({"name": "gfcg", "scale": 2.0, "classifier_input": "noisy"}, {"scale": 1.0}),
    "gfcg_additive": ({"name": "gfcg", "scale": 2.0, "combine": "additive"}, {"scale": 1.0}),
    "gfcg_mixed": ({"name": "gfcg", "scale": 2.0, "combine": "mixed", "tau": 0.3}, {"scale": 1.0}),
    "gfcg_autoguidance": ({"name": "gfcg_autoguidance", "scale": 2.0}, {"scale": 1.0}),
    "apg": ({"name": "apg", "scale": 2.0, "momentum": -0.5, "norm": 1.0}, {"scale": 1.0}),
    "cfg_plus_plus": (
        {"name": "cfg_plus_plus", "base": "conditional", "scale": 1.5},
        {"scale": 1.0},
    ),
    "cfg_zero_star": ({"name": "cfg_zero_star", "scale": 2.0}, {"scale": 1.0}),
    "rescale": ({"name": "rescale", "of": CFG}, {"of": {**CFG, "scale": 1.0}}),
    "interval": (
        {"name": "interval", "of": CFG, "sigma_low": 0.1, "sigma_high": 2.0},
        {"sigma_low": 11.0, "sigma_high": 12.0},
    ),
    "rejection": ({"name": "rejection", "candidates": 3}, {"candidates": 1}),
    "discriminator_gradient": ({"name": "discriminator_gradient", "scale": 2.0}, {"scale": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_the_neutral_value_is_the_conditional_model_without_another_pass(networks, method):
    section, neutral = METHODS[method]
    plain = run(FOUR)
    found = run(guide({**section, **neutral}, networks))
    assert torch.equal(found, plain)
    assert counts(networks) == {"model": 8 * STEPS}
    assert (run(guide(section, networks)) - plain).abs().max() > 0.01  # which is no small thing


def test_a_scale_of_1_is_neutral_in_every_method_that_has_one(networks):
    for method, (section, _) in METHODS.items():
        one = with_scale(section, 1.0)
        if one is not None:
            assert torch.equal(run(guide(one, networks)), run(FOUR)), method


SCALED = [name for name, (section, _) in METHODS.items() if isinstance(section.get("scale"), float)]


@pytest.mark.parametrize("method", SCALED)
def test_a_batch_of_mixed_scales_equals_the_separate_runs(networks, method):
    """Those at scale 1 are to the last bit the model's own, and cost no other pass."""
    section = METHODS[method][0]
    scales = torch.tensor([1.0, 2.0, 1.0, 3.5, 1.25, 1.0, 3.5, 2.0], dtype=F64)
    mixed = run(guide({**section, "scale": scales}, networks))
    together = counts(networks)
    alone = {role: 0 for role in networks}
    for scale in scales.unique():
        for net in networks.values():
            net.evaluations = 0
        whole = run(guide({**section, "scale": scale.item()}, networks))
        own = scales == scale
        torch.testing.assert_close(mixed[own], whole[own], rtol=0, atol=1e-12)
        if scale == 1:
            torch.testing.assert_close(whole[own], run(FOUR)[own], rtol=0, atol=1e-12)
        alone = {r: alone[r] + n * int(own.sum()) / 8 for r, n in counts(networks).items()} | {
            r: n for r, n in alone.items() if r not in counts(networks)
        }
    if method in ("classifier_free", "classifier_gradient", "autoguidance", "apg"):
        assert together == {role: n for role, n in alone.items() if n}


@pytest.mark.parametrize("method", SCALED)
def test_the_samples_at_scale_1_are_the_models_own_to_the_last_bit(networks, noisy, method):
    section = METHODS[method][0]
    x, sigma, c = noisy
    scales = torch.where(torch.arange(40) % 3 == 0, 1.0, 2.5).to(F64)
    guided = guide({**section, "scale": scales}, networks)
    if guided.begin_step is not None:
        guided.begin_step(5, 1.0)
    if guided.keep_noise is not None:
        guided.keep_noise(0.3)
    ones = scales == 1
    assert torch.equal(guided(x, sigma, c)[ones], FOUR(x, sigma, c)[ones])


def test_scales_that_are_not_one_per_sample_are_refused():
    with pytest.raises(UserError, match=r"scale has shape \(3,\), not \(8,\)"):
        run(classifier_free(FOUR, scale=torch.ones(3)))


# Schedules


def test_schedules_by_hand():
    sigma = torch.tensor([0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0], dtype=F64)
    ends = {"scale": 3.0, "sigma_low": 0.01, "sigma_high": 100.0}
    p = torch.tensor([1, 1, 0.75, 0.5, 0.25, 0, 0], dtype=F64)  # full at low noise
    for schedule, shape in (
        (constant(scale=3.0), torch.ones(7)),
        (linear(**ends), p),
        (linear(**ends, full="high"), 1 - p),
        (cosine(**ends), torch.tensor([1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0])),
        (exponential(**ends, rate=2.0), (-2 * (1 - p)).exp()),
        (step(**ends), torch.tensor([0.0, 0, 1, 1, 1, 1, 0])),
    ):
        torch.testing.assert_close(schedule(sigma), (1 + 2 * shape).to(F64))


def test_a_schedule_skips_the_pass_where_it_is_1():
    model = Counted(FOUR)
    levels = karras(STEPS, 0.002, 10.0)
    guided = classifier_free(model, scale=step(scale=2.0, sigma_low=0.1, sigma_high=2.0))
    run(guided)
    inside = ((levels > 0.1) & (levels <= 2.0)).sum().item()
    assert 0 < inside < STEPS
    assert model.evaluations == 8 * (STEPS + inside)


def test_schedules_refuse_what_cannot_be():
    for schedule in (linear, cosine, exponential, step):
        with pytest.raises(UserError, match="sigma_low=2 < sigma_high=1 does not hold"):
            schedule(sigma_low=2.0, sigma_high=1.0)


# GFCG


@pytest.mark.parametrize("confidence", ["pairwise", "complement"])
@pytest.mark.parametrize("w", [0.5, 1.5, 4.0])
def test_on_two_classes_gfcg_is_cfg(confidence, w):
    truth, g = fractal(), torch.Generator().manual_seed(1)
    sigma = torch.logspace(-1.5, 2, 50, dtype=F64)
    c = torch.arange(50) % 2
    y = torch.cat([truth.sample(1, int(k), g) for k in c])
    x = y + sigma[:, None] * torch.randn(50, 2, generator=g, dtype=F64)
    options = {"tau": 0.0, "classifier_input": "noisy", "confidence": confidence}
    found = gfcg(truth, ExactClassifier(truth), scale=w, **options)(x, sigma, c)
    cfg = classifier_free(truth, scale=w)(x, sigma, c)
    torch.testing.assert_close(found, cfg, rtol=0, atol=1e-11)
    assert (found - truth(x, sigma, c)).abs().max() > 0.1


def test_on_four_classes_gfcg_is_not_cfg(noisy):
    options = {"tau": 0.0, "classifier_input": "noisy", "scale": 2.0}
    found = gfcg(FOUR, ExactClassifier(FOUR), **options)(*noisy)
    assert (found - classifier_free(FOUR, scale=2.0)(*noisy)).abs().max() > 0.1


class Affine(nn.Module):
    """D = x / 2 + b c: what a label adds is plain to see; NULL = -1 counts as c."""

    def __init__(self, b=1.0):
        super().__init__()
        self.b = b

    def forward(self, x, sigma, c):
        return x / 2 + self.b * c[:, None]


X = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], dtype=F64)
SIGMA = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
C = torch.tensor([0, 1, 2])
P = torch.tensor([[0.5, 0.1, 0.4], [0.009, 0.99, 0.001], [0.6, 0.0, 0.4]], dtype=F64)
U = torch.tensor([4 / 9, 0.009 / 0.999, 0.6], dtype=F64)  # pairwise; r = 2, 0, 0
R = torch.tensor([2, 0, 0])
D = X / 2 + C[:, None]


def posterior(x, sigma):
    return P.log()


def test_gfcg_by_hand():
    """The second sample is in the dead zone: it costs no reference pass."""
    model, classifier = Counted(Affine()), Counted(posterior)
    found = gfcg(model, classifier, scale=3.0, tau=0.1)(X, SIGMA, C)
    weight = 2 * U * (U > 0.1)
    torch.testing.assert_close(found, D + weight[:, None] * (C - R)[:, None])
    assert torch.equal(found[1], D[1])
    assert (model.evaluations, classifier.evaluations) == (3 + 2, 3)

    complement = gfcg(Affine(), posterior, scale=3.0, tau=0.1, confidence="complement")
    weight = 2 * torch.tensor([0.5, 0, 0.6], dtype=F64)
    expected = D + weight[:, None] * (C - R)[:, None]
    torch.testing.assert_close(complement(X, SIGMA, C), expected)

    null = gfcg(Affine(), posterior, scale=3.0, tau=0.1, reference="unconditional")
    weight = 2 * U * (U > 0.1)
    torch.testing.assert_close(null(X, SIGMA, C), D + weight[:, None] * (C - NULL)[:, None])


def test_gfcg_with_cfg_by_hand():
    w, cfg = 2 * U * (U > 0.1), 0.5
    additive = Counted(Affine())
    found = gfcg(additive, posterior, scale=3.0, tau=0.1, combine="additive", cfg_scale=1.5)
    expected = D + w[:, None] * (C - R)[:, None] + cfg * (C - NULL)[:, None]
    torch.testing.assert_close(found(X, SIGMA, C), expected)
    assert additive.evaluations == 3 + 2 + 3

    mixed = Counted(Affine())
    found = gfcg(mixed, posterior, scale=3.0, tau=0.1, combine="mixed", cfg_scale=1.5)
    weight, r = torch.where(U > 0.1, w, cfg), torch.where(U > 0.1, R, NULL)
    torch.testing.assert_close(found(X, SIGMA, C), D + weight[:, None] * (C - r)[:, None])
    assert mixed.evaluations == 3 + 3


def test_gfcg_with_autoguidance_by_hand_at_no_other_pass():
    model, weak = Counted(Affine()), Counted(Affine(b=3.0))
    guided = gfcg_autoguidance(model, weak, posterior, scale=3.0, atg_scale=1.5, tau=0.1)
    weight, r = torch.where(U > 0.1, 2 * U, 0.5), torch.where(U > 0.1, R, C)
    expected = D + weight[:, None] * (D - (X / 2 + 3 * r[:, None]))
    torch.testing.assert_close(guided(X, SIGMA, C), expected)
    assert (model.evaluations, weak.evaluations) == (3, 3)  # as autoguidance


def certain(x, sigma, c):
    """A classifier that has no doubt, whatever it sees."""
    return lambda x, sigma: 1e4 * nn.functional.one_hot(c, 4).to(x)


def test_gfcg_with_a_certain_classifier_changes_nothing(noisy):
    for tau in (0.0, 0.01):
        model = Counted(FOUR)
        found = gfcg(model, certain(*noisy), scale=3.0, tau=tau)(*noisy)
        assert torch.equal(found, FOUR(*noisy))
        assert model.evaluations == 40


def test_with_a_certain_classifier_mixed_is_cfg_and_additive_adds_it(noisy):
    cfg = classifier_free(FOUR, scale=1.5)(*noisy)
    for combine in ("mixed", "additive"):
        for tau in (0.0, 0.01):
            options = {"combine": combine, "cfg_scale": 1.5, "tau": tau}
            found = gfcg(FOUR, certain(*noisy), scale=3.0, **options)(*noisy)
            torch.testing.assert_close(found, cfg, rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", ["denoised", "noisy"])
def test_the_classifier_reads_what_it_is_told_to(given):
    seen = []

    def watched(x, sigma):
        seen.append((x, sigma))
        return P.log()

    for guided in (
        gfcg(Affine(), watched, classifier_input=given),
        gfcg_autoguidance(Affine(), Affine(), watched, classifier_input=given),
    ):
        guided(X, SIGMA, C)
        x, sigma = seen.pop()
        assert torch.equal(x, D if given == "denoised" else X)
        assert torch.equal(sigma, torch.zeros(3) if given == "denoised" else SIGMA)


@pytest.mark.parametrize("tau", [0.0, 0.01])
def test_with_a_certain_classifier_the_combination_is_autoguidance(noisy, tau):
    model, weak = Counted(FOUR), Counted(WEAK)
    guided = gfcg_autoguidance(model, weak, certain(*noisy), scale=9.0, atg_scale=2.0, tau=tau)
    found = guided(*noisy)
    assert torch.equal(found, autoguidance(FOUR, WEAK, scale=2.0)(*noisy))
    assert (model.evaluations, weak.evaluations) == (40, 40)


def test_gfcg_draws_no_graph(noisy):
    classifier = NoisyClassifier(Linear((2,), 4)).double()
    seen = []

    def watched(x, sigma):
        seen.append(torch.is_grad_enabled() or x.requires_grad)
        return classifier(x, sigma)

    for guided in (gfcg(FOUR, watched, scale=2.0), gfcg_autoguidance(FOUR, WEAK, watched)):
        assert not guided(*noisy).requires_grad  # although the classifier's weights ask for it
    assert seen == [False, False]
    classifier_gradient(FOUR, watched)(*noisy)
    assert seen == [False, False, True]  # which needs one


def test_gfcg_refuses_what_does_not_go_together():
    clean = NoisyClassifier(Linear((2,), 4), clean=True)
    with pytest.raises(UserError, match=r"gfcg with classifier_input=noisy .* model\.clean: true"):
        gfcg(FOUR, clean, classifier_input="noisy")
    gfcg(FOUR, clean)  # reads what is denoised
    with pytest.raises(UserError, match=r"cfg_scale needs guidance\.combine"):
        gfcg(FOUR, clean, cfg_scale=2.0)
    labelled = EDM(MLP((2,), 4), label_dropout=0.0)
    with pytest.raises(UserError, match="combine='mixed' needs a model trained with label dropout"):
        gfcg(labelled, clean, combine="mixed")
    gfcg(labelled, clean)  # other classes are all that it asks for


# Autoguidance


def test_a_weak_model_that_is_the_model_changes_nothing():
    for scale in (1.5, 3.0):
        assert torch.equal(run(autoguidance(FOUR, FOUR, scale=scale)), run(FOUR))


# The limited interval

LEVELS = karras(STEPS, 0.002, 10.0)[:-1]


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_outside_the_interval_nothing_happens(name):
    """Steps from sigma_low < sigma <= sigma_high are guided as a whole, and cost another pass."""
    low, high = LEVELS[4].item(), LEVELS[2].item()
    model = Counted(FOUR)
    guided = interval(model, of=partial(classifier_free, scale=3.0), sigma_low=low, sigma_high=high)
    x = run(guided, name)
    each = 2 if name == "heun" else 1
    assert model.evaluations == 8 * (each * STEPS - (name == "heun") + 2 * each)  # steps 2 and 3

    model = Counted(FOUR)
    none = interval(model, of=partial(classifier_free, scale=3.0), sigma_low=20, sigma_high=30)
    assert torch.equal(run(none, name), run(FOUR, name))
    assert model.evaluations == 8 * (each * STEPS - (name == "heun"))
    everywhere = interval(FOUR, of=partial(classifier_free, scale=3.0), sigma_low=0, sigma_high=20)
    assert torch.equal(run(everywhere, name), run(classifier_free(FOUR, scale=3.0), name))
    assert not torch.equal(x, run(everywhere, name))


def test_the_interval_is_switched_at_step_boundaries():
    """Below sigma_low the second evaluation of Heun's last guided step is guided too."""
    calls = []

    def watched(x, sigma, c):
        calls.append((round(sigma[0].item(), 6), bool((c == NULL).any())))
        return FOUR(x, sigma, c)

    one = interval(
        watched,
        of=partial(classifier_free, scale=3.0),
        sigma_low=LEVELS[3].item(),
        sigma_high=LEVELS[2].item(),
    )
    run(one, "heun")
    unconditional = [sigma for sigma, null in calls if null]
    assert unconditional == [round(LEVELS[i].item(), 6) for i in (2, 3)]


def test_an_interval_of_an_interval_is_what_they_share():
    cfg = partial(classifier_free, scale=3.0)
    outer = {"sigma_low": LEVELS[4].item(), "sigma_high": LEVELS[1].item()}
    inner = {"sigma_low": LEVELS[5].item(), "sigma_high": LEVELS[2].item()}
    nested = interval(FOUR, of=partial(interval, of=cfg, **inner), **outer)
    shared = {"sigma_low": outer["sigma_low"], "sigma_high": inner["sigma_high"]}
    assert torch.equal(run(nested, "heun"), run(interval(FOUR, of=cfg, **shared), "heun"))


def test_the_interval_needs_steps():
    guided = interval(FOUR, of=partial(classifier_free, scale=2.0), sigma_low=0.1, sigma_high=1.0)
    with pytest.raises(UserError, match="interval must know the sampler's steps, and dopri5"):
        run(guided, "dopri5")
    outer = rescale(FOUR, of=lambda model: guided)
    with pytest.raises(UserError, match="interval must know the sampler's steps, and dopri5"):
        run(outer, "dopri5")
    with pytest.raises(UserError, match="which has not begun one"):
        guided(X, SIGMA, C)
    with pytest.raises(UserError, match=r"sigma_low=2 must be from 0 to below sigma_high=1"):
        interval(FOUR, of=unguided, sigma_low=2.0, sigma_high=1.0)
    assert run(classifier_free(FOUR, scale=linear(scale=2.0)), "dopri5").isfinite().all()


# APG


class Two(nn.Module):
    """D_c = (3, 4) and D_u = (2, 2) wherever it is asked."""

    def forward(self, x, sigma, c):
        conditional, other = (torch.tensor(v, dtype=F64) for v in ((3.0, 4.0), (2.0, 2.0)))
        return torch.where(c[:, None] == NULL, other, conditional).expand(len(x), 2)


ONE = torch.zeros(1, 2, dtype=F64), torch.ones(1, dtype=F64), torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize(
    "options, expected",
    [
        # d = (1, 2), d.D_c = 11, |D_c|^2 = 25: parallel (1.32, 1.76), orthogonal (-.32, .24)
        ({"scale": 3.0}, [3 - 0.64, 4 + 0.48]),
        ({"scale": 3.0, "eta": 1.0}, [5.0, 8.0]),
        ({"scale": 3.0, "eta": 0.5}, [3 + 2 * (-0.32 + 0.66), 4 + 2 * (0.24 + 0.88)]),
        ({"scale": 3.0, "norm": 0.5**0.5}, [3 - 0.64 * 0.1**0.5, 4 + 0.48 * 0.1**0.5]),
        ({"scale": 3.0, "norm": 10.0}, [3 - 0.64, 4 + 0.48]),
    ],
)
def test_apg_by_hand(options, expected):
    found = apg(Two(), **options)(*ONE)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=F64))


def test_apg_of_all_that_is_parallel_is_cfg(noisy):
    found = apg(FOUR, scale=2.5, eta=1.0)(*noisy)
    torch.testing.assert_close(found, classifier_free(FOUR, scale=2.5)(*noisy))


def test_apgs_momentum_by_hand():
    """d, d + m d, d + m (d + m d), and anew in the next trajectory; within a step it is one."""
    guided, d = apg(Two(), scale=2.0, eta=1.0, momentum=-0.5), torch.tensor([1.0, 2.0], dtype=F64)
    for _ in range(2):
        for i, factor in enumerate((1.0, 0.5, 0.75)):
            guided.begin_step(i, 1.0)
            for _ in range(2):
                expected = torch.tensor([[3.0, 4.0]], dtype=F64) + factor * d
                torch.testing.assert_close(guided(*ONE), expected)
    # of a step of Heun the first d is remembered, not that of its second evaluation
    moving = apg(lambda x, sigma, c: x * (1 + c[:, None]), scale=2.0, eta=1.0, momentum=-0.5)
    moving.begin_step(0, 1.0)
    at = {k: (torch.full((1, 2), float(k), dtype=F64), *ONE[1:]) for k in (1, 2, 3)}
    for k, expected in ((1, 1 + 1), (2, 2 + 2)):  # D_c = x, D_u = 0, d = x
        assert moving(*at[k]).tolist() == [[expected, expected]]
    moving.begin_step(1, 0.5)
    for k, expected in ((2, 2 + 2 - 0.5), (3, 3 + 3 - 0.5)):
        assert moving(*at[k]).tolist() == [[expected, expected]]
    with pytest.raises(UserError, match="apg must know the sampler's steps"):
        run(apg(FOUR, scale=2.0, momentum=-0.5), "dopri5")
    assert as_guided(apg(FOUR, scale=2.0)).begin_step is None  # without it any sampler will do


# CFG++


def parts(x, s, c):
    """D_c and D_u."""
    sigma = torch.full((len(x),), s, dtype=F64)
    return FOUR(x, sigma, c), FOUR(x, sigma, torch.full_like(c, NULL))


@pytest.mark.parametrize("base", ["unconditional", "conditional"])
@pytest.mark.parametrize("name", ["euler", "ddim", "ddpm"])
def test_cfg_plus_plus_is_its_own_equation(name, base):
    """x0 = D_u + w (D_c - D_u), then renoised with the noise of the unguided model."""
    scale = 0.6 if base == "unconditional" else 1.6
    noise, c, draw = seeded(list(range(8)), (2,), 4)
    sampler = {"euler": euler, "ddim": ddim, "ddpm": partial(ddpm, draw=draw)}[name]
    path = list(sampler(cfg_plus_plus(FOUR, scale=scale, base=base), noise, c, steps=STEPS))
    _, _, draw = seeded(list(range(8)), (2,), 4)
    x = path[0][1]
    for (s, _), (t, found) in pairwise(path):
        D_c, D_u = parts(x, s, c)
        share = (t / s) ** (2 if name == "ddpm" else 1)
        renoised = D_u if base == "unconditional" else D_c
        x = D_u + scale * (D_c - D_u) + share * (x - renoised)
        if name == "ddpm" and t > 0:
            x = x + t * (1 - share) ** 0.5 * draw()
        torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_cfg_plus_plus_refuses_steps_that_it_is_not_for():
    guided = cfg_plus_plus(FOUR)
    with pytest.raises(UserError, match=r"cfg_plus_plus is for steps of the form .* which heun"):
        run(guided, "heun")
    with pytest.raises(UserError, match="cfg_plus_plus must know the sampler's steps, and dopri5"):
        run(guided, "dopri5")
    with pytest.raises(UserError, match="rescale cannot take cfg_plus_plus"):
        rescale(FOUR, of=cfg_plus_plus)
    inner = interval(FOUR, of=cfg_plus_plus, sigma_low=0.0, sigma_high=99.0)
    assert torch.equal(run(inner), run(cfg_plus_plus(FOUR)))


# CFG-Zero*


def test_cfg_zero_star_by_hand():
    """At x = 0 and sigma = 1 v = 2 D: s = <(3, 4), (2, 2)> / 8 = 1.75, U = (3.5, 3.5)."""
    found = cfg_zero_star(Two(), scale=3.0, zero_steps=0)(*ONE)
    torch.testing.assert_close(found, torch.tensor([[3.5 - 1.5, 3.5 + 1.5]], dtype=F64))
    # at x = (2, 0) x_t = (1, 0): v_c ~ (2, 4), v_u ~ (1, 2), s = 2 and so U = D_c
    found = cfg_zero_star(Two(), scale=3.0, zero_steps=0)(
        torch.tensor([[2.0, 0.0]], dtype=F64), *ONE[1:]
    )
    torch.testing.assert_close(found, torch.tensor([[3.0, 4.0]], dtype=F64))


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_cfg_zero_star_stands_still_in_its_first_steps(name):
    """x_t = x / (1 + sigma) does not move, and no network is asked."""
    model = Counted(FOUR)
    noise, c, _ = seeded(list(range(8)), (2,), 4)
    path = []
    for sigma, x in {"euler": euler, "heun": heun}[name](
        cfg_zero_star(model, scale=2.0, zero_steps=2), noise, c, steps=STEPS, sigma_max=10.0
    ):
        path.append((x / (1 + sigma), model.evaluations))
    assert [n for _, n in path[:3]] == [0, 0, 0]
    for x_t, _ in path[1:3]:
        torch.testing.assert_close(x_t, path[0][0])
    assert (path[3][0] - path[0][0]).abs().max() > 1e-3
    with pytest.raises(UserError, match="cfg_zero_star must know the sampler's steps"):
        run(cfg_zero_star(FOUR), "dopri5")
    run(cfg_zero_star(FOUR, zero_steps=0), "dopri5")


# Rescaling


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_by_hand(phi):
    """std(D_c) = 1 / sqrt 2, and CFG at 3 gives (5, 8) with 3 / sqrt 2."""
    model = Counted(Two())
    found = rescale(model, of=partial(classifier_free, scale=3.0), phi=phi)(*ONE)
    factor = phi / 3 + 1 - phi
    torch.testing.assert_close(found, factor * torch.tensor([[5.0, 8.0]], dtype=F64))
    assert model.evaluations == 2  # as CFG alone


def test_rescaled_methods_keep_the_deviation_of_the_conditional_model(noisy, networks):
    D_c = FOUR(*noisy)
    for section in (CFG, METHODS["gfcg"][0], METHODS["autoguidance"][0], METHODS["apg"][0]):
        found = guide({"name": "rescale", "of": section, "phi": 1.0}, networks)(*noisy)
        torch.testing.assert_close(found.std(1), D_c.std(1))
    cg = {"name": "classifier_gradient", "base": "unconditional", "scale": 2.0}
    found = guide({"name": "rescale", "of": cg, "phi": 1.0}, networks)(*noisy)  # asks for no D_c
    torch.testing.assert_close(found.std(1), D_c.std(1))
    with pytest.raises(UserError, match="phi=2 must be from 0 to 1"):
        rescale(FOUR, of=unguided, phi=2.0)


@pytest.mark.parametrize("shape", [(15,), (1, 4, 3)])
def test_rescale_is_not_for_a_few_numbers(monkeypatch, shape):
    monkeypatch.undo()
    model = Counted(FOUR)
    model.shape = shape
    with pytest.raises(UserError, match=rf"needs samples of 16 .* have {math.prod(shape)}"):
        rescale(model, of=unguided)
    assert rescale(model, of=unguided, phi=0.0)(X, SIGMA, C).shape == X.shape
    model.shape = (1, 4, 4)
    rescale(model, of=unguided)


# CADS


@pytest.fixture(scope="module")
def learned():
    """A float32 network with weights of ordinary size, which hears its class well."""
    torch.manual_seed(0)
    model = EDM(MLP((2,), 4, width=32, blocks=2))
    nn.init.normal_(model.net.leave.weight, std=0.1)
    nn.init.normal_(model.net.class_embedding.weight, std=2.0)
    model.num_classes = 4
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "net",
    [
        lambda: MLP((2,), 3, width=16),
        lambda: ADMUNet(
            (1, 8, 8),
            3,
            channels=32,
            channel_mult=(1,),
            blocks=1,
            attention_resolutions=(),
        ),
        lambda: SongUNet((1, 8, 8), 3, channels=32, channel_mult=(1,), attention_resolutions=()),
        lambda: UnshuffleUNet((1, 8, 8), 3, channels=16, channel_mult=[1], blocks=1),
        lambda: DiT((1, 8, 8), 3, channels=16, blocks=1, num_heads=2),
    ],
)
def test_networks_take_the_vectors_of_classes_in_their_place(net):
    torch.manual_seed(1)
    net = net().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    shape = (2,) if isinstance(net, MLP) else (1, 8, 8)
    x, noise, c = torch.randn(4, *shape), torch.linspace(-1, 1, 4), torch.tensor([0, 1, 2, NULL])
    if isinstance(net, ADMUNet) and not net.null_class:
        c = c.clamp(min=0)
    with torch.no_grad():
        assert torch.equal(net(x, noise, net.class_vectors(c)), net(x, noise, c))
        assert not torch.equal(net(x, noise, net.class_vectors(c.roll(1))), net(x, noise, c))


def test_cads_anneals_from_pure_noise_to_the_class(learned):
    """Above tau_2 the class is not heard, below tau_1 nothing else is, and NULL never changes."""
    _, c, draw = seeded(list(range(4)), (2,), 4)
    x, null = torch.randn(4, 2, dtype=F64), torch.full_like(c, NULL)
    guided = cads(learned, of=lambda model: model, psi=0.0)
    guided.draw_from(draw)

    def at(sigma, c):
        return guided(x, torch.full((4,), sigma, dtype=F64), c)

    guided.begin_step(0, 150.0)  # t/T = .996
    first = at(150.0, c)
    assert torch.equal(first, at(150.0, (c + 1) % 4))
    assert torch.equal(at(150.0, null), learned(x, torch.full((4,), 150.0, dtype=F64), null))
    assert torch.equal(first, at(150.0, c))  # within a step the noise is one
    guided.begin_step(1, 150.0)
    assert not torch.equal(first, at(150.0, c))  # and in the next another
    guided.begin_step(2, 1.0)  # t/T = .31
    assert torch.equal(at(1.0, c), learned(x, torch.ones(4, dtype=F64), c))
    guided.begin_step(3, 15.0)  # t/T = .73, between
    assert not torch.equal(at(15.0, c), at(15.0, (c + 1) % 4))
    assert not torch.equal(at(15.0, c), learned(x, torch.full((4,), 15.0, dtype=F64), c))


def test_cads_by_hand(learned):
    """psi = 1 gives y' the mean and the deviation of y."""
    seen = []

    def watched(x, sigma, c):
        seen.append(c)
        return x

    watched.class_vectors = learned.class_vectors
    _, c, draw = seeded([3, 4], (2,), 4)
    guided = cads(watched, noise=0.4, tau_1=0.2, tau_2=0.8)
    guided.draw_from(draw)
    guided.begin_step(0, 3.0)
    guided(torch.zeros(2, 2, dtype=F64), torch.full((2,), 3.0, dtype=F64), c)
    y = learned.class_vectors(c)
    _, _, draw = seeded([3, 4], (2,), 4)
    n = draw.other("cads", (32,))().float()
    sigmas = learned_levels()
    t = (math.log(3.0) - sigmas[0]) / (sigmas[1] - sigmas[0])
    g = (0.8 - (sigmas[2] + t) / 999) / 0.6
    z = g**0.5 * y + 0.4 * (1 - g) ** 0.5 * n
    expected = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) * y.std(1, keepdim=True)
    torch.testing.assert_close(seen[0], expected + y.mean(1, keepdim=True))
    assert (seen[0] - y).abs().max() > 0.1


def learned_levels():
    """ln sigma of the DDPM's two levels around 3, and the number of the lower one."""
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
    logs = ((1 - abar) / abar).sqrt().log()
    below = int((logs < math.log(3.0)).sum()) - 1
    return logs[below].item(), logs[below + 1].item(), below


@pytest.mark.parametrize("name", ["heun", "ddpm"])
def test_a_sample_of_cads_is_its_seed(learned, name):
    seeds = list(range(20, 34))
    guided = cads(learned, of=partial(classifier_free, scale=2.0), tau_1=0.0, tau_2=0.2)
    more = {"sigma_max": 80.0, "steps": 40}  # more steps than draws made at once
    whole = run(guided, name, seeds, **more)
    assert torch.equal(whole, run(guided, name, seeds, **more))
    for size in (1, 5):
        rows = [run(guided, name, seeds[i : i + size], **more) for i in range(0, 14, size)]
        torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=1e-4)
    plain = run(classifier_free(learned, scale=2.0), name, seeds, **more)
    assert (whole - plain).abs().max() > 0.1
    none = cads(learned, of=partial(classifier_free, scale=2.0), noise=0.0)
    assert torch.equal(run(none, name, seeds, **more), plain)
    # what is noisy at no level would change nothing either, and is refused
    never = cads(learned, of=partial(classifier_free, scale=2.0), tau_1=1.0, tau_2=2.0)
    with pytest.raises(UserError, match=r"cads would never act: the sampler starts at sigma=80, w"):
        run(never, name, seeds, **more)


def test_cads_acts_or_is_refused_by_the_first_level(learned):
    """sigma = 5 is t/T = 0.57 of the DDPM: by its own tau_1 of 0.6 nothing would be noisy."""
    guided = cads(learned, of=partial(classifier_free, scale=2.0))
    with pytest.raises(UserError, match=r"at sigma=5, where t/T is 0.57, and .* above tau_1=0.6"):
        run(guided, "heun", sigma_max=5.0)
    plain = run(classifier_free(learned, scale=2.0), "heun", sigma_max=10.0)
    assert not torch.equal(run(guided, "heun", sigma_max=10.0), plain)
    again = cads(learned, of=partial(gibbs, scale=2.0, sigma=1.0, steps=4))
    assert run(again, "heun", sigma_max=10.0).isfinite().all()  # whose rounds start at sigma = 1


def test_cads_knows_which_samples_a_method_asks_for(learned):
    """Only some of a batch are conditioned: each with its own noise, as if it were alone."""
    asked = []

    def watched(x, sigma, c):
        asked.append(len(x))
        return learned(x, sigma, c)

    watched.class_vectors = learned.class_vectors

    def guided(seeds, scale):
        _, c, draw = seeded(seeds, (2,), 4)
        one = cads(watched, of=partial(classifier_free, scale=torch.tensor(scale)))
        one.draw_from(draw)
        one.begin_step(0, 50.0)
        sigma = torch.full((len(seeds),), 50.0, dtype=F64)
        return one(torch.ones(len(seeds), 2, dtype=F64), sigma, c)

    scales = [0.0, 2.0, 0.0, 3.0]  # at 0 the conditional pass is skipped
    whole = guided([1, 2, 3, 4], scales)
    assert asked == [2, 4]
    alone = [guided([seed], [scale]) for seed, scale in zip([1, 2, 3, 4], scales, strict=True)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-5)


def test_cads_tells_the_other_method_what_it_is_told(learned):
    told = []

    def listening(model):
        def guided(x, sigma, c):
            return model(x, sigma, c)

        guided.draw_from = told.append
        guided.begin_step = lambda i, sigma: told.append((i, sigma))
        return guided

    _, _, draw = seeded([0], (2,), 4)
    guided = cads(learned, of=listening)
    guided.draw_from(draw)
    guided.begin_step(3, 0.5)
    assert told == [draw, (3, 0.5)]


def test_cads_refuses_what_it_cannot_do(learned):
    with pytest.raises(UserError, match="cads needs a network that embeds classes"):
        cads(FOUR)
    with pytest.raises(UserError, match="cads must know the sampler's steps"):
        run(cads(learned), "dopri5", sigma_max=80.0)
    with pytest.raises(UserError, match="cads draws noise"):
        cads(learned).begin_step(0, 1.0)
    with pytest.raises(UserError, match=r"tau_1=0\.9 from 0 to below tau_2=0\.5"):
        cads(learned, tau_1=0.9, tau_2=0.5)


# Rejection


def test_rejection_keeps_the_most_probable():
    classifier, seeds = ExactClassifier(FOUR), list(range(30))
    _, c, draw = seeded(seeds, (2,), 4)
    kept = rejection(FOUR, classifier, of=partial(classifier_free, scale=1.5), candidates=3)
    candidates = [run(classifier_free(FOUR, scale=1.5), seeds=seeds)]
    for j in (1, 2):
        noise = draw.other(f"candidate {j}")()
        *_, (_, x) = euler(classifier_free(FOUR, scale=1.5), noise, c, steps=STEPS, sigma_max=10.0)
        candidates.append(x)
    p = [FOUR.logits(x, 0.0).softmax(1).gather(1, c[:, None])[:, 0] for x in candidates]
    best = torch.stack(p, 1).argmax(1)
    expected = torch.stack(candidates, 1)[torch.arange(30), best]
    assert len(best.unique()) == 3
    assert torch.equal(run(kept, seeds=seeds), expected)
    for size in (1, 7):
        rows = [run(kept, seeds=seeds[i : i + size]) for i in range(0, 30, size)]
        torch.testing.assert_close(torch.cat(rows), expected, rtol=0, atol=1e-10)


def test_the_trajectory_of_what_is_kept_is_its_own():
    noise, c, draw = seeded(list(range(12)), (2,), 4)
    kept = rejection(FOUR, ExactClassifier(FOUR), candidates=4)
    section = {"name": "euler", "steps": STEPS, "sigma_max": 10.0}
    path = list(sample(section, kept, noise, c, draw, rows=5))
    assert [len(x) for _, x in path] == [5] * STEPS + [12]
    start = path[0][1] / 10.0
    again = list(euler(FOUR, start, c[:5], steps=STEPS, sigma_max=10.0))
    for (s, x), (t, y) in zip(path, again, strict=True):
        assert s == t
        torch.testing.assert_close(x[:5], y, rtol=0, atol=1e-10)


def test_rejection_within_rejection_is_refused():
    inner = partial(rejection, classifier=ExactClassifier(FOUR))
    with pytest.raises(UserError, match="rejection within rejection"):
        rejection(FOUR, ExactClassifier(FOUR), of=inner)
    with pytest.raises(UserError, match="candidates=0 must be at least 1"):
        rejection(FOUR, ExactClassifier(FOUR), candidates=0)


# Discriminator guidance


def test_an_exact_discriminator_makes_the_model_the_data(noisy):
    """At scale 2, the paper's weight 1, and with other guidance on what is corrected."""
    x, sigma, c = noisy
    null = torch.full_like(c, NULL)

    def discriminator(x, sigma):
        return torch.stack([WEAK.log_density(x, sigma=sigma), FOUR.log_density(x, sigma=sigma)], 1)

    found = discriminator_gradient(WEAK, discriminator, scale=2.0)(x, sigma, null)
    torch.testing.assert_close(found, FOUR(x, sigma, null), rtol=0, atol=1e-9)
    assert (WEAK(x, sigma, null) - found).abs().max() > 0.1
    assert not found.requires_grad
    shift = found - WEAK(x, sigma, null)
    guided = discriminator_gradient(WEAK, discriminator, of=partial(classifier_free, scale=3.0))
    expected = classifier_free(WEAK, scale=3.0)(x, sigma, c) + shift
    torch.testing.assert_close(guided(x, sigma, c), expected, rtol=0, atol=1e-9)


# Composition


def test_methods_compose_in_python_as_in_a_config(networks):
    inner = {"name": "gfcg", "scale": 3.0}
    section = {"name": "interval", "of": {"name": "rescale", "of": inner}}
    section |= {"sigma_low": 0.1, "sigma_high": 5.0}
    by_hand = interval(
        FOUR,
        of=partial(rescale, of=partial(gfcg, classifier=ExactClassifier(FOUR), scale=3.0)),
        sigma_low=0.1,
        sigma_high=5.0,
    )
    found = run(guide(section, networks), "heun")
    assert torch.equal(found, run(by_hand, "heun"))
    assert set(counts(networks)) == {"model", "classifier"}


def test_what_a_method_needs_is_asked_of_the_model_that_is_changed():
    labelled = EDM(MLP((2,), 4), label_dropout=0.0)
    labelled.num_classes = 4
    with pytest.raises(UserError, match="classifier_free needs a model trained with label dropout"):
        cads(labelled, of=partial(classifier_free, scale=2.0))


def test_with_scale_finds_the_scale_that_there_is():
    assert with_scale(CFG, 3.0) == {**CFG, "scale": 3.0}
    scheduled = {**CFG, "scale": {"name": "linear", "scale": 2.0}}
    assert with_scale(scheduled, 3.0)["scale"] == {"name": "linear", "scale": 3.0}
    nested = {"name": "interval", "of": {"name": "rescale", "of": CFG}, "sigma_low": 0.1}
    assert with_scale(nested, 3.0)["of"]["of"]["scale"] == 3.0
    assert nested["of"]["of"]["scale"] == 2.0
    own = {"name": "discriminator_gradient", "scale": 2.0, "of": CFG}
    assert with_scale(own, 3.0) == {**own, "scale": 3.0}
    assert with_scale({"name": "unguided"}, 3.0) is None
    assert with_scale({"name": "cads", "of": {"name": "unguided"}}, 3.0) is None


# Two passes as one batch

BOTH = [
    partial(classifier_free, scale=2.0),
    partial(classifier_free, scale=torch.tensor([2.0, 3.0, 0.5])),
    partial(classifier_free, scale=constant(scale=2.0)),
    partial(cfg_plus_plus, scale=0.6),
    partial(cfg_zero_star, scale=2.0, zero_steps=0),
    partial(apg, scale=3.0, norm=1.0),
    partial(gfcg, classifier=ExactClassifier(FOUR), combine="additive", scale=1.0, cfg_scale=2.0),
]


class Calls(Counted):
    """A network that also counts its calls."""

    calls = 0

    def __call__(self, *args):
        self.calls += 1
        return super().__call__(*args)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("exact", [True, False])
def test_few_samples_have_both_passes_in_one_batch(learned, noisy, monkeypatch, method, exact):
    """Equal to two passes but for rounding, and as many evaluations."""
    x, sigma, c = (of[18:21] for of in noisy)
    found, nets = [], []
    for most in (scales.TOGETHER, 0):
        monkeypatch.setattr(scales, "TOGETHER", most)
        nets.append(Calls(FOUR if exact else learned))
        guided = as_guided(method(nets[-1]))
        if guided.keep_noise is not None:
            guided.keep_noise(0.3)
        found.append(guided(x, sigma, c))
    assert [net.calls for net in nets] == [1, 2]
    assert [net.evaluations for net in nets] == [6, 6]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12 if exact else 1e-5)


def test_two_passes_stay_apart_where_one_is_not_of_all_or_the_batch_is_large(noisy):
    def calls(n, scale):
        model = Calls(FOUR)
        classifier_free(model, scale=scale)(*(of[:n] for of in noisy))
        return model.calls, model.evaluations

    most = scales.TOGETHER
    assert calls(most, 2.0) == (1, 2 * most)
    assert calls(most + 1, 2.0) == (2, 2 * (most + 1))
    assert calls(3, 1.0) == calls(3, 0.0) == (1, 3)
    assert calls(3, torch.tensor([1.0, 2.0, 3.0])) == (2, 3 + 2)
    assert calls(3, torch.tensor([0.0, 2.0, 1.0])) == (2, 2 + 2)


@pytest.mark.parametrize("outer", [partial(rescale, phi=0.7), partial(cads, tau_1=0.0, tau_2=0.2)])
def test_a_changed_model_sees_the_passes_one_by_one(learned, outer):
    """rescale knows D_c by its labels, and cads has noise of every sample: few are as many."""
    model = Calls(learned)
    guided = outer(model, of=partial(classifier_free, scale=2.0))
    whole = run(guided, seeds=range(6))
    assert (model.calls, model.evaluations) == (2 * STEPS, 6 * 2 * STEPS)
    parts = [run(guided, seeds=seeds) for seeds in (range(2), range(2, 6))]
    assert (model.calls, model.evaluations) == (6 * STEPS, 2 * 6 * 2 * STEPS)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)


# In a config

FILE = """
models: {model: exact}
data: {name: Mixture, means: [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], stds: [0.5, 0.5, 0.5],
       labels: [0, 1, 2]}
sampler: {name: euler, steps: 4, sigma_max: 10.0}
n: 6
run_dir: out
guidance: """


def read(tmp_path, guidance, *overrides):
    file = tmp_path / "config.yaml"
    file.write_text(FILE + guidance)
    return load(generate, file, list(overrides))


@pytest.mark.parametrize(
    "guidance, words",
    [
        ("{name: interval, of: {name: classifier_free, scal: 2}, sigma_low: 0, sigma_high: 1}",
         "unknown key 'guidance.of.scal'; did you mean 'guidance.of.scale'"),
        ("{name: interval, of: {name: classifier_fre}, sigma_low: 0, sigma_high: 1}",
         "no 'classifier_fre' in lightning_cfg.guidance; did you mean 'classifier_free'"),
        ("{name: interval, of: classifier_free, sigma_low: 0}",
         "guidance.sigma_high is missing: interval needs it, float"),
        ("{name: interval, sigma_low: 0, sigma_high: 1}", "guidance.of is missing"),
        ("{name: interval, of: {name: interval, of: {name: apg, eta: x}, sigma_low: 0, "
         "sigma_high: 1}, sigma_low: 0, sigma_high: 1}", "guidance.of.of.eta must be float"),
        ("{name: classifier_free, scale: {name: cosin}}",
         "no 'cosin' in lightning_cfg.guidance.schedules; did you mean 'cosine'"),
        ("{name: classifier_free, scale: {name: cosine, fulll: low}}", "guidance.scale.full"),
        ("{name: classifier_free, scale: {name: cosine, full: middle}}", "one of 'low', 'high'"),
        ("{name: gfcg, reference: nearest}", "guidance.reference must be one of 'most_confused'"),
        ("{name: gfcg, combine: added}", "guidance.combine must be one of 'additive', 'mixed'"),
    ],
)  # fmt: skip
def test_a_mistake_inside_guidance_is_named(tmp_path, guidance, words):
    with pytest.raises(UserError) as error:
        read(tmp_path, guidance)
    assert words in str(error.value)


def test_short_forms_and_overrides_reach_inside(tmp_path):
    short = "{name: interval, of: classifier_free, sigma_low: 0, sigma_high: 1}"
    config = read(tmp_path, short, "guidance.of.scale=3", "guidance.sigma_low=0.5")
    assert config["guidance"] == {
        "name": "interval",
        "of": {"name": "classifier_free", "scale": 3.0},
        "sigma_low": 0.5,
        "sigma_high": 1.0,
    }
    assert "of" not in read(tmp_path, "rejection")["guidance"]  # unguided, where it may be left out


@pytest.mark.parametrize(
    "guidance, words",
    [
        ("{name: interval, of: gfcg, sigma_low: 0, sigma_high: 1}",
         "guidance interval of gfcg needs models.classifier"),
        ("{name: discriminator_gradient}", "needs models.discriminator"),
        ("{name: cads}", "cads needs a network that embeds classes"),
        ("{name: interval, of: builtins.abs, sigma_low: 0, sigma_high: 1}",
         "interval changes what its `of` does with `model`, and builtins.abs has no parameter"),
        ("{name: rescale, of: cfg_plus_plus}", "rescale cannot take cfg_plus_plus"),
    ],
)  # fmt: skip
def test_what_cannot_be_composed_is_refused(tmp_path, guidance, words):
    with pytest.raises(UserError) as error:
        generate(**read(tmp_path, guidance, f"run_dir={tmp_path}/out"))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()
