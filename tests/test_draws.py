from itertools import pairwise

import pytest
import torch

from lightning_cfg.diffusion.draws import Draws, key, keyed, seed_generators

METHODS = {
    "normal": lambda draws: draws.normal(3, 2),
    "normal of no shape": lambda draws: draws.normal(),
    "uniform": lambda draws: draws.uniform(),
    "integers": lambda draws: draws.integers(1000),
    "permuted": lambda draws: draws.permuted(17),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 1, 12], [0, 3, 6, 9, 12]])
def test_the_ranks_rows_together_are_the_whole(method, cuts):
    def drawn(rows):
        draws = Draws(seed=3, step=5, batch_size=12, rows=rows)
        return [method(draws) for _ in range(2)]  # the second draw must not depend on rows either

    whole = drawn(None)
    ranks = [drawn(slice(a, b)) for a, b in pairwise(cuts)]
    for i in range(2):
        assert torch.equal(torch.cat([rank[i] for rank in ranks]), whole[i])
    assert len(whole[0]) == 12


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_draws_are_keyed_by_seed_and_step_and_nothing_else(method):
    torch.manual_seed(0)
    first = method(Draws(seed=3, step=5, batch_size=12))
    torch.manual_seed(1)
    assert torch.equal(first, method(Draws(seed=3, step=5, batch_size=12)))
    for seed, step in ((3, 6), (4, 5), (5, 3)):
        assert not torch.equal(first, method(Draws(seed=seed, step=step, batch_size=12)))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draws = Draws(seed=0, step=0, batch_size=8)
    draws.normal(2), draws.uniform(), draws.integers(5), draws.permuted(4)
    assert torch.equal(torch.rand(3), expected)


def test_successive_draws_of_a_step_are_new():
    draws = Draws(seed=0, step=0, batch_size=8)
    assert not torch.isclose(draws.normal(), draws.normal()).any()
    assert not torch.isclose(draws.uniform(), draws.uniform()).any()


def test_draws_have_the_distributions_they_are_named_after():
    n = 40_000
    draws = Draws(seed=0, step=0, batch_size=n)
    x, u, i = draws.normal(2), draws.uniform(), draws.integers(10)
    assert x.shape == (n, 2)
    assert (x.dtype, u.dtype, i.dtype) == (torch.float32, torch.float32, torch.long)
    assert abs(x.mean()) < 4 / (2 * n) ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / (2 * n)) ** 0.5
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    counts = torch.bincount(i, minlength=10)
    assert len(counts) == 10
    assert (counts - n / 10).abs().max() < 5 * (n * 0.09) ** 0.5


@pytest.mark.parametrize("n, batch_size", [(10, 3), (10, 10), (10, 25), (7, 1), (1, 4), (12, 4)])
def test_permuted_goes_through_every_epoch_once(n, batch_size):
    steps = n * 2  # as many samples as 2 batch_size epochs
    i = torch.cat([Draws(seed=1, step=s, batch_size=batch_size).permuted(n) for s in range(steps)])
    epochs = i.reshape(2 * batch_size, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand(2 * batch_size, n))
    if n >= 10:
        assert len(epochs.unique(dim=0)) == len(epochs)  # no order comes twice


def test_an_epoch_has_the_same_order_for_every_batch_size():
    orders = [
        torch.cat([Draws(seed=1, step=s, batch_size=b).permuted(30) for s in range(60 // b)])
        for b in (2, 15, 20, 60)
    ]
    assert all(torch.equal(order, orders[0]) for order in orders)
    other = torch.cat([Draws(seed=2, step=s, batch_size=2).permuted(30) for s in range(30)])
    assert not torch.equal(other, orders[0])


def test_changing_what_permuted_returned_changes_no_later_epoch():
    Draws(seed=9, step=0, batch_size=5).permuted(5).zero_()
    again = Draws(seed=9, step=0, batch_size=5).permuted(5)
    assert again.sort().values.tolist() == [0, 1, 2, 3, 4]


def test_keys_differ_by_every_part_and_never_change():
    keys = {key("step", 0, 0), key("step", 0, 1), key("step", 1, 0), key("epoch", 0, 0), key()}
    assert len(keys) == 5
    assert all(0 <= k < 2**63 for k in keys)
    # a run begun by one version must be resumable by the next
    assert key("step", 0, 0) == 5987354191183068823
    x = torch.rand(2, generator=keyed("a", 1))
    assert torch.equal(x, torch.rand(2, generator=torch.Generator().manual_seed(key("a", 1))))


def test_generators_are_seeded_as_by_torch_itself(monkeypatch):
    states = []
    for seeded in (torch.manual_seed, lambda seed: seed_generators(torch.device("cpu"), seed)):
        with torch.random.fork_rng([]):
            torch.randn(3)  # a second normal of a pair may be kept
            for seed in (0, 2**32 + 5, 2**63 - 1):
                seeded(seed)
                states += [torch.get_rng_state(), torch.randn(7)]
                assert torch.initial_seed() == seed
    half = len(states) // 2
    assert all(map(torch.equal, states[:half], states[half:]))
    seen = []
    monkeypatch.setattr(torch, "manual_seed", seen.append)
    seed_generators(torch.device("cpu"), 1)
    assert seen == []
    seed_generators(torch.device("mps"), 2)  # of which nothing is known here
    assert seen == [2]


def test_a_cuda_devices_own_generator_is_seeded_too(monkeypatch):
    generators = torch.Generator(), torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with torch.random.fork_rng([]):
        seed_generators(torch.device("cuda", 1), 7)
        assert torch.initial_seed() == generators[1].initial_seed() == 7
        seed_generators(torch.device("cuda"), 8)
    assert [g.initial_seed() for g in generators] == [8, 7]
