import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lightning_cfg.data import Fractal, Mixture
from lightning_cfg.diffusion import mixture
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.mixture import GaussianMixture, fractal
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL

F64 = torch.float64
REFERENCE = Path(__file__).parent / "reference"
SIGMAS = [0.01, 0.1, 1.0, 10.0]


def general():
    """Five correlated Gaussians of three classes in the plane, as (truth, weights, ...)."""
    g = torch.Generator().manual_seed(3)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=F64)
    means = torch.randn(5, 2, generator=g, dtype=F64)
    a = 0.4 * torch.randn(5, 2, 2, generator=g, dtype=F64)
    covariances = a @ a.mT + 0.01 * torch.eye(2, dtype=F64)
    return weights, means, covariances, torch.tensor([0, 1, 1, 2, 0])


def torchs(c, sigma):
    """The same noisy mixture by torch.distributions; c None: all classes together."""
    weights, means, covariances, labels = general()
    own = torch.ones(5, dtype=torch.bool) if c is None else labels == c
    noisy = covariances[own] + sigma**2 * torch.eye(2, dtype=F64)
    return MixtureSameFamily(Categorical(weights[own]), MultivariateNormal(means[own], noisy))


@pytest.fixture(scope="module")
def truth():
    return GaussianMixture(*general())


@pytest.fixture(scope="module")
def tree():
    return fractal()


def points(n, sigma=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (1 + sigma) * torch.randn(n, 2, generator=g, dtype=F64)


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
@pytest.mark.parametrize("c", [None, 0, 1, 2])
def test_log_density_is_torchs(truth, c, sigma):
    x = points(50, sigma)
    label = None if c is None else torch.full((50,), c)
    ours, theirs = truth.log_density(x, label, sigma), torchs(c, sigma).log_prob(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_null_is_no_class_and_classes_may_differ_within_a_batch(truth):
    x, c = points(8), torch.tensor([0, NULL, 1, 2, NULL, 0, 2, 1])
    expected = [torchs(None if c[i] == NULL else c[i], 0.3).log_prob(x[i]) for i in range(8)]
    torch.testing.assert_close(truth.log_density(x, c, 0.3), torch.stack(expected))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("which", ["truth", "tree"])
def test_score_is_the_gradient_of_the_log_density_and_tweedie_holds(request, which, sigma):
    model = request.getfixturevalue(which)
    x, c = points(30, sigma).requires_grad_(), torch.tensor([0, 1, NULL] * 10)
    (gradient,) = torch.autograd.grad(model.log_density(x, c, sigma).sum(), x)
    x = x.detach()
    size = gradient.abs().max().item()
    torch.testing.assert_close(model.score(x, sigma, c), gradient, rtol=1e-9, atol=1e-11 * size)
    D = x + sigma**2 * gradient
    torch.testing.assert_close(model.denoise(x, sigma, c), D, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("c", [0, 1, NULL])
def test_denoise_is_the_posterior_mean_by_quadrature(sigma, c):
    means, stds, weights = [-1.0, 0.2, 1.5], [0.2, 0.1, 0.4], [0.5, 0.2, 0.3]
    labels = torch.tensor([0, 1, 0])
    truth = GaussianMixture(
        torch.tensor(weights, dtype=F64),
        torch.tensor(means, dtype=F64)[:, None],
        torch.tensor(stds, dtype=F64)[:, None, None] ** 2,
        labels,
    )
    y = np.linspace(-6, 6, 40_001)
    prior = sum(
        w / s * np.exp(-0.5 * ((y - m) / s) ** 2)
        for m, s, w, k in zip(means, stds, weights, labels.tolist(), strict=True)
        if c in (k, NULL)
    )
    x = torch.linspace(-2, 2.5, 12, dtype=F64)
    likelihood = np.exp(-0.5 * ((x.numpy()[:, None] - y) / sigma) ** 2)
    expected = (likelihood * prior * y).sum(1) / (likelihood * prior).sum(1)
    D = truth.denoise(x[:, None], sigma, torch.full((12,), c))
    np.testing.assert_allclose(D[:, 0], expected, atol=1e-9)


def test_the_limits_of_the_denoiser_are_the_point_itself_and_the_class_mean(truth):
    x, c = points(20), torch.arange(20) % 3
    torch.testing.assert_close(truth.denoise(x, 0.0, c), x, rtol=0, atol=1e-12)
    means = torch.stack([truth.mean_and_covariance(k)[0] for k in range(3)])
    torch.testing.assert_close(truth.denoise(x, 1e6, c), means[c], rtol=0, atol=1e-5)


def test_logits_are_the_class_posterior_by_hand():
    truth = Mixture(means=[[-1.0], [2.0]], stds=[0.5, 1.0], labels=[1, 0], weights=[1, 3]).truth
    x, sigma = 0.4, 0.75
    joint = {  # weight x density with the noise's variance added
        1: 0.25 * math.exp(-0.5 * 1.4**2 / (0.25 + 0.5625)) / math.sqrt(0.25 + 0.5625),
        0: 0.75 * math.exp(-0.5 * 1.6**2 / (1 + 0.5625)) / math.sqrt(1 + 0.5625),
    }
    posterior = truth.logits(torch.tensor([[x]], dtype=F64), sigma).softmax(1)[0]
    assert posterior[0].item() == pytest.approx(joint[0] / (joint[0] + joint[1]), rel=1e-12)
    assert posterior[1].item() == pytest.approx(joint[1] / (joint[0] + joint[1]), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_logits_agree_with_the_densities_of_the_classes(truth, sigma):
    x = points(40, sigma)
    logits = truth.logits(x, sigma)
    torch.testing.assert_close(logits.logsumexp(1), truth.log_density(x, None, sigma))
    for c, share in enumerate([0.35, 0.5, 0.15]):
        joint = torchs(c, sigma).log_prob(x) + math.log(share)
        torch.testing.assert_close(logits[:, c], joint, rtol=1e-9, atol=1e-9)


def test_the_unconditional_denoiser_is_the_posteriors_mean_of_the_conditional_ones(truth):
    x = points(40)
    posterior = truth.logits(x, 0.7).softmax(1)
    each = torch.stack([truth.denoise(x, 0.7, torch.full((40,), c)) for c in range(3)], 1)
    mean = (posterior[..., None] * each).sum(1)
    torch.testing.assert_close(truth.denoise(x, 0.7), mean, rtol=0, atol=1e-12)


def test_a_noise_level_per_sample_is_the_same_as_one_call_each(truth):
    x, sigma = points(9), torch.logspace(-2, 2, 9, dtype=F64)
    c = torch.tensor([0, 1, 2, NULL, 0, 1, 2, NULL, 1])
    for batch, single in (
        (truth.denoise(x, sigma, c), lambda i: truth.denoise(x[i], sigma[i].item(), c[i])),
        (truth.score(x, sigma, c), lambda i: truth.score(x[i], sigma[i].item(), c[i])),
        (truth.logits(x, sigma), lambda i: truth.logits(x[i], sigma[i].item())),
        (truth.log_density(x, c, sigma), lambda i: truth.log_density(x[i], c[i], sigma[i].item())),
    ):
        rows = torch.cat([single([i]) for i in range(9)])
        torch.testing.assert_close(batch, rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("one_level", [True, False])
def test_blocks_of_points_change_nothing(truth, monkeypatch, one_level):
    x, c = points(23), torch.arange(23) % 3
    sigma = torch.full((23,), 0.4, dtype=F64) if one_level else torch.logspace(-2, 1, 23, dtype=F64)
    whole = truth.denoise(x, sigma, c), truth.log_density(x, c, sigma), truth.logits(x, sigma)
    monkeypatch.setattr(mixture, "BLOCK", 4 * 5)  # four points at a time
    split = truth.denoise(x, sigma, c), truth.log_density(x, c, sigma), truth.logits(x, sigma)
    torch.testing.assert_close(split, whole, rtol=1e-13, atol=1e-13)


def test_the_answer_has_the_dtype_of_x_but_the_accuracy_of_float64(tree):
    x, sigma = points(20, 0.01).float() * 0.5, torch.full((20,), 0.01)
    D = tree.denoise(x, sigma)
    assert D.dtype == torch.float32
    torch.testing.assert_close(D, tree.denoise(x.double(), sigma.double()).float())


def test_the_numbers_of_a_config_are_kept_in_float64():
    truth = Mixture(means=[[0.7], [-0.6]], stds=[0.1, 0.2], labels=[0, 1], weights=[0.7, 0.3]).truth
    assert truth.means[:, 0].tolist() == [0.7, -0.6]
    assert truth.weights.tolist() == pytest.approx([0.7, 0.3], rel=1e-15)
    assert truth.variances[:, 0].sqrt().tolist() == pytest.approx([0.1, 0.2], rel=1e-15)


def test_weights_left_out_are_equal():
    data = Mixture(means=[[0.0], [1.0], [2.0], [3.0]], stds=[1.0] * 4, labels=[0, 0, 0, 1])
    assert data.truth.weights.tolist() == [0.25] * 4
    assert data.truth.class_weights.tolist() == [0.75, 0.25]
    assert (data.shape, data.num_classes) == ((1,), 2)


TWO = {"means": [[0.0, 1.0], [1.0, 2.0]], "stds": [1.0, 2.0], "labels": [0, 1]}


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"labels": [1, 2]}, "data.labels must be classes from 0 without gaps, not [1, 2]"),
        ({"labels": [0, 2]}, "data.labels must be classes from 0 without gaps, not [0, 2]"),
        ({"labels": [0, -1]}, "data.labels must be classes from 0 without gaps, not [-1, 0]"),
        ({"labels": [-1, -1]}, "data.labels must be classes from 0 without gaps, not [-1]"),
        ({"labels": [0]}, "data.labels has 1 numbers, and data.means 2 components"),
        ({"labels": []}, "data.labels has 0 numbers, and data.means 2 components"),
        ({"stds": [1.0]}, "data.stds has 1 numbers, and data.means 2 components"),
        ({"stds": [1.0, 1.0, 1.0]}, "data.stds has 3 numbers, and data.means 2 components"),
        ({"weights": [1.0]}, "data.weights has 1 numbers, and data.means 2 components"),
        ({"means": [[0.0, 1.0]]}, "data.stds has 2 numbers, and data.means 1 components"),
        ({"means": [[0.0], [1.0, 2.0]]}, "data.means has components in 1 and in 2 dimensions"),
        ({"means": []}, "data.means must name one component"),
        ({"means": [[], []]}, "data.means must name one component, by one coordinate"),
        ({"means": [[0.0, math.nan], [1.0, 2.0]]}, "data.means must be finite numbers"),
        ({"stds": [1.0, math.inf]}, "data.stds must be finite numbers"),
        ({"stds": [1.0, 0.0]}, "data.stds must be above 0, and one is 0"),
        ({"stds": [1.0, -2.0]}, "data.stds must be above 0, and one is -2"),
        ({"weights": [1.0, -0.5]}, "data.weights must be 0 or more, and one above 0"),
        ({"weights": [0.0, 0.0]}, "data.weights must be 0 or more, and one above 0"),
        ({"weights": [1.0, math.nan]}, "data.weights must be finite numbers"),
        ({"weights": [1.0, 0.0]}, "data.weights leave nothing to class 1"),
    ],
)
def test_lists_that_describe_no_mixture_are_refused(changed, words):
    with pytest.raises(UserError) as error:
        Mixture(**TWO | changed)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_component_may_weigh_nothing_and_a_class_have_several():
    data = Mixture(means=[[0.0], [1.0], [9.0]], stds=[1.0] * 3, labels=[1, 0, 1], weights=[1, 2, 0])
    assert data.truth.class_weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    y, c = data.real("bank", 2000)
    assert y[c == 1].mean().item() == pytest.approx(0.0, abs=0.1)
    log_p = data.truth.log_density(torch.zeros(1, 1, dtype=F64), torch.tensor([1]))
    assert log_p.item() == pytest.approx(-0.5 * math.log(2 * math.pi))


def z_scores(x, mean, covariance):
    """How many standard errors the first two moments of x are off, (d + d d,)."""
    second = (x[:, :, None] * x[:, None, :]).flatten(1)
    values = torch.cat([x, second], 1)
    expected = torch.cat([mean, (covariance + mean[:, None] * mean).flatten()])
    return (values.mean(0) - expected) / (values.std(0) / len(x) ** 0.5)


def test_mean_and_covariance_are_those_of_torchs_mixture(truth):
    for c in range(3):
        mean, covariance = truth.mean_and_covariance(c)
        theirs = torchs(c, 0.0)
        torch.testing.assert_close(mean, theirs.mean)
        torch.testing.assert_close(covariance.diagonal(), theirs.variance)
    # off the diagonal: a line of two points has covariance (half distance)^2 along it
    ends, two = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.ones(2)
    line = GaussianMixture(two, ends, torch.zeros(2, 2, 2), torch.tensor([0, 0]))
    mean, covariance = line.mean_and_covariance(0)
    torch.testing.assert_close(mean, torch.tensor([1.0, 2.0], dtype=F64))
    torch.testing.assert_close(covariance, torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=F64))


@pytest.mark.parametrize("which", ["truth", "tree"])
def test_samples_have_the_exact_moments(request, which):
    model = request.getfixturevalue(which)
    for c in range(model.num_classes):
        x = model.sample(20_000, c, keyed("moments", c))
        assert z_scores(x, *model.mean_and_covariance(c)).abs().max() < 4
        other = model.mean_and_covariance((c + 1) % model.num_classes)
        assert z_scores(x, *other).abs().max() > 20  # so that the line above could fail


def test_training_batches_are_draws_of_the_mixture():
    weights, means, _, labels = general()
    data = Mixture(
        means=means.tolist(), stds=[0.3] * 5, labels=labels.tolist(), weights=weights.tolist()
    )
    parts = [data.batch(Draws(seed=1, step=step, batch_size=5000)) for step in range(4)]
    y, c = (torch.cat([part[name] for part in parts]) for name in "yc")
    assert y.dtype == torch.float32
    for label, share in enumerate([0.35, 0.5, 0.15]):
        own = c == label
        assert abs(own.double().mean() - share) < 4 * (share * (1 - share) / len(c)) ** 0.5
        moments = data.truth.mean_and_covariance(label)
        assert z_scores(y[own].double(), *moments).abs().max() < 4
    assert not torch.equal(parts[0]["y"], parts[1]["y"])


def test_a_ranks_rows_of_a_training_batch_are_the_rows_of_the_whole():
    data = Fractal()
    whole = data.batch(Draws(seed=5, step=7, batch_size=10))
    ranks = [
        data.batch(Draws(seed=5, step=7, batch_size=10, rows=rows))
        for rows in (slice(0, 3), slice(3, 10))
    ]
    for name in ("y", "c"):
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), whole[name])


def test_real_points_are_reproducible_and_no_split_shares_one():
    data = Fractal(seed=2)
    (bank, c), (held_out, _) = data.real("bank", 500), data.real("held_out", 500)
    assert torch.equal(bank, Fractal(seed=2).real("bank", 500)[0])
    assert c.tolist() == [0] * 500 + [1] * 500
    assert bank.dtype == torch.float32
    assert not torch.isin(bank[:, 0], held_out[:, 0]).any()
    assert not torch.equal(bank, Fractal(seed=3).real("bank", 500)[0])
    for label in (0, 1):
        moments = data.truth.mean_and_covariance(label)
        for y in (bank, held_out):
            assert z_scores(y[c == label].double(), *moments).abs().max() < 4


SCALE = np.array([1.3136, 1.3844])


def test_the_fractal_has_127_branches_of_8_gaussians_per_class(tree):
    assert torch.bincount(tree.labels).tolist() == [1016, 1016]
    assert tree.labels[:1016].eq(0).all()
    torch.testing.assert_close(tree.class_weights, torch.tensor([0.5, 0.5], dtype=F64))
    assert (tree.shape, tree.num_classes) == ((2,), 2)


def test_every_root_starts_at_the_origin_and_every_child_at_its_parents_end(tree):
    first, last = tree.means[0::8].numpy(), tree.means[7::8].numpy()
    step = (last - first) / 0.86  # means stand at .07 ... .93 of a branch
    start, end = first - 0.07 * step, first + 0.93 * step
    for root in (0, 127):
        np.testing.assert_allclose(start[root], [0.0030 * 1.3136, 0.0325 * 1.3844], atol=1e-12)
        slope = (step[root] / SCALE)[1] / (step[root] / SCALE)[0]
        assert slope == pytest.approx(1, rel=1e-9)  # along the diagonal, up or down
    for parent, child in pairwise(range(7)):  # depth first: the first seven are one path
        np.testing.assert_allclose(start[child], end[parent], atol=1e-12)
    np.testing.assert_allclose(start[7], start[6], atol=1e-12)  # then the last one's sibling


@pytest.mark.parametrize("label", [0, 1])
def test_the_fractal_is_the_published_one(tree, label):
    """By the authors' own code (Karras et al. 2024, toy example), which works in float32."""
    theirs = np.load(REFERENCE / "fractal_published.npz")
    mu, cov, phi = (theirs[f"{'AB'[label]}_{name}"] for name in ("mu", "Sigma", "phi"))
    own = tree.labels == label
    ours = tree.axes[own] @ torch.diag_embed(tree.variances[own]) @ tree.axes[own].mT
    np.testing.assert_allclose(tree.means[own], mu, atol=2e-7)
    np.testing.assert_allclose(ours, cov, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(2 * tree.weights[own], phi, rtol=1e-5)  # classes equally likely
    x, c = torch.from_numpy(theirs["x"]).double(), torch.full((200,), label)
    for sigma in ("0", "0.5", "5"):
        expected = theirs[f"{'AB'[label]}_logp_{sigma}"]
        found = tree.log_density(x, c, float(sigma)).numpy()
        held = expected > -87  # by float32, whose normal numbers end at exp(-87)
        assert held.sum() >= 35
        np.testing.assert_allclose(found[held], expected[held], rtol=1e-5, atol=1e-5)
        assert (found[~held] < -86).all()


def test_the_fractal_has_the_published_moments(tree):
    """Its scale gives mean 0 and deviation 1/2 with the classes not yet made even."""
    share = torch.tensor([0.47701, 1 - 0.47701], dtype=F64)
    means, covariances = zip(*(tree.mean_and_covariance(c) for c in (0, 1)), strict=True)
    means, covariances = torch.stack(means), torch.stack(covariances)
    mean = share @ means
    second = torch.einsum("k,kij->ij", share, covariances + means[:, :, None] * means[:, None])
    std = (second - torch.outer(mean, mean)).diagonal().sqrt()
    assert mean.tolist() == pytest.approx([-0.0001, 0.0006], abs=1e-4)
    assert std.tolist() == pytest.approx([0.4999, 0.4999], abs=1e-4)


def test_the_boundary_runs_from_top_left_to_bottom_right(tree):
    ends = torch.tensor([[0.7, 0.7], [-0.7, -0.7]], dtype=F64)
    posterior = tree.logits(ends, 0.0).softmax(1)
    assert posterior[0, 0] > 0.99
    assert posterior[1, 1] > 0.99
    for c, side in ((0, 1), (1, -1)):
        x = tree.sample(2000, c, keyed("side", c))
        assert (side * x.sum(1) > 0).double().mean() > 0.9
        assert (tree.logits(x, 0.0).argmax(1) == c).double().mean() > 0.98


# One dimension: distribution function and quantiles


def on_a_line():
    """Three Gaussians of class 0, of very different widths and weights, one of 1 and two of 2."""
    return Mixture(
        means=[[-4.0], [0.5], [0.6], [1.0], [2.0], [3.0]],
        stds=[0.3, 0.01, 2.0, 0.2236, 0.5, 0.5],
        labels=[0, 0, 0, 1, 2, 2],
        weights=[0.2, 0.1, 0.3, 0.4, 0.1, 0.4],
    ).truth


def test_cdf_is_the_weighted_sum_of_scipys():
    truth, x = on_a_line(), torch.linspace(-9, 9, 401, dtype=F64)
    parts = ((0.2, -4, 0.3), (0.1, 0.5, 0.01), (0.3, 0.6, 2.0))
    expected = sum(w * scipy.stats.norm.cdf(x.numpy(), m, s) for w, m, s in parts) / 0.6
    np.testing.assert_allclose(truth.cdf(x, 0), expected, rtol=0, atol=1e-12)
    expected = scipy.stats.norm.cdf(x.numpy(), 1.0, 0.2236)
    np.testing.assert_allclose(truth.cdf(x, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", [0, 1, 2])
def test_quantile_inverts_the_cdf(c):
    truth = on_a_line()
    u = torch.cat([torch.logspace(-9, -1, 30, dtype=F64), torch.linspace(0.1, 0.99999, 300)])
    torch.testing.assert_close(truth.cdf(truth.quantile(u, c), c), u, rtol=0, atol=1e-10)
    assert (truth.quantile(u, c).diff() > 0).all()
    expected = scipy.stats.norm.ppf(u.numpy(), 1.0, 0.2236)
    np.testing.assert_allclose(truth.quantile(u, 1), expected, rtol=0, atol=1e-10)


def test_formula_names_the_components_class_by_class():
    pair = Mixture(means=[[-1.0], [1.0]], stds=[0.2236, 0.2236], labels=[0, 1])
    assert pair.formula == "class 0: N(-1, 0.05); class 1: N(1, 0.05)"
    two = Mixture(means=[[0.5], [2.0], [-0.1]], stds=[0.1, 1.0, 0.5], labels=[1, 1, 0])
    assert two.formula == "class 0: N(-0.1, 0.25); class 1: N(0.5, 0.01) + N(2, 1)"
    assert Fractal().formula == ""
