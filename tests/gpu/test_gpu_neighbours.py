"""Neighbours on a GPU are brute force in float64, by FAISS' own search there or torch's."""

import faiss
import pytest
import torch
from test_neighbours import CASES, brute_force, normal

from lightning_cfg.refinement import neighbours, on_gpu
from lightning_cfg.refinement.neighbours import nearest, nearest_in_class, nearest_in_shards
from lightning_cfg.runs.precision import matmul


@pytest.fixture(params=["torch", "faiss"])
def by(request, monkeypatch, device) -> str:
    """Which of them proposes the candidates."""
    if request.param == "faiss" and faiss.get_num_gpus() == 0 and device.type == "cuda":
        pytest.skip("this FAISS has no GPU")
    gpu = device if request.param == "torch" else None
    monkeypatch.setattr(neighbours, "_without_faiss", lambda *_: gpu)
    return request.param


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("home", ["cpu", "device"])
def test_nearest_is_brute_force(case, k, home, by, device, monkeypatch):
    """Whatever precision is set for products elsewhere."""
    monkeypatch.setattr(on_gpu, "AT_ONCE", 10_000)
    queries, bank = CASES[case](1)[:100], CASES[case](2)
    expected, expected_index = brute_force(queries, bank, k)
    place = torch.device("cpu") if home == "cpu" else device
    with matmul("medium"):
        distance, index = nearest(queries.to(place), bank.to(place), k=k)
    assert distance.device.type == index.device.type == place.type
    assert torch.equal(index.cpu(), expected_index)
    torch.testing.assert_close(distance.cpu(), expected, rtol=1e-12, atol=0)


def test_most_of_ordinary_data_are_settled_at_once(by, device, monkeypatch):
    """Of 3072 dimensions, where the bound on the rounding is widest."""
    n = 2000 if device.type == "cuda" else 200
    compared = []

    def against_all(queries, *rest, original=neighbours._against_all):
        compared.append(len(queries))
        return original(queries, *rest)

    monkeypatch.setattr(neighbours, "_against_all", against_all)
    queries, bank = normal(n, 3072, seed=1).to(device), normal(3 * n, 3072, seed=2).to(device)
    with matmul("high"):
        distance, index = nearest(queries, bank, k=5)
    for block in torch.arange(0, n, n // 10, device=device):
        gap = bank.double() - queries[block].double()
        squared, order = gap.square().sum(1).sort(stable=True)
        assert torch.equal(index[block], order[:5])
        torch.testing.assert_close(distance[block], squared[:5], rtol=1e-12, atol=0)
    assert sum(compared) == 0


def test_classes_and_parts_of_a_bank_on_another_device(by, device):
    g = torch.Generator().manual_seed(0)
    bank, queries = normal(300, 2, seed=5), normal(50, 2, seed=4)
    c, bank_c = torch.arange(50) % 3, torch.randint(0, 3, (300,), generator=g)
    expected = nearest_in_class(queries, c, bank, bank_c, k=9)
    found = nearest_in_class(queries.to(device), c, bank, bank_c, k=9)
    assert torch.equal(found[1].cpu(), expected[1])
    shards = zip(bank.to(device).split(70), bank_c.to(device).split(70), strict=True)
    found = nearest_in_shards(queries, shards, k=9, c=c)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)


@pytest.mark.cuda
def test_without_a_gpu_of_faiss_points_of_the_cpu_are_searched_on_the_gpu(monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    places = []

    def search(queries, *rest, original=on_gpu.candidate_search):
        places.append(queries.device.type)
        return original(queries, *rest)

    monkeypatch.setattr(neighbours, "candidate_search", search)
    queries, bank = normal(100, 3, seed=1), normal(300, 3, seed=2)
    assert torch.equal(nearest(queries, bank, k=3)[1], brute_force(queries, bank, 3)[1])
    monkeypatch.setattr(on_gpu, "ROOM", 0.0)  # no room: FAISS on the CPU
    assert torch.equal(nearest(queries, bank, k=3)[1], brute_force(queries, bank, 3)[1])
    assert places == ["cuda"]
