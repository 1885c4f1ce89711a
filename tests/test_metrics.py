import math

import pytest
import scipy.stats
import torch

from lightning_cfg import metrics
from lightning_cfg.data import Mixture
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.cached import cached_on
from lightning_cfg.metrics.frechet import Moments


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TwoGaussians:
    """A truth small enough to know by heart: class k is N(means[k], I), each with weight 1/2."""

    means = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)

    def __init__(self):
        self.drawn = 0

    def log_density(self, x, c=None, sigma=0.0):
        assert sigma == 0.0
        return -0.5 * (x.double() - self.means[c]).square().sum(1) - math.log(2 * math.pi)

    def logits(self, x, sigma):
        classes = [torch.full((len(x),), k) for k in range(2)]
        return torch.stack([self.log_density(x, c, sigma) for c in classes], 1)

    def sample(self, n, c, generator):
        self.drawn += 1
        return self.means[c] + torch.randn(n, 2, generator=generator, dtype=torch.float64)


def test_each_metric_asks_by_name_for_what_evaluate_has():
    plain = {"x", "y", "bank", "c", "truth", "quantile", "logits", "cosine"}
    for name in metrics.__all__:
        needed = metrics.needs(getattr(metrics, name))
        assert needed <= plain or needed <= metrics.OF_A_SPACE, name
        assert needed & {"x", "logits", "cosine", "features_x", "moments_x", "head_logits"}, name
    assert metrics.needs(metrics.recall) == {"x", "y"}  # k has a default
    assert metrics.needs(metrics.outliers) == {"x", "c", "truth"}
    assert not any("truth" in metrics.needs(getattr(metrics, name)) for name in metrics.IMAGES)


def test_all_default_metrics_give_finite_columns_of_distinct_names():
    truth, g = TwoGaussians(), torch.Generator().manual_seed(0)
    have = {name: truth.sample(200, 1, g).float() for name in ("x", "y", "bank")}
    have |= {"c": 1, "truth": truth, "quantile": lambda u, c: torch.special.ndtri(u)}
    have |= {f"moments_{side}": Moments().add(have[side]) for side in ("x", "y")}
    have["cosine"] = torch.rand(200, generator=g)
    have["logits"] = -(have["x"][:, None] - truth.means.float()).square().sum(-1)
    for names in (metrics.MIXTURE, metrics.IMAGES):
        rows = []
        for metric in (getattr(metrics, name) for name in names):
            rows += metric(**{name: have[name] for name in metrics.needs(metric)}).items()
        assert len({name for name, _ in rows}) == len(rows)
        assert all(isinstance(value, float) and math.isfinite(value) for _, value in rows)


def test_frechet_of_shifted_copies_is_the_squared_shift():
    y = normal(500, 1, 2, 2)
    assert metrics.frechet(y + 0.5, y)["frechet"] == pytest.approx(4 * 0.25, rel=1e-4)
    with pytest.raises(UserError, match="more than 4 samples a side, got 4"):
        metrics.frechet(y[:4], y)
    assert metrics.frechet(y[:4], y, allow_few=True)["frechet"] > 0


def test_frechet_features_is_frechet_in_the_features():
    x, y = normal(700, 3), normal(600, 3, seed=1)
    expected = metrics.frechet(x, y)["frechet"]
    moments = Moments().add(x), Moments().add(y)
    assert metrics.frechet_features(*moments)["fd"] == pytest.approx(expected, rel=1e-12)
    few = Moments().add(x[:3])
    with pytest.raises(UserError, match="more than 3 samples a side, got 3"):
        metrics.frechet_features(few, moments[1])
    assert metrics.frechet_features(few, moments[1], allow_few=True)["fd"] > 0


def test_what_real_points_alone_decide_is_worked_out_once():
    seen = []

    def compute():
        seen.append(1)
        return len(seen)

    y = normal(5, 2)
    assert [cached_on(y, "how", compute) for _ in range(3)] == [1, 1, 1]
    assert cached_on(y.clone(), "how", compute) == 2  # other points, though equal
    y += 1  # written into: what was known of it no longer holds
    assert cached_on(y, "how", compute) == 3


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_energy_distance_is_the_double_loop(offset):
    x, y = normal(1100, 2) * 1.5 + offset, normal(40, 2, seed=1) + offset
    mean = {
        name: sum(math.dist(p, q) for p in a.tolist() for q in b.tolist()) / pairs
        for name, a, b, pairs in (
            ("xy", x, y, 1100 * 40),
            ("xx", x, x, 1100 * 1099),
            ("yy", y, y, 40 * 39),
        )
    }
    expected = 2 * mean["xy"] - mean["xx"] - mean["yy"]
    for _ in range(2):  # the second time with E|Y - Y'| remembered
        found = metrics.energy_distance(x, y)["energy_distance"]
        assert found == pytest.approx(expected, abs=1e-6)


def test_energy_distance_is_unbiased_about_zero_and_grows_apart():
    same = [
        metrics.energy_distance(normal(50, 2, seed=2 * i), normal(50, 2, seed=2 * i + 1))
        for i in range(100)
    ]
    same = torch.tensor([row["energy_distance"] for row in same])
    error = same.std() / 100**0.5  # 0.002; the biased means would be about 0.07 above zero
    assert same.mean().abs() < 4 * error
    assert (same < 0).any()
    # in one dimension, two points of mass a apart: 2 a
    far = metrics.energy_distance(torch.zeros(5, 1), torch.full((3, 1), 7.0))
    assert far["energy_distance"] == pytest.approx(14)
    with pytest.raises(UserError, match="at least 2 points a side, got 1"):
        metrics.energy_distance(torch.zeros(1, 1), torch.zeros(5, 1))


def test_negative_log_density_of_real_points_is_the_entropy():
    truth = TwoGaussians()
    x = truth.sample(200_000, 1, torch.Generator().manual_seed(0))
    row = metrics.negative_log_density(x, 1, truth)
    # |z|^2 is chi-squared with 2 degrees of freedom: mean 2, median 2 ln 2
    assert row["nll_mean"] == pytest.approx(1 + math.log(2 * math.pi), abs=0.01)
    assert row["nll_median"] == pytest.approx(math.log(2) + math.log(2 * math.pi), abs=0.01)
    other = metrics.negative_log_density(x, 0, truth)["nll_mean"]
    assert other == pytest.approx(row["nll_mean"] + 4.5, abs=0.05)  # + |mu_1 - mu_0|^2 / 2


def test_outliers_are_what_one_real_point_in_a_thousand_is():
    truth = TwoGaussians()
    x = truth.sample(500_000, 1, torch.Generator().manual_seed(3))
    assert metrics.outliers(x, 1, truth)["outliers"] == pytest.approx(1e-3, rel=0.35)
    drawn = truth.drawn
    radius = math.sqrt(2 * math.log(1000))  # 3.717, where P(|z| > r) = 1/1000
    ring = radius * torch.tensor([[0.0, 0.9], [-0.9, 0.0], [0.0, 1.1], [1.1, 0.0], [-1.1, 0.0]])
    assert metrics.outliers(ring, 0, truth)["outliers"] == pytest.approx(0.6)
    assert metrics.outliers(ring + truth.means[1], 1, truth)["outliers"] == pytest.approx(0.6)
    assert truth.drawn == drawn + 1  # class 0's; class 1's threshold was known


def test_wrong_class_is_the_share_beyond_the_boundary():
    truth = TwoGaussians()  # the boundary is at 1.5 along the first axis
    x = torch.tensor([[1.0, 0.0], [1.4, 9.0], [1.6, 0.0], [4.0, 0.0]])
    assert metrics.wrong_class(x[:3], 0, truth)["wrong_class"] == pytest.approx(1 / 3)
    assert metrics.wrong_class(x, 1, truth)["wrong_class"] == pytest.approx(1 / 2)
    real = truth.sample(100_000, 0, torch.Generator().manual_seed(0))
    bayes = 0.5 * math.erfc(1.5 / math.sqrt(2))
    assert metrics.wrong_class(real, 0, truth)["wrong_class"] == pytest.approx(bayes, rel=0.05)


def test_nearest_real_is_the_mean_of_the_distances_not_of_their_squares():
    y = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[0.0, 3.0], [4.0, 0.0], [10.0, 0.0], [11.0, 0.0]])
    assert metrics.nearest_real(x, y)["nearest_real"] == pytest.approx(2.0)


def test_recall_is_one_for_the_same_points_and_none_far_away():
    x = normal(300, 1, 2, 2)
    assert metrics.recall(x, x.clone())["recall"] == 1
    assert metrics.recall(x.repeat(7, 1, 1, 1), x)["recall"] == 1  # every ball has radius 0
    assert metrics.recall(x + 1000, x)["recall"] == 0
    half = metrics.recall(x, torch.cat([x, x + 1000]))
    assert half["recall"] == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"k = 5 .* got 5"):
        metrics.recall(x[:5], x)


def test_recall_is_the_papers_formula():
    x, y = normal(80, 2) * 0.7, normal(700, 2, seed=1)
    for k in (1, 5):
        radius = torch.cdist(x, x).sort(dim=1).values[:, k]
        covered = (torch.cdist(y, x) <= radius).any(1).double().mean().item()
        assert 0.3 < covered < 0.99
        assert metrics.recall(x, y, k=k)["recall"] == pytest.approx(covered, abs=1e-9)


def test_recall_counts_real_points_not_samples():
    cluster = normal(100, 2) * 0.01
    y = torch.cat([cluster, cluster + 50])  # two modes, of which the samples know one
    assert metrics.recall(cluster, y)["recall"] == pytest.approx(0.5)
    assert metrics.recall(y, cluster)["recall"] == 1


def test_effective_targets_counts_the_bank_points_that_are_used():
    bank = 10 * torch.arange(8.0)[:, None]
    assert metrics.effective_targets(bank + 1, bank)["effective_targets"] == pytest.approx(8)
    one = metrics.effective_targets(torch.ones(50, 1), bank)
    assert one["effective_targets"] == pytest.approx(1)
    uneven = bank[[0, 0, 0, 5]]  # shares 3/4 and 1/4
    expected = (4 / 3) ** 0.75 * 4**0.25
    assert metrics.effective_targets(uneven, bank)["effective_targets"] == pytest.approx(expected)


def test_class_accuracy_and_confidence_of_logits():
    p = torch.tensor([[0.1, 0.7, 0.2]]).repeat(1000, 1)
    p[700:] = torch.tensor([0.2, 0.3, 0.5])  # read as class 2, the others as class 1
    logits = p.log() + 3  # any constant
    assert metrics.class_accuracy(logits, 1)["class_accuracy"] == pytest.approx(0.7)
    assert metrics.class_accuracy(logits, 2)["class_accuracy"] == pytest.approx(0.3)
    assert metrics.confidence(logits, 1)["confidence"] == pytest.approx(0.7 * 0.7 + 0.3 * 0.3)
    c = torch.tensor([1, 2]).repeat_interleave(torch.tensor([700, 300]))
    assert metrics.class_accuracy(logits, c)["class_accuracy"] == 1
    assert metrics.confidence(logits, c)["confidence"] == pytest.approx(0.7 * 0.7 + 0.3 * 0.5)


LINE = {"means": [[-1.0], [2.0], [0.3]], "stds": [0.2, 0.5, 0.4], "labels": [0, 0, 1]}


@pytest.fixture(scope="module")
def line():
    """A class of two Gaussians, of weights 1/4 and 3/4, and a class of one, in one dimension."""
    return Mixture(**LINE, weights=[0.25, 0.75, 1.0]).truth


@pytest.mark.parametrize("c", [0, 1])
def test_wasserstein_is_scipys_to_a_fine_grid_of_quantiles(line, c):
    grid = line.quantile((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000, c)
    for x in (
        line.sample(2000, 1 - c, torch.Generator().manual_seed(0)),  # the other class's
        line.sample(2000, c, torch.Generator().manual_seed(0)) * 1.1 - 0.1,
        normal(2000, 1) * 3,
    ):
        expected = scipy.stats.wasserstein_distance(x.flatten().numpy(), grid.numpy())
        found = metrics.wasserstein(x, c, line.quantile)["wasserstein"]
        assert found == pytest.approx(expected, abs=1e-3)
        assert expected > 0.05


@pytest.mark.parametrize("c", [0, 1])
@pytest.mark.parametrize("shift", [-0.7, 0.0, 1e-3])
def test_wasserstein_of_a_shift_is_the_shift(line, c, shift):
    n = 301
    x = line.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n, c) + shift
    x = x[torch.randperm(n, generator=torch.Generator().manual_seed(0)), None]
    found = metrics.wasserstein(x, c, line.quantile)["wasserstein"]
    assert found == pytest.approx(abs(shift), abs=1e-12)


def test_wasserstein_of_fresh_draws_is_the_sampling_error(line):
    """E W1 = sqrt(2 / pi) s / sqrt(n) times the integral of sqrt(Phi (1 - Phi)): 1.288 s / sqrt(n).

    The limit of large n (del Barrio, Giné & Matrán 1999).
    """
    g, n = torch.Generator().manual_seed(0), 500
    found = torch.tensor(
        [
            metrics.wasserstein(line.sample(n, 1, g), 1, line.quantile)["wasserstein"]
            for _ in range(300)
        ]
    )
    error = 4 * found.std() / 300**0.5  # 8 % of the mean
    assert found.mean().item() == pytest.approx(1.288 * 0.4 / n**0.5, abs=error.item())
