"""A strength of guidance that is learned: its truth on exact mixtures, and through the verbs."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import manifest
from test_guidance_methods import FOUR, run
from test_guidance_verbs import FOUR as FOUR_DATA

from lightning_cfg.config import load
from lightning_cfg.diffusion import guidance_weight
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.guidance_weight import GuidanceWeight, energy, first_of
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import classifier_free, learned_weight
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import MLP
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import study

F64 = torch.float64
OFF = torch.tensor([1.6, 0.7, 1.0, 1.25], dtype=F64)  # how much class c's part has been shrunk by


def shrunk(x, sigma, c):
    """An exact model whose conditional part is too small, by a factor known for every class."""
    D_u = FOUR(x, sigma, torch.full_like(c, NULL))
    part = torch.where(c == NULL, 0.0, 1 / OFF[c])
    return D_u + part[:, None] * (FOUR(x, sigma, c) - D_u)


def weight_of(net=None, **keys) -> GuidanceWeight:
    torch.manual_seed(0)
    net = net or MLP((2,), 4, width=32, blocks=1, outputs=1)
    model = GuidanceWeight(net, of="nowhere", **keys)
    model.shape, model.num_classes = (2,), 4
    return model


def test_the_weight_learns_its_truth_on_the_mixture():
    """|D_w - y|^2 is least where D_w is the exact denoiser, at w = the factor, whatever sigma."""
    model = weight_of()
    model.guides(shrunk)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 250)
    g = torch.Generator().manual_seed(0)
    for step in range(250):
        c = torch.arange(1024) % 4
        y = torch.cat([FOUR.sample(256, k, g) for k in range(4)]).reshape(4, 256, 2).transpose(0, 1)
        loss = model.loss(y.reshape(-1, 2), c, Draws(seed=0, step=step, batch_size=1024)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    sigma = torch.tensor([0.3, 0.5, 0.8], dtype=F64).repeat_interleave(4)  # where classes differ
    found = model.weight(sigma, torch.arange(4).repeat(3)).detach()
    torch.testing.assert_close(found, OFF.repeat(3), rtol=0.12, atol=0)
    x, c = torch.randn(8, 2, dtype=F64, generator=g), torch.arange(8) % 4
    sigma = torch.full((8,), 0.5, dtype=F64)
    guided = learned_weight(shrunk, model, scale=2.0)(x, sigma, c)
    before, after = (D - FOUR(x, sigma, c) for D in (shrunk(x, sigma, c), guided.detach()))
    assert after.norm() < 0.3 * before.norm()


def test_a_network_that_has_learned_nothing_is_the_conditional_model():
    """exp(0) = 1, to the last bit; and scale 1 asks neither for the strength nor for D_u."""
    model, counted = Counted(FOUR), Counted(weight_of())
    found = run(learned_weight(model, counted, scale=2.0))
    assert torch.equal(found, run(FOUR))
    assert model.evaluations == 8 * 6
    counted.evaluations = 0
    assert torch.equal(run(learned_weight(model, counted, scale=1.0)), run(FOUR))
    assert counted.evaluations == 0


def test_the_weight_is_cfgs_of_each_sample():
    x, c = torch.randn(6, 2, dtype=F64), torch.tensor([0, 1, 2, 3, 0, 1])
    sigma = torch.linspace(0.2, 2.0, 6, dtype=F64)

    def strength(x, sigma, c):
        return (1 + sigma * (c + 1))[:, None].expand_as(x)

    for scale in (2.0, 1.5):
        w = 1 + (scale - 1) * sigma * (c + 1)
        expected = classifier_free(FOUR, scale=w)(x, sigma, c)
        torch.testing.assert_close(
            learned_weight(FOUR, strength, scale=scale)(x, sigma, c), expected
        )


def test_w_does_not_depend_on_x_and_is_positive():
    model = weight_of()
    torch.nn.init.normal_(model.net.leave.weight, std=3.0)
    sigma, c = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 3, 1])
    one, other = (model(torch.randn(3, 2), sigma, c) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(one[:, 0], one[:, 1])
    assert one.min() > 0
    assert one.std() > 0.1
    at = model.net(torch.zeros(3, 2), sigma.log() / 4, c)[:, 0].exp()
    torch.testing.assert_close(one[:, 0], at)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, training) -> dict:
    """A base, a strength that was learned on it, and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    base = training(data=FOUR_DATA)
    fit(**base, run_dir=str(folder / "base"))
    net = {"name": "MLP", "width": 8, "blocks": 1, "outputs": 1}
    model = {"name": "GuidanceWeight", "of": str(folder / "base")}
    fit(**{**base, "net": net, "model": model}, run_dir=str(folder / "strength"))
    return {name: str(folder / name) for name in ("base", "strength")}


EULER = {"name": "euler", "steps": 4}


def test_a_strength_goes_through_the_verbs(runs, tmp_path):
    models = {"model": runs["base"], "strength": runs["strength"]}
    made = {"models": models, "guidance": {"name": "learned_weight"}, "sampler": EULER, "n": 6}
    run = generate(**made, run_dir=str(tmp_path / "a"))
    assert manifest(run)["evaluations"] == {"model": 8, "strength": 4}
    told = manifest(Path(runs["strength"]))
    assert "of" not in told["settings"]["model"]  # it counts by content, as a file does
    assert any("model.of" in key for key in told["inputs"])


@pytest.mark.parametrize(
    "models, guidance, words",
    [
        (("base", "base"), "learned_weight", r"models\.strength is a EDM"),
        (("strength", "strength"), "learned_weight", r"models\.model is a GuidanceWeight"),
        (("base", "exact"), "learned_weight", r"models\.strength: exact has no strength"),
        (("strength",), "unguided", r"models\.model is a GuidanceWeight"),
    ],
)
def test_what_is_no_strength_is_refused(runs, tmp_path, models, guidance, words):
    named = dict(zip(("model", "strength"), models, strict=False))
    named = {role: runs.get(name, name) for role, name in named.items()}
    made = {"models": named, "guidance": {"name": guidance}, "sampler": EULER, "n": 6}
    with pytest.raises(UserError, match=words):
        generate(**made, data=FOUR_DATA, run_dir=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_strength_for_other_data_is_refused(runs, tmp_path, training):
    other = training(data={**FOUR_DATA, "labels": [0, 1, 2, 2]})
    net = {"name": "MLP", "width": 8, "blocks": 1, "outputs": 1}
    model = {"name": "GuidanceWeight", "of": runs["base"]}
    with pytest.raises(UserError, match=r"model\.of has num_classes 4, but the data have 3"):
        fit(**{**other, "net": net, "model": model}, run_dir=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_study_names_the_fit_that_a_strength_is_of(tmp_path, training):
    base = training()
    base.pop("data")
    strength = {
        **base,
        "net": {"name": "MLP", "width": 8, "blocks": 1, "outputs": 1},
        "model": {"name": "GuidanceWeight", "of": "base"},
    }
    models = {"model": "base", "strength": "strength"}
    config = {
        "data": FOUR_DATA,
        "fits": {"base": base, "strength": strength},
        "methods": {"learned": {"models": models, "guidance": "learned_weight"}},
        "scales": [1.0, 2.0],
        "samples": 8,
        "generation": {"sampler": EULER},
        "evaluation": {"metrics": ["wrong_class"], "real": 8, "bank": 8},
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config))
    root = study(**load(study, file, [f"run_dir={tmp_path / 'study'}"]))
    assert (root / "report.md").is_file()
    (run,) = (root / "stages").glob("generate-learned-2-fresh*")
    assert manifest(run)["evaluations"] == {"model": 8, "strength": 4}


# The objective on distributions


def test_the_energy_distance_of_each_class_by_hand():
    """Sums over pairs, written out; of one alone nothing is known."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 2, generator=g, dtype=F64) for _ in range(2))
    c = torch.tensor([0, 1, 0, 2, 1, 0, 1])
    found = energy(a, b, c)
    for k in (0, 1):
        rows = [i for i in range(7) if c[i] == k]
        pairs = [(i, j) for i in rows for j in rows if i != j]
        across = 2 * sum((a[i] - b[j]).norm() for i, j in pairs)
        within = sum((a[i] - a[j]).norm() + (b[i] - b[j]).norm() for i, j in pairs)
        expected = (across - within) / len(pairs)
        torch.testing.assert_close(found[rows].mean(), expected)
    assert found[3] == 0
    assert first_of(c, torch.arange(7.0)).tolist() == [0, 1, 0, 3, 1, 0, 1]


def test_each_class_of_a_batch_has_one_step(monkeypatch):
    """x~_s is D_w + gap (x_t - D_w), x_s the same point with the same noise at s."""
    model = weight_of(objective="mmd", gap=0.6)
    model.guides(FOUR)
    seen = []
    monkeypatch.setattr(guidance_weight, "energy", lambda a, b, c: seen.append((a, b, c)) or b)
    y, c = torch.randn(9, 2, dtype=F64), torch.arange(9) % 3
    model.loss(y, c, Draws(seed=0, step=3, batch_size=9))
    a, b, _ = seen[0]
    draws = Draws(seed=0, step=3, batch_size=9)
    t = (-1.2 + 1.2 * draws.normal()).exp().double()[:3].repeat(3)  # the first one's of each class
    n = draws.normal(2).double()
    torch.testing.assert_close(b, y + 0.6 * t[:, None] * n)
    x = y + t[:, None] * n
    D = FOUR(x, t, c)  # as nothing is learned, w = 1
    torch.testing.assert_close(a, D + 0.6 * (x - D))


def test_the_objective_on_distributions_has_its_truth_too():
    """Of the shrunk model the steps' distributions are nearest where w undoes the factor."""
    model = weight_of(objective="mmd")
    model.guides(shrunk)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 120)
    g = torch.Generator().manual_seed(0)
    for step in range(120):
        c = torch.arange(512) % 4
        y = torch.cat([FOUR.sample(128, k, g) for k in range(4)]).reshape(4, 128, 2).transpose(0, 1)
        loss = model.loss(y.reshape(-1, 2), c, Draws(seed=0, step=step, batch_size=512)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    sigma = torch.tensor([0.4, 0.6], dtype=F64).repeat_interleave(4)
    found = model.weight(sigma, torch.arange(4).repeat(2)).detach().reshape(2, 4)
    assert (found.mean(0).argsort() == OFF.argsort()).all()
    torch.testing.assert_close(found.mean(0), OFF, rtol=0.3, atol=0)
    x, c = torch.randn(64, 2, dtype=F64, generator=g), torch.arange(64) % 4
    sigma = torch.full((64,), 0.5, dtype=F64)
    guided = learned_weight(shrunk, model, scale=2.0)(x, sigma, c)
    before, after = (D - FOUR(x, sigma, c) for D in (shrunk(x, sigma, c), guided.detach()))
    assert after.norm() < 0.6 * before.norm()
