"""`import lightning_cfg as lc`: what its functions give is what the verbs write, bit for bit."""

import ast
import inspect
import io
import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.bases import PUBLISHED
from helpers.toys import Halves
from PIL import Image
from torch import Tensor

import lightning_cfg as lc
from lightning_cfg.api.networks import device_of
from lightning_cfg.config import Guidance, asked
from lightning_cfg.diffusion.trajectories import straightness
from lightning_cfg.interfaces import Known
from lightning_cfg.metrics import frechet
from lightning_cfg.runs.names import LAST, METRICS, SAMPLES, SUMMARY, TRAJECTORIES
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import ExactClassifier

EULER = {"name": "euler", "steps": 6}
FOUR = {
    "name": "Mixture",
    "means": [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],
    "stds": [0.1, 0.2, 0.1, 0.2],
    "labels": [0, 1, 2, 3],
}


@pytest.fixture(scope="module")
def four() -> lc.data.Mixture:
    return lc.data.Mixture(**{key: value for key, value in FOUR.items() if key != "name"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, training) -> SimpleNamespace:
    """A base with two averages, a noisy classifier, samples of the base, and a flow on pairs."""
    root = tmp_path_factory.mktemp("runs")
    few = {"data": FOUR, "trainer": {"max_steps": 4, "enable_progress_bar": False}}
    learner = {"name": "Refinement", "lr": 1e-2}
    models = {"model": "exact"}
    unguided = {"models": models, "guidance": "unguided", "sampler": EULER, "data": FOUR}
    base = lc.verbs.fit(training(**few), run_dir=root / "base")
    judge = {"model": {"name": "NoisyClassifier"}, "learner": {"name": "Classification"}}
    judge["net"] = {"name": "Linear"}
    classifier = lc.verbs.fit(training(**few, **judge), run_dir=root / "judge")
    samples = lc.verbs.generate(unguided, n=80, run_dir=root / "samples")
    pairs = lc.verbs.pair(sources=[samples], data=FOUR, bank=30, k=3, run_dir=root / "pairs")
    few["data"] = {"name": "Pairs", "path": str(pairs)}
    flow = lc.verbs.fit(
        training(**few, model={"name": "Flow"}, learner=learner), run_dir=root / "flow"
    )
    return SimpleNamespace(
        root=root, base=base, classifier=classifier, samples=samples, flow=flow, unguided=unguided
    )


def written(run: Path, name: str = SAMPLES) -> dict[str, Tensor]:
    names = ("path", "sigma", "c", "seed") if name == TRAJECTORIES else ("x", "c", "seed")
    return load_tensors(run / name, *names)


# The names


def test_import_loads_nothing_heavy():
    code = """
import sys
before = set(sys.modules)
import lightning_cfg as lc
dir(lc)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.startswith("lightning_cfg")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops, own = (line.split() for line in done.stdout.splitlines())
    assert set(tops) - set(sys.stdlib_module_names) == {"lightning_cfg"}
    assert own == ["lightning_cfg"]


def test_every_name_is_there_and_typed():
    """What type checkers see of the names is what they are."""
    tree = ast.parse(Path(lc.__file__).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    names = {}
    for node in ast.walk(typed):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name: node.module for alias in node.names}
    assert sorted(names) == lc.__all__
    for name, module in names.items():
        found = getattr(lc, name)
        assert found is getattr(sys.modules[module], name)
        assert name not in dir(lc.verbs)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        lc.sampel  # noqa: B018


# Samples


@pytest.mark.parametrize(
    "sampler", [EULER, {"name": "ddpm", "steps": 5}, "heun", "dopri5"], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_of_the_exact_model_are_generates(four, runs, tmp_path, sampler, scale):
    guidance = {"name": "classifier_free", "scale": scale}
    asked = runs.unguided | {"guidance": guidance, "sampler": sampler}
    run = lc.verbs.generate(asked, n=9, seed=3, batch_size=4, run_dir=tmp_path / "run")
    guided = lc.guidance.classifier_free(four.truth, scale=scale)
    found = lc.sample(guided, range(3, 12), sampler=sampler, batch_size=4)
    for name, tensor in written(run).items():
        assert torch.equal(getattr(found, name), tensor), name


def test_samples_of_trained_networks_are_generates(runs, tmp_path):
    models = {"model": runs.base, "classifier": runs.classifier}
    guidance = {"name": "classifier_gradient", "scale": 2.0}
    asked = runs.unguided | {"models": models, "guidance": guidance}
    run = lc.verbs.generate(asked, n=6, run_dir=tmp_path / "run", weights="raw", device="cpu")
    model, classifier = (
        lc.load(path, weights="raw", device="cpu") for path in (runs.base, runs.classifier)
    )
    guided = lc.guidance.classifier_gradient(model, classifier, scale=2.0)
    assert torch.equal(lc.sample(guided, range(6), sampler=EULER).x, written(run)["x"])
    other = lc.guidance.classifier_gradient(lc.load(runs.base), classifier, scale=2.0)
    assert not torch.equal(lc.sample(other, range(6), sampler=EULER).x, written(run)["x"])


def test_labels(four, runs, tmp_path):
    one = lc.sample(four.truth, range(5), sampler=EULER, labels=2)
    run = lc.verbs.generate(runs.unguided, n=5, class_label=2, run_dir=tmp_path / "run")
    assert torch.equal(one.x, written(run)["x"])
    own = lc.sample(four.truth, range(5), sampler=EULER)  # of the seeds' own classes
    told = lc.sample(four.truth, range(5), sampler=EULER, labels=own.c, batch_size=2)
    assert torch.equal(own.x, told.x)
    mixed = lc.sample(four.truth, range(5), sampler=EULER, labels=[0, 2, 2, 1, -1])
    assert mixed.c.tolist() == [0, 2, 2, 1, -1]
    assert torch.equal(mixed.x[1:3], one.x[1:3])
    none = lc.sample(lambda x, s, c: four.truth.denoise(x, s), [4], sampler=EULER, like=four.truth)
    assert torch.equal(mixed.x[4:], none.x)  # "no class" is the unconditional model


SKIPPED = {  # what asks for a model of its own kind
    "guidance_free": "tests/test_guidance_free.py", "frequency_decoupled": "images",
    "rescale": "samples of 16 dimensions or more",
}  # fmt: skip
KEYS = {
    "interval": {"sigma_low": 0.1, "sigma_high": 5.0},
    "feynman_kac": {"particles": 2},
}


@pytest.mark.parametrize("name", [one for one in lc.guidance.__all__ if one not in SKIPPED])
def test_every_method_is_called_as_a_config_calls_it(four, runs, name):
    method, exact = getattr(lc.guidance, name), ExactClassifier(four.truth)
    model = lc.load(runs.base, weights="raw", device="cpu")
    networks = {"model": model, "weak": lc.load(runs.base, device="cpu"), "classifier": exact}
    networks |= {"discriminator": exact, "strength": lambda x, s, c: torch.full_like(x, 2.0)}
    parameters = inspect.signature(method).parameters
    keys, section = dict(KEYS.get(name, {})), {"name": name, **KEYS.get(name, {})}
    if "of" in parameters:
        keys["of"] = partial(lc.guidance.classifier_free, scale=2.0)
        section["of"] = {"name": "classifier_free", "scale": 2.0}
    roles = [k for k, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    guided = method(*(networks[role] for role in roles), **keys)
    sampler = {"name": "ddpm", "steps": 4} if name == "feynman_kac" else EULER
    found = lc.sample(guided, range(4), sampler=sampler)  # which knows its model
    asked_so = guide(asked(Guidance, section, "guidance"), networks)
    assert torch.equal(found.x, lc.sample(asked_so, range(4), like=model, sampler=sampler).x)
    assert found.x.shape == (4, 2)
    assert found.x.isfinite().all()


def test_a_method_of_ones_own(four):
    def halved(model, *, scale):
        def guided(x, sigma, c):
            return scale * model(x, sigma, c)

        return guided

    assert lc.sample(halved(four.truth, scale=0.5), [1], like=four.truth, sampler=EULER).x.shape
    with pytest.raises(lc.UserError, match="like=MODEL"):
        lc.sample(halved(four.truth, scale=0.5), [1])
    with pytest.raises(lc.UserError, match=r"the denoiser gives \(1, 1\) for samples of \(1, 2\)"):
        lc.sample(lambda x, s, c: x[:, :1], [1], like=four.truth)


def test_a_published_network_that_adopt_made_a_run_of(tmp_path):
    run = lc.verbs.adopt(PUBLISHED, run_dir=tmp_path / "run")
    whole, file = lc.load(run, device="cpu"), lc.load(run / LAST, device="cpu")
    found = lc.sample(whole, range(2), sampler=EULER)
    assert found.x.shape == (2, *whole.shape)
    assert torch.equal(found.x, lc.sample(file, range(2), sampler=EULER).x)
    asked = {"models": {"model": run}, "guidance": "unguided", "sampler": EULER, "device": "cpu"}
    made = lc.verbs.generate(asked, n=2, run_dir=tmp_path / "samples")
    assert torch.equal(found.x, written(made)["x"])


# Trajectories


def test_trajectories_are_generates_and_follow_the_exact_score(four, runs, tmp_path):
    run = lc.verbs.generate(runs.unguided, n=7, trajectories=5, run_dir=tmp_path / "run")
    found = lc.trajectory(four.truth, range(5), sampler=EULER)
    for name, tensor in written(run, TRAJECTORIES).items():
        assert torch.equal(getattr(found, name), tensor), name
    assert torch.equal(found.samples.x, written(run)["x"][:5])
    for i, (s, t) in enumerate(pairwise(found.sigma.tolist())):  # dx/dsigma = -sigma score
        x = found.path[:, i].double()
        step = x - (t - s) * s * four.truth.score(x, s, found.c)
        torch.testing.assert_close(found.path[:, i + 1], step.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.straightness, straightness(found.path, found.sigma))


def test_trajectories_are_measured_as_trace_does(four, runs, tmp_path):
    asked = runs.unguided | {"guidance": {"name": "classifier_free", "scale": 2.0}}
    run = lc.verbs.generate(asked, n=9, trajectories=9, run_dir=tmp_path / "run")
    readers = {"exact": "exact", "own": runs.classifier}
    table = lc.verbs.trace(
        samples={"a": run}, classifiers=readers, data=FOUR, run_dir=tmp_path / "trace", device="cpu"
    )
    rows = json.loads((table / SUMMARY).read_text())
    guided = lc.guidance.classifier_free(four.truth, scale=2.0)
    found = lc.trajectory(guided, range(9), sampler=EULER)
    for name, reader in (("exact", four.truth.logits), ("own", lc.load(runs.classifier))):
        front = {"samples": "a", "classifier": name}
        assert [front | row for row in found.against(reader)] == [
            row for row in rows if row["classifier"] == name
        ]
    reader = lc.load(runs.classifier)
    reader.clean = True
    with pytest.raises(lc.UserError, match="finished samples only"):
        found.against(reader)


# Refinement


@pytest.mark.parametrize("keys", [{}, {"method": "heun", "steps": 3, "strength": 0.5}], ids=str)
def test_refined_samples_are_refines(runs, tmp_path, keys):
    run = lc.verbs.refine(
        flow=runs.flow, samples=runs.samples, run_dir=tmp_path / "run", device="cpu", **keys
    )
    flow, held = lc.load(runs.flow, device="cpu"), written(runs.samples)
    whole = lc.refined((held["x"], held["c"]), flow, **keys)
    assert torch.equal(whole.x, written(run)["x"])
    assert torch.equal(lc.refined(held["x"], flow, labels=held["c"], **keys).x, whole.x)
    assert not torch.equal(whole.x, held["x"])


def test_flows_in_a_row(runs):
    flow, held = lc.load(runs.flow, device="cpu"), written(runs.samples)
    how = {"method": "euler", "steps": 1}
    first = lc.refined((held["x"], held["c"]), flow, **how)
    assert torch.equal(lc.refined(first, flow, **how).x, lc.refined(
        (held["x"], held["c"]), [flow, flow], **how).x)  # fmt: skip


# Scores


def test_scores_are_evaluates(four, runs, tmp_path):
    table = lc.verbs.evaluate(
        samples={"mine": runs.samples}, data=FOUR, real=50, bank=60, run_dir=tmp_path / "table"
    )
    rows, held = json.loads((table / METRICS).read_text()), written(runs.samples)
    for real in (four, FOUR):
        found = lc.score({"mine": (held["x"], held["c"])}, real, per_class=50, bank=60)
        assert found.rows == rows
    assert {row["class"] for row in found.rows} == {0, 1, 2, 3}
    assert "outliers" in str(found)
    assert "| energy_distance |" in found._repr_markdown_()


def test_scores_of_images(tmp_path):
    """With a feature space, by a data set that is in memory."""
    data, features = Halves(), {"name": "pixels"}
    x, c = data.real("bank")
    x = (x + 0.1).clamp(-1, 1)
    file = lc.sample(lambda x, s, c: x, [0], like=SimpleNamespace(shape=(1, 8, 8)), sampler=EULER)
    assert file.x.shape == (1, 1, 8, 8)
    path = lc.score((x, c), data, features=features, by_class=False)
    saved = type(file)(x, c, torch.arange(len(x))).save(tmp_path / "x.safetensors")
    asked = {"samples": {"samples": saved}, "data": "helpers.toys.Halves", "by_class": False}
    table = lc.verbs.evaluate(asked, features=features, run_dir=tmp_path / "table")
    assert path.rows == json.loads((table / METRICS).read_text())


def test_one_set_against_another():
    x, y = torch.randn(300, 2), torch.randn(200, 2) + 1
    found = lc.score(x, y, metrics=["frechet", spread])
    (row,) = found.rows
    assert row["frechet"] == frechet(x=x, y=y)["frechet"]
    assert row["class"] == "all"
    assert row["spread"] == x.std().item()
    nothing = lc.score(x, x, metrics=["frechet"]).rows[0]["frechet"]
    assert nothing == pytest.approx(0, abs=1e-6)
    by_class = lc.score((x, torch.arange(300) % 2), (y, torch.arange(200) % 2), metrics=["frechet"])
    assert [row["class"] for row in by_class.rows] == [0, 1]
    assert by_class.rows[1]["frechet"] == frechet(x=x[1::2], y=y[1::2])["frechet"]


def spread(x: Tensor) -> dict[str, float]:
    return {"spread": x.std().item()}


# Where it runs


def test_inside_inference_mode(four, runs):
    """Also what takes gradients; its results can be used outside, where autograd wants to save."""

    def all_of_it() -> list[Tensor]:
        model, classifier = (lc.load(run, device="cpu") for run in (runs.base, runs.classifier))
        guided = lc.guidance.classifier_gradient(model, classifier, scale=2.0)
        judged = lc.guidance.discriminator_gradient(four.truth, four.truth.logits)
        made = lc.sample(guided, range(4), sampler=EULER)
        path = lc.trajectory(judged, range(4), sampler=EULER)
        numbers = [row["distance"] for row in path.against(classifier)]
        moved = lc.refined(made, lc.load(runs.flow, device="cpu"))
        own = guided(torch.ones(4, 2), torch.ones(4), torch.zeros(4, dtype=torch.long))
        (row, *_) = lc.score(made.x, path.samples.x, metrics=["energy_distance"]).rows
        return [made.x, path.path, torch.tensor(numbers), moved.x, own,
                torch.tensor(row["energy_distance"])]  # fmt: skip

    usual = all_of_it()
    with torch.inference_mode():
        within = all_of_it()
    for a, b in zip(usual, within, strict=True):
        assert torch.equal(a, b)
    assert not within[0].is_inference()


def test_grad_mode_is_left_as_it_was(four):
    with torch.no_grad():
        lc.sample(four.truth, [0], sampler=EULER)
        assert not torch.is_grad_enabled()
    lc.sample(four.truth, [0], sampler=EULER)
    assert torch.is_grad_enabled()


def test_where_a_network_is(four, runs):
    model = lc.load(runs.base, device="cpu").to("meta")
    for network in (model, model.forward, Known(model), Known(Known(model))):
        assert device_of(network) == torch.device("meta")
    assert device_of(lambda x, sigma, c: x) == torch.device("cpu")
    assert device_of(four.truth.logits) == torch.device("cpu")


def test_on_a_device(four, runs):
    model = lc.load(runs.base, device="cpu:0")
    assert next(model.parameters()).device.type == "cpu"
    found = lc.sample(model, range(3), device=torch.device("cpu"), sampler=EULER)
    assert torch.equal(found.x, lc.sample(model, range(3), sampler=EULER).x)
    for call in (
        lambda: lc.load(runs.base, device="meta"),
        lambda: lc.sample(model.to("meta"), [0]),
        lambda: lc.score(torch.ones(3, 2), four, device="meta"),
    ):
        with pytest.raises(lc.UserError, match="device=meta cannot be used"):
            call()


# Mistakes


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda r, t: lc.load("nowhere"), "nowhere"),
        (lambda r, t: lc.load("edm-cifar10"), "no such run; `python -m lightning_cfg.adopt"),
        (lambda r, t: lc.load(r.samples), "last.ckpt"),
        (lambda r, t: lc.load(r.samples / SAMPLES), "no run that `export` has written"),
        (lambda r, t: lc.load(r.base, weights=7), "no average of half-life 7"),
        (lambda r, t: lc.load(r.base, weights=-7), "weights must be"),
        (lambda r, t: lc.load(r.base, device="gpu"), "device=gpu cannot be used"),
        (lambda r, t: lc.sample(t, 16), "such as range"),
        (lambda r, t: lc.sample(t, []), "seeds are none"),
        (lambda r, t: lc.sample(t, [-1]), "seeds are from 0"),
        (lambda r, t: lc.sample(t, [2**32]), "seeds are from 0"),
        (lambda r, t: lc.sample(t, [0], sampler="huen"), "did you mean 'heun'"),
        (lambda r, t: lc.sample(t, [0], sampler={"name": "heun", "steps": 0}), "sampler.steps"),
        (lambda r, t: lc.sample(t, [0], labels=4), r"labels: 4 is outside 0 \.\.\. 3"),
        (lambda r, t: lc.sample(t, [0], labels=[1, 2]), "one of each of the 1 samples"),
        (lambda r, t: lc.sample(t, [0], labels=0.5), "not float"),
        (lambda r, t: lc.sample(t, [0], labels=torch.ones(1)), "not Tensor"),
        (lambda r, t: lc.sample(t, [0], labels="cat"), "does not know its classes. names"),
        (lambda r, t: lc.sample(t, ["a"]), "not list"),
        (lambda r, t: lc.sample(t, 0.5), "not float"),
        (lambda r, t: lc.sample(lc.load(r.classifier), [0]), "this is a classifier"),
        (lambda r, t: lc.sample(lc.load(r.flow), [0]), "use lc.refined"),
        (lambda r, t: lc.refined(X, lc.load(r.flow)), "x says no classes"),
        (lambda r, t: lc.refined(X, lc.load(r.base), labels=0), "starts from noise"),
        (lambda r, t: lc.refined(X, lc.load(r.flow), labels=9), "the flow knows 0"),
        (lambda r, t: lc.refined(X[:, :1], lc.load(r.flow), labels=0), "shape"),
        (lambda r, t: lc.refined(X, lc.load(r.flow), labels=0, method="rk"), "method must be"),
        (lambda r, t: lc.refined(X, lc.load(r.flow), labels=0, at=2.0), "not conditioned"),
        (lambda r, t: lc.refined([1.0], lc.load(r.flow)), "not list"),
        (lambda r, t: lc.score(X, t), "not a GaussianMixture"),
        (lambda r, t: lc.score(X, 3), "real lacks shape"),
        (lambda r, t: lc.score(X, X[:, :1]), "shape"),
        (lambda r, t: lc.score(X, X, metrics=["frechte"]), "did you mean 'frechet'"),
        (lambda r, t: lc.score(X, X, metrics=["class_accuracy"]), "needs logits"),
        (lambda r, t: lc.score(X, X, reference="train"), "reference=train"),
        (lambda r, t: lc.score(X, "Fractl"), "did you mean 'Fractal'"),
        (lambda r, t: lc.score(X, "Fractal"), "says no classes"),
        (lambda r, t: lc.pictures({"a": X, "b": X[:, :1]}), "of one shape"),
        (lambda r, t: lc.pictures(torch.zeros(3, 5)), "have no picture"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(four, runs, call, told):
    with pytest.raises(lc.UserError, match=told) as caught:
        call(runs, four.truth)
    assert "\n" not in str(caught.value)


# Pictures


def test_samples_are_shown(four):
    found = lc.sample(four.truth, range(8), sampler=EULER)
    with Image.open(io.BytesIO(found._repr_png_())) as image:
        assert image.format == "PNG"
    x = torch.zeros(3, 1, 8, 8)
    x[:, 0, 0, 0] = torch.tensor([-1.0, 0.0, 1.0])
    sheet = lc.pictures((x, torch.tensor([0, 1, 1])), columns=2).figure.axes[0].images[0]
    assert sheet.get_array()[[0, 9, 9], [0, 0, 9]].tolist() == [0.0, 0.5, 1.0]
    two = lc.pictures({"a": found, "b": found.x})
    assert [axes.get_title() for axes in two.figure.axes] == ["a", "b"]
    assert lc.sample(lambda x, s, c: x, [0], like=SimpleNamespace(shape=(3,)))._repr_png_() is None


def test_pictures_are_saved(four, tmp_path):
    path = lc.pictures(lc.sample(four.truth, range(8), sampler=EULER)).save(tmp_path / "a.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pdf", "a.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"


# In a notebook


class Kernel:
    config = {"IPKernelApp": {}}  # noqa: RUF012


@pytest.mark.parametrize(
    "shell, shown", [(Kernel(), True), (SimpleNamespace(config={}), False), (None, False)]
)
def test_bars_are_shown_in_a_notebook(monkeypatch, capsys, shell, shown):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with progress(3, "sample") as bar:
        bar.update(3)
    assert ("3/3" in capsys.readouterr().err) == shown
    with progress(3, "sample", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_classes_are_asked_for_by_name(four):
    """Of a model that knows its classes' names, as one of folders does."""
    model = four.truth
    model.class_names = ["cat", "dog"]
    try:
        by_name = lc.sample(model, range(4), labels="dog")
        assert by_name.c.tolist() == [1] * 4
        assert torch.equal(by_name.x, lc.sample(model, range(4), labels=1).x)
        assert lc.sample(model, range(2), labels=["dog", "cat"]).c.tolist() == [1, 0]
        with pytest.raises(lc.UserError, match="labels=dgo is no class; did you mean 'dog'"):
            lc.sample(model, range(4), labels="dgo")
    finally:
        model.class_names = None
