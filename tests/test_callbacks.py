"""Callbacks of Lightning's and one's own, several loggers, another run's weights, data modules."""

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import wandb
from helpers.runs import assert_same
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset

from lightning_cfg.runs.checkpoints import load
from lightning_cfg.runs.names import LAST
from lightning_cfg.training import learners
from lightning_cfg.verbs.fit import fit

HERE = "test_callbacks"
seen: list = []


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


class Watches(L.Callback):
    """Notes what there is to monitor, and logs a number of its own."""

    def __init__(self, factor: float = 2.0):
        self.factor = factor

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mine", self.factor * trainer.global_step)

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        seen.append((trainer.global_step, {name: float(value) for name, value in metrics.items()}))


class Keeps(Logger):
    """A logger of one's own."""

    def __init__(self, prefix: str):
        super().__init__()
        self.prefix = prefix

    name, version = "keeps", "0"

    def log_metrics(self, metrics, step=None):
        seen.append((self.prefix, step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def manifest(run: str) -> dict:
    return json.loads(Path(run, "manifest.json").read_text())


STOPS = {"name": "EarlyStopping", "monitor": "loss", "patience": 2, "min_delta": 100.0}


def test_early_stopping_ends_a_training(call, training):
    """No loss is better by 100 than the one before: after the first 2 more are waited for."""
    config = training(trainer={"max_steps": 60}, callbacks=[STOPS])
    done = call(fit, config, "run_dir=run")
    assert done.status == 0, done.err
    assert "run: 15 steps, ended by EarlyStopping: Monitored metric loss did not" in done.out
    assert manifest("run")["step"] == load("run")["global_step"] == 15
    again = call(fit, config, "run_dir=run")
    assert "finished already, 15 steps" in again.out
    more = call(fit, config, "run_dir=run", "trainer.max_steps=80")
    assert manifest("run")["step"] == 20, more.out  # its patience is at an end
    other = call(fit, training(trainer={"max_steps": 60}), "run_dir=run")
    assert (other.status, "belongs to another run" in other.err) == (2, True)


def test_a_score_of_samples_ends_a_training(call, training):
    scored = {"every": 10, "n": 20, "sampler": {"name": "heun", "steps": 2}, "real": 20}
    stops = {**STOPS, "monitor": "frechet/scale_1", "patience": 1}
    scored["metrics"] = ["frechet"]
    config = training(trainer={"max_steps": 60}, callbacks=[stops], evaluation=scored)
    stops["monitor"] = "frechet/scale_2"
    refused = call(fit, config, "run_dir=run")
    assert refused.status == 2
    assert "nothing is logged as 'frechet/scale_2'; did you mean 'frechet/scale_1'?" in refused.err
    stops["monitor"] = "frechet/scale_1"
    done = call(fit, config, "run_dir=run")
    assert done.status == 0, done.err
    assert manifest("run")["step"] == 20


def test_a_training_with_a_stopper_goes_on_as_if_it_had_not_been_cut_off(call, training):
    """Its patience is in the checkpoint; and one that is killed as it ends stays ended."""
    config = training(trainer={"max_steps": 60}, callbacks=[STOPS])
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=cut", "trainer.max_steps=10").status == 0
    assert call(fit, config, "run_dir=cut").status == 0
    assert manifest("cut")["step"] == 15
    assert_same(Path("whole", LAST), Path("cut", LAST))
    Path("cut/manifest.json").unlink()
    again = call(fit, config, "run_dir=cut")
    assert "15 steps, ended by EarlyStopping" in again.out
    assert manifest("cut")["ended"] == manifest("whole")["ended"]


def test_a_callback_of_ones_own_monitors_and_logs(call, training):
    own = {"name": f"{HERE}.Watches", "factor": 3}
    config = training(trainer={"max_steps": 10}, callbacks=[own, {"name": "LearningRateMonitor"}])
    done = call(fit, config, "run_dir=run")
    assert done.status == 0, done.err
    assert [step for step, _ in seen] == [5, 10]
    assert {"loss", "lr", "gradient_norm", "mine"} <= set(seen[1][1])
    assert seen[0][1]["loss"] != seen[1][1]["loss"]
    rows = list(csv.DictReader(open("run/logs/version_0/metrics.csv", newline="")))
    assert {float(row["mine"]) for row in rows if row.get("mine")} == {15.0, 30.0}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "EarlyStoping", "monitor": "loss"}, "did you mean 'EarlyStopping'?"),
        ({"name": "EarlyStopping"}, "callbacks[0].monitor is missing"),
        ({**STOPS, "patience": "two"}, "callbacks[0].patience must be int, not 'two'"),
        ({**STOPS, "patince": 2}, "did you mean 'callbacks[0].patience'?"),
        ({**STOPS, "mode": "least"}, "EarlyStopping refuses it: `mode` can be min, max"),
        ({**STOPS, "monitor": "los"}, "nothing is logged as 'los'; did you mean 'loss'?"),
        ({"name": "ModelCheckpoint"}, "fit keeps checkpoints by checkpoint_every, keep"),
        ({"name": "Timer"}, "here it is trainer.max_time"),
        ({"name": f"{HERE}.nothing"}, "has no function or class 'nothing'"),
        ({"name": f"{HERE}.TensorDataset"}, "no callback of Lightning's"),
    ],
)
def test_what_cannot_be_a_callback_is_told(call, training, section, said):
    refused = call(fit, training(callbacks=[section]), "run_dir=run")
    assert refused.status == 2
    assert said in refused.err, refused.err
    assert len(refused.err.splitlines()) == 1
    assert not Path("run").exists()


def test_two_of_one_state_are_refused(call, training):
    refused = call(fit, training(callbacks=[STOPS, STOPS]), "run_dir=run")
    assert (refused.status, "callbacks: Lightning refuses them" in refused.err) == (2, True)


def test_several_loggers(call, training, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ENTITY", "somebody")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    wandb.teardown()  # or it knows the variables of an earlier test's run alone
    settings = []

    def finished(self):
        own = self._settings
        settings.append((own.project, own.entity, own.run_group, tuple(own.run_tags or ())))
        return finish(self)

    finish = wandb.Run.finish
    monkeypatch.setattr(wandb.Run, "finish", lambda self, *_, **__: finished(self))
    own = {"name": f"{HERE}.Keeps", "prefix": "p"}
    asked = ["csv", {"name": "wandb", "project": "mine", "group": "g"}, own]
    assert call(fit, training(logger=asked), "run_dir=run").status == 0
    assert settings[-1] == ("mine", "somebody", "g", ("a", "b"))  # after those that others left
    assert Path("run/logs/version_0/metrics.csv").is_file()
    assert list(Path("run/wandb").glob("offline-run-*"))
    assert Path("run/wandb_id").is_file()
    assert [step for _, step, metrics in seen if "loss" in metrics] == [5, 10, 15, 20]
    assert "finished already" in call(fit, training(logger="csv"), "run_dir=run").out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["csv", "csv"], "logger: csv stands there 2 times"),
        ("cvs", "did you mean 'csv'?"),
        ([{"name": "cvs"}], "did you mean 'csv'?"),
        ({"name": "wandb", "projct": "a"}, "did you mean 'logger.project'?"),
        ([{"name": f"{HERE}.Watches"}], "makes a Watches, no logger of Lightning's"),
    ],
)
def test_what_cannot_be_a_logger_is_told(call, training, asked, said):
    refused = call(fit, training(logger=asked), "run_dir=run")
    assert refused.status == 2
    assert said in refused.err, refused.err


def test_a_training_begins_with_anothers_weights(call, training):
    """Without a rate it keeps them; averages of the same half-life go on where they were."""
    slow = {"name": "Diffusion", "lr": 1e-30, "ema_ramp": 0.0}
    slow["ema_half_life"] = [1000, 77]  # of which the other run has the first
    assert call(fit, training(), "run_dir=base").status == 0
    config = training(learner=slow, init="base")
    assert call(fit, config, "run_dir=run").status == 0
    base, run = load("base"), load("run")
    assert run["global_step"] == 20
    for name, value in base["state_dict"].items():
        torch.testing.assert_close(run["state_dict"][name], value)
    for name, value in base["ema"][1000].items():
        weight = base["state_dict"][f"model.{name}"]
        after = 20 * 32
        expected = weight + (value - weight) * 0.5 ** (after / 1000)
        torch.testing.assert_close(run["ema"][1000][name], expected)
        torch.testing.assert_close(run["ema"][77][name], weight)
    other = call(fit, training(learner=slow), "run_dir=run")
    assert "belongs to another run" in other.err  # it is part of what a run is


def test_one_that_began_with_anothers_weights_goes_on(call, training):
    assert call(fit, training(), "run_dir=base").status == 0
    fast = training(learner={"name": "Diffusion", "lr": 1e-2}, init="base")
    assert call(fit, fast, "run_dir=whole").status == 0
    assert call(fit, fast, "run_dir=cut", "trainer.max_steps=5").status == 0
    assert call(fit, fast, "run_dir=cut").status == 0
    assert_same(Path("whole", LAST), Path("cut", LAST))


def test_weights_of_another_network_or_data_are_told(call, training, mixture):
    assert call(fit, training(), "run_dir=base", "trainer.max_steps=1").status == 0
    more = {**mixture, "labels": [0, 1, 2, 2]}
    refused = call(fit, training(data=more, init="base"), "run_dir=run")
    assert "init: base has num_classes 2, and the data here have 3" in refused.err
    wide = {"name": "MLP", "width": 24, "blocks": 1}
    refused = call(fit, training(net=wide, init="base"), "run_dir=run")
    assert (refused.status, "init: the network of base is another" in refused.err) == (2, True)
    refused = call(fit, training(init="nowhere"), "run_dir=run")
    assert (refused.status, "nowhere: no such file" in refused.err) == (2, True)


class Points(L.LightningDataModule):
    """70 points in a random order, in batches of 32 with noise of torch's."""

    shape, num_classes = (2,), 2

    def __init__(self, batch_size: int = 32, pair: bool = True):
        super().__init__()
        self.batch_size, self.pair = batch_size, pair

    def setup(self, stage):
        self.x = torch.arange(140.0).reshape(70, 2) / 140

    def train_dataloader(self):
        c = torch.arange(70) % 2
        data = TensorDataset(self.x, c) if self.pair else TensorDataset(self.x)
        return DataLoader(data, batch_size=self.batch_size, shuffle=True)


class Noisy(learners.Diffusion):
    """Notes the batches that it has trained on."""

    def training_step(self, batch, batch_idx):
        seen.append((self.trainer.global_step, batch["y"].clone()))
        return super().training_step(batch, batch_idx)


def test_a_data_module_of_ones_own(call, training):
    """2 whole batches an epoch, in another order each; a run that goes on gets the same."""
    learner = {"name": f"{HERE}.Noisy", "lr": 1e-3}
    config = training(data={"name": f"{HERE}.Points"}, learner=learner, trainer={"max_steps": 7})
    assert call(fit, config, "run_dir=whole").status == 0
    whole = dict(seen)
    assert list(whole) == [*range(7)]
    assert all(y.shape == (32, 2) for y in whole.values())
    epoch = torch.cat([whole[0], whole[1]])
    assert len(epoch.unique(dim=0)) == 64  # none twice
    assert not torch.equal(whole[0], whole[2])
    seen.clear()
    assert call(fit, config, "run_dir=cut", "trainer.max_steps=3").status == 0
    assert call(fit, config, "run_dir=cut").status == 0
    for step, y in seen:
        assert torch.equal(y, whole[step]), step
    assert_same(Path("whole", LAST), Path("cut", LAST))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"batch_size": 16}, "gives batches of 16, and batch_size is 32"),
        ({"pair": False}, "is a list, not (x, c)"),
    ],
)
def test_what_a_data_module_does_wrong_is_told(call, training, keys, said):
    refused = call(fit, training(data={"name": f"{HERE}.Points", **keys}), "run_dir=run")
    assert refused.status == 2
    assert said in refused.err, refused.err
    assert not Path("run/checkpoints").exists()
