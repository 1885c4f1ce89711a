"""Metrics in feature spaces against torch-fidelity, float64 by brute force, and closed forms."""

import json
import math
import pickle
import re
from datetime import timedelta
from pathlib import Path

import faiss
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, distributed

from lightning_cfg import metrics
from lightning_cfg.errors import UserError
from lightning_cfg.metrics import manifold
from lightning_cfg.metrics.frechet import Moments, frechet_distance, load_statistics
from lightning_cfg.metrics.torchmetric import FrechetDistance
from lightning_cfg.refinement import neighbours
from lightning_cfg.refinement.neighbours import nearest
from lightning_cfg.runs.inert_pickle import open_pickle
from lightning_cfg.runs.pickled import array, mapping


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inception_like(n, d, *, spread=1.0, seed=0):
    """Features as Inception has them: correlated, none below zero, with a large common mean."""
    mix = normal(d, d, seed=99) * torch.exp(-torch.arange(d) / 40) / d**0.5
    f = spread * normal(n, d, seed=seed) @ mix + 0.1 * spread * normal(n, d, seed=seed + 1000)
    return (f + torch.linspace(-0.2, 1.5, d)).clamp(min=0)


# The Fréchet distance


@pytest.mark.parametrize("d", [8, 100])
def test_frechet_is_torch_fidelitys(d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = inception_like(900, d, spread=1.3, seed=1), inception_like(800, d, seed=2)
    statistics = [fid_features_to_statistics(features) for features in (x, y)]
    (expected,) = fid_statistics_to_metric(*statistics, verbose=False).values()
    found = metrics.frechet_features(Moments().add(x), Moments().add(y))["fd"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 0.1


def test_frechet_of_gaussians_whose_covariances_do_not_commute():
    # in two dimensions the eigenvalues of S T have a product and a sum, and so their roots have:
    # tr (S T)^(1/2) = (tr S T + 2 (det S T)^(1/2))^(1/2)
    s = torch.tensor([[4.0, 1.5], [1.5, 1.0]], dtype=torch.float64)
    t = torch.tensor([[0.5, -0.3], [-0.3, 2.0]], dtype=torch.float64)
    assert (s @ t - t @ s).abs().max() > 1
    root = math.sqrt((s @ t).trace() + 2 * math.sqrt(torch.linalg.det(s @ t)))
    a = Moments.from_statistics(torch.tensor([1.0, 2.0]), s)
    b = Moments.from_statistics(torch.tensor([-2.0, 6.0]), t)
    expected = 25 + (s + t).trace().item() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def eigendecompositions(monkeypatch):
    """How often the fallback of the Cholesky factor is taken."""
    seen = []

    def counted(matrix, original=torch.linalg.eigh):
        seen.append(len(matrix))
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return seen


def by_roots(a, b):
    """The distance by scipy's matrix root of S_b^(1/2) S_a S_b^(1/2), in float64."""
    s, t = a.covariance.numpy(), b.covariance.numpy()
    half = scipy.linalg.sqrtm(t).real
    root = scipy.linalg.sqrtm(half @ s @ half).real
    return ((a.mean - b.mean) @ (a.mean - b.mean)).item() + np.trace(s + t - 2 * root)


@pytest.mark.parametrize("decades", [0, 6, 10, 14, 17, 20])
def test_covariances_of_any_condition(decades, eigendecompositions):
    """Regular ones take the Cholesky factor alone; either way is good where they nearly are not.

    tr (S T)^(1/2) is the sum of the singular values of A^T B, where S = A A^T and T = B B^T: an
    oracle that takes no root of rounding.
    """
    sides, factors = [], []
    for seed in (3, 4):
        turn = torch.linalg.qr(normal(30, 30, seed=seed).double()).Q
        factor = turn * torch.logspace(0, -decades / 2, 30, dtype=torch.float64)
        sides.append(Moments.from_statistics(normal(30, seed=seed + 2), factor @ factor.T))
        factors.append(factor)
    a, b = sides
    gap, trace = a.mean - b.mean, (a.covariance + b.covariance).trace()
    root = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    found = frechet_distance(a, b)
    assert found == pytest.approx((gap @ gap + trace - 2 * root).item(), rel=1e-9)
    assert found == pytest.approx(by_roots(a, b), rel=1e-8)
    if decades <= 14:
        assert eigendecompositions == []


@pytest.mark.parametrize("n, m", [(10, 12), (20, 500), (500, 20), (40, 40)])
def test_singular_covariances_take_the_fallback(n, m, eigendecompositions):
    """With 40 dimensions: fewer samples than these, on either side or on both, as samples and, as
    files have them, as covariances, where alone it is needed.

    The oracle is that of above: the factors are X^T / (n - 1)^(1/2) and Y^T / (m - 1)^(1/2), with
    the centred features in the rows of X and Y.
    """
    x = normal(n, 40, seed=5).double() @ normal(40, 40, seed=6).double()
    y = normal(m, 40, seed=7).double() + 0.3
    a, b = Moments().add(x), Moments().add(y)
    gap, trace = a.mean - b.mean, (a.covariance + b.covariance).trace()
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / math.sqrt((n - 1) * (m - 1))
    expected = (gap @ gap + trace - 2 * torch.linalg.svdvals(product).sum()).item()
    whole = [Moments.from_statistics(s.mean, s.covariance, s.count) for s in (a, b)]
    for sides, few in (((a, b), []), (whole, [40] if n <= 40 else [])):
        eigendecompositions.clear()
        found = frechet_distance(*sides, allow_few=True)
        assert eigendecompositions == few
        assert found == pytest.approx(expected, rel=1e-8)
        assert found == pytest.approx(by_roots(a, b), rel=1e-7)
    with pytest.raises(UserError, match=f"more than 40 samples a side, got {min(n, m)}"):
        frechet_distance(a, b)


def test_features_that_never_vary_take_the_fallback(eigendecompositions):
    """Dead units, as Inception has some: they count with their means alone."""
    x, y = normal(200, 6).double() * 2, normal(300, 6, seed=1).double()
    dead_x, dead_y = torch.full((200, 2), 0.25), torch.full((300, 2), 0.75)
    alive = frechet_distance(Moments().add(x), Moments().add(y))
    a = Moments().add(torch.cat([dead_x.double(), x], 1))
    b = Moments().add(torch.cat([dead_y.double(), y], 1))
    assert eigendecompositions == []
    assert frechet_distance(a, b) == pytest.approx(alive + 2 * 0.25, rel=1e-9)
    assert eigendecompositions == [8]


@pytest.mark.parametrize("seed", range(3))
def test_moments_merged_over_random_splits_are_those_of_all(seed):
    f = inception_like(3000, 12, seed=seed)
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, 3001, 7))
    parts = [Moments().add(part) for part in f.tensor_split(cuts.tolist())]
    merged = Moments()
    for i in random.permutation(8):
        merged.merge(parts[i])
    assert merged.count == 3000
    numpy = f.double().numpy()
    np.testing.assert_allclose(merged.mean, numpy.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(numpy, rowvar=False), rtol=0, atol=1e-14)


# Several processes

RANKS = 3
PARTS = (70, 0, 50)  # how many of the real features each process holds


def features_of_all() -> tuple[Tensor, Tensor]:
    return inception_like(120, 9, seed=3) + 50, inception_like(60, 9, spread=1.2, seed=4) + 50


def part_of_rank(rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Uneven parts; of two processes the second takes what the third of three has."""
    real, fake = features_of_all()
    parts = [*PARTS[: ranks - 1], sum(PARTS[ranks - 1 :])]
    return real.split(parts)[rank], fake[rank::ranks]


def as_one_of_many(rank: int, folder: str) -> None:
    """What each of three processes does, then each of two: writes down what it finds."""
    torch.set_num_threads(1)
    for ranks in (RANKS, 2):
        if rank >= ranks:
            return
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting_{ranks}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
        real, fake = part_of_rank(rank, ranks)
        moments = Moments().add(real) if len(real) else Moments()
        same = moments.all_reduce() is moments
        found = {"same": same, "count": moments.count, "mean": moments.mean}
        found["covariance"] = moments.covariance
        found["none"] = Moments().all_reduce().count
        metric = FrechetDistance(9)
        for features, is_real in ((real, True), (fake, False)):
            for part in features.split(13):
                metric.update(part, real=is_real)
        found["distance"] = metric.compute()
        found["counts"] = int(metric.real_count), int(metric.fake_count)  # its own, after the sync
        few = Moments().add(normal(4 - rank, 9, seed=rank)).all_reduce()  # 9 = d of 3 ranks
        found["few"], found["factor"] = few.covariance, few.factor is not None
        try:
            Moments().add(normal(20, 9 if rank else 5)).all_reduce()
        except UserError as error:
            found["refusal"] = str(error)
        torch.save(found, Path(folder, f"{ranks}_{rank}.pt"))
        distributed.barrier()
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found_by_ranks(tmp_path_factory) -> dict[tuple[int, int], dict]:
    """{(ranks, rank): what it found}, of real processes over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    # copies of one fresh process, which has to import everything only once
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["lightning_cfg.metrics"]
    )
    torch.multiprocessing.start_processes(
        as_one_of_many, args=(str(folder),), nprocs=RANKS, start_method="forkserver"
    )
    return {
        (ranks, rank): torch.load(folder / f"{ranks}_{rank}.pt")
        for ranks in (2, RANKS)
        for rank in range(ranks)
    }


@pytest.mark.parametrize("ranks", [2, RANKS])
def test_moments_of_several_processes_are_those_of_one(found_by_ranks, ranks):
    expected = Moments().add(features_of_all()[0])
    for rank in range(ranks):
        found = found_by_ranks[ranks, rank]
        assert found["same"]
        assert found["count"] == 120
        torch.testing.assert_close(found["mean"], expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(found["covariance"], expected.covariance, rtol=0, atol=1e-14)
        assert found["none"] == 0  # where no process has any
        few = torch.cat([normal(4 - other, 9, seed=other) for other in range(ranks)])
        np.testing.assert_allclose(found["few"], np.cov(few.double().T.numpy()), atol=1e-14)
        assert found["factor"] == (ranks == 2)  # with a row for each rank's mean 9, and then 12


@pytest.mark.parametrize("ranks", [2, RANKS])
def test_the_metric_on_several_processes_is_that_of_one(found_by_ranks, ranks):
    one = FrechetDistance(9)
    for features, is_real in zip(features_of_all(), (True, False), strict=True):
        one.update(features, real=is_real)
    expected = one.compute().item()
    moments = [Moments().add(features) for features in features_of_all()]
    # the metric's plain sums lose (50 / 0.1)^2 * 1e-16 of the smallest deviations
    assert expected == pytest.approx(frechet_distance(*moments), rel=1e-8)
    for rank in range(ranks):
        found = found_by_ranks[ranks, rank]
        assert found["distance"].item() == pytest.approx(expected, rel=1e-9)
        assert found["distance"].dtype == torch.float64
        real, fake = part_of_rank(rank, ranks)
        assert found["counts"] == (len(real), len(fake))


@pytest.mark.parametrize("ranks", [2, RANKS])
def test_processes_with_features_of_several_sizes_are_all_told(found_by_ranks, ranks):
    for rank in range(ranks):
        assert found_by_ranks[ranks, rank]["refusal"].endswith("features of several sizes, [5, 9]")


def test_all_reduce_in_one_process_changes_nothing():
    moments = Moments().add(normal(10, 3))
    mean, scatter = moments.mean.clone(), moments.scatter.clone()
    assert moments.all_reduce() is moments
    assert moments.count == 10
    assert torch.equal(moments.mean, mean)
    assert torch.equal(moments.scatter, scatter)


# Statistics in files


def test_statistics_come_back_as_they_were_saved(tmp_path):
    moments = Moments().add(inception_like(50, 7))
    about = {"split": "held_out", "space": {"extractor": "Inception-v3 (2015)", "größe": 299}}
    for name in ("statistics.npz", "statistics"):  # numpy itself would add .npz
        path = moments.save(tmp_path / name, about)
        assert path == tmp_path / name
        found, said = load_statistics(str(path))
        assert said == about
        assert found.count == 50
        assert torch.equal(found.mean, moments.mean)
        torch.testing.assert_close(found.covariance, moments.covariance, rtol=1e-15, atol=0)
        found.merge(Moments().add(inception_like(30, 7, seed=5)))  # and more can be taken in
        whole = moments.from_statistics(moments.mean, moments.covariance, 50)
        assert found.count == whole.count + 30
    with np.load(tmp_path / "statistics.npz") as file:  # as EDM's fid.py reads it
        np.testing.assert_array_equal(file["mu"], moments.mean.numpy())
        np.testing.assert_allclose(file["sigma"], moments.covariance.numpy(), rtol=1e-15)
        assert json.loads(str(file["about"])) == about


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_statistics_in_edms_layout(tmp_path, dtype):
    x, y = inception_like(400, 16, spread=1.3), inception_like(300, 16, seed=1)
    mu, sigma = x.double().numpy().mean(0), np.cov(x.numpy(), rowvar=False)
    np.savez(tmp_path / "edm.npz", mu=mu.astype(dtype), sigma=sigma.astype(dtype))
    found, about = load_statistics(tmp_path / "edm.npz")
    assert about is None
    expected = frechet_distance(Moments().add(x), Moments().add(y))
    distance = frechet_distance(found, Moments().add(y))  # it does not say how many it is of
    assert distance == pytest.approx(expected, rel=1e-12 if dtype == np.float64 else 1e-5)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_statistics(path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


EDM2 = Path(__file__).parent / "reference" / "edm2"


def test_edm2s_statistics_are_read_without_running_their_pickle():
    """Written in the layout of EDM2's own, of random numbers, beside the same ones as an npz."""
    path = EDM2 / "edm2_statistics_layout.pkl"
    held = mapping(open_pickle(path))
    with np.load(EDM2 / "edm2_statistics_layout.npz") as known:
        assert held["num_images"] == known["num_images"] == 1_281_167
        for name in ("fid", "fd_dinov2"):
            for key in ("mu", "sigma"):
                found = array(mapping(held[name])[key])
                np.testing.assert_array_equal(found, known[f"{name}_{key}"])
    assert "sigma is not symmetric" in refusal(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f8"])
def test_statistics_in_a_pickle_of_any_protocol(tmp_path, protocol, dtype):
    y = Moments().add(inception_like(300, 5))  # EDM2's layout: {"fid": {"mu", "sigma"}, ...}
    fid = {"mu": y.mean.numpy().astype(dtype), "sigma": y.covariance.numpy().astype(dtype)}
    fid["sigma"] = np.asfortranarray(fid["sigma"])
    other = {"mu": np.zeros(3), "sigma": np.eye(3)}
    path = tmp_path / "img64.pkl"
    path.write_bytes(pickle.dumps({"fid": fid, "fd_dinov2": other}, protocol))
    found, about = load_statistics(path)
    assert about is None
    exact = dict(rtol=1e-6 if dtype == np.float32 else 1e-14, atol=0)
    torch.testing.assert_close(found.mean, y.mean, **exact)
    torch.testing.assert_close(found.covariance, y.covariance, **exact)
    assert load_statistics(path, "fd_dinov2")[0].covariance.equal(torch.eye(3).double())
    with pytest.raises(UserError, match="has no statistics kid; it has fid, fd_dinov2"):
        load_statistics(path, "kid")


def test_odd_pickles_of_statistics_are_named(tmp_path):
    path = tmp_path / "a.pkl"
    for held, reason in (
        ({"fid": {"mu": OBJECTS, "sigma": np.eye(3)}}, "numbers of the kind 'O8' are not read"),
        ({"fid": {"mu": "x", "sigma": np.eye(3)}}, "'x' stands where an array should"),
        ({"fid": GOOD | {"sigma": HOLED}}, "holds NaN or infinity"),
        ({"fid": GOOD | {"sigma": np.eye(4)}}, "mu and sigma have shapes"),
        ([1, 2], "has no statistics fid; it has none"),
    ):
        path.write_bytes(pickle.dumps(held))
        assert reason in refusal(path)
    whole = pickle.dumps({"fid": GOOD})
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated or no pickle" in refusal(path)


def npz(path: Path, **arrays: object) -> bytes:
    np.savez(path, **arrays)
    return path.read_bytes()


GOOD = {"mu": np.arange(3.0), "sigma": np.eye(3)}
HOLED = np.eye(3)
HOLED[1, 2] = np.nan
OBJECTS = np.array([1.0, None, "x"], dtype=object)
BAD_STATISTICS = {
    "objects": (GOOD | {"mu": OBJECTS}, "Object arrays cannot be loaded"),
    "no sigma": ({"mu": np.zeros(3), "cov": np.eye(3)}, "has no mu and sigma; it holds mu, cov"),
    "not square": (GOOD | {"sigma": np.zeros((3, 4))}, r"shapes \(3,\) and \(3, 4\)"),
    "other size": (GOOD | {"sigma": np.eye(4)}, r"shapes \(3,\) and \(4, 4\), not \(d,\)"),
    "transposed": ({"mu": np.eye(3), "sigma": np.zeros(3)}, r"shapes \(3, 3\) and \(3,\)"),
    "a number": ({"mu": np.float64(1), "sigma": np.float64(1)}, r"shapes \(\) and \(\)"),
    "NaN": (GOOD | {"sigma": HOLED}, "holds NaN or infinity"),
    "infinity": (GOOD | {"mu": np.array([0, np.inf, 0])}, "holds NaN or infinity"),
    "words": (GOOD | {"mu": np.array(["a", "b", "c"])}, "could not convert"),
    "counts": (GOOD | {"count": np.array([5, 6])}, "no npz of mu and sigma"),
    "about": (GOOD | {"about": np.str_("{")}, "no npz of mu and sigma"),
}


@pytest.mark.parametrize("case", BAD_STATISTICS)
def test_an_npz_of_something_else_is_named(tmp_path, case):
    arrays, reason = BAD_STATISTICS[case]
    npz(tmp_path / "file.npz", **arrays)
    assert re.search(reason, refusal(tmp_path / "file.npz"))


def test_what_is_no_npz_is_named(tmp_path):
    path = tmp_path / "file.npz"
    whole = npz(path, **GOOD)
    for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated or no npz" in refusal(path)
    path.write_text("<html>Please log in</html>")
    assert "truncated or no npz" in refusal(path)
    path.write_bytes(pickle.dumps(GOOD))
    assert "truncated or no npz" in refusal(path)
    assert "no such file" in refusal(tmp_path / "absent.npz")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["file.npy", "file.npz"])
def test_an_npy_is_named(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        np.save(file, np.eye(3))
    assert "no npz of mu and sigma" in refusal(tmp_path / name)


def test_a_compressed_npz_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "file.npz"
    np.savez_compressed(path, mu=normal(3).numpy(), sigma=np.eye(3))
    assert torch.equal(load_statistics(path)[0].mean, normal(3).double())
    whole = bytearray(path.read_bytes())
    at = whole.index(b"mu.npy") + len("mu.npy") + 20  # the first compressed bytes, behind a field
    whole[at : at + 8] = bytes(255 - byte for byte in whole[at : at + 8])
    path.write_bytes(whole)
    assert "truncated or no npz" in refusal(path)


# The limit of endless samples


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.1, 1.0), (0.0, 1.1), (0.2, 0.9)])
def test_frechet_infinity_is_the_gaussians_own_distance(shift, scale):
    d, n = 48, 1500
    y = Moments.from_statistics(torch.zeros(d), torch.eye(d))
    exact = d * (shift**2 + (scale - 1) ** 2)
    errors, plain = [], []
    for seed in range(3):
        x = scale * normal(n, d, seed=seed) + shift
        errors.append(metrics.frechet_infinity(x, y)["fd_infinity"] - exact)
        plain.append(frechet_distance(Moments().add(x), y) - exact)
    # the bias of the plain distance is about d (d + 1) / 4n + tr S / n; of the limit, what n leaves
    assert np.mean(plain) > 0.35
    assert abs(np.mean(errors)) < 0.1 * np.mean(plain)


def test_frechet_infinity_is_the_intercept_and_always_the_same(monkeypatch):
    """Where the distance were exactly a + b / N, it would be exactly a."""
    x, y = normal(700, 20), Moments().add(normal(800, 20, seed=1))
    state = torch.get_rng_state()
    first = metrics.frechet_infinity(x, y)
    torch.rand(3)
    assert metrics.frechet_infinity(x.clone(), y) == first
    assert metrics.frechet_infinity(x, y, points=7) != first
    torch.set_rng_state(state)
    metrics.frechet_infinity(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    sizes = []

    def linear(a: Moments, b: Moments) -> float:
        sizes.append(a.count)
        return 0.3 + 17 / a.count

    monkeypatch.setattr("lightning_cfg.metrics.distances.frechet_distance", linear)
    assert metrics.frechet_infinity(x, y)["fd_infinity"] == pytest.approx(0.3, rel=1e-12)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 70, 700)
    assert set(np.diff(sizes)) == {45}
    sizes.clear()
    metrics.frechet_infinity(x[:36], y)  # a tenth of them would not be above d
    assert (sizes[0], sizes[-1]) == (21, 36)


def test_frechet_infinity_refuses_what_it_cannot_fit():
    x, y = normal(700, 20), Moments().add(normal(800, 20, seed=1))
    with pytest.raises(UserError, match="more than 35 samples, got 35"):
        metrics.frechet_infinity(x[:35], y)
    with pytest.raises(UserError, match="at least 2 points, not 1"):
        metrics.frechet_infinity(x, y, points=1)


# The kernel distance


def kernel_distances(x, y, *, subsets, size):
    """MMD^2 of (f.g / d + 1)^3 over torch-fidelity's subsets, each in plain float64."""
    x, y = x.double().numpy(), y.double().numpy()
    random, found = np.random.RandomState(2020), []

    def k(f, g):
        return (f @ g.T / f.shape[1] + 1) ** 3

    for _ in range(subsets):
        f = x[random.choice(len(x), size, replace=False)]
        g = y[random.choice(len(y), size, replace=False)]
        within = sum(k(a, a).sum() - np.trace(k(a, a)) for a in (f, g))
        found.append(within / (size * (size - 1)) - 2 * k(f, g).mean())
    return np.mean(found), np.std(found)


def inception_pair(spread, d=256, spread_y=1.0):
    return (
        inception_like(1200, d, spread=spread),
        inception_like(1100, d, spread=spread_y, seed=1),
    )


KERNEL_CASES = {
    "normal": lambda: (normal(1200, 64) + 0.3, normal(1100, 64, seed=1)),
    "inception": lambda: inception_pair(1.2),
    "of 2048": lambda: inception_pair(1.5, d=2048),
    "far out": lambda: (normal(1200, 64) + 1000.3, normal(1100, 64, seed=1) + 1000),
    "same normal": lambda: (normal(1200, 64), normal(1100, 64, seed=1)),
    "same inception": lambda: inception_pair(0.3, spread_y=0.3),
    "same far out": lambda: (normal(1200, 64) + 30, normal(1100, 64, seed=1) + 30),
    "of two sizes": lambda: (normal(450, 64), normal(1100, 64, seed=1) * 1.1),
}


@pytest.mark.parametrize("case", KERNEL_CASES)
def test_kernel_distance_is_that_of_float64(case):
    """To 1e-6 of itself; where both are one distribution, to 1e-6 of its deviation.

    There it crosses zero (in `same inception` it is 1e-5, where k itself is about 5), so it has no
    digits of its own: how much one subset's differs from another's is what there is to be small to.
    """
    x, y = KERNEL_CASES[case]()
    ours = metrics.kernel_distance(x, y, subsets=6, size=400)
    mean, deviation = kernel_distances(x, y, subsets=6, size=400)
    scale = deviation if case.startswith("same") else abs(mean)
    assert abs(ours["kd"] - mean) < 1e-6 * scale
    assert ours["kd_std"] == pytest.approx(deviation, rel=1e-6)
    if case.startswith("same"):
        assert abs(mean) < 3 * deviation
    if case == "same inception":
        assert abs(mean) < 2e-5


@pytest.mark.parametrize("case", ["normal", "inception"])
def test_kernel_distance_is_torch_fidelitys_to_its_float32(case):
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = KERNEL_CASES[case]()
    ours = metrics.kernel_distance(x, y, subsets=6, size=400)
    how = {"kid_subsets": 6, "kid_subset_size": 400, "verbose": False}
    theirs = kid_features_to_metric(x, y, **how)
    assert ours["kd"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["kd_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-2)


def test_kernel_distance_with_a_closed_form():
    # k(a, a) + k(b, b) - 2 k(a, b) of a = (1, 0) and b = (0, 2): 1.5^3 + 3^3 - 2
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    row = metrics.kernel_distance(a.expand(30, 2), b.expand(40, 2), subsets=3, size=20)
    assert row["kd"] == pytest.approx(28.375, rel=1e-12)
    assert row["kd_std"] == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_unbiased_about_zero():
    found = [
        metrics.kernel_distance(normal(60, 5, seed=2 * i), normal(60, 5, seed=2 * i + 1),
                                subsets=1, size=60)["kd"]
        for i in range(200)
    ]  # fmt: skip
    error = np.std(found) / 200**0.5
    assert abs(np.mean(found)) < 4 * error
    assert 0.2 < np.mean(np.less(found, 0)) < 0.8
    assert error < 0.01  # E k(f, f) / 60, which the biased estimate adds twice, is about 0.1


def test_kernel_distance_refuses_subsets_that_are_not_there():
    x, y = normal(50, 3), normal(40, 3, seed=1)
    assert metrics.kernel_distance(x, y, subsets=1, size=40)["kd_std"] == 0
    for size in (41, 1, 0):
        with pytest.raises(UserError, match=f"size={size} .* got 50 and 40"):
            metrics.kernel_distance(x, y, size=size)
    with pytest.raises(UserError, match=r"size=1000 .* got 50 and 40"):
        metrics.kernel_distance(x, y)
    with pytest.raises(UserError, match="subsets of 1 or more, not 0"):
        metrics.kernel_distance(x, y, subsets=0, size=30)


# Precision, recall, density, coverage


def squared_distances(x, y):
    """Every |x_i - y_j|^2 by differences, in float64."""
    blocks = x.double().split(8)
    return torch.cat([(b[:, None] - y.double()).square().sum(-1) for b in blocks])


def by_brute_force(x, y, k):
    """Kynkäänniemi et al.'s precision and recall, Naeem et al.'s density and coverage."""
    radius_x, radius_y = (squared_distances(p, p).sort(dim=1).values[:, k] for p in (x, y))
    across = squared_distances(x, y)
    inside = across < radius_y
    return {
        f"precision_k{k}": (across <= radius_y).any(1).double().mean().item(),
        f"recall_k{k}": (across <= radius_x[:, None]).any(0).double().mean().item(),
        f"density_k{k}": inside.sum().item() / (k * len(x)),
        f"coverage_k{k}": inside.any(0).double().mean().item(),
    }


def all_four(x, y, k):
    return {**metrics.precision_recall(x, y, k=k), **metrics.density_coverage(x, y, k=k)}


def lattice(n, d, seed, side=3):
    """Few distances, and nearly every one of them equal to some radius."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, side, (n, d), generator=g).float()


def far_clusters(n, seed):
    """Each 1e4 from the mean, where float32's |x|^2 is right to 8: products decide nothing."""
    return normal(n, 4, seed=seed) * 0.01 + (1e4 * normal(9, 4)).repeat(n // 9 + 1, 1)[:n]


def with_one_far_away(n, seed):
    points = normal(n, 6, seed=seed)
    points[n // 2] = 1e6
    return points


GEOMETRIES = {
    "plane": lambda n, seed: normal(n, 2, seed=seed) * (1 + 0.3 * seed),
    "high": lambda n, seed: normal(n, 300, seed=seed) * (1 + 0.01 * seed),
    "inception": lambda n, seed: inception_like(n, 64, spread=1 + 0.1 * seed, seed=seed),
    "offset": lambda n, seed: normal(n, 5, seed=seed) + 1000,
    "lattice": lambda n, seed: lattice(n, 6, seed),
    "far lattice": lambda n, seed: lattice(n, 6, seed) + 1000,
    "far clusters": far_clusters,
    "one far away": with_one_far_away,
    "duplicates": lambda n, seed: normal(50, 3, seed=seed % 2).repeat(n // 50 + 1, 1)[:n],
    "float64": lambda n, seed: normal(n, 3, seed=seed).double() * 1e-9 + 1,
    "tiny": lambda n, seed: normal(n, 3, seed=seed) * 1e-22,  # squares of few digits in float32
    "huge": lambda n, seed: normal(n, 3, seed=seed) * 1e25,  # squares overflow in float32
}


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_manifold_metrics_are_brute_force_in_float64(geometry, k):
    for n, m, seed in ((300, 170, 1), (130, 280, 2)):
        x, y = GEOMETRIES[geometry](n, 2 * seed), GEOMETRIES[geometry](m, 2 * seed + 1)
        assert all_four(x, y, k) == pytest.approx(by_brute_force(x, y, k), rel=1e-15, abs=0)


def test_float32_alone_would_fail_where_they_do_not():
    """The cases above are hard ones: by one product of centred features the answers are others."""
    for name in ("lattice", "far lattice", "far clusters", "one far away"):
        x, y = GEOMETRIES[name](300, 2), GEOMETRIES[name](170, 3)
        a, b = ((points.double() - y.double().mean(0)).float() for points in (x, y))
        rounded = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        radius = manifold.radii(y, 3)
        expected = squared_distances(x, y) <= radius
        assert ((rounded <= radius) != expected).double().mean() > 0.005


@pytest.mark.parametrize("geometry", ["inception", "lattice", "far clusters", "one far away"])
def test_each_comparison_is_that_of_float64(geometry):
    """`_compared` itself, in blocks that do not divide n, of balls around either side."""
    x, y = GEOMETRIES[geometry](300, 4), GEOMETRIES[geometry](170, 5)
    radius_x, radius_y = manifold.radii(x, 3), manifold.radii(y, 3)
    across = squared_distances(x, y)
    seen = []
    for part, within in manifold._compared(x, y, rows=64):
        for compare in (torch.le, torch.lt):
            around_y = within(radius_y[None], compare)
            around_x = within(radius_x[part, None], compare)
            assert torch.equal(around_y, compare(across[part], radius_y))
            assert torch.equal(around_x, compare(across[part], radius_x[part, None]))
        seen += range(300)[part]
    assert seen == list(range(300))


def test_ordinary_features_are_decided_by_the_product(monkeypatch):
    """Float64 settles few of the pairs, or it would take hours for 50,000 samples."""
    settled = []

    def compare(exact, limit):
        settled.append(len(exact))
        return exact <= limit

    x, y = inception_like(500, 256, seed=1) + 10, inception_like(400, 256, seed=2) + 10
    radius = manifold.radii(y, 3)
    inside = [within(radius[None], compare) for _, within in manifold._compared(x, y)]
    assert torch.equal(torch.cat(inside), squared_distances(x, y) <= radius)
    assert sum(settled) < 0.001 * 500 * 400


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("geometry", ["plane", "high", "inception"])
def test_precision_and_recall_are_torch_fidelitys(geometry, k):
    from torch_fidelity.metric_prc import prc_features_to_metric

    for n, m, seed in ((300, 170, 0), (130, 280, 1), (250, 250, 2)):
        x, y = GEOMETRIES[geometry](n, 2 * seed), GEOMETRIES[geometry](m, 2 * seed + 1)
        ours = metrics.precision_recall(x, y, k=k)
        for offset, dtype in ((0, torch.float32), (1000, torch.float64)):
            far = [points.to(dtype) + offset for points in (x, y)]
            theirs = prc_features_to_metric(*far, prc_neighborhood=k, verbose=False)
            # theirs are means in float32
            assert ours[f"precision_k{k}"] == pytest.approx(theirs["precision"], abs=1e-7)
            assert ours[f"recall_k{k}"] == pytest.approx(theirs["recall"], abs=1e-7)
            if offset:
                assert metrics.precision_recall(*far, k=k) == ours


def test_of_the_same_points_twice():
    """A ball holds its centre and, strictly inside, the k - 1 nearest others: k of the samples."""
    x = normal(200, 3)
    for k in (1, 4):
        row = all_four(x, x.clone(), k)
        assert list(row.values()) == [1, 1, 1, 1]
    # of every point two: the third other is the second of the nearest pair, as far as the first
    doubled = x.repeat(2, 1)
    row = all_four(doubled, doubled.clone(), 3)
    assert row == {"precision_k3": 1, "recall_k3": 1, "density_k3": 2 / 3, "coverage_k3": 1}
    # of every point four: all balls have radius 0, and nothing is strictly inside of them
    many = x.repeat(4, 1)
    row = all_four(many, many.clone(), 3)
    assert row == {"precision_k3": 1, "recall_k3": 1, "density_k3": 0, "coverage_k3": 0}


def test_on_a_line_with_answers_by_hand():
    y = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii with k = 1: 1, 1, 2, 7
    x = torch.tensor([[0.0], [2.0], [5.0], [17.0], [40.0]])  # radii: 2, 2, 3, 12, 23
    # in balls of y, closed: 0 in those of 0, 1; 2 in 1, 3; 5 in 3, 10; 17 in 10; 40 in none;
    # open: 0 in 0; 2 in 3; 5 in 10
    assert all_four(x, y, 1) == {
        "precision_k1": 4 / 5,
        "recall_k1": 1,  # 0, 1 and 3 in the balls of 0, 2 and 5; 10 in that of 17
        "density_k1": 3 / 5,
        "coverage_k1": 3 / 4,  # all but the point at 1
    }
    assert metrics.precision_recall(x[:3], y, k=1)["recall_k1"] == 3 / 4  # 10 is 5 from 5


def test_manifold_metrics_do_not_change_with_the_frame():
    x, y = inception_like(300, 40, spread=1.2, seed=1), inception_like(250, 40, seed=2)
    turn = torch.linalg.qr(normal(40, 40, seed=3).double()).Q
    expected = all_four(x, y, 4)
    assert all_four(x.double() @ turn, y.double() @ turn, 4) == expected
    assert all_four(x.double() + 1000, y.double() + 1000, 4) == expected
    assert all_four(x.double() @ turn * 37 - 5, y.double() @ turn * 37 - 5, 4) == expected
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert all_four(x[order], y.flip(0), 4) == expected
    assert 0.1 < expected["recall_k4"] < 1


def test_fresh_data_have_a_density_of_one_and_a_few_modes_a_low_coverage():
    """E density = 1 for a fresh draw, and E coverage is known too (Naeem et al. 2020, sec. 3.3)."""
    y, x = normal(3000, 4), normal(3000, 4, seed=1)
    row = metrics.density_coverage(x, y, k=5)
    assert row["density_k5"] == pytest.approx(1, abs=0.03)
    # 1 - (n - 1)! (n + m - k - 1)! / ((n - k - 1)! (n + m - 1)!), near 1 - 2^-k
    assert row["coverage_k5"] == pytest.approx(1 - 2**-5, abs=0.01)
    one_mode = x[x[:, 0] > 0]
    assert metrics.density_coverage(one_mode, y)["coverage_k5"] < 0.6


def test_manifold_metrics_refuse_what_has_no_balls():
    x, y = normal(20, 3), normal(4, 3, seed=1)
    for function in (metrics.precision_recall, metrics.density_coverage):
        with pytest.raises(UserError, match=r"k = 4 .* more than 4 points .* got 4"):
            function(x, y, k=4)
        with pytest.raises(UserError, match="k of 1 or more"):
            function(x, y, k=0)
        function(x, y, k=3)
    with pytest.raises(UserError, match="got 4"):
        metrics.precision_recall(y, x, k=4)
    metrics.density_coverage(y, x, k=4)  # has no balls around samples


@pytest.mark.parametrize("side", [0, 1])
def test_manifold_metrics_refuse_features_that_are_not_finite(side):
    points = [normal(50, 3), normal(40, 3, seed=1)]
    points[side][7, 1] = torch.nan
    for function in (metrics.precision_recall, metrics.density_coverage):
        with pytest.raises(UserError, match="NaN or inf"):
            function(*points)


# What a classifier says


@pytest.mark.parametrize("n, splits", [(1003, 10), (500, 1), (64, 64)])
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
def test_inception_score_is_torch_fidelitys(n, splits, sharpness):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = sharpness * normal(n, 30)
    theirs = isc_features_to_metric(logits, splits=splits)
    row = metrics.inception_score(logits, splits=splits)
    assert row["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-13)
    assert row["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-13)


def test_inception_score_between_its_bounds():
    sure = 40 * torch.eye(8).repeat(50, 1)  # each class as often as the others, without a doubt
    assert metrics.inception_score(sure, splits=1)["is"] == pytest.approx(8, rel=1e-9)
    none = metrics.inception_score(torch.ones(400, 8) * 3)
    assert none == {"is": pytest.approx(1), "is_std": pytest.approx(0, abs=1e-12)}
    one = metrics.inception_score(40 * torch.eye(8)[[2]].repeat(400, 1))
    assert one["is"] == pytest.approx(1)
    for splits in (0, 401):
        with pytest.raises(UserError, match=f"splits={splits} .* got 400"):
            metrics.inception_score(sure, splits=splits)


def test_confidence_is_a_mean_of_probabilities_not_of_logits():
    logits = torch.tensor([[math.log(3), 0.0], [1000.0, 0.0], [-1000.0, 0.0]])
    c = torch.tensor([0, 0, 0])
    assert metrics.confidence(logits, c)["confidence"] == pytest.approx((0.75 + 1 + 0) / 3)
    assert metrics.confidence(logits, 1)["confidence"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert metrics.class_accuracy(logits, torch.tensor([0, 1, 1]))["class_accuracy"] == 2 / 3


# Copies


def test_nearest_train_and_memorised_by_hand():
    bank = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    # d1, d2: 1, 9 | 3, 7 | 2.5, 7.5, which is not below a third | 0, 10 | 4, 6
    x = torch.tensor([[1.0, 0.0], [7.0, 0.0], [2.5, 0.0], [10.0, 0.0], [4.0, 0.0]])
    row = metrics.nearest_train(x, bank)
    assert row == {"nearest_train": pytest.approx(10.5 / 5, rel=1e-15), "memorised": 2 / 5}
    with pytest.raises(UserError, match="2 training points, got 1"):
        metrics.nearest_train(x, bank[:1])


@pytest.mark.parametrize("copies", [2, 3, 30])
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_memorised_is_to_the_nearest_different_training_point(copies, rounding):
    """Whatever occurs several times in the bank, also by a network that rounds it otherwise."""
    different = normal(300, 16)
    bank = torch.cat([different, different[:200].repeat(copies - 1, 1)])
    bank += rounding * normal(len(bank), 16, seed=4)
    x = normal(90, 16, seed=2)
    x[:20] = different[190:210]  # exact copies, of what occurs often and of what occurs once
    x[20:40] = 0.9 * different[:20] + 0.1 * different[20:40]
    two = squared_distances(x, different).sqrt().sort(dim=1).values[:, :2]
    expected = (two[:, 0] < two[:, 1] / 3).double().mean().item()
    row = metrics.nearest_train(x, bank)
    assert row["memorised"] == expected >= 20 / 90
    assert row["nearest_train"] == pytest.approx(two[:, 0].mean().item(), abs=1e-6)
    shuffled = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(5))]
    assert metrics.nearest_train(x, shuffled)["memorised"] == expected


def test_memorised_needs_two_different_training_points():
    bank, x = torch.ones(50, 3), normal(4, 3)
    for alike in (bank, bank[:2]):
        with pytest.raises(UserError, match="2 different training points, and all are alike"):
            metrics.nearest_train(x, alike)
    bank[7] = 2.0
    assert metrics.nearest_train(bank[:9], bank)["memorised"] == 1.0


@pytest.mark.parametrize("planted", [0, 30, 100])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_planted_copies_are_found(planted, noise):
    bank, held_out = normal(2000, 64), normal(1000, 64, seed=1)
    x = normal(100, 64, seed=2)
    x[:planted] = bank[7 : 7 + planted] + noise * normal(planted, 64, seed=3)
    d1 = squared_distances(x, bank).amin(1).sqrt()
    row = metrics.nearest_train(x, bank)
    assert row["memorised"] == planted / 100
    assert row["nearest_train"] == pytest.approx(d1.mean().item(), rel=1e-12)
    limit = squared_distances(held_out, bank).amin(1).sqrt().sort().values[10]
    found = metrics.near_copies(x, held_out, bank)["near_copies"]
    assert found == (d1 < limit).double().mean()
    assert planted / 100 <= found <= planted / 100 + 0.03


def test_fresh_real_data_are_near_copies_in_the_quantile():
    bank, held_out = normal(1500, 8), normal(2000, 8, seed=1)
    fresh = normal(20_000, 8, seed=2)
    for quantile, error in ((0.01, 0.006), (0.1, 0.02)):
        row = metrics.near_copies(fresh, held_out, bank, quantile=quantile)
        assert row["near_copies"] == pytest.approx(quantile, abs=error)
        own = metrics.near_copies(held_out, held_out, bank, quantile=quantile)
        assert own["near_copies"] == quantile


def test_near_copies_refuse_what_they_cannot_tell():
    bank, held_out, x = normal(50, 3), normal(100, 3, seed=1), normal(9, 3, seed=2)
    metrics.near_copies(x, held_out, bank, quantile=0.01)
    with pytest.raises(UserError, match=r"99 held-out points are too few for the quantile 0\.01"):
        metrics.near_copies(x, held_out[1:], bank)
    for quantile in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(UserError, match="must be between 0 and 1"):
            metrics.near_copies(x, held_out, bank, quantile=quantile)
    bad = x.clone()
    bad[2, 1] = torch.inf
    for function in (metrics.nearest_train, lambda x, y: metrics.near_copies(x, held_out, y)):
        with pytest.raises(UserError, match="NaN or inf"):
            function(bad, bank)


def test_distances_to_the_bank_are_searched_once_and_again_for_another(monkeypatch):
    """Of the same tensors; an other bank, or one that was written into, is searched anew."""
    searched = []

    def counted(points, bank, *, k, original=manifold.nearest):
        searched.append(k)
        return original(points, bank, k=k)

    monkeypatch.setattr(manifold, "nearest", counted)
    x, held_out, bank = normal(30, 3), normal(200, 3, seed=1), normal(90, 3, seed=2)
    row = metrics.nearest_train(x, bank)
    metrics.near_copies(x, held_out, bank)
    metrics.near_copies(x.clone(), held_out, bank)
    assert searched == [2, 1, 2]
    assert metrics.nearest_train(x, bank.clone() + 1) != row
    bank += 1
    assert metrics.nearest_train(x, bank) != row
    assert searched == [2, 1, 2, 2, 2]


def test_features_made_in_inference_mode_are_measured_too():
    with torch.inference_mode():
        x, y, bank = normal(40, 3), normal(100, 3, seed=1), normal(60, 3, seed=2)
    plain = x.clone(), y.clone(), bank.clone()
    assert metrics.nearest_train(x, bank) == metrics.nearest_train(plain[0], plain[2])
    assert metrics.near_copies(x, y, bank) == metrics.near_copies(*plain)
    assert all_four(x, y, 3) == all_four(*plain[:2], 3)


# The neighbours that all this rests on


def by_differences(queries, bank, k):
    """The k nearest of all, by differences in float64, ties by index."""
    squared, index = squared_distances(queries, bank).sort(dim=1, stable=True)
    return squared[:, :k], index[:, :k]


def one_hot(n, d, seed):
    """Corners of a simplex, all of them sqrt 2 from each other: every distance is a tie."""
    return torch.eye(max(n, d))[:n, :d]


def nearly_equidistant(n, d, seed):
    """On a sphere about the origin to 1e-7, which is where float32's rounding is."""
    f = torch.nn.functional.normalize(normal(n, d, seed=seed).double(), dim=1)
    return f * (1 + 1e-7 * normal(n, 1, seed=seed + 50).double())


def near_duplicates(n, d, seed):
    """Many copies of a few points, 1e-6 apart: squares of 1e-12, of which float32 sees nothing."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 6, (n,), generator=g)
    return inception_like(6, d)[rows] + 1e-6 * normal(n, d, seed=seed)


def between_giants(n, seed):
    """Two points at -1 and 1, in units of which float32 has few digits of the other squares."""
    points = normal(n, 3, seed=seed) * 1e-22
    points[n // 2], points[n // 2 + 1] = -1, 1
    return points


HARD = {
    "of 2048": lambda n, seed: inception_like(n, 2048, seed=seed),
    "of 2048 far out": lambda n, seed: inception_like(n, 2048, seed=seed) + 300,
    "lattice of 2048": lambda n, seed: lattice(n, 2048, seed, side=2),
    "near duplicates": lambda n, seed: near_duplicates(n, 200, seed),
    "near duplicates of 2048": lambda n, seed: near_duplicates(n, 2048, seed),
    "simplex": lambda n, seed: one_hot(n, 500, seed),
    "sphere": lambda n, seed: nearly_equidistant(n, 30, seed),
    "far sphere": lambda n, seed: nearly_equidistant(n, 30, seed) + 1e5,
    "far lattice": lambda n, seed: lattice(n, 12, seed) + 1e6,
    "between giants": between_giants,
}


@pytest.mark.parametrize("k", [1, 50])
@pytest.mark.parametrize("case", HARD)
def test_nearest_is_brute_force_where_it_is_hard(case, k, monkeypatch):
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 0)  # as for large sets
    queries, bank = HARD[case](40, 1), HARD[case](600, 2)
    distance, index = nearest(queries, bank, k=k)
    expected, expected_index = by_differences(queries, bank, k)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exactly", [True, False])
def test_nearest_of_thousands_at_one_distance(exactly, monkeypatch):
    """More of them than FAISS is asked for at most: the whole bank is compared, and only then."""
    compared, original = [], neighbours._against_all
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 0)
    monkeypatch.setattr(
        neighbours, "_against_all", lambda q, *rest: compared.append(len(q)) or original(q, *rest)
    )
    bank = nearly_equidistant(4000, 20, 3)
    if exactly:
        bank = torch.eye(20).repeat(200, 1)
    centre, near = torch.zeros(3, 20, dtype=bank.dtype), bank[:5] * 1.5
    distance, index = nearest(torch.cat([centre, near]), bank, k=50)
    expected, expected_index = by_differences(torch.cat([centre, near]), bank, 50)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)
    assert sum(compared) == 3  # from the centre; a search finds what is near the others
    if exactly:
        assert index[0].tolist() == list(range(50))
