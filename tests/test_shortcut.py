"""Average velocities: their loss, what they are of Gaussians in closed form, and Euler's steps."""

import pytest
import torch

from lightning_cfg import nets
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.models import Flow, GuidanceFree, Shortcut
from lightning_cfg.errors import UserError
from lightning_cfg.nets import MLP
from lightning_cfg.refinement.solver import Solver, refined

DRAWS = {"seed": 0, "step": 3, "batch_size": 64}


def rough(**keys) -> Shortcut:
    """One whose network and whose telling of r are not at their start, in float64."""
    model = Shortcut(MLP((2,), 3, width=8, blocks=1), **keys).double()
    for i, p in enumerate(model.parameters()):
        p.data = 0.5 * torch.randn(p.shape, generator=keyed("rough", i), dtype=torch.float64)
    return model


def test_a_fresh_one_is_a_flow():
    net = MLP((2,), 3, width=8, blocks=1)
    torch.nn.init.normal_(net.leave.weight)
    x, t, c = torch.randn(5, 2), torch.rand(5), torch.arange(5) % 3
    v = Flow(net).velocity(x, t, c)
    torch.testing.assert_close(Shortcut(net).average(x, t, t + 0.3, c), v)
    torch.testing.assert_close(Shortcut(net).velocity(x, t, c), v)


def test_what_is_drawn():
    """h is 0 or a power of a half, and t a multiple of it; both of every kind come up."""
    model = rough(apart=0.5, halvings=3)
    t, h, shortest = model.steps(
        torch.zeros(4000, 2).double(), Draws(seed=0, step=0, batch_size=4000)
    )
    assert set(h.tolist()) == {0.0, 1.0, 0.5, 0.25}
    steps = h > 0
    assert abs(steps.double().mean() - 0.5) < 0.03
    assert (t[steps] / h[steps] % 1 == 0).all()
    assert (t + h <= 1).all()
    assert set(t[h == 0.25].tolist()) == {0.0, 0.25, 0.5, 0.75}
    assert len(t[~steps].unique()) > 1900
    assert torch.equal(shortest[steps], h[steps] == 0.25)
    never, _, _ = rough(apart=0.0).steps(torch.zeros(64, 2).double(), Draws(**DRAWS))
    assert torch.equal(never, Draws(**DRAWS).uniform().double())  # Flow's own draws


def test_the_loss_by_hand():
    """Sample by sample, and its gradient is that of the answer alone."""
    model = rough(apart=0.7, halvings=3)
    y, x0 = (torch.randn(64, 2, generator=keyed("y", i), dtype=torch.float64) for i in range(2))
    c = torch.arange(64) % 3
    t, h, shortest = model.steps(y, Draws(**DRAWS))

    def u(i: int, x: torch.Tensor, t: float, r: float) -> torch.Tensor:
        at, to = (torch.tensor([v], dtype=torch.float64) for v in (t, r))
        return model.average(x[None], at, to, c[i : i + 1])[0]

    expected = []
    for i in range(64):
        at, far = t[i].item(), h[i].item()
        x, target = x0[i] + at * (y[i] - x0[i]), y[i] - x0[i]
        if far > 0:
            reach, middle = 0.0 if shortest[i] else far / 2, at + far / 2
            first = u(i, x, at, at + reach)
            target = (first + u(i, x + far / 2 * first, middle, middle + reach)) / 2
        expected.append((u(i, x, at, at + far) - target.detach()).square().sum())
    found = model.loss(y, c, Draws(**DRAWS), x0=x0)
    torch.testing.assert_close(found, torch.stack(expected))
    torch.stack(expected).sum().backward()
    theirs = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name])


def test_of_gaussians_it_is_known():
    """From N(0, 1) to N(1, .3^2), of independent pairs: x_r = r + s_r / s_t (x_t - t).

    s_t^2 = (1 - t)^2 + (.3 t)^2. One step of a plain flow ends in 1 whatever x0 was.
    """
    torch.manual_seed(0)
    model = Shortcut(MLP((1,), 1, width=64, blocks=1), apart=0.5)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(1200):
        draws = Draws(seed=0, step=step, batch_size=512)
        x0, y = draws.normal(1), 1 + 0.3 * draws.normal(1)
        loss = model.loss(y, torch.zeros(512, dtype=torch.long), draws, x0=x0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / 1200)

    def s(t: float) -> float:
        return ((1 - t) ** 2 + (0.3 * t) ** 2) ** 0.5

    x = torch.linspace(-2, 2, 41)[:, None]
    c = torch.zeros(41, dtype=torch.long)
    for t, r in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.75), (0.4, 0.4)):
        x_t = t + s(t) * x
        end = r + s(r) / s(t) * (x_t - t)
        v = 1 + (s(t + 1e-4) - s(t - 1e-4)) / 2e-4 * x  # of x_t along its own way
        exact = (end - x_t) / (r - t) if r > t else v
        with torch.no_grad():
            found = model.average(x_t, torch.full((41,), t), torch.full((41,), r), c)
        assert (found - exact).square().mean().sqrt() < 0.1, (t, r)
    once, evaluations = refined(model, x, c, Solver("euler", steps=1))
    assert evaluations == 41
    assert (once - (1 + 0.3 * x)).square().mean().sqrt() < 0.1


def test_an_euler_step_is_as_long_as_it_is_asked():
    """Of three steps over 0.6 of the way; Heun and CFG inside read what they are to read."""
    model = rough(label_dropout=0.1)
    x, c = torch.randn(5, 2, dtype=torch.float64), torch.arange(5) % 3
    expected = x
    with torch.no_grad():
        for t, r in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6)):
            at, to = torch.full((5,), t).double(), torch.full((5,), r).double()
            u_c = model.average(expected, at, to, c)
            u_u = model.average(expected, at, to, torch.full_like(c, -1))
            expected = expected + 0.2 * (u_u + 1.5 * (u_c - u_u))
        v = model.velocity(x, torch.zeros(5).double(), c)
        second = model.velocity(x + v, torch.ones(5).double(), c)
    found, _ = refined(model, x, c, Solver("euler", steps=3, strength=0.6, scale=1.5))
    torch.testing.assert_close(found, expected.float())
    found, _ = refined(model, x, c, Solver("heun", steps=1))
    torch.testing.assert_close(found, (x + (v + second) / 2).float())


BARE = {
    "MLP": ((2,), {"width": 8}),
    "UnshuffleUNet": ((1, 8, 8), {"channels": 8}),
    "ADMUNet": ((1, 8, 8), {"channels": 32, "attention_resolutions": []}),
    "SongUNet": ((1, 8, 8), {"channels": 32, "attention_resolutions": []}),
    "EDM2UNet": ((1, 8, 8), {"channels": 32, "attention": []}),
    "DiT": ((1, 8, 8), {"channels": 32, "blocks": 1, "num_heads": 2}),
}


@pytest.mark.parametrize("net", BARE)
@pytest.mark.parametrize("model", [Shortcut, GuidanceFree])
def test_what_is_told_beside_the_class_needs_classes(model, net: str):
    """Of data without them a network has no vectors, and says so."""
    shape, keys = BARE[net]
    if (model, net) == (GuidanceFree, "EDM2UNet"):
        keys = {**keys, "null_class": True}
    with pytest.raises(UserError, match=f"{net}: a network without classes has no vectors"):
        model(getattr(nets, net)(shape, 0, **keys))


def test_a_network_of_ones_own_needs_vectors():
    class Own(torch.nn.Module):
        def forward(self, x: torch.Tensor, noise: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(UserError, match="Shortcut: net Own embeds no classes"):
        Shortcut(Own())
