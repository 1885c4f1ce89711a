"""`fit` on a GPU: its choices of speed, bad steps, its end, and where the data lie."""

import csv
import sys

import pytest
import torch
from closeness import FLOAT32, assert_within
from helpers.runs import logged, manifest
from helpers.toys import UNET, Halves

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.runs.precision import matmul
from lightning_cfg.training.learners import Diffusion, skip_if
from lightning_cfg.training.undisturbed import undisturbed
from lightning_cfg.verbs.fit import fit

HALVES = {"name": "helpers.toys.Halves"}


class Poisoned(Diffusion):
    """The loss of step 3, the 4th, is not a number for one of its samples."""

    def losses(self, batch, draws):
        losses = super().losses(batch, draws)
        first = torch.arange(len(losses), device=losses.device) == 0
        return torch.where(first & (draws.step == 3), torch.nan, losses)


def test_images_are_trained_on_compiled_in_bfloat16(training, accelerator, device, tmp_path):
    """What `auto` means on a GPU, with pictures and scores of samples on the way."""
    config = training(data=HALVES, net=UNET, trainer={"accelerator": accelerator})
    scores = {"every": 10, "n": 20, "columns": 2, "batch_size": 8, "scales": [1.0, 2.0]}
    scores |= {"metrics": ["nearest_real"], "sampler": {"name": "heun", "steps": 4}}
    grids = {"every": 10, "columns": 2, "sampler": {"name": "heun", "steps": 4}}
    run = fit(**config, run_dir=str(tmp_path / "run"), evaluation=scores, grids=grids)
    told, rows = manifest(run), logged(str(run))
    if device.type == "cuda":
        assert (told["precision"], told["compile"]) == ("bf16-mixed", True)
        assert (told["channels_last"], told["matmul_precision"]) == (True, "high")
        assert told["device"].startswith("cuda")
        assert rows[0]["peak_memory_gib"] > 0
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses
    assert losses[-1] < losses[0]
    with open(run / "metrics/evaluations.csv") as file:
        assert len(list(csv.DictReader(file))) == 4  # two scales, twice
    assert (run / "figures/grid_000020.png").is_file()
    assert {w.dtype for w in load(run)["state_dict"].values()} == {torch.float32}
    assert next(restore(run).parameters()).device.type == "cpu"


def test_a_skipped_step_leaves_weights_and_moments(device):
    """The fused optimiser reads found_inf on the device."""
    weight = torch.nn.Parameter(torch.ones(1000, device=device))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=True)

    def state() -> list[torch.Tensor]:
        return [t.clone() for t in (weight.detach(), *optimizer.state[weight].values())]

    weight.grad = torch.full_like(weight, 0.5)
    skip_if(optimizer, torch.tensor(False, device=device))
    optimizer.step()
    before = state()
    assert before[0].max() < 1  # the step before did change them
    for bad in (torch.nan, torch.inf):
        weight.grad = torch.full_like(weight, bad)
        skip_if(optimizer, ~weight.grad.norm().isfinite())
        optimizer.step()
        assert all(map(torch.equal, before, state()))
    weight.grad = torch.full_like(weight, 0.5)
    skip_if(optimizer, torch.tensor(False, device=device))
    optimizer.step()
    assert state()[0].max() < before[0].max()


def test_a_bad_step_of_a_training_changes_nothing(training, accelerator, tmp_path):
    """Weights, averages and moments after the 4th step, a bad one, are those after the 3rd."""
    config = training(learner={"name": "test_gpu_training.Poisoned", "ema_half_life": [100]})
    runs = []
    for steps in (3, 4):
        config["trainer"] = {"max_steps": steps, "accelerator": accelerator}
        runs.append(load(fit(**config, run_dir=str(tmp_path / str(steps)))))
    before, after = runs
    assert (before["watch"]["bad"], after["watch"]["bad"]) == (0, 1)
    for name, weight in before["state_dict"].items():
        assert torch.equal(weight, after["state_dict"][name]), name
    for name, average in before["ema"][100].items():
        assert torch.equal(average, after["ema"][100][name]), name
    one, other = (run["optimizer_states"][0]["state"] for run in runs)
    for i, moments in one.items():
        for name, value in moments.items():
            assert torch.equal(value, other[i][name]), f"{name} of parameter {i}"


def test_a_training_that_time_ends_is_saved(training, accelerator, tmp_path):
    """After its end Lightning has moved the model away from the device, and not the averages."""
    trainer = {"max_steps": 10**6, "max_time": "00:00:00:03", "accelerator": accelerator}
    config = training(trainer=trainer) | {"checkpoint_every": 10**6}
    run = fit(**config, run_dir=str(tmp_path / "run"))
    told = manifest(run)
    assert 0 < told["step"] == load(run)["global_step"]
    restore(run)


@pytest.mark.parametrize("how", [{}, {"flip": True}, {"augment": 0.5}])
def test_bytes_on_the_device_are_the_same_batches(how, device):
    """Indexed by rows that are drawn on the CPU; augmented without TF32, whatever is set."""

    def images() -> Halves:
        data = Halves()
        data.flip = how.get("flip", False)
        data.augmented(how.get("augment", 0.0))
        return data

    here, there = images(), images()
    there.to(device)
    assert there._bank[0].dtype == torch.uint8
    assert {t.device.type for t in there._bank} == {device.type}
    with matmul("high"):
        for step in range(4):
            draws = {"seed": 0, "step": step, "batch_size": 32, "rows": slice(8, 24)}
            one, other = here.batch(Draws(**draws)), there.batch(Draws(**draws))
            assert torch.equal(one["c"], other["c"].cpu())
            if "augment" in how:
                assert_within(FLOAT32, other["y"], one["y"])
                assert torch.equal(one["augment"], other["augment"].cpu())
            else:
                assert torch.equal(one["y"], other["y"].cpu())
    limited = images()
    limited.limit = 10
    limited.to(device)
    assert limited.batch(Draws(seed=0, step=0, batch_size=8))["y"].device.type == device.type


def test_a_training_gives_the_generators_back(training, accelerator, device, tmp_path):
    torch.manual_seed(5)
    torch.randn(3, device=device)
    before = torch.get_rng_state(), torch.randn(3, device=device).cpu()
    torch.manual_seed(5)
    torch.randn(3, device=device)
    config = training(trainer={"max_steps": 2, "accelerator": accelerator})
    fit(**config, run_dir=str(tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.randn(3, device=device).cpu(), before[1])


def starts_within() -> None:
    """In a process of its own, which knows no CUDA yet: a status of 0 where all is given back."""
    torch.manual_seed(5)
    assert not torch.cuda.is_initialized()
    with undisturbed():
        torch.manual_seed(1)
        torch.randn(1, device="cuda")
    found = torch.randn(3, device="cuda")
    torch.manual_seed(5)
    sys.exit(not torch.equal(found, torch.randn(3, device="cuda")))


@pytest.mark.cuda
def test_a_generator_that_starts_within_is_seeded_as_before(processes):
    process = processes.Process(target=starts_within)
    process.start()
    process.join(100)
    assert process.exitcode == 0
