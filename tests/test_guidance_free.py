"""Guidance learned in training: its truth on the exact mixture, and one pass in sampling."""

import pytest
import torch
from helpers.runs import manifest
from test_guidance_methods import FOUR, run
from test_guidance_verbs import EULER
from test_guidance_verbs import FOUR as FOUR_DATA

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.models import EDM, GuidanceFree
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import guidance_free
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import MLP, Linear
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

F64 = torch.float64


def untrained(**more) -> GuidanceFree:
    torch.manual_seed(0)
    model = GuidanceFree(MLP((2,), 4, width=32, blocks=2), **more).double()
    torch.nn.init.normal_(model.net.leave.weight, std=0.3)
    torch.nn.init.normal_(model.tell.weight)
    model.num_classes = 4
    return model.requires_grad_(False)


def test_told_1_it_is_a_conditional_edm_to_the_last_bit():
    model = untrained()
    plain = EDM(model.net)
    counted = Counted(model)
    assert torch.equal(run(guidance_free(counted, scale=1.0)), run(plain))
    assert counted.evaluations == 8 * 6
    c = torch.tensor([0, 3, NULL])
    one = model.scaled_classes(c, torch.ones(3, dtype=F64))
    assert torch.equal(one, model.class_vectors(c))
    mixed = model.scaled_classes(c, torch.tensor([1.0, 2.0, 3.0], dtype=F64)) - one
    assert mixed[0].abs().max() == 0
    for row, w in ((1, 2.0), (2, 3.0)):
        log = torch.tensor(w, dtype=F64).log()
        by_hand = model.tell.weight @ torch.stack([log, log**2])
        torch.testing.assert_close(mixed[row], by_hand)


def test_the_guidance_tells_the_model_each_samples_scale():
    model, c = untrained(), torch.tensor([0, 3, 1])
    x, sigma = torch.randn(3, 2, dtype=F64), torch.tensor([0.2, 1.0, 5.0], dtype=F64)
    for scale in (3.0, torch.tensor([3.0, 1.0, 0.5], dtype=F64)):
        w = torch.as_tensor(scale, dtype=F64).expand(3)
        expected = model(x, sigma, model.scaled_classes(c, w))
        assert torch.equal(guidance_free(model, scale=scale)(x, sigma, c), expected)
        assert (expected - model(x, sigma, c)).abs().max() > 0.01


class Answering(GuidanceFree):
    """The exact D_u + a w^b (D_c - D_u) in the place of a network: a and b are to be learned."""

    def __init__(self):
        super().__init__(MLP((2,), 4, width=4, blocks=1), scale_max=4.0, label_dropout=0.25)
        self.a, self.b = (torch.nn.Parameter(torch.tensor(0.5, dtype=F64)) for _ in range(2))

    def scaled_classes(self, c, w):
        return torch.stack([c.to(w), w], 1)

    def forward(self, x, sigma, told):
        c, w = (told[:, 0].long(), told[:, 1]) if told.ndim == 2 else (told, torch.ones_like(sigma))
        D_u = FOUR(x, sigma, torch.full_like(c, NULL))
        return D_u + (self.a * w**self.b)[:, None] * (FOUR(x, sigma, c) - D_u)


def test_what_the_loss_asks_for_is_cfg_on_the_exact_mixture():
    """Its minimum is at D_u + w (D_c - D_u), a = b = 1, whichever beta was drawn."""
    model, g = Answering(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam([model.a, model.b], lr=0.02)
    for step in range(150):
        c = torch.arange(2048) % 4
        y = torch.stack([FOUR.sample(512, k, g) for k in range(4)], 1).reshape(-1, 2)
        loss = model.loss(y, c, Draws(seed=0, step=step, batch_size=2048)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.a.item() == pytest.approx(1, abs=0.1)
    assert model.b.item() == pytest.approx(1, abs=0.1)


def test_the_loss_by_hand():
    model = untrained(scale_max=4.0, label_dropout=0.5)
    y, c = torch.randn(16, 2, dtype=F64), torch.arange(16) % 4
    found = model.loss(y, c, Draws(seed=2, step=5, batch_size=16))
    draws = Draws(seed=2, step=5, batch_size=16)
    sigma = (-1.2 + 1.2 * draws.normal()).exp().double()
    x = y + sigma[:, None] * draws.normal(2).double()
    c = torch.where(draws.uniform() < 0.5, NULL, c)
    beta = (0.25 + 0.75 * draws.uniform().double()).where(c != NULL, 1.0)
    D_u = model(x, sigma, torch.full_like(c, NULL))
    D = model(x, sigma, model.scaled_classes(c, 1 / beta))
    error = beta[:, None] * D + (1 - beta)[:, None] * D_u - y
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(found, weight * error.square().sum(1))
    assert 3 < (c == NULL).sum() < 13


def test_the_unconditional_part_has_no_gradient():
    """sg: at beta below 1 the gradient is that of beta D alone."""
    model = untrained(label_dropout=0.01).requires_grad_(True)
    y, c = torch.randn(64, 2, dtype=F64), torch.arange(64) % 4
    calls = []
    forward = model.forward

    def watched(x, sigma, c):
        calls.append(torch.is_grad_enabled())
        return forward(x, sigma, c)

    model.forward = watched
    model.loss(y, c, Draws(seed=0, step=0, batch_size=64)).sum().backward()
    assert calls == [False, True]


def test_it_goes_through_the_verbs_in_one_pass(tmp_path, training):
    section = training(data=FOUR_DATA, model={"name": "GuidanceFree", "scale_max": 3.0})
    base = str(fit(**section, run_dir=str(tmp_path / "base")))
    made = {"models": {"model": base}, "sampler": EULER, "n": 6}
    for name, passes in (("guidance_free", 5), ("classifier_free", 10)):
        guidance = {"name": name, "scale": 2.0}
        told = manifest(generate(guidance=guidance, run_dir=str(tmp_path / name), **made))
        assert told["evaluations"] == {"model": passes}


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="guidance_free needs a model that was trained as"):
        guidance_free(FOUR)
    with pytest.raises(UserError, match="label_dropout must be above 0"):
        GuidanceFree(MLP((2,), 4, width=8), label_dropout=0.0)
    with pytest.raises(UserError, match="embeds no classes"):
        GuidanceFree(Linear((2,), 2))
