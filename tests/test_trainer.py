"""Lightning's Trainer as `fit` uses it: what it says, what it may be asked for, what it leaves."""

import inspect
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from helpers import ROOT

from lightning_cfg.cli import REQUEUE
from lightning_cfg.runs.checkpoints import load
from lightning_cfg.training.batches import KeyedBatches
from lightning_cfg.training.trainer import leave_signals_alone
from lightning_cfg.verbs.fit import fit

EFFECTIVE = {  # keys of lightning.Trainer that change what a training does or says
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run", "max_steps"),
    *("max_time", "accumulate_grad_batches", "deterministic", "benchmark", "detect_anomaly"),
    *("sync_batchnorm", "profiler", "enable_checkpointing", "enable_progress_bar"),
    "enable_model_summary",
}
VALUES = {"logger": True, "barebones": True, "callbacks": [], "plugins": [], "model_registry": "x"}
VALUES |= {"default_root_dir": "x", "gradient_clip_algorithm": "value", "inference_mode": True}
VALUES |= {"use_distributed_sampler": True, "enable_autolog_hparams": True}
OTHERS = set(inspect.signature(L.Trainer).parameters) - EFFECTIVE


def test_what_is_asked_for_is_printed_and_nothing_else(training, tmp_path):
    """As the user calls it, into a file."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(training(trainer={"max_steps": 2})))

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "lightning_cfg.fit", "--config", "config.yaml", *words]
        with open(tmp_path / "log", "w+") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
            assert done.returncode == 0
            log.seek(0)
            return log.read()

    *told, last = said("run_dir=plain").splitlines()
    assert last == "plain: 2 steps"
    assert [line.partition(":")[0] for line in told] == ["data", "network", "training"]
    asked = said("run_dir=r", "trainer.profiler=simple", "trainer.enable_model_summary=true")
    assert "FIT Profiler Report" in asked
    assert "optimizer_step" in asked
    assert "Trainable params" in asked
    before, _ = said("run_dir=s", "trainer.profiler=advanced").split("Profiler Report", 1)
    assert "params" not in before.replace("parameters", "")  # no summary of the model


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_key_without_effect_is_refused_in_a_line(call, training, name):
    value = VALUES.get(name, 1)
    refused = call(fit, training(trainer={name: value}), "run_dir=run")
    assert refused.status == 2
    assert len(refused.err.splitlines()) == 1
    assert f"trainer.{name} cannot be set: " in refused.err
    assert not Path("run").exists()


def test_no_log_is_kept_where_none_is_wanted(call, training):
    assert call(fit, training(trainer={"logger": False}), "run_dir=run", "logger=wandb").status == 0
    assert sorted(path.name for path in Path("run").iterdir()) == [
        *("checkpoints", "config.yaml", "identity.json", "manifest.json"),
    ]


def test_lightnings_own_bar_replaces_ours(call, training, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    shown = call(fit, training(), "run_dir=run", "trainer.enable_progress_bar=true")
    assert "20/20" in shown.out + shown.err
    assert "640" not in shown.out + shown.err  # images, which ours counts


def test_the_process_is_left_as_it_was(training, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = ("lightning.pytorch", "lightning.pytorch.profilers.profiler")
    filters = list(warnings.filters)
    levels = [logging.getLogger(name).level for name in names]
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    fit(**training(trainer={"max_steps": 2, "deterministic": True, "benchmark": True}), run_dir="r")
    assert torch.equal(torch.rand(5), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert warnings.filters == filters
    assert [logging.getLogger(name).level for name in names] == levels


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_before_the_first_step(call, training, monkeypatch, name):
    """When Lightning has registered its handlers, had it been let, and no callback has begun."""
    loader = KeyedBatches.train_dataloader

    def signalled(self: KeyedBatches) -> KeyedBatches:
        os.kill(os.getpid(), getattr(signal, name))
        return loader(self)

    monkeypatch.setattr(KeyedBatches, "train_dataloader", signalled)
    assert call(fit, training(), "run_dir=run").status == REQUEUE
    assert load("run")["global_step"] == 1


def test_the_private_method_that_is_replaced_exists():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    before = trainer._signal_connector.register_signal_handlers
    assert inspect.signature(before).parameters == {}
    leave_signals_alone(trainer)
    assert trainer._signal_connector.register_signal_handlers is not before
    loop = trainer.fit_loop.epoch_loop  # asks in every step otherwise
    assert callable(getattr(type(loop), "_broadcast_sigterm_tensor", None))
    assert loop._broadcast_sigterm_tensor() is None
    trainer._signal_connector = object()
    with pytest.raises(AttributeError, match="another way"):
        leave_signals_alone(trainer)


@pytest.mark.parametrize(
    "trainer, part",
    [
        ({"strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn cannot be set: every process"),
        ({"strategy": "fsdp"}, "trainer.strategy=fsdp cannot be set: every process"),
        ({"precision": "transformer-engine"}, "trainer: Lightning refuses it: "),
        ({"num_nodes": 2}, "trainer.num_nodes=2, but nobody has started the other nodes"),
    ],
)
def test_what_cannot_be_started_is_refused_in_a_line(call, training, trainer, part):
    refused = call(fit, training(trainer=trainer), "run_dir=run")
    assert refused.status == 2
    assert len(refused.err.splitlines()) == 1
    assert part in refused.err
    assert not Path("run/identity.json").exists()
