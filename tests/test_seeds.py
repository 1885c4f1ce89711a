"""Seeds that mean something: none repeats another's samples, in every verb that takes them."""

import pytest
import torch
from helpers import ROOT

from lightning_cfg.config import load
from lightning_cfg.errors import UserError
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.seeds import SEEDS, seeded
from lightning_cfg.studies.schema import FRESH
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import study

BEYOND = [-1, -(2**63) - 1, 2**32 - 3, 2**32, 2**32 + 7, 2**63 - 2, 2**63, 2**64, 10**30]
HEUN = {"name": "heun", "steps": 2}
QUICK = ROOT / "conf/studies/fractal_quick.yaml"


@pytest.fixture
def made(mixture) -> dict:
    """Keys of `generate` for four samples."""
    models = {"model": "exact"}
    return {"models": models, "guidance": "unguided", "sampler": HEUN, "data": mixture, "n": 4}


@pytest.mark.parametrize("seed", BEYOND)
def test_generate_refuses_seeds_that_would_repeat_others(call, made, tmp_path, seed):
    answer = call(generate, made, "run_dir=run", f"seed={seed}")
    assert answer.status == 2
    assert len(answer.err.splitlines()) == 1
    assert f"seed={seed}: the seeds of 4 samples must be within 0 ... 4294967295" in answer.err
    assert not (tmp_path / "run").exists()


def test_the_last_seeds_are_samples_of_their_own(call, made):
    first = 2**32 - 4
    assert call(generate, made, "run_dir=run", f"seed={first}").status == 0
    assert call(generate, made, "run_dir=zero").status == 0
    last, zero = (load_tensors(f"{run}/{SAMPLES}", "x", "seed") for run in ("run", "zero"))
    assert last["seed"].tolist() == list(range(first, first + 4))
    both = torch.cat([last["x"], zero["x"]])
    assert len(both.unique(dim=0)) == 8
    noise = torch.randn(2, generator=torch.Generator().manual_seed(first))  # EDM's convention
    assert torch.equal(seeded([first], (2,), 2)[0][0].float(), noise)


@pytest.mark.parametrize("seed", BEYOND)
@pytest.mark.parametrize("draws", [1, 3])
def test_evaluate_refuses_them_too_for_all_of_its_draws(call, made, mixture, seed, draws):
    config = {"generate": {"a": {**made, "seed": seed}}, "data": mixture, "draws": draws}
    answer = call(evaluate, config, "run_dir=run")
    assert answer.status == 2
    assert f"generate.a.seed={seed}: the seeds of {4 * draws} samples must be" in answer.err


def test_evaluate_takes_the_last_ones_once(call, made, mixture):
    generation = {"a": {**made, "seed": 2**32 - 4}}
    config = {"generate": generation, "data": mixture, "metrics": ["nearest_real"], "real": 9}
    assert call(evaluate, config, "run_dir=run").status == 0
    assert "generate.a.seed=" in call(evaluate, config, "run_dir=other", "draws=2").err


@pytest.mark.parametrize("seed", BEYOND)
def test_samples_of_a_training_too(call, training, tmp_path, seed):
    evaluation = {"every": 5, "n": 60, "sampler": HEUN, "real": 80, "seed": seed}
    answer = call(fit, training(evaluation=evaluation), "run_dir=run")
    assert answer.status == 2
    assert f"evaluation.seed={seed}: the seeds of 60 samples must be within" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_study_says_so_before_its_first_stage(call, tmp_path):
    last = SEEDS // (2 * FRESH) - 1
    config = load(study, QUICK, ["run_dir=run"])
    for seed in (-1, last + 1, 2**63):
        answer = call(study, QUICK.read_text(), "run_dir=run", f"seed={seed}")
        assert answer.status == 2
        assert f"seed={seed} must be from 0 to 2146" in answer.err
        assert not (tmp_path / "run").exists()
    assert 2 * FRESH * last + FRESH + config["samples"] <= SEEDS
    assert call(study, QUICK.read_text(), "run_dir=run", f"seed={last}", "plan=true").status == 0


def test_a_trainings_own_seed_is_any_number_and_repeats_none(call, training):
    """It is hashed and not cut off."""
    weights = []
    for seed in (0, 2**32, 2**63, 2**64, -1):
        words = f"run_dir=run{seed}", "trainer.max_steps=1", f"seed={seed}"
        assert call(fit, training(), *words).status == 0
        state = torch.load(f"run{seed}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        weights.append(state["model.net.enter.weight"])
    assert len(torch.stack(weights).unique(dim=0)) == 5


def test_from_python_it_is_the_same_line(made):
    with pytest.raises(UserError, match="seed=4294967296: the seeds of 4 samples"):
        generate(**made, run_dir="never", seed=2**32)
