"""The snippets of CONTRIBUTING.md do what they say: one file of all of them, through the verbs."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The snippets as a module `snippets` that dotted paths find."""
    code = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    (tmp_path / "snippets.py").write_text("\n\n".join(code))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("snippets", None)


def test_the_snippets_run(own, call, training, mixture):
    tiny = training(net={"name": "snippets.Tiny"}, trainer={"max_steps": 2})
    assert call(fit, tiny, "run_dir=base").status == 0
    assert call(fit, tiny, "run_dir=weak", "seed=1").status == 0
    settings = {"n": 6, "sampler": {"name": "snippets.one_step"}, "run_dir": "samples"}
    models = {"model": "base", "weak": "weak"}
    guided = {"guidance": {"name": "snippets.dampened", "scale": 3.0}, "models": models}
    made = call(generate, settings | guided)
    assert made.status == 0, made.err
    scored = {"samples": {"mine": "samples"}, "data": mixture, "real": 20, "bank": 20}
    found = call(evaluate, scored | {"metrics": ["snippets.spread"]}, "run_dir=scores")
    assert found.status == 0, found.err
    samples = load_tensors(f"samples/{SAMPLES}", "x", "c")
    rows = json.loads(Path("scores/metrics/metrics.json").read_text())
    told = {row["class"]: row["spread"] for row in rows if row["samples"] == "mine"}
    for k in (0, 1):
        x = samples["x"][samples["c"] == k].double()
        assert told[k] == pytest.approx(sum(torch.dist(a, x.mean(0)) for a in x).item() / len(x))


def test_the_data_set_is_one(own, call, training):
    squares = {"name": "snippets.Squares"}
    net = {"name": "ConvNet", "channels": 4}
    judge = {"model": {"name": "NoisyClassifier"}, "learner": {"name": "Classification"}}
    config = training(data=squares, net=net, trainer={"max_steps": 2}, **judge)
    outcome = call(fit, config, "run_dir=run")
    assert outcome.status == 0, outcome.err


def test_the_files_that_it_names_exist():
    for name in re.findall(
        r"`((?:tests|docs|guidance|metrics|nets|data|diffusion)/[\w./]+)`", TEXT
    ):
        place = ROOT if name.startswith(("tests", "docs")) else ROOT / "lightning_cfg"
        assert (place / name).exists(), name
