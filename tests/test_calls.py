"""Verbs called from Python: the same run as by a command line, by whatever way it is asked for."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_cfg
from lightning_cfg import __main__ as commands
from lightning_cfg import verbs
from lightning_cfg.config import keywords_of, load
from lightning_cfg.config.files import read
from lightning_cfg.errors import UserError
from lightning_cfg.runs.names import LAST, SAMPLES
from lightning_cfg.runs.run import identity

SHORT = {"n": 6, "sampler": {"name": "euler", "steps": 3}, "models": {"model": "exact"}}


def record(run: str | Path) -> dict:
    return json.loads((Path(run) / "identity.json").read_text())


@pytest.fixture
def config(tmp_path, monkeypatch, mixture) -> dict:
    """Keys of `generate`, which are those of config.yaml too, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    guidance = {"name": "classifier_free", "scale": 2.0}
    found = {**SHORT, "data": mixture, "guidance": guidance}
    Path("config.yaml").write_text(yaml.safe_dump(found))
    return found


def test_a_call_is_the_run_of_the_command_line(config):
    words = ["guidance.scale=3", "seed=5"]
    commands.main(["generate", "--config", "config.yaml", *words, "run_dir=line"])
    sections = {"guidance": {"name": "classifier_free", "scale": 3.0}}
    made = [
        verbs.generate("config.yaml", *words, run_dir="words"),
        verbs.generate(Path("config.yaml"), seed=5, run_dir=Path("keys"), **sections),
        verbs.generate("config.yaml", seed=5, run_dir="dots", **{"guidance.scale": 3}),
        verbs.generate(config, "guidance.scale=3", seed=5, run_dir="dict"),
        verbs.generate(**config | sections, seed=5, run_dir="keywords"),
    ]
    assert made == [Path(name) for name in ("words", "keys", "dots", "dict", "keywords")]
    for run in made:
        assert record(run) == record("line")
        assert (run / SAMPLES).read_bytes() == Path("line", SAMPLES).read_bytes()
    before = Path("line/manifest.json").read_bytes()
    verbs.generate("config.yaml", *words, run_dir="line")  # which has finished
    assert Path("line/manifest.json").read_bytes() == before
    with pytest.raises(UserError, match=r"another run \(settings.seed: 5 there, 6 here\)"):
        verbs.generate("config.yaml", "guidance.scale=3", seed=6, run_dir="line")


def test_a_training_is_the_same_too(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = training(trainer={"max_steps": 3, "enable_progress_bar": False})
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    commands.main(["fit", "mine.yaml"])  # in runs/mine
    with torch.inference_mode():
        run = verbs.fit(config, run_dir="again")
    assert record(run) == record("runs/mine")
    one, other = (torch.load(Path(d) / LAST, weights_only=True) for d in (run, "runs/mine"))
    assert one["global_step"] == 3
    for name, weight in other["state_dict"].items():
        assert torch.equal(one["state_dict"][name], weight), name


def test_every_verb_reads_a_shipped_config_as_its_command_line_does():
    for name, config in {
        "fit": "fractal_base", "generate": "fractal_guided", "pair": "fractal_pairs",
        "refine": "fractal_refine", "evaluate": "fractal_evaluate", "trace": "fractal_trace",
        "study": "studies/fractal_quick",
    }.items():  # fmt: skip
        verb = getattr(verbs, name)
        assert keywords_of(verb, config, ("run_dir=x",), {})["run_dir"] == "x"
        assert keywords_of(verb, config, (), {}) == load(verb, read(config))


def test_settings_are_known_by_the_same_hash(config):
    one = keywords_of(verbs.generate, config, (), {"run_dir": "a"})
    other = load(verbs.generate, read("config.yaml"))
    assert identity(verbs.generate, one)[0].settings == identity(verbs.generate, other)[0].settings


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda c: verbs.generate(c, "guidance.scal=2", run_dir="x"), r"generate\(\): unknown key"),
        (lambda c: verbs.generate("config.yaml", guidance={"scale": 2}), "guidance.name must be"),
        (lambda c: verbs.generate("nowhere.yaml"), "cannot read the config file 'nowhere.yaml'"),
        (lambda c: verbs.generate(c), "run_dir is missing"),
        (lambda c: verbs.generate(c, "run_dir", run_dir="x"), r"'run_dir' is not an override"),
        (lambda c: verbs.generate(3), "a dict of keys, not a int"),
        (lambda c: verbs.generate(c, run_dir="x", **{"n.m": 2}), r"'n.m': n is 6, not a section"),
        (lambda c: verbs.generate(**c, run_dir="x", nn=2), "unknown key 'nn'; did you mean 'n'"),
        (lambda c: verbs.adopt("nowhere.pkl", run_dir="x"), "nowhere.pkl: no such file"),
    ],
)
def test_a_mistake_is_raised_and_does_not_end_the_process(config, call, told):
    with pytest.raises(UserError, match=told) as caught:
        call(config)
    assert "command line" not in str(caught.value)
    assert sorted(Path().iterdir()) == [Path("config.yaml")]


def test_interpolations_are_resolved(config):
    made = keywords_of(verbs.generate, config, ("run_dir=at_${guidance.scale}_${seed}",), {})
    assert made["run_dir"] == "at_2.0_0"


def test_what_is_given_stays_as_it_was(config):
    before = json.dumps(config)
    keywords_of(verbs.generate, config, ("guidance.scale=9",), {"run_dir": "x"})
    assert json.dumps(config) == before


def test_the_signature_of_a_verb_is_how_it_is_called():
    parameters = list(inspect.signature(verbs.fit).parameters.values())
    assert [one.name for one in parameters[:3]] == ["config", "overrides", "data"]
    assert all(one.kind is one.KEYWORD_ONLY for one in parameters[2:])


def test_names_stay_what_they_are_whatever_is_imported():
    """Every module of the package sets an attribute of its package by its import."""
    code = """
import importlib, pkgutil, types
import lightning_cfg as lc
names = {name: getattr(lc, name) for name in dir(lc)}
called = {name: getattr(lc.verbs, name) for name in dir(lc.verbs)}
for found in pkgutil.walk_packages(lc.__path__, "lightning_cfg."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
assert names == {name: getattr(lc, name) for name in names}
assert called == {name: getattr(lc.verbs, name) for name in called}
assert not [name for name, verb in called.items() if isinstance(verb, types.ModuleType)]
import lightning_cfg.verbs.fit
assert lc.verbs.fit is called["fit"]
print(*called)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == sorted(verbs.__all__), done.stderr


def test_verbs_has_every_verb_but_those_with_a_command_line_only():
    assert set(verbs.__all__) == set(commands.VERBS) - {"sweep", "assets"}
    entries = {one.name for one in pkgutil.iter_modules(lightning_cfg.__path__)}
    assert set(commands.VERBS) <= entries
    for name in verbs.__all__:
        module = importlib.import_module(f"lightning_cfg.verbs.{name}")
        assert getattr(verbs, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'fits'"):
        verbs.fits  # noqa: B018
