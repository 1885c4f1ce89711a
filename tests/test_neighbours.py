import faiss
import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from lightning_cfg.errors import UserError
from lightning_cfg.refinement import neighbours, on_gpu
from lightning_cfg.refinement.neighbours import nearest, nearest_in_class


@pytest.fixture
def expanded(monkeypatch):
    """FAISS takes |q|^2 + |b|^2 - 2 q.b for these small sets too, as it does for large ones."""
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(queries, bank, k):
    """Every squared difference in float64, ties by index."""
    gap = queries.flatten(1).double()[:, None] - bank.flatten(1).double()
    squared, index = gap.square().sum(-1).sort(dim=1, stable=True)
    return squared[:, :k], index[:, :k]


def offset(seed):
    return normal(300, 3, seed=seed) + 3e4  # |x|^2 in float32 is right to 64 only


def two_far_clusters(seed):  # centring does not help: each lies 1e4 from the mean
    return normal(300, 3, seed=seed) * 0.01 + torch.tensor([1e4, -1e4]).repeat(150)[:, None]


def many_far_clusters(seed):  # of 25 points, for whose distances float32 has zero or noise
    return normal(300, 3, seed=seed) * 0.01 + (1e4 * normal(12, 3)).repeat(25, 1)


def duplicates(seed):
    return normal(7, 3, seed=1).repeat(50, 1)[:300]


def grid(seed):  # many points at one distance
    return torch.randint(0, 5, (300, 2), generator=torch.Generator().manual_seed(seed)).float()


def one_far_away(seed):
    points = normal(300, 3, seed=seed)
    points[5] = 1e25
    return points


def tiny(seed):
    return normal(300, 3, seed=seed) * 1e-25  # squares underflow in float32


def huge(seed):  # of which the sum overflows
    return normal(300, 3, seed=seed).abs() * 3e37


CASES = {
    "plain": lambda seed: normal(300, 2, seed=seed),
    "images": lambda seed: normal(120, 3, 8, 8, seed=seed) + 0.5,
    "float64": lambda seed: normal(300, 4, seed=seed).double() * 1e-9 + 1,
    "bytes": lambda seed: (normal(300, 4, seed=seed) * 30 + 128).clamp(0, 255).byte(),
    **{f.__name__: f for f in (offset, two_far_clusters, many_far_clusters, duplicates)},
    **{f.__name__: f for f in (grid, one_far_away, tiny, huge)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("most", [neighbours.MOST, 0])  # 0: all of the bank is compared
@pytest.mark.parametrize("by", ["faiss", "torch"])  # as on a GPU without FAISS' own
def test_nearest_is_brute_force(case, k, most, by, expanded, monkeypatch):
    gpu = None if by == "faiss" else torch.device("cpu")
    monkeypatch.setattr(neighbours, "_without_faiss", lambda *_: gpu)
    monkeypatch.setattr(on_gpu, "AT_ONCE", 10_000)
    monkeypatch.setattr(neighbours, "MOST", most)
    monkeypatch.setattr(neighbours, "BLOCK", 10_000)  # so that there are many blocks
    queries, bank = CASES[case](1)[:100], CASES[case](2)
    distance, index = nearest(queries, bank, k=k)
    expected, expected_index = brute_force(queries, bank, k)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)


def test_faiss_alone_would_fail_where_we_do_not(expanded):
    """The cases above are hard ones: IndexFlatL2's own answer on them is wrong."""
    for make in (offset, two_far_clusters):
        queries, bank = make(1), make(2)
        index = faiss.IndexFlatL2(3)
        index.add(bank.numpy())
        wrong = index.search(queries.numpy(), 5)[1] != brute_force(queries, bank, 5)[1].numpy()
        assert wrong.mean() > 0.1


@pytest.mark.parametrize("by", ["faiss", "torch"])
def test_one_candidate_search_settles_nearly_all_of_ordinary_data(by, expanded, monkeypatch):
    """At the fractal's size, whatever the offset, since the data are centred."""
    gpu = None if by == "faiss" else torch.device("cpu")
    monkeypatch.setattr(neighbours, "_without_faiss", lambda *_: gpu)
    searched, compared = [], []

    def rerank(queries, *rest, original=neighbours._rerank):
        searched.append(len(queries))
        return original(queries, *rest)

    def against_all(queries, *rest, original=neighbours._against_all):
        compared.append(len(queries))
        return original(queries, *rest)

    monkeypatch.setattr(neighbours, "_rerank", rerank)
    monkeypatch.setattr(neighbours, "_against_all", against_all)
    queries, bank = normal(2_000, 2, seed=3) + 100, normal(20_000, 2) + 100
    distance, index = nearest(queries, bank, k=20)
    oracle = NearestNeighbors(n_neighbors=20, algorithm="kd_tree").fit(bank.double().numpy())
    found, where = oracle.kneighbors(queries.double().numpy())
    np.testing.assert_allclose(distance.sqrt(), found, rtol=1e-12)
    assert np.array_equal(index, where)
    assert sum(searched) < 1.05 * 2_000
    assert sum(compared) == 0


def test_ties_go_to_the_smaller_index():
    bank = torch.tensor([[1.0], [-1.0], [1.0], [0.5], [-1.0], [1.0]])
    distance, index = nearest(torch.zeros(2, 1), bank, k=4)
    assert index.tolist() == [[3, 0, 1, 2]] * 2
    assert distance.tolist() == [[0.25, 1, 1, 1]] * 2


def test_all_of_the_bank_and_no_queries():
    bank = normal(9, 2)
    assert torch.equal(nearest(bank, bank, k=9)[1], brute_force(bank, bank, 9)[1])
    distance, index = nearest(bank[:0], bank, k=2)
    assert distance.shape == index.shape == (0, 2)


def test_nearest_in_class_is_nearest_within_each_class():
    queries, bank = normal(60, 2, seed=4), normal(200, 2, seed=5)
    g = torch.Generator().manual_seed(6)
    c, bank_c = torch.randint(3, (60,), generator=g), torch.randint(3, (200,), generator=g)
    distance, index = nearest_in_class(queries, c, bank, bank_c, k=7)
    assert torch.equal(bank_c[index], c[:, None].expand(-1, 7))
    for i in range(60):
        own = (bank_c == c[i]).nonzero().flatten()
        squared, place = brute_force(queries[i : i + 1], bank[own], 7)
        assert torch.equal(index[i], own[place[0]])
        torch.testing.assert_close(distance[i], squared[0], rtol=1e-12, atol=0)


def test_bad_input_is_named():
    points, bad = normal(10, 2), normal(10, 2)
    bad[3, 0] = torch.inf
    with pytest.raises(UserError, match=r"k = 11 .* bank of 10"):
        nearest(points, points, k=11)
    with pytest.raises(UserError, match="k = 0"):
        nearest(points, points, k=0)
    with pytest.raises(UserError, match=r"queries .* NaN or inf"):
        nearest(bad, points, k=1)
    with pytest.raises(UserError, match=r"bank .* NaN or inf"):
        nearest(points, bad, k=1)
    with pytest.raises(UserError, match=r"\(2,\) and \(3,\)"):
        nearest(points, normal(10, 3), k=1)
    c = torch.tensor([0] * 5 + [2] * 5)
    with pytest.raises(UserError, match=r"5 points of class 2.* k = 6"):
        nearest_in_class(points, torch.full((10,), 2), points, c, k=6)
    with pytest.raises(UserError, match="0 points of class 1"):
        nearest_in_class(points, torch.ones(10).long(), points, c, k=1)
