import math

import pytest
import torch
from torch import nn

from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import MLP, Linear


def awake(net):
    """The network with a last layer that says something: as built, it is zero."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net.leave.weight.copy_(torch.randn(net.leave.weight.shape, generator=g))
    return net


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, generator=g), torch.linspace(-2, 2, 6)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def test_a_new_mlp_answers_zero_and_learns_from_its_first_step(inputs):
    net, c = MLP((2,), 3, fourier=8), torch.arange(6) % 3
    out = net(*inputs, c)
    assert torch.equal(out, torch.zeros(6, 2))
    (out - 1).square().mean().backward()
    assert net.leave.weight.grad.abs().max() > 0
    assert net.leave.bias.grad.abs().max() > 0


def test_every_class_and_no_class_are_answered_differently(inputs):
    net = awake(MLP((2,), 3))
    x, noise = inputs
    outs = [net(x, noise, torch.full((6,), c)) for c in (0, 1, 2, NULL)]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().min(1).values.min() > 1e-4


def test_null_is_the_last_embedding(inputs):
    net, null = awake(MLP((2,), 3)), torch.full((6,), NULL)
    out = net(*inputs, null)
    assert net.class_embedding.num_embeddings == 4
    net.class_embedding.weight.data[:3] += 1
    assert torch.equal(net(*inputs, null), out)
    net.class_embedding.weight.data[3] += 1
    assert not torch.isclose(net(*inputs, null), out).all()


def test_the_class_part_can_be_removed(inputs):
    net = awake(MLP((2,), 3, embed_class=False))
    out = net(*inputs)
    for c in (torch.zeros(6).long(), torch.arange(6) % 3, torch.full((6,), NULL)):
        assert torch.equal(net(*inputs, c), out)
    assert not any("class" in name for name in net.state_dict())
    with_class = MLP((2,), 3)
    extra = sum(p.numel() for p in with_class.parameters()) - sum(
        p.numel() for p in net.parameters()
    )
    assert extra == 4 * 128


def test_each_sample_is_answered_by_itself(inputs):
    net, c = awake(MLP((2,), 3, fourier=4)), torch.tensor([0, 1, 2, NULL, 0, 1])
    x, noise = inputs
    alone = [net(x[i : i + 1], noise[i : i + 1], c[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), net(x, noise, c), rtol=1e-4, atol=1e-5)


def test_the_answer_depends_on_x_and_on_the_noise_level(inputs):
    net, c = awake(MLP((2,), 3)), torch.zeros(6).long()
    x, noise = inputs
    out = net(x, noise, c)
    for changed in (net(x + 0.01, noise, c), net(x, noise + 0.01, c)):
        assert (changed - out).abs().max(1).values.min() > 1e-5


@pytest.mark.parametrize("shape, outputs", [((2,), None), ((3, 4, 4), None), ((3, 4, 4), 5)])
def test_the_answer_has_the_shape_of_x_or_the_outputs_asked_for(shape, outputs):
    net = awake(MLP(shape, 2, outputs=outputs))
    x = torch.randn(7, *shape)
    out = net(x, torch.zeros(7), torch.zeros(7).long())
    assert out.shape == (7, *(shape if outputs is None else (outputs,)))
    # one number after the other: the last layer's first output is the first entry of the answer
    net.leave.bias.data[0] += 1
    change = net(x, torch.zeros(7), torch.zeros(7).long()) - out
    torch.testing.assert_close(change.flatten(1)[:, 0], torch.ones(7))
    assert change.flatten(1)[:, 1:].abs().max() < 1e-5


def test_fourier_frequencies_are_drawn_once_and_travel_in_the_checkpoint(inputs):
    net = awake(MLP((2,), 3, fourier=500, fourier_std=7.0))
    frequencies = net.state_dict()["frequencies"]
    assert frequencies.shape == (2, 500)
    assert frequencies.std().item() == pytest.approx(7, rel=4 / 2000**0.5)
    assert "frequencies" not in dict(net.named_parameters())  # never trained
    other, c = MLP((2,), 3, fourier=500, fourier_std=7.0), torch.zeros(6).long()
    assert not torch.equal(other.frequencies, net.frequencies)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(*inputs, c), net(*inputs, c))


def test_fourier_features_are_periodic_in_the_frequencies():
    """cos and sin(2 pi f x) come back at x + 1 / f; the plain coordinates are cut off here."""
    net = awake(MLP((1,), 2, fourier=3, embed_class=False))
    net.frequencies.copy_(torch.tensor([[4.0, 8.0, 12.0]]))
    net.enter.weight.data[:, 0] = 0
    x, noise = torch.linspace(-0.5, 0.5, 5)[:, None], torch.zeros(5)
    out = net(x, noise)
    torch.testing.assert_close(net(x + 0.25, noise), out, rtol=1e-3, atol=1e-4)
    assert (net(x + 0.125, noise) - out).abs().max() > 1e-2


def test_fourier_features_resolve_what_plain_coordinates_cannot():
    """A step of 300 on sin(2 pi 10 x): fitted with frequencies of that size, not without."""
    x = torch.linspace(-1, 1, 256)[:, None]
    y, noise = torch.sin(2 * math.pi * 10 * x), torch.zeros(256)
    losses = []
    for fourier in (0, 32):
        torch.manual_seed(0)
        net = MLP((1,), 1, width=32, blocks=1, fourier=fourier, embed_class=False)
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(150):
            loss = (net(x, noise) - y).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.3
    assert losses[1] < 0.03


def test_widths_and_blocks_are_what_they_are_called():
    net = MLP((2,), 3, width=24, blocks=5)
    assert len(net.blocks) == 5
    assert {tuple(block.second.weight.shape) for block in net.blocks} == {(24, 24)}


def test_the_linear_classifier_is_linear_in_x_and_noise_together():
    net = Linear((1, 2, 2), 3)
    x, noise = torch.randn(4, 1, 2, 2), torch.rand(4)
    expected = nn.functional.linear(
        torch.cat([x.reshape(4, 4), noise[:, None]], 1), net.linear.weight, net.linear.bias
    )
    torch.testing.assert_close(net(x, noise), expected)
    assert sum(p.numel() for p in net.parameters()) == 3 * (4 + 1) + 3
