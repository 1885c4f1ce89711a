import time

import numpy as np
import pytest
import scipy.linalg
import torch

from lightning_cfg.errors import UserError
from lightning_cfg.metrics.frechet import Moments, frechet_distance, load_statistics
from lightning_cfg.metrics.torchmetric import FrechetDistance


def draw(n, d, seed, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + offset


def exact_moments(mean, covariance):
    """Moments of a Gaussian itself, as an endless sample would give them."""
    moments = Moments()
    moments.count, moments.mean = 10**9, torch.as_tensor(mean).double()
    moments.scatter = torch.as_tensor(covariance).double() * (10**9 - 1)
    return moments


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_moments_are_numpys_however_they_are_split_and_merged(offset):
    f = draw(9000, 6, 0, offset)  # more than one part of `add`
    whole, merged = Moments().add(f), Moments()
    for part in f.split([1, 0, 2999, 17, 5983]):
        merged.merge(Moments().add(part[: len(part) // 2]).add(part[len(part) // 2 :]))
    for moments in (whole, merged):
        assert moments.count == 9000
        np.testing.assert_allclose(moments.mean, f.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(f.numpy(), rowvar=False), rtol=1e-7)


def test_float32_features_are_summed_in_float64():
    f = torch.full((20_000, 1), 0.1)
    assert Moments().add(f).mean.item() == pytest.approx(f[0].item(), rel=1e-14)
    assert Moments().add(f).covariance.item() < 1e-25


def test_distance_of_gaussians_with_a_closed_form():
    # covariances that commute: |mu - nu|^2 + sum_i (s_i - t_i)^2
    a = exact_moments([1.0, 2.0, 0.0], np.diag([4.0, 1.0, 9.0]))
    b = exact_moments([0.0, 2.0, 2.0], np.diag([1.0, 1.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(5 + (1 + 0 + 2.5**2), rel=1e-12)
    rotation = torch.linalg.qr(draw(3, 3, 1)).Q
    turned = [
        exact_moments(rotation @ m.mean, rotation @ m.covariance @ rotation.T) for m in (a, b)
    ]
    assert frechet_distance(*turned) == pytest.approx(12.25, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_distance_is_that_of_the_matrix_root_and_of_torch_fidelity():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    f, g = draw(500, 24, 2), draw(400, 24, 3, offset=0.5)
    a, b = Moments().add(f), Moments().add(g)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    gap = (a.mean - b.mean).numpy()
    covariances = a.covariance.numpy() + b.covariance.numpy()
    by_root = gap @ gap + np.trace(covariances - 2 * root)
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (f, g)]
    fidelity = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(a, b) == pytest.approx(by_root, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(*fidelity.values(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_few_samples_are_refused_unless_asked_for():
    many, few = Moments().add(draw(50, 8, 4)), Moments().add(draw(8, 8, 5))
    with pytest.raises(UserError, match="more than 8 samples a side, got 8"):
        frechet_distance(many, few)
    root = scipy.linalg.sqrtm(many.covariance.numpy() @ few.covariance.numpy()).real
    gap, trace = many.mean - few.mean, (many.covariance + few.covariance).trace().item()
    expected = (gap @ gap).item() + trace - 2 * np.trace(root)
    assert frechet_distance(many, few, allow_few=True) == pytest.approx(expected, rel=1e-5)
    frechet_distance(many, Moments().add(draw(9, 8, 5)))


@pytest.mark.parametrize("rows", [40, 7, 1])
def test_fewer_samples_than_dimensions_have_the_distance_of_the_subspace_they_span(rows, tmp_path):
    # 40 and 30 samples in 12 dimensions, where they are enough, and turned into 100 others
    f, g = draw(40, 12, 10), draw(30, 12, 11, offset=0.3)
    expected = frechet_distance(Moments().add(f), Moments().add(g))
    turn = torch.linalg.qr(draw(100, 12, 12)).Q.T
    a, b = Moments(), Moments().add(g @ turn)
    for part in (f @ turn).split(rows):
        a.add(part)
    np.testing.assert_allclose(a.covariance, np.cov((f @ turn).T.numpy()), rtol=0, atol=1e-13)
    b.save(tmp_path / "b.npz", {})
    file = load_statistics(tmp_path / "b.npz")[0]  # which has a covariance, and no samples
    for other in (b, file, Moments.from_statistics(b.mean, b.covariance)):
        for pair in ((a, other), (other, a)):
            found = frechet_distance(*pair, allow_few=True)
            assert found == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b, allow_few=True) == pytest.approx(expected, rel=1e-11)
    assert a.factor is not None
    assert len(a.factor) < 80  # 100 of them would take more than the covariance


def test_few_samples_have_torch_fidelitys_distance_in_little_time():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    f, g = draw(60, 90, 13), draw(80, 90, 14, offset=0.5)
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (f, g)]
    fidelity = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    found = frechet_distance(Moments().add(f), Moments().add(g), allow_few=True)
    assert found == pytest.approx(*fidelity.values(), rel=1e-6)
    start = time.process_time()
    wide = [Moments().add(torch.randn(300, 3456, generator=torch.Generator())) for _ in range(2)]
    assert frechet_distance(*wide, allow_few=True) == pytest.approx(0, abs=1e-6)
    assert time.process_time() - start < 5  # 0.2 s; by the covariances 54


def test_samples_enough_and_too_few_merge():
    f = draw(50, 8, 15)
    for parts in ([5, 45], [45, 5], [3, 4, 1, 2, 40], [1] * 50):
        merged = Moments()
        for part in f.split(parts):
            merged.merge(Moments().add(part))
        np.testing.assert_allclose(merged.covariance, np.cov(f.T.numpy()), rtol=1e-12)
        assert merged.factor is None
    few = Moments().add(f[:3])
    held = few.factor.clone()
    Moments().merge(few).add(f[3:])  # what took it in leaves it alone
    assert torch.equal(few.factor, held)


def test_bad_features_are_named():
    good = Moments().add(draw(50, 3, 6))
    bad = draw(50, 3, 7)
    bad[4, 1] = torch.nan
    with pytest.raises(UserError, match="NaN or inf"):
        frechet_distance(good, Moments().add(bad))
    with pytest.raises(UserError, match="NaN or inf"):
        frechet_distance(*[Moments().add(torch.full((3, 9), torch.inf))] * 2, allow_few=True)
    with pytest.raises(UserError, match="3 and 4"):
        frechet_distance(good, Moments().add(draw(50, 4, 7)))
    with pytest.raises(UserError, match="3 and 4"):
        Moments().merge(good).merge(Moments().add(draw(50, 4, 7)))
    with pytest.raises(UserError, match="none"):
        frechet_distance(good, Moments())


def test_metric_reduces_over_ranks_by_sums_alone():
    real, fake = draw(300, 5, 8).float(), draw(200, 5, 9, offset=1.0).float()
    expected = frechet_distance(Moments().add(real), Moments().add(fake))
    ranks = [FrechetDistance(5), FrechetDistance(5)]
    for rank, metric in enumerate(ranks):
        metric.update(real[rank::2], real=True)
        metric.update(fake[rank::2][:30], real=False)
        metric.update(fake[rank::2][30:], real=False)
    states = [m.metric_state for m in ranks]
    total = FrechetDistance(5)
    for name, reduction in total._reductions.items():
        setattr(total, name, reduction(torch.stack([state[name] for state in states])))
    total.update(real[:0], real=True)  # so that compute counts as called after an update
    assert total.compute().item() == pytest.approx(expected, rel=1e-10)
    assert total.compute().dtype == torch.float64
    total.reset()
    assert total.fake_count == 0
    assert total.fake_outer.abs().sum() == 0


def test_metric_refuses_as_the_function_does():
    metric = FrechetDistance(4)
    with pytest.raises(UserError, match=r"\(N, 4\), got \(10, 5\)"):
        metric.update(draw(10, 5, 0), real=True)
    metric.update(draw(10, 4, 0), real=True)
    metric.update(draw(4, 4, 1), real=False)
    with pytest.raises(UserError, match="got 4"):
        metric.compute()
    few = FrechetDistance(4, allow_few=True)
    few.update(draw(10, 4, 0), real=True)
    few.update(draw(4, 4, 1), real=False)
    assert few.compute() > 0
