"""Minibatch optimal transport: against sorting, all permutations, and what it does to a flow."""

from itertools import permutations

import pytest
import torch
from helpers.runs import manifest

from lightning_cfg.config import load
from lightning_cfg.diffusion.coupling import coupled
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.nets import MLP
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.verbs.fit import fit


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_in_one_dimension_it_is_sorting():
    x0, y, c = drawn(50, 1), drawn(51, 1)[:50].abs(), torch.arange(50) % 3
    out = coupled(x0, y, c, "transport")
    assert torch.equal(out[y[:, 0].argsort()], x0.sort(0).values)
    by_class = coupled(x0, y, c, "transport_by_class")
    for k in range(3):
        own = c == k
        assert torch.equal(by_class[own][y[own, 0].argsort()], x0[own].sort(0).values)
    assert not torch.equal(out, by_class)
    assert coupled(x0, y, c, "independent") is x0


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_it_is_the_best_of_all_permutations(shape):
    x0, y, c = drawn(6, *shape), 2 * drawn(13, *shape)[7:] + 1, torch.tensor([0, 1, 0, 1, 1, 0])

    def cost(order):
        return (x0[list(order)] - y).square().sum().item()

    best = min(permutations(range(6)), key=cost)
    assert torch.equal(coupled(x0, y, c, "transport"), x0[list(best)])
    within = [p for p in permutations(range(6)) if torch.equal(c[list(p)], c)]
    found = coupled(x0, y, c, "transport_by_class")
    assert torch.equal(found, x0[list(min(within, key=cost))])
    assert cost(best) < min(map(cost, within))


@pytest.mark.parametrize("coupling", ["independent", "transport", "transport_by_class"])
def test_the_loss_is_that_of_the_permuted_noise(coupling):
    torch.manual_seed(0)
    flow = Flow(MLP((2,), 2, width=8, blocks=1), coupling=coupling)
    torch.nn.init.normal_(flow.net.leave.weight)
    y, c = drawn(8, 2), torch.arange(8) % 2
    draws = Draws(seed=3, step=1, batch_size=8)
    t, noise = draws.uniform(), draws.normal(2)
    x0 = coupled(noise, y, c, coupling)
    v = flow.velocity((1 - t[:, None]) * x0 + t[:, None] * y, t, c)
    found = flow.loss(y, c, Draws(seed=3, step=1, batch_size=8))
    torch.testing.assert_close(found, (v - (y - x0)).square().sum(1))
    plain = Flow(flow.net).loss(y, c, Draws(seed=3, step=1, batch_size=8))
    assert torch.equal(found, plain) == (coupling == "independent")


def test_a_flow_of_transported_noise_is_straight(training, tmp_path):
    """Two far points from noise on a line: the halves part, and one step of Euler goes there."""
    data = {"name": "Mixture", "means": [[-2.0], [2.0]], "stds": [0.05, 0.05], "labels": [0, 0]}
    ends = {}
    for coupling in ("independent", "transport"):
        section = training(
            data=data,
            net={"name": "MLP", "width": 32, "blocks": 2},
            model={"name": "Flow", "coupling": coupling},
            learner={"name": "Diffusion", "lr": 3e-3, "ema_half_life": [2000]},
            batch_size=128,
            trainer={"max_steps": 250, "accelerator": "cpu"},
        )
        run = fit(**section, run_dir=str(tmp_path / coupling))
        flow, x0 = restore(run), torch.linspace(-1.5, 1.5, 10)[:, None]
        v = flow.velocity(x0, torch.full((10,), 0.001), torch.zeros(10, dtype=torch.long))
        ends[coupling] = ((x0 + v).abs() - 2).abs().mean().item()
        assert manifest(run)["settings"]["model"].get("coupling", "independent") == coupling
        assert ("coupling" in manifest(run)["settings"]["model"]) == (coupling == "transport")
    assert ends["transport"] < 0.4 < 1 < ends["independent"]


def test_pairs_have_a_coupling_already_and_others_are_refused(tmp_path):
    flow = Flow(MLP((2,), 2, width=8, blocks=1), coupling="transport")
    y, c = drawn(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UserError, match=r"model\.coupling=transport .* pairs have theirs already"):
        flow.loss(y, c, Draws(seed=0, step=0, batch_size=4), x0=y)
    file = tmp_path / "config.yaml"
    text = (
        "data: {name: Fractal}\nnet: MLP\nmodel: {name: Flow, coupling: ot}\nlearner: Diffusion\n"
    )
    file.write_text(text + "batch_size: 4\ntrainer: {max_steps: 1}\nrun_dir: x\n")
    with pytest.raises(UserError, match=r"model\.coupling must be one of 'independent', 'transp"):
        load(fit, file)
