"""Grids of samples while a run trains: the right samples, and no trace of them in the training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import assert_same, drawn
from PIL import Image

from lightning_cfg.runs.checkpoints import load
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.training import grids
from lightning_cfg.training.grids import Grids
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

GRIDS = {"every": 5, "scales": [1, 2], "columns": 3, "sampler": {"steps": 3}}


@pytest.fixture
def images(training):
    """A training on small images, with dropout, which draws from the global generators."""
    return training(
        data={"name": "helpers.toys.Dots"},
        net={"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1], "dropout": 0.3},
        batch_size=8,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_with_grids_equals_uninterrupted_without(call, images, accumulate):
    images["trainer"]["accumulate_grad_batches"] = accumulate
    assert call(fit, images, "run_dir=without").status == 0
    with_grids = {**images, "grids": GRIDS}
    assert call(fit, with_grids, "run_dir=with", "trainer.max_steps=10").status == 0
    assert drawn("with") == ["grid_000005.png", "grid_000010.png"]
    first = Path("with/figures/grid_000010.png").stat().st_mtime_ns
    assert call(fit, with_grids, "run_dir=with").status == 0
    assert drawn("with") == [f"grid_{step:06d}.png" for step in (5, 10, 15, 20)]
    assert Path("with/figures/grid_000010.png").stat().st_mtime_ns == first
    assert_same("without", "with")


def test_grids_are_the_samples_that_generate_makes(call, images, monkeypatch):
    """Those of the first average of this step, by class, by scale, of the seeds from 0 on."""
    sheets, sheet = [], grids.contact_sheet

    def remembers(groups, *args, **kwargs):
        sheets.append(groups)
        return sheet(groups, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(grids, "contact_sheet", remembers)
        assert call(fit, {**images, "grids": GRIDS}, "run_dir=run").status == 0
    assert len(sheets) == 4
    assert not torch.equal(sheets[0]["scale 1"][0], sheets[-1]["scale 1"][0])
    for scale in (1, 2):
        x, c = sheets[-1][f"scale {scale}"]
        assert x.shape == (6, 1, 8, 8)
        for k in (0, 1):
            config = {
                "models": {"model": "run"},
                "guidance": {"name": "classifier_free", "scale": float(scale)},
                "sampler": {"name": "heun", "steps": 3},
                "n": 3,
                "class_label": k,
                "run_dir": f"samples_{scale}_{k}",
            }
            assert call(generate, config).status == 0
            samples = load_tensors(Path(config["run_dir"], SAMPLES), "x")["x"]
            torch.testing.assert_close(x[c == k], samples, rtol=1e-4, atol=1e-4)


def test_drawing_touches_nothing(call, images, monkeypatch):
    draw = Grids.draw

    def watches(self, learner, data):
        state = torch.get_rng_state()
        weights = {k: v.clone() for k, v in learner.model.state_dict().items()}
        gradients = [p.grad for p in learner.model.parameters()]
        figure = draw(self, learner, data)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, weights[k]) for k, v in learner.model.state_dict().items())
        assert all(p.grad is g for p, g in zip(learner.model.parameters(), gradients, strict=True))
        assert all(p.requires_grad for p in learner.model.parameters())
        assert all(module.training for module in learner.model.modules())
        assert torch.is_grad_enabled()
        return figure

    monkeypatch.setattr(Grids, "draw", watches)
    assert call(fit, {**images, "grids": GRIDS}, "run_dir=run").status == 0
    assert len(drawn("run")) == 4


def test_grids_may_change_on_resume(call, images):
    assert call(fit, images, "run_dir=run", "trainer.max_steps=10").status == 0
    assert call(fit, {**images, "grids": {**GRIDS, "every": 10}}, "run_dir=run").status == 0
    assert drawn("run") == ["grid_000020.png"]
    assert load("run")["global_step"] == 20


def test_data_without_classes(call, images):
    images["net"] = {"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1]}
    images["data"] = {"name": "test_grids.Unlabelled"}
    grids = {**GRIDS, "scales": [1.0]}
    assert call(fit, {**images, "grids": grids}, "run_dir=run").status == 0
    assert len(drawn("run")) == 4
    refused = call(fit, {**images, "grids": GRIDS}, "run_dir=other")
    assert refused.status == 2
    assert "classes" in refused.err


@pytest.mark.parametrize(
    "change, words",
    [
        ({"grids": {"evry": 5}}, ["grids.evry", "grids.every"]),
        ({"grids": {"every": 0}}, ["grids.every must be int of at least 1, not 0"]),
        ({"grids": {"columns": 0}}, ["grids.columns must be int from 1 to 1000, not 0"]),
        ({"grids": {"scales": []}}, ["grids.scales must be list of float that is not empty"]),
        ({"grids": {"scales": ["strong"]}}, ["grids.scales[0]"]),
        ({"grids": {"sampler": {"steps": 1}}}, ["sampler.steps"]),
        ({"grids": {"sampler": {"stepz": 1}}}, ["grids.sampler.stepz"]),
        ({"grids": {"sampler": {"sigma_max": 900.0}}}, ["sampler.sigma_max=900"]),
        ({"model": {"name": "EDM", "label_dropout": 0.0}}, ["label_dropout"]),
        (
            {
                "net": {"name": "Linear"},
                "model": {"name": "NoisyClassifier"},
                "learner": {"name": "Classification"},
            },
            ["NoisyClassifier"],
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, images, change, words):
    refused = call(fit, {**images, "grids": GRIDS, **change}, "run_dir=run")
    assert refused.status == 2
    assert all(word in refused.err for word in words), refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert not Path("run").exists()


def test_points_are_no_images(call, training):
    refused = call(fit, training(grids=GRIDS), "run_dir=run")
    assert refused.status == 2
    assert "grids needs grey or RGB images" in refused.err


def test_tensorboard_gets_the_grids(call, images):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(fit, {**images, "grids": GRIDS, "logger": "tensorboard"}, "run_dir=run").status == 0
    events = EventAccumulator(str(next(Path("run/logs").glob("version_*")))).Reload()
    shown = events.Images("samples")
    assert [image.step for image in shown] == [5, 10, 15, 20]
    with Image.open("run/figures/grid_000020.png") as file:
        assert (shown[-1].width, shown[-1].height) == file.size


def test_wandb_gets_the_grids(call, images, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert call(fit, {**images, "grids": GRIDS, "logger": "wandb"}, "run_dir=run").status == 0
    copies = list(Path("run/wandb").glob("offline-run-*/files/media/images/samples*.png"))
    assert len(copies) == 4  # and none from, or of, another run of this process
    wanted = {np.asarray(Image.open(f)).tobytes() for f in Path("run/figures").iterdir()}
    assert {np.asarray(Image.open(f)).tobytes() for f in copies} == wanted


class Unlabelled:
    """Images without classes: every c is 0."""

    shape, num_classes, truth = (1, 8, 8), 0, None

    def batch(self, draws):
        i = draws.permuted(16)
        return {"y": torch.linspace(-1, 1, 16)[i, None, None, None].expand(-1, 1, 8, 8), "c": 0 * i}
