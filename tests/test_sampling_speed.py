"""Sampling and refining with networks in bfloat16 or compiled."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import manifest
from torch import Tensor, nn

from lightning_cfg.errors import UserError
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine

HEUN = {"name": "heun", "steps": 4, "sigma_max": 5.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory, training, mixture) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("speed")
    base = str(fit(**training(trainer={"max_steps": 30}), run_dir=str(root / "base")))
    classifier = {"model": {"name": "NoisyClassifier"}, "learner": {"name": "Classification"}}
    classifier = str(fit(**training(**classifier), run_dir=str(root / "classifier")))
    samples = drawn(base, root / "samples")
    pairs = str(
        pair(sources=[str(samples)], data=mixture, k=3, bank=200, run_dir=str(root / "pairs"))
    )
    flow = {"data": {"name": "Pairs", "path": pairs}, "model": {"name": "Flow"}}
    flow = str(fit(**training(**flow, learner={"name": "Refinement"}), run_dir=str(root / "flow")))
    return SimpleNamespace(base=base, classifier=classifier, samples=samples, flow=flow)


def drawn(model: str, run: Path, **changed: object) -> Path:
    settings = {"guidance": {"name": "unguided"}, "sampler": HEUN, "n": 40, **changed}
    return generate(models={"model": model}, run_dir=str(run), **settings)


def x_of(run: Path | str) -> Tensor:
    return load_tensors(Path(run) / SAMPLES, "x")["x"]


def rounded(model: nn.Module) -> nn.Module:
    """The model with every Linear's input, weights and output rounded to bfloat16, by hand."""
    for part in model.net.modules():
        if isinstance(part, nn.Linear):

            def product(x: Tensor, part: nn.Linear = part) -> Tensor:
                weights = [None if w is None else w.bfloat16() for w in (part.weight, part.bias)]
                return nn.functional.linear(x.bfloat16(), *weights)

            part.forward = product
    return model


def test_bfloat16_is_of_the_networks_products_and_of_nothing_else(made):
    model = checkpoints.restore(made.base)
    x, sigma, c = torch.randn(50, 2), torch.full((50,), 0.3), torch.zeros(50, dtype=torch.long)
    plain = model(x, sigma, c)
    model.autocast = torch.bfloat16
    asked = model(x, sigma, c)
    model.autocast = None
    assert asked.dtype == x.dtype
    assert (asked - plain).abs().max() > 0
    torch.testing.assert_close(asked, rounded(model)(x, sigma, c), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(asked, plain, rtol=5e-2, atol=5e-2)


def test_samples_in_bfloat16_are_others_and_say_so(made, tmp_path):
    plain = x_of(made.samples)
    same = drawn(made.base, tmp_path / "same", precision="32-true")
    half = drawn(made.base, tmp_path / "half", precision="bf16-mixed")
    assert torch.equal(x_of(same), plain)
    assert manifest(same)["settings"] == manifest(made.samples)["settings"]  # as before the key
    assert manifest(half)["settings"]["precision"] == "bf16-mixed"
    assert not torch.equal(x_of(half), plain)
    assert (x_of(half) - plain).square().mean() < 1e-2 * plain.square().mean()


def test_refined_in_bfloat16(made, tmp_path):
    given = {"flow": made.flow, "samples": str(made.samples), "method": "heun", "steps": 2}
    plain = x_of(refine(**given, run_dir=str(tmp_path / "plain")))
    half = x_of(refine(**given, precision="bf16-mixed", run_dir=str(tmp_path / "half")))
    assert not torch.equal(plain, half)
    assert (half - plain).square().mean() < 1e-3 * plain.square().mean()
    with pytest.raises(UserError, match="precision=bf16-mixed is for method=euler and heun"):
        refine(flow=made.flow, samples=str(made.samples), precision="bf16-mixed", run_dir="run")


def test_every_network_is_compiled_once_and_samples_stay(made, tmp_path, monkeypatch):
    """By torch's own frontend, with a backend that generates no code, which takes a minute."""
    compiled, own = [], nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda net: (compiled.append(net), own(net, backend="eager"))
    )
    guided = {"guidance": {"name": "classifier_gradient", "scale": 2.0}, "sampler": HEUN, "n": 40}
    models = {"model": made.base, "classifier": made.classifier}
    plain = generate(models=models, **guided, run_dir=str(tmp_path / "plain"))
    assert compiled == []
    fast = generate(models=models, **guided, compile=True, run_dir=str(tmp_path / "fast"))
    assert len({id(net) for net in compiled}) == len(compiled) == 2
    torch.testing.assert_close(x_of(fast), x_of(plain), rtol=1e-4, atol=1e-4)
    refine(
        flow=made.flow, samples=str(made.samples), compile=True, run_dir=str(tmp_path / "refined")
    )
    assert len(compiled) == 3


@pytest.mark.parametrize("speed", [{"compile": True}, {"precision": "bf16-mixed"}])
def test_a_closed_form_has_nothing_to_make_faster(speed, mixture, tmp_path):
    with pytest.raises(UserError, match="a closed form is no network"):
        drawn("exact", tmp_path / "run", data=mixture, **speed)
