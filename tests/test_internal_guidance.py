"""Internal guidance: a head inside the network, trained beside the last one, and guided by."""

import pytest
import torch
from helpers.runs import manifest
from test_guidance_methods import run
from test_guidance_verbs import EULER
from test_guidance_verbs import FOUR as FOUR_DATA

from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.models import DDPM, EDM
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import autoguidance, classifier_free, self_guidance
from lightning_cfg.nets import MLP, Linear
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.weakened import inner
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

F64 = torch.float64


def model(blocks: int = 3, inside: int | None = 1, weight: float = 0.5) -> EDM:
    torch.manual_seed(0)
    made = EDM(MLP((2,), 4, width=32, blocks=blocks, inner=inside), inner_weight=weight).double()
    for leave in (made.net.leave, *([made.net.leave_inside] if inside else [])):
        torch.nn.init.normal_(leave.weight, std=0.3)
    made.num_classes = 4
    return made


def points() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, generator=g, dtype=F64)
    return x, torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=F64), torch.arange(5) % 4


def inside(made: EDM, x, sigma, c) -> torch.Tensor:
    """D_i written out a second time: the entrance, one block, the second head."""
    net, s = made.net, sigma[:, None]
    told = net.noise_embedding(sigma.log() / 4) + net.class_vectors(c)
    h = net.blocks[0](net.enter(x / (s**2 + 0.25).sqrt()), torch.nn.functional.silu(told))
    F = net.leave_inside(torch.nn.functional.silu(h))
    return 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * F


def test_the_head_inside_by_hand():
    made = model()
    expected = inside(made, *points())
    torch.testing.assert_close(made.inner(*points()), expected)
    assert (made(*points()) - expected).abs().max() > 0.01
    late = []
    made.net.blocks[1].register_forward_hook(lambda *_: late.append(1))
    made.inner(*points())
    assert not late  # it goes no farther


def test_a_network_without_it_is_as_it_was():
    """The same weights, drawn before the second head's, and the same answer to the last bit."""
    nets = []
    for inside in (None, 1):
        torch.manual_seed(0)
        nets.append(MLP((2,), 4, width=32, blocks=3, inner=inside).double())
    plain, made = (net.state_dict() for net in nets)
    assert all(torch.equal(made[name], held) for name, held in plain.items())
    assert set(made) - set(plain) == {"leave_inside.weight", "leave_inside.bias"}
    for net in nets:
        torch.nn.init.ones_(net.leave.weight)
    assert torch.equal(EDM(nets[0])(*points()), EDM(nets[1], inner_weight=0.5)(*points()))


def test_the_loss_is_that_of_both():
    made, (x, _, c) = model(weight=0.7), points()
    loss = made.loss(x, c, Draws(seed=0, step=0, batch_size=5))
    draws = Draws(seed=0, step=0, batch_size=5)
    sigma = (-1.2 + 1.2 * draws.normal()).exp().double()
    noisy = x + sigma[:, None] * draws.normal(2).double()
    c = torch.where(draws.uniform() < 0.1, -1, c)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    errors = [((D - x) ** 2).sum(1) for D in (made(noisy, sigma, c), inside(made, noisy, sigma, c))]
    torch.testing.assert_close(loss, weight * (errors[0] + 0.7 * errors[1]))
    loss.sum().backward()
    assert made.net.leave_inside.weight.grad.norm() > 0
    assert made.net.leave.weight.grad.norm() > 0


def test_guidance_by_it_is_the_papers():
    """D_i + w (D_f - D_i); beside CFG the sum of both."""
    made, weak = model().requires_grad_(False), model().requires_grad_(False)
    inner(weak)
    D_f, D_i = made(*points()), inside(made, *points())
    torch.testing.assert_close(
        autoguidance(made, weak, scale=1.6)(*points()), D_i + 1.6 * (D_f - D_i)
    )
    cfg = classifier_free(made, scale=3.0)(*points())
    both = self_guidance(made, weak, of=lambda m: classifier_free(m, scale=3.0), scale=1.6)
    torch.testing.assert_close(both(*points()), cfg + 0.6 * (D_f - D_i))
    assert torch.equal(run(autoguidance(made, weak, scale=1.0)), run(made))


def test_trained_it_knows_less_than_the_end_and_guides(tmp_path, training):
    base = training(data=FOUR_DATA, trainer={"max_steps": 200, "accelerator": "cpu"})
    base |= {"learner": {**base["learner"], "lr": 5e-3}}
    base |= {"net": {"name": "MLP", "width": 32, "blocks": 4, "inner": 1}, "batch_size": 256}
    base |= {"model": {"name": "EDM", "inner_weight": 0.5, "label_dropout": 0.1}}
    made = str(fit(**base, run_dir=str(tmp_path / "base")))
    held = restore(made, weights="raw")
    g = torch.Generator().manual_seed(0)
    truth = build_data(FOUR_DATA).truth
    y = torch.cat([truth.sample(500, k, g) for k in range(4)]).float()
    sigma, c = torch.full((2000,), 0.4), torch.arange(4).repeat_interleave(500)
    x = y + 0.4 * torch.randn(2000, 2, generator=g)
    nothing = ((x - y) ** 2).mean()
    last, half = ((D - y).square().mean() for D in (held(x, sigma, c), held.inner(x, sigma, c)))
    assert last < half < nothing
    asked = {"sampler": EULER, "n": 8, "guidance": {"name": "autoguidance", "scale": 2.0}}
    models = {"model": made, "weak": {"path": made, "weaken": {"name": "inner"}}}
    samples = generate(models=models, run_dir=str(tmp_path / "guided"), **asked)
    assert manifest(samples)["evaluations"] == {"model": 5, "weak": 5}
    alone = generate(
        models={"model": made}, run_dir=str(tmp_path / "alone"),
        **{**asked, "guidance": {"name": "unguided"}},
    )  # fmt: skip
    one, other = (
        load_tensors(r / "samples/samples.safetensors", "x")["x"] for r in (samples, alone)
    )
    assert (one - other).abs().max() > 1e-3


def test_what_does_not_go_together():
    for made in (
        lambda: EDM(MLP((2,), 4, inner=1)),
        lambda: EDM(MLP((2,), 4), inner_weight=0.5),
        lambda: DDPM(MLP((2,), 4, inner=1)),
        lambda: EDM(Linear((2,), 4), label_dropout=0.0, inner_weight=0.5),
    ):
        with pytest.raises(UserError, match=r"a head inside the network .* go together"):
            made()
    with pytest.raises(UserError, match=r"net\.inner=3 must be from 1 to below net\.blocks=3"):
        MLP((2,), 4, blocks=3, inner=3)
    with pytest.raises(UserError, match="weaken=inner: the network has no head inside"):
        inner(EDM(MLP((2,), 4)))
