"""Data sets, networks and models of one's own: plain classes, and what each has to have."""

import ast
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import lightning_cfg
from lightning_cfg import data, nets
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion import models
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.mixture import GaussianMixture
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet, Model, Net, check_same
from lightning_cfg.runs.checkpoints import build_model, restore
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.sampling.prepared import ExactClassifier
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

HERE = "test_contracts"
MIDDLE = torch.tensor([3.0, -1.0])


class Cloud:
    """Points round MIDDLE, without any class that it derives from."""

    shape, num_classes = (2,), 0

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        y = MIDDLE + 0.01 * draws.normal(2)
        return {"y": y, "c": torch.zeros(len(y), dtype=torch.long)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    shape: tuple[int, ...] = (2,)
    num_classes: int = 0

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        return Cloud().batch(draws)


class Around:
    """Another data set in a wrapper, which answers as that does."""

    def __init__(self, *, path: str):
        self.inner = data.Pairs(path=path)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Plain(nn.Module):
    """A network with no more than is needed: x itself, times a number."""

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None) -> Tensor:
        return self.number * x


class Guess(nn.Module):
    """A denoiser that answers the same point whatever it is given: it learns the mean."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.point = net, nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return self.point.to(x).expand(len(x), 2)

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        return (self.point - y).square().sum(1) + 0 * self.net(y, y[:, 0], c).sum(1)


OWN = {
    "data": {"name": f"{HERE}.Cloud"},
    "net": {"name": f"{HERE}.Plain"},
    "model": {"name": f"{HERE}.Guess"},
    "learner": {"name": "Diffusion", "lr": 0.1},
    "trainer": {"max_steps": 200},
}


@pytest.mark.parametrize("points", ["Cloud", "Frozen"])
def test_plain_classes_are_trained_and_sampled_from(points, call, training):
    done = call(fit, training(**OWN), "run_dir=run", f"data.name={HERE}.{points}")
    assert done.status == 0, done.err
    model = restore("run", weights="raw")
    torch.testing.assert_close(model.point, MIDDLE, atol=0.02, rtol=0)
    how = {"models": {"model": {"path": "run", "weights": "raw"}}, "n": 5}
    how |= {"guidance": {"name": "unguided"}, "sampler": {"name": "euler", "steps": 3}}
    done = call(generate, how, "run_dir=samples")
    assert done.status == 0, done.err
    # a path of which the denoised point never changes ends in it
    x = load_tensors(Path("samples", SAMPLES), "x")["x"]
    torch.testing.assert_close(x, model.point.expand(5, 2))
    limits = json.loads(Path("samples/manifest.json").read_text())["settings"]["sampler"]
    assert limits["name"] == "euler"


def test_a_wrapper_is_asked_before_a_default_counts(tmp_path):
    tensors = {"x": torch.zeros(2, 1), "c": torch.zeros(2).long(), "targets": torch.ones(2, 1)}
    tensors |= {"neighbours": torch.tensor([[0], [1]]), "num_classes": torch.tensor(1)}
    path = str(save_tensors(tmp_path / "pairs.safetensors", **tensors))
    wrapped = build_data({"name": f"{HERE}.Around", "path": path})
    assert (wrapped.has_sources, wrapped.shape, wrapped.num_classes) == (True, (1,), 1)
    assert wrapped.path == wrapped.inner.path
    assert not build_data({"name": f"{HERE}.Cloud"}).has_sources


class Bare(nn.Module):
    """A model of which its signatures say the rest."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def loss(self, y: Tensor, c: Tensor, draws: Draws, x0: Tensor, augment: Tensor) -> Tensor: ...


def test_a_model_of_ones_own_is_what_its_signatures_say():
    def built(name: str) -> Model:
        return build_model({"net": OWN["net"], "model": {"name": name}}, [2], 3)

    bare, guess = built(f"{HERE}.Bare"), built(f"{HERE}.Guess")
    assert (bare.classifies, bare.takes_x0, bare.augment_dim) == (True, True, 0)
    assert (guess.classifies, guess.takes_x0, guess.augment_dim) == (False, False, None)
    assert (guess.shape, guess.num_classes, guess.sigma_max) == ((2,), 3, float("inf"))
    assert guess.class_vectors is guess.net.class_vectors is None
    flow = built("Flow")
    assert (flow.takes_x0, flow.augment_dim, flow.classifies) == (True, None, False)


# What is missing


def lacking(cls: type, *names: str) -> type:
    """The class without some of its members."""
    members = {k: v for k, v in vars(cls).items() if k not in (*names, "__dict__", "__weakref__")}
    return type(cls.__name__, cls.__bases__, members)


class NoClasses(lacking(Cloud, "num_classes")): ...


class NoShape(lacking(Cloud, "shape")): ...


class NoBatch(lacking(Cloud, "batch")): ...


class Derived(DataSet):
    shape = (2,)


class Silent(nn.Module):
    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))


class Lossless(Silent):
    def __init__(self, net: nn.Module):
        super().__init__((), 0)


def function(shape: tuple[int, ...], num_classes: int) -> object:
    return lambda x, noise, c: x


@pytest.mark.parametrize(
    "change, message",
    [
        (f"data.name={HERE}.NoClasses", f"data {HERE}.NoClasses lacks num_classes"),
        (f"data.name={HERE}.NoShape", f"data {HERE}.NoShape lacks shape"),
        (f"data.name={HERE}.NoBatch", "data NoBatch lacks batch: it cannot be trained on"),
        (f"data.name={HERE}.Derived", f"data {HERE}.Derived lacks num_classes"),
        (f"net.name={HERE}.Silent", f"net {HERE}.Silent lacks forward"),
        (f"net.name={HERE}.function", "makes a function, which is no torch.nn.Module"),
        (f"model.name={HERE}.Lossless", f"model {HERE}.Lossless lacks loss"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(change, message, call, training):
    refused = call(fit, training(**OWN), "run_dir=run", change)
    assert (refused.status, len(refused.err.strip().splitlines())) == (2, 1), refused.err
    assert message in refused.err
    assert not Path("run").exists()


class OnlyTrains(Lossless):
    def __init__(self, net: nn.Module):
        super().__init__(net)
        self.net = net

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        return self.number.square() + 0 * self.net(y, y[:, 0], c).sum(1)


def test_what_only_one_verb_needs_is_missed_by_it(call, training):
    config = training(**{**OWN, "model": {"name": f"{HERE}.OnlyTrains"}}, checkpoint_every=1)
    assert call(fit, config, "run_dir=run", "trainer.max_steps=1").status == 0
    how = {"models": {"model": "run"}, "guidance": {"name": "unguided"}, "n": 2}
    refused = call(generate, {**how, "sampler": {"name": "euler"}}, "run_dir=samples")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert f"model {HERE}.OnlyTrains lacks forward" in refused.err

    assert call(fit, training(), "run_dir=known", "trainer.max_steps=1").status == 0
    how |= {"models": {"model": "known"}, "sampler": {"name": "euler", "steps": 2}}
    assert call(generate, how, "run_dir=samples", "class_label=0").status == 0
    asked = {"samples": {"a": "samples"}, "data": {"name": f"{HERE}.Cloud"}, "by_class": False}
    refused = call(evaluate, asked, "run_dir=scores")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "data Cloud lacks real: it has no points to compare with" in refused.err


# Shapes of a network's answer


class Answers(nn.Module):
    """A network that answers by as many columns as it is told."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, columns: int):
        super().__init__()
        self.linear = nn.Linear(shape[0], columns)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor | None) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("model", [models.EDM, models.DDPM, models.Flow])
def test_an_answer_of_another_shape_is_not_broadcast(model):
    x, sigma, c = torch.randn(6, 3), torch.ones(6), torch.zeros(6).long()
    draws = Draws(seed=0, step=0, batch_size=6)
    for columns in (1, 4):
        wrong = model(Answers((3,), 0, columns=columns))
        said = rf"net Answers answers x of shape \(6, 3\) with shape \(6, {columns}\)"
        with pytest.raises(UserError, match=said):
            wrong(x, sigma, c)
        with pytest.raises(UserError, match=said):
            wrong.loss(x, c, draws)
    right = model(Answers((3,), 0, columns=3))
    assert right(x, sigma, c).shape == (6, 3)
    assert right.loss(x, c, draws).shape == (6,)


def test_logits_are_as_many_as_classes():
    x, sigma = torch.randn(6, 3), torch.ones(6)
    net = {"name": f"{HERE}.Answers", "columns": 4}
    config = {"net": net, "model": {"name": "NoisyClassifier"}}
    with pytest.raises(UserError, match=r"x of shape \(6, 3\) with shape \(6, 4\), and not \(6, 5"):
        build_model(config, (3,), 5)(x, sigma)
    assert build_model(config, (3,), 4)(x, sigma).shape == (6, 4)
    assert models.NoisyClassifier(Answers((3,), 0, columns=2))(x, sigma).shape == (6, 2)


def test_training_stops_at_the_first_answer_of_another_shape(call, training):
    config = training(net={"name": f"{HERE}.Answers", "columns": 1})
    refused = call(fit, config, "run_dir=run")
    assert refused.status == 2
    assert "x of shape (32, 2) with shape (32, 1), and not (32, 2)" in refused.err


# One declaration


def test_all_of_ours_declare_what_they_are():
    assert all(issubclass(getattr(data, name), DataSet) for name in data.__all__)
    assert all(issubclass(getattr(models, name), Model) for name in models.__all__)
    assert issubclass(GaussianMixture, Model)
    assert issubclass(ExactClassifier, Model)
    assert all(issubclass(getattr(nets, name), nn.Module) for name in nets.__all__)


def asked(source: str) -> set[str]:
    """The members that a source looks up by hasattr, getattr and setattr of a written name."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {
        call.args[1].value
        for call in calls
        if ast.unparse(call.func) in ("hasattr", "getattr", "setattr")
        and isinstance(call.args[1], ast.Constant)
    }


def test_nobody_asks_whether_there_is_what_has_a_default():
    declared = set()
    for contract in (Net, Model, DataSet):
        members = {*vars(contract), *contract.__annotations__}
        declared |= {name for name in members if not name.startswith("_")}
    assert {"class_vectors", "has_sources", "rows", "clean", "loss", "shape"} <= declared
    package = Path(lightning_cfg.__file__).parent
    found = {
        f"{path.parent.name}/{path.name}: {name}"
        for path in package.rglob("*.py")
        for name in asked(path.read_text()) & declared
    }
    assert found <= {
        "runs/checkpoints.py: loss",  # of what is no Model
        # functions are denoisers too
        "api/samples.py: classifies",
        "api/samples.py: refines",
        "guidance/cads.py: class_vectors",
        "guidance/gfcg.py: clean",
        "guidance/needs.py: label_dropout",
        "guidance/needs.py: num_classes",
        "data/items.py: features",  # of somebody's Dataset, which say its classes' names
    }
    assert asked("x = getattr(data, 'rows', None)") == {"rows"}


def test_what_must_be_the_same():
    one = SimpleNamespace(shape=[2], num_classes=3)
    check_same("a", one, "b has", SimpleNamespace(shape=(2,), num_classes=3))
    with pytest.raises(UserError, match=r"a has shape \(2,\), but b has \(4,\)"):
        check_same("a", one, "b has", SimpleNamespace(shape=(4,), num_classes=3))
    other = SimpleNamespace(shape=(2,), num_classes=5)
    with pytest.raises(UserError, match=r"a has num_classes 3, but b has 5"):
        check_same("a", one, "b has", other)
    check_same("a", one, "b has", other, classes=False)
    assert sys.modules[HERE].Cloud is Cloud  # dotted paths here mean this module
