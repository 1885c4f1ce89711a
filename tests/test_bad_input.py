"""Bad input: one clear line that names the thing, status 2, no traceback, nothing overwritten."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from lightning_cfg.cli import main_of
from lightning_cfg.config import load
from lightning_cfg.evaluation.sample_sets import read_set
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.names import PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.trace import trace

MISSING = object()
HEUN = {"name": "heun", "steps": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory, training) -> SimpleNamespace:
    """Trained runs of every kind, sample files and pairs, as small as they get."""
    root = tmp_path_factory.mktemp("made")

    def trained(name: str, **sections: object) -> str:
        config = training(trainer={"max_steps": 1, "logger": False}, **sections)
        file = root / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        fit(**load(fit, file, [f"run_dir={root / name}"]))
        return str(root / name)

    samples = {"x": torch.randn(6, 2), "c": torch.arange(6) % 2, "seed": torch.arange(6)}
    good = save_tensors(root / "good.safetensors", **samples)
    tensors = {
        "x": samples["x"],
        "c": samples["c"],
        "neighbours": torch.zeros(6, 2, dtype=torch.long),
        "targets": torch.zeros(1, 2),
        "num_classes": torch.tensor(2),
    }
    pairs = save_tensors(root / "pairs.safetensors", **tensors)
    in_three = {
        "name": "Mixture",
        "means": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        "stds": [1.0, 1.0],
        "labels": [0, 1],
    }
    classifier = {
        "net": {"name": "Linear"},
        "model": {"name": "NoisyClassifier"},
        "learner": {"name": "Classification"},
    }
    moves = {
        "path": torch.randn(6, 3, 2),
        "sigma": torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64),
        "c": torch.arange(6) % 2,
        "seed": torch.arange(6),
    }
    clean = {**classifier, "model": {"name": "NoisyClassifier", "clean": True}}
    runs = SimpleNamespace(
        root=root,
        samples=samples,
        moves=moves,
        trajectories=str(save_tensors(root / "moves.safetensors", **moves)),
        good=str(good),
        pairs=str(pairs),
        base=trained("base"),
        no_null=trained("no_null", model={"name": "EDM", "label_dropout": 0.0}),
        ddpm=trained("ddpm", model={"name": "DDPM"}),
        noise_flow=trained("noise_flow", model={"name": "Flow"}),
        classifier=trained("classifier", **classifier),
        clean=trained("clean", **clean),
        other_shape=trained("other_shape", data=in_three, **classifier),
        flow=trained(
            "flow",
            data={"name": "Pairs", "path": str(pairs)},
            model={"name": "Flow"},
            learner={"name": "Refinement"},
        ),
    )
    return runs


def contents(root: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(call, made, tmp_path) -> Callable[..., str]:
    """Call a verb that has to refuse, and return its one line."""

    def run(verb: Callable, config: dict | str, *overrides: object) -> str:
        before = contents(made.root), contents(tmp_path)
        outcome = call(verb, config, *overrides)
        assert outcome.status == 2, outcome
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert "Traceback" not in outcome.err
        after = contents(tmp_path)
        after.pop(tmp_path / "config.yaml")  # which `call` has written
        before[1].pop(tmp_path / "config.yaml", None)
        assert (contents(made.root), after) == before
        assert not (tmp_path / "runs").exists()
        return outcome.err

    return run


def guided(model: str = "exact", **more: object) -> dict:
    settings = {"models": {"model": model}, "guidance": "unguided", "sampler": HEUN, "n": 4}
    return settings | more


# The command line itself: a traceback of an import or of the interpreter would show only here


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--config", "fit.yaml", "net.widht=3"], ["unknown key 'net.widht'", "net.width"]),
    ],
)
def test_as_a_command(training, tmp_path, arguments, words):
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(training()))
    done = subprocess.run(
        [sys.executable, "-m", "lightning_cfg.fit", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]


# Configs


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["learner.lrate=1"], ["unknown key 'learner.lrate'", "learner.lr"]),
        (["trainer.max_step=1"], ["trainer.max_step", "trainer.max_steps"]),
        (["net.name=MPL"], ["'MPL'", "'MLP'"]),
        (["net.name=no_such_module.Net"], ["no_such_module"]),
        (["batch_size=many"], ["batch_size must be int", "'many'"]),
        (["learner.ema_half_life=[soon]"], ["learner.ema_half_life[0] must be int"]),
        (["resume=absent.ckpt"], ["absent.ckpt", "no such file"]),
        (["trainer.max_steps=-1"], ["trainer.max_steps must be int of at least 1, not -1"]),
        (["trainer={}"], ["trainer.max_steps is needed"]),
        (["trainer.callbacks=[]"], ["trainer.callbacks cannot be set"]),
        (["trainer.accelerator=abacus"], ["trainer: Lightning refuses", "'abacus'"]),
        (["batch_size=33", "trainer.accumulate_grad_batches=2"], ["batch_size=33", "divide"]),
        (["batch_size=0"], ["batch_size must be int from 1 to 16_777_216, not 0"]),
        (["learner.name=Refinement"], ["learner Refinement needs data Pairs"]),
        (
            ["learner.ema_half_life=[]"],
            ["learner.ema_half_life must be list of int", "that is not empty, not []"],
        ),
        (["checkpoint_every=0"], ["checkpoint_every must be int of at least 1, not 0"]),
        (["log_every=0"], ["log_every must be int of at least 1, not 0"]),
        (["data={name: Pairs, path: absent}"], ["absent: no such file"]),
    ],
)
def test_fit_config(refused, training, overrides, words):
    line = refused(fit, training(), *overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: {name: Mixture", ["config.yaml", "not yaml"]),
        ("- just\n- a list\n", ["config.yaml", "mapping"]),
        ("batch_size: ${nothing.there}\n", ["config.yaml: data is missing"]),
    ],
)
def test_broken_yaml(refused, text, words):
    line = refused(fit, text)
    assert all(word in line for word in words), line


# Networks


@pytest.mark.parametrize("kind", ["autoguidance", "classifier_gradient"])
def test_guidance_without_its_network(refused, made, kind):
    line = refused(generate, guided(made.base, guidance=kind))
    assert {"autoguidance": "models.weak", "classifier_gradient": "models.classifier"}[kind] in line


def test_network_that_no_guidance_uses(refused, made):
    models = {"model": made.base, "weak": made.base}
    assert "models.weak is not used" in refused(generate, guided() | {"models": models})


@pytest.mark.parametrize(
    "guidance, models",
    [
        ({"name": "classifier_free", "scale": 2.0}, []),
        ({"name": "classifier_gradient", "scale": 2.0}, ["classifier"]),
    ],
)
def test_no_label_dropout(refused, made, guidance, models):
    networks = {"model": made.no_null} | {role: made.classifier for role in models}
    line = refused(generate, guided(guidance=guidance) | {"models": networks})
    assert "label_dropout: 0" in line


def test_no_label_dropout_is_needed_where_it_is_not_used(call, made):
    one = {"name": "classifier_free", "scale": 1.0}
    assert call(generate, guided(made.no_null, guidance=one)).status == 0


def test_classifier_of_another_shape(refused, made):
    models = {"model": made.base, "classifier": made.other_shape}
    line = refused(generate, guided(guidance="classifier_gradient") | {"models": models})
    assert "models.classifier has shape (3,)" in line
    assert "(2,)" in line


def test_networks_in_each_others_place(refused, made):
    assert "models.model is a classifier" in refused(generate, guided(made.classifier))
    models = {"model": made.base, "classifier": made.base}
    line = refused(generate, guided(guidance="classifier_gradient") | {"models": models})
    assert "models.classifier is no classifier" in line


@pytest.fixture
def checkpoint(made, tmp_path) -> Path:
    return Path(shutil.copy(Path(made.base, LAST), tmp_path / "copy.ckpt"))


def test_truncated_checkpoint(refused, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert "copy.ckpt is truncated" in refused(generate, guided(str(checkpoint)))


def test_state_that_does_not_fit_its_config(refused, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["net"]["width"] = 24
    torch.save(state, checkpoint)
    line = refused(generate, guided(str(checkpoint)))
    assert "copy.ckpt does not fit" in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    "write", [lambda p: torch.save({"state_dict": {}}, p), lambda p: p.write_text("weights")]
)
def test_somebody_elses_checkpoint(refused, checkpoint, write):
    write(checkpoint)
    assert "copy.ckpt" in refused(generate, guided(str(checkpoint)))
    assert "copy.ckpt" in refused(refine, {"flow": str(checkpoint), "samples": str(checkpoint)})


def test_checkpoint_of_another_config(refused, made, training):
    line = refused(fit, training(), f"resume={made.ddpm}/{LAST}")
    assert "model.name: 'DDPM' there, 'EDM' here" in line


def test_average_that_the_run_did_not_keep(refused, made):
    line = refused(generate, guided(made.base, weights=123))
    assert "no average of half-life 123; it has 100, 1000, or raw" in line


# Sampling


@pytest.mark.parametrize(
    "sampler, words",
    [
        ({**HEUN, "sigma_max": 500.0}, ["sampler.sigma_max=500.0", "157"]),
        ({**HEUN, "sigma_min": 1e-4}, ["sampler.sigma_min=0.0001", "0.01"]),
        ({**HEUN, "steps": 1}, ["sampler.steps"]),
        ({"name": "ddpm", "steps": 2000}, ["sampler.steps", "1000"]),
        ({"name": "dopri5", "max_evaluations": 3}, ["max_evaluations=3"]),
        ({"name": "dopri5", "points": 0}, ["sampler.points must be int from 1 to 100_000, not 0"]),
    ],
)
def test_sampler(refused, made, sampler, words):
    line = refused(generate, guided(made.ddpm, sampler=sampler))
    assert all(word in line for word in words), line


def test_settings_may_change_after_an_error(call, made):
    """What a message advises must not be refused as another run's."""
    dopri5 = {"name": "dopri5", "rtol": 1e-2, "atol": 1e-2, "max_evaluations": 3}
    model = made.noise_flow
    assert call(generate, guided(model, sampler=dopri5)).status == 2
    assert call(generate, guided(model, sampler=dopri5 | {"max_evaluations": 999})).status == 0


def test_exact_without_a_truth(refused, made):
    assert "models.model: exact needs `data`" in refused(generate, guided())
    data = {"name": "Pairs", "path": made.pairs}
    assert "models.model: exact needs `data`" in refused(generate, guided(data=data))


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"n": 0}, "n must be int from 1 to 100_000_000, not 0"),
        ({"batch_size": 0}, "batch_size must be int of at least 1, not 0"),
        ({"class_label": 7}, "class_label=7"),
        (
            {"class_label": -1},
            "class_label must be int of at least 0, str, list of int of at least 0",
        ),
        ({"device": "abacus"}, "device=abacus"),
        ({"models": {}}, "guidance unguided needs models.model"),
        ({"models": {"model": "absent"}}, "absent: no such file"),
        ({"trajectories": 5}, "trajectories=5 must be at most n=4"),
        ({"trajectories": -1}, "trajectories must be int of at least 0, not -1"),
    ],
)
def test_generate_settings(refused, made, changed, word):
    assert word in refused(generate, guided(made.base) | changed)


# Sample files


def samples_with(made, tmp_path: Path, **changed: object) -> str:
    tensors = {**made.samples, **changed}
    tensors = {name: t for name, t in tensors.items() if t is not MISSING}
    return str(save_tensors(tmp_path / "samples.safetensors", **tensors))


def nan(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[4, 1] = float("nan")
    return x


BROKEN = {
    "nan": (lambda s: {"x": nan(s["x"])}, "first in row 4"),
    "shape": (lambda s: {"x": torch.zeros(6, 3)}, "shape (3,)"),
    "without c": (lambda s: {"c": MISSING}, "has no 'c'"),
    "class": (lambda s: {"c": s["c"] + 5}, "holds classes 5 ... 6, only 0 ... 1"),
    "fewer labels": (lambda s: {"c": s["c"][:4]}, "c has shape (4,), not (6,)"),
    "complex samples": (lambda s: {"x": s["x"].to(torch.complex64)}, "x is complex64, and must be"),
    "integer samples": (lambda s: {"x": s["c"][:, None].repeat(1, 2)}, "x is int64, and must be"),
    "float classes": (lambda s: {"c": s["c"].float()}, "c is float32, and must be whole numbers"),
    "complex classes": (lambda s: {"c": s["c"].to(torch.complex64)}, "c is complex64, and must"),
    "yes and no as classes": (lambda s: {"c": s["c"] == 1}, "c is bool, and must be whole numbers"),
    "float seeds": (lambda s: {"seed": s["seed"].double()}, "seed is float64, and must be whole"),
    "no row per sample": (lambda s: {"x": torch.tensor(1.0)}, "x has shape (), not (N, ...)"),
    "negative class": (lambda s: {"c": s["c"].to(torch.int8) - 1}, "holds classes -1 ... 0"),
    "empty": (lambda s: {name: t[:0] for name, t in s.items()}, "no sample"),
}


@pytest.fixture
def readers(made, mixture) -> dict[str, Callable[[str], tuple[Callable, dict]]]:
    """What reads a sample file: verb and config by the file."""
    scored = {"data": mixture, "real": 20, "bank": 20}
    return {
        "pair": lambda file: (pair, {"sources": [file], "data": mixture, "k": 2, "bank": 20}),
        "refine": lambda file: (refine, {"flow": made.flow, "samples": file}),
        "evaluate": lambda file: (evaluate, {"samples": {"a": file}, **scored}),
    }


@pytest.mark.parametrize("reader", ["pair", "refine", "evaluate"])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_sample_file(refused, readers, made, tmp_path, reader, broken):
    change, word = BROKEN[broken]
    file = samples_with(made, tmp_path, **change(made.samples))
    line = refused(*readers[reader](file))
    assert "samples.safetensors" in line
    assert word in line


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("floats", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_kind_mean_the_same(made, tmp_path, kind, floats):
    """Classes and seeds are integers, samples real numbers, in as many bits as somebody likes."""
    x = made.samples["x"].to(floats)
    c, seed = (made.samples[name].to(kind) for name in ("c", "seed"))
    held = read_set(samples_with(made, tmp_path, x=x, c=c, seed=seed))
    ((found, classes),) = held.batches(9)
    assert torch.equal(found.double(), x.double())
    assert torch.equal(classes, made.samples["c"])
    assert torch.equal(held.seeds, made.samples["seed"])
    assert found.dtype == (torch.float64 if floats == torch.float64 else torch.float32)


def test_complex_or_integer_pairs_and_trajectories(refused, made, tmp_path, training):
    with safe_open(made.pairs, "pt") as file:
        pairs = {name: file.get_tensor(name) for name in file.keys()}
    config = training(model={"name": "Flow"}, learner={"name": "Refinement"})
    for changed, word in (
        ({"neighbours": pairs["neighbours"].float()}, "neighbours is float32, and must be whole"),
        ({"targets": pairs["targets"].to(torch.complex64)}, "targets is complex64, and must be"),
        ({"c": pairs["c"] == 1}, "c is bool, and must be whole numbers"),
    ):
        place = save_tensors(tmp_path / "odd.safetensors", **pairs | changed)
        data = {"name": "Pairs", "path": str(place)}
        assert word in refused(fit, {**config, "data": data})
    moves = {**made.moves, "path": made.moves["path"].to(torch.complex64)}
    place = save_tensors(tmp_path / "moves.safetensors", **moves)
    config = {"samples": {"a": str(place)}, "classifiers": {"k": made.classifier}}
    assert "path is complex64, and must be float32" in refused(trace, config)


@pytest.mark.parametrize("reader", ["pair", "refine", "evaluate"])
def test_another_kind_of_file_is_told_as_what_it_is(refused, readers, made, tmp_path, reader):
    arrays = {name: t.numpy() for name, t in made.samples.items()}
    np.savez(tmp_path / "samples.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    np.save(tmp_path / "samples.npy", arrays["x"])
    torch.save(made.samples, tmp_path / "samples.pt")
    (tmp_path / "samples.pkl").write_bytes(pickle.dumps(arrays))
    Image.new("L", (3, 3)).save(tmp_path / "image.png")
    for name, kind in {
        "samples.pt": "a checkpoint of torch",
        "samples.pkl": "a pickle",
        "image.png": "a PNG image",
    }.items():
        line = refused(*readers[reader](str(tmp_path / name)))
        wanted = "what is read here is a safetensors file with x, c, seed"
        assert f"{name} is {kind}; {wanted}" in line
    for name in ("samples.npz", "packed.npz"):  # which may be images
        line = refused(*readers[reader](str(tmp_path / name)))
        assert f"{name} has no arr_0, the images, only" in line
    line = refused(*readers[reader](str(tmp_path / "samples.npy")))
    assert "samples.npy: it is float32 (6, 2), not bytes 0 ... 255 as uint8" in line


@pytest.mark.parametrize("reader", ["pair", "refine", "evaluate"])
def test_truncated_sample_file(refused, readers, made, tmp_path, reader):
    file = Path(samples_with(made, tmp_path))
    file.write_bytes(file.read_bytes()[:-8])
    assert "samples.safetensors is truncated" in refused(*readers[reader](str(file)))
    file.unlink()
    assert "samples.safetensors: no such file" in refused(*readers[reader](str(file)))


def test_run_without_samples(refused, readers, made):
    assert f"holds no {SAMPLES}" in refused(*readers["refine"](made.base))


def test_pairs_file_that_is_truncated_or_of_samples(refused, made, tmp_path, training):
    file = Path(shutil.copy(made.pairs, tmp_path / "pairs.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    sections = {"model": {"name": "Flow"}, "learner": {"name": "Refinement"}}
    config = training(data={"name": "Pairs", "path": str(file)}, **sections)
    assert "pairs.safetensors is truncated" in refused(fit, config)
    assert "has no 'neighbours'" in refused(fit, config, f"data.path={made.good}")


# Pairing, refining, evaluating


def test_learner_and_data_that_do_not_go_together(refused, made, training):
    pairs = {"name": "Pairs", "path": made.pairs}
    assert "use Refinement" in refused(fit, training(data=pairs, model={"name": "Flow"}))
    line = refused(fit, training(data=pairs, learner={"name": "Refinement"}))
    assert "needs model Flow" in line
    assert "not EDM" in line


def test_more_neighbours_than_points(refused, readers, made):
    verb, config = readers["pair"](made.good)
    line = refused(verb, config | {"k": 21})
    assert "the bank has 20 points" in line
    assert "k = 21" in line
    assert "k must be int of at least 1, not 0" in refused(verb, config | {"k": 0})


def test_more_sources_than_samples(refused, readers, made):
    verb, config = readers["pair"](made.good)
    assert "holds 6 samples, not the 7 wanted" in refused(verb, config | {"n": 7})
    assert "sources must be list of str that is not empty" in refused(
        verb, config | {"sources": []}
    )


def test_generate_from_a_flow_that_starts_from_samples(refused, made):
    assert "use refine" in refused(generate, guided(made.flow))


def test_refine_with_what_is_no_flow_on_pairs(refused, made):
    samples = {"samples": made.good}
    line = refused(refine, {"flow": made.noise_flow, **samples})
    assert "refine needs a flow that learner Refinement trained" in line
    assert "max_evaluations=2" in refused(
        refine, {"flow": made.flow, **samples, "max_evaluations": 2}
    )
    line = refused(refine, {"flow": made.flow, **samples, "batch_size": 0})
    assert "batch_size must be int of at least 1, not 0" in line


@pytest.mark.parametrize(
    "metric, word",
    [
        ("frechet_features", "name `features`"),
        ("class_accuracy", "name a `classifier`"),
        ("wasserstein", "metric wasserstein needs quantile"),  # the data have two dimensions
        ("no_such_metric", "no 'no_such_metric' in lightning_cfg.metrics"),
    ],
)
def test_metric_that_needs_what_is_not_given(refused, readers, made, metric, word):
    verb, config = readers["evaluate"](made.good)
    line = refused(verb, config | {"metrics": [metric]})
    assert word in line


def test_metric_of_a_truth_on_data_without(refused, made):
    config = {"samples": {"a": made.good}, "data": {"name": "Pairs", "path": made.pairs}}
    line = refused(evaluate, config | {"metrics": ["negative_log_density"]})
    assert "needs truth" in line


# Tracing


def traced(made, **changed: object) -> dict:
    classifiers = {"linear": made.classifier}
    return {"samples": {"a": made.trajectories}, "classifiers": classifiers} | changed


def test_trace_of_a_run_without_trajectories(refused, made, tmp_path):
    save_tensors(tmp_path / "plain" / SAMPLES, **made.samples)
    line = refused(trace, traced(made, samples={"a": "plain"}))
    assert f"plain holds no {TRAJECTORIES}" in line
    line = refused(trace, traced(made, samples={"a": made.good}))  # samples themselves
    assert "good.safetensors has no 'path'; it holds c, seed, x" in line


@pytest.mark.parametrize(
    "role, words",
    [
        ("base", ["classifiers.it is no classifier", "EDM"]),
        ("clean", ["classifiers.it", "clean", "finished samples only"]),
        ("other_shape", ["moves.safetensors", "shape (2,)", "classifiers.it reads (3,)"]),
        ("flow", ["classifiers.it", "refines"]),
        ("pairs", ["pairs.safetensors"]),
        ("root", ["holds no checkpoints/last.ckpt"]),
    ],
)
def test_trace_by_what_is_no_noisy_classifier_of_these_data(refused, made, role, words):
    line = refused(trace, traced(made, classifiers={"it": str(getattr(made, role))}))
    assert all(word in line for word in words), line


def test_trace_by_an_exact_posterior_that_is_not_known(refused, made, mixture):
    config = traced(made, classifiers={"posterior": "exact"})
    assert "classifiers.posterior: exact needs `data`" in refused(trace, config)
    data = {"name": "Pairs", "path": made.pairs}
    assert "exact needs `data`" in refused(trace, config | {"data": data})
    one_class = {**mixture, "labels": [0, 0, 0, 0]}
    assert "classifiers.posterior knows one class only" in refused(
        trace, config | {"data": one_class}
    )


def test_trace_of_nothing(refused, made):
    for empty in ("samples", "classifiers"):
        assert "at least one" in refused(trace, traced(made, **{empty: {}}))


MOVES = {
    "another class": (lambda m: {"c": m["c"] + 1}, ["classes 1 ... 2", "knows 0 ... 1"]),
    "no class": (lambda m: {"c": m["c"] - 1}, ["classes -1 ... 0"]),
    "fewer labels": (lambda m: {"c": m["c"][:4]}, ["c (4,)"]),
    "fewer levels": (lambda m: {"sigma": m["sigma"][1:]}, ["sigma (2,)"]),
    "none": (lambda m: {k: m[k][:0] for k in ("path", "c")}, ["0 trajectories"]),
    "one level": (lambda m: {"path": m["path"][:, 2:], "sigma": m["sigma"][2:]}, ["1 noise level"]),
    "rising": (lambda m: {"sigma": m["sigma"].flip(0)}, ["sigma does not fall to 0"]),
    "cut short": (lambda m: {"sigma": m["sigma"] + 1}, ["sigma does not fall to 0"]),
    "nan": (lambda m: {"path": nan(m["path"])}, ["path holds NaN", "first in row 4"]),
    "without sigma": (lambda m: {"sigma": MISSING}, ["has no 'sigma'"]),
}


@pytest.mark.parametrize("broken", MOVES)
def test_broken_trajectory_file(refused, made, tmp_path, broken):
    change, words = MOVES[broken]
    tensors = {k: t for k, t in {**made.moves, **change(made.moves)}.items() if t is not MISSING}
    file = save_tensors(tmp_path / "broken.safetensors", **tensors)
    line = refused(trace, traced(made, samples={"a": str(file)}))
    assert "broken.safetensors" in line
    assert all(word in line for word in words), line


def test_truncated_trajectory_file(refused, made, tmp_path):
    file = Path(shutil.copy(made.trajectories, tmp_path / "copy.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    line = refused(trace, traced(made, samples={"a": str(file)}))
    assert "copy.safetensors is truncated" in line


def test_trace_in_a_directory_of_another_run(refused, made):
    line = refused(trace, traced(made), f"run_dir={made.base}")
    assert "verb: 'fit' there, 'trace' here" in line


# Directories


def calls(made, readers, training) -> list[tuple[Callable, dict]]:
    """A right call of every verb that writes into a directory of its own."""
    return [
        (fit, training()),
        (generate, guided(made.base)),
        *(readers[reader](made.good) for reader in readers),
        (trace, traced(made)),
    ]


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    refused, made, readers, training, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("years of work")
    for verb, config in calls(made, readers, training):
        assert "cannot be written: " in refused(verb, config, "run_dir=file/run"), verb

    def full(descriptor: int, content: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)  # what the lock says is the first that is written
    for verb, config in calls(made, readers, training):
        assert "No space left on device" in refused(verb, config, "run_dir=run"), verb


@pytest.mark.parametrize("long", ["x" * 5000, "x/" * 5000])
def test_names_that_no_file_can_have(refused, made, readers, training, long):
    for verb, config in calls(made, readers, training):
        assert "is too long for a file" in refused(verb, config, f"run_dir={long}")
        assert "run_dir has a zero byte" in refused(verb, {**config, "run_dir": "a\0b"})
    for verb, config in (readers[reader](long) for reader in readers):
        assert "is too long for a file" in refused(verb, config, "run_dir=run")


def test_a_device_without_numbers(refused, made, readers):
    for verb, config in ((generate, guided(made.base)), *(readers[r](made.good) for r in readers)):
        assert "device=meta cannot be used" in refused(verb, config, "device=meta")


@pytest.mark.parametrize(
    "words, said",
    [
        ("sweep absent.yaml", "cannot read the sweep file 'absent.yaml'"),
        ("sweep text.yaml", "text.yaml"),
        ("sweep empty.yaml", "empty.yaml"),
        ("sweep null.yaml", "null.yaml: command must be a list of words"),
        ("sweep verb.yaml", "lightning_cfg.verbs.fits"),
        ("assets fetch", "the following arguments are required: NAME"),
        ("assets fetch inceptoin", "no asset is named 'inceptoin'; did you mean 'inception'"),
        ("assets fetsh all", "invalid choice: 'fetsh'"),
        ("assets check all", "unrecognized arguments: all"),
    ],
)
def test_verbs_with_a_command_line_of_their_own(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = {"method": "grid", "parameters": {"seed": {"values": [1, 2]}}}
    files = {
        "text": "a text", "empty": "", "null": yaml.safe_dump({**grid, "command": None}),
        "verb": yaml.safe_dump({**grid, "command": ["python", "-m", "lightning_cfg.fits"]}),
    }  # fmt: skip
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    before = contents(tmp_path)
    verb, *rest = words.split()
    with pytest.raises(SystemExit) as stop:
        main_of(verb, rest)
    err = capsys.readouterr().err
    assert (stop.value.code, len(err.strip().splitlines())) == (2, 1), err
    assert said in err
    assert contents(tmp_path) == before


def test_a_disk_without_room_is_told_before_the_work(
    refused, call, made, readers, training, monkeypatch
):
    def of(free: int) -> Callable[[object], SimpleNamespace]:
        return lambda path: SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", of(10))
    for verb, config in calls(made, readers, training):
        if verb not in (evaluate, trace):  # which write tables
            line = refused(verb, config, "run_dir=run")
            assert "run: what it will hold takes " in line
            assert "has 9.31e-09 GiB left: make room" in line
    n, bytes_each = 4, 2 * 4
    for free, status in ((n * bytes_each - 1, 2), (n * bytes_each, 0)):
        monkeypatch.setattr(shutil, "disk_usage", of(free))
        assert call(generate, guided(made.base), "run_dir=run").status == status


def test_directory_of_another_run(refused, made, training, readers):
    line = refused(fit, training(), f"run_dir={made.ddpm}")
    assert "belongs to another run" in line
    assert "model.name: 'DDPM' there, 'EDM' here" in line
    for verb, config in (
        (generate, guided(made.base)),
        readers["pair"](made.good),
        readers["refine"](made.good),
        readers["evaluate"](made.good),
    ):
        line = refused(verb, config, f"run_dir={made.base}")
        assert "verb: 'fit' there" in line


@pytest.mark.parametrize("what", ["folder", "file"])
def test_directory_of_something_else(refused, training, tmp_path, what):
    if what == "folder":
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.tex").write_text("years of work")
    else:
        (tmp_path / "mine").write_text("years of work")
    assert "mine exists and is no run of ours" in refused(fit, training(), "run_dir=mine")


def test_study(call, mixture, tmp_path):
    from lightning_cfg.verbs.study import study

    quick = Path(__file__).parent.parent / "conf/studies/fractal_quick.yaml"
    text = quick.read_text()
    for override, words in {
        "methods.classifier_free.models.model=absent": [
            "model=absent is neither one of fits (base"
        ],
        "methods.classifier_free.guidance.name=autoguidance": ["models.weak"],
        "flows.dedicated=[7]": ["flows.dedicated has scale 7"],
        "flows.single=[2]": ["flows.single is neither"],
        "flow.trainer.max_step=2": ["unknown key 'flow.trainer.max_step'"],
        "scales=[strong]": ["scales[0] must be float"],
    }.items():
        outcome = call(study, text, override)
        assert outcome.status == 2, override
        assert len(outcome.err.strip().splitlines()) == 1
        assert all(word in outcome.err for word in words), outcome.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    outcome = call(study, text, "run_dir=mine")
    assert outcome.status == 2
    assert "mine exists and is no study" in outcome.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "runs").exists()


LINE = {"name": "Mixture", "means": [[-1.0], [1.0]], "stds": [0.2, 0.2], "labels": [0, 1]}
GAUSSIANS = {
    "cases": {"far": LINE},
    "fits": {},
    "methods": {"cfg": {"models": {"model": "exact"}, "guidance": {"name": "classifier_free"}}},
    "scales": [1.0, 2.0],
    "samples": 20,
    "generation": {"sampler": HEUN, "trajectories": 10},
    "trace": {"classifiers": {"posterior": "exact"}},
    "evaluation": {"metrics": ["wasserstein"]},
}
FLOW = {
    "net": {"name": "MLP"},
    "model": {"name": "Flow"},
    "learner": {"name": "Refinement"},
    "batch_size": 8,
    "trainer": {"max_steps": 2},
}


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"data": LINE}, ["either data", "or cases"]),
        ({"cases": {}}, ["either data", "or cases"]),
        ({"cases": {"far/off": LINE}}, ["cases.far/off"]),
        ({"cases": {"..": LINE}}, ["cases...: letters"]),
        ({"cases": {"": LINE}}, ["cases.: letters"]),
        ({"cases": {"far": {**LINE, "stdz": [1.0]}}}, ["cases.far.stdz", "cases.far.stds"]),
        ({"flows": {"all": [1.0]}, "sources": 10}, ["flows needs flow"]),
        ({"flows": {"all": [1.0]}, "flow": FLOW}, ["sources=0"]),
        ({"generation": {"sampler": HEUN}}, ["trace needs generation.trajectories"]),
        ({"trace": {}}, ["trace.classifiers is missing"]),
        ({"samples": 0}, ["samples must be int from 1 to 1_000_000, not 0"]),
    ],
)
def test_study_of_cases(refused, changed, words):
    from lightning_cfg.verbs.study import study

    line = refused(study, GAUSSIANS | changed)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"trace": {"classifiers": {"typo": "absent"}}}, ["trace.classifiers.typo", "absent"]),
        ({"trace": {"classifiers": {}}}, ["trace.classifiers is empty"]),
        ({"samples": 9}, ["generation.trajectories=10", "samples=9"]),
    ],
)
def test_study_that_would_stop_half_way(refused, changed, words):
    """What a late stage refuses is refused before the first, which may take hours."""
    from lightning_cfg.verbs.study import study

    line = refused(study, GAUSSIANS | changed)
    assert all(word in line for word in words), line


def test_pairs_path_names_the_run(made):
    """The constants that the messages speak of are where the verbs write."""
    assert SAMPLES.endswith("samples.safetensors")
    assert PAIRS.endswith("pairs.safetensors")
