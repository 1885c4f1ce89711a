import pytest
import torch
from torch import nn

from lightning_cfg.training.ema import EMA


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()


def train(net, step):
    """Weights of a training step: keyed by it, and always moving."""
    g = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype))


def by_hand(histories, half_life, ramp, batch_size):
    """The average of one parameter's values at steps 0, 1, ..."""
    average = histories[0].clone()
    for step, weight in enumerate(histories[1:], 1):
        h = half_life if ramp == 0 else min(half_life, ramp * step * batch_size)
        beta = 0.5 ** (batch_size / h)
        average = beta * average + (1 - beta) * weight
    return average


@pytest.mark.parametrize("ramp", [0.05, 0.3, 0.0])
def test_averages_are_the_formulas_with_its_ramp(net, ramp):
    half_lives, batch_size = [5, 40, 100_000], 8
    ema = EMA(net, half_lives, ramp=ramp)
    histories = {name: [p.detach().clone()] for name, p in net.named_parameters()}
    for step in range(1, 41):
        train(net, step)
        ema.update(step, batch_size)
        for name, p in net.named_parameters():
            histories[name].append(p.detach().clone())
    for half_life in half_lives:
        for name, average in ema.state_dict()[half_life].items():
            expected = by_hand(histories[name], half_life, ramp, batch_size)
            torch.testing.assert_close(average, expected, rtol=1e-10, atol=1e-10)
    a, b, c = (ema.state_dict()[h]["0.weight"] for h in half_lives)
    assert not torch.isclose(a, b).any()
    # the ramp is what keeps the longest average from remembering the initial weights
    assert torch.equal(b, c) == (ramp == 0.05)  # .05 x 320 images: below both half-lives


@pytest.mark.parametrize("batch_size", [1, 10, 250])
def test_half_of_an_old_weight_is_left_after_a_half_life(net, batch_size):
    ema = EMA(net, [1000], ramp=0.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    train(net, 1)
    for step in range(1, 1000 // batch_size + 1):
        ema.update(step, batch_size)
    for name, p in net.named_parameters():
        torch.testing.assert_close(ema.state_dict()[1000][name], (before[name] + p) / 2)


def test_the_state_is_of_the_parameters_by_name_and_apart_from_them(net):
    ema = EMA(net, [10, 20])
    state = ema.state_dict()
    assert set(state) == {10, 20}
    assert list(state[10]) == [name for name, _ in net.named_parameters()]
    start = net[0].weight.detach().clone()
    train(net, 1)
    assert torch.equal(state[10]["0.weight"], start)  # no alias of the network's weights
    ema.update(1, 1)
    assert not any(average.requires_grad for average in ema.state_dict()[10].values())


def test_a_restored_average_goes_on_as_if_nothing_had_happened(net):
    ema = EMA(net, [10, 200])
    for step in range(1, 6):
        train(net, step)
        ema.update(step, 4)
    state = {h: {n: a.clone() for n, a in s.items()} for h, s in ema.state_dict().items()}
    other = EMA(net, [10, 200])
    assert not torch.equal(other.state_dict()[10]["0.weight"], state[10]["0.weight"])
    other.load_state_dict(state)
    for step in range(6, 11):
        train(net, step)
        ema.update(step, 4)
        other.update(step, 4)
    for half_life in (10, 200):
        for name, average in ema.state_dict()[half_life].items():
            assert torch.equal(other.state_dict()[half_life][name], average)


def test_loading_copies_so_that_the_loaded_state_stays_as_it_was(net):
    ema = EMA(net, [10])
    state = {10: {n: a.clone() + 1 for n, a in ema.state_dict()[10].items()}}
    kept = state[10]["0.weight"].clone()
    ema.load_state_dict(state)
    train(net, 1)
    ema.update(1, 4)
    assert torch.equal(state[10]["0.weight"], kept)


def test_an_average_follows_the_module_it_is_told_of(net):
    ema = EMA(net, [10], ramp=0.0)
    start = ema.state_dict()[10]["0.weight"].clone()
    moved = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    ema.to(moved)
    ema.update(1, 10)
    expected = (start + moved[0].weight.detach()) / 2
    torch.testing.assert_close(ema.state_dict()[10]["0.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_averages_of_any_precision_are_the_formula(dtype):
    net = nn.Linear(4, 3)
    ema = EMA(net, [30], ramp=0.0)
    ema.to(net.to(dtype))
    average = ema.averages[30][0].clone()
    for step in range(1, 6):
        train(net, step)
        ema.update(step, 8)
        average += (1 - 0.5 ** (8 / 30)) * (net.weight.detach() - average)
        torch.testing.assert_close(ema.averages[30][0], average)
    assert ema.averages[30][0].dtype == torch.promote_types(dtype, torch.float32)
