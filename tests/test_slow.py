"""Minutes rather than seconds: `pytest -m slow`. A trained fractal model at full size."""

import csv
from pathlib import Path

import pytest
import torch

from lightning_cfg.config import load
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import study

CONF = Path(__file__).parent.parent / "conf"
pytestmark = pytest.mark.slow


def test_samples_of_a_trained_model_depend_on_their_seeds_only(tmp_path):
    """4096 seeds in batches of 1, 7 and 4096: the same labels, 99.9 % of samples within 1e-3."""
    run = tmp_path / "base"
    few = ["trainer.max_steps=1000", f"run_dir={run}"]
    fit(**load(fit, CONF / "fractal_base.yaml", few))
    sets = []
    for size in (4096, 7, 1):
        made = [f"models.model={run}", f"batch_size={size}", "n=4096"]
        made += ["sampler.steps=12", f"run_dir={tmp_path}/{size}"]
        folder = generate(**load(generate, CONF / "fractal_guided.yaml", made))
        sets.append(load_tensors(folder / SAMPLES, "x", "c", "seed"))
    for other in sets[1:]:
        assert torch.equal(other["c"], sets[0]["c"])
        assert torch.equal(other["seed"], sets[0]["seed"])
        close = ((other["x"] - sets[0]["x"]).abs() < 1e-3).all(1)
        assert close.double().mean() >= 0.999


def test_the_quick_study_shows_that_refinement_repairs(tmp_path):
    """At scales 2 and 3: outliers at most halved, and -log p much closer to real data's."""
    config = load(study, CONF / "studies/fractal_quick.yaml", [f"run_dir={tmp_path / 'study'}"])
    root = study(**config)
    rows = list(csv.DictReader((root / "table.csv").open()))
    real = {row["class"]: float(row["nll_mean"]) for row in rows if row["method"] == "real"}
    by_set = {(r["method"], r["scale"], r["class"], r["stage"], r["flow"]): r for r in rows}
    checked = 0
    for (method, scale, label, stage, _), after in by_set.items():
        if stage != "after" or float(scale) < 2:
            continue
        before = by_set[method, scale, label, "before", ""]
        assert float(after["outliers"]) < 0.5 * float(before["outliers"])
        gap = [abs(float(row["nll_mean"]) - real[label]) for row in (before, after)]
        assert gap[1] < 0.6 * gap[0]
        checked += 1
    assert checked == 2 * 2 * 3  # methods, classes; scale 2 with both flows, scale 3 with one


def test_the_quick_study_of_trajectories_shows_what_the_classifier_does(tmp_path):
    """Every trend holds; the exact pair is the conditional model, a linear classifier is not."""
    config = load(study, CONF / "studies/gaussians_quick.yaml", [f"run_dir={tmp_path / 'study'}"])
    root = study(**config)
    rows = list(csv.DictReader((root / "table.csv").open()))
    far = {(r["method"], float(r["scale"] or 0), r["class"]): r for r in rows if r["data"] == "far"}
    for label in ("0", "1"):
        exact, cfg, linear = (
            float(far[method, 1.0, label]["wasserstein"])
            for method in ("exact_cg_posterior", "exact_cfg", "exact_cg_linear")
        )
        assert exact == cfg
        assert linear > 10 * float(far["real", 0.0, label]["wasserstein"])
    seen = list(csv.DictReader((root / "trajectories.csv").open()))
    paths = {(r["data"], r["method"], r["class"], r["classifier"], r["scale"]): r for r in seen}
    checked = 0
    for (*what, scale), first in paths.items():
        if scale == "1":
            last = paths[*what, "5"]
            assert float(last["distance"]) > float(first["distance"])
            assert float(last["straightness"]) > float(first["straightness"])
            checked += 1
    assert checked == 2 * 2 * (8 * 2 + 2)  # cases, classes; 8 methods with two classifiers
