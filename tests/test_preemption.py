"""A run that is asked to end is saved at the end of the step, on all ranks, and goes on later."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.killed import fit_as_called
from helpers.processes import catches
from helpers.runs import assert_same

from lightning_cfg.cli import REQUEUE
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.checkpoints import LAST, load
from lightning_cfg.training import preemption
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.fit import fit

HERE = "test_preemption"


class Signalled(Diffusion):
    """Its process gets a signal within step $AT, if it is rank $RANK_SIGNALLED."""

    def training_step(self, batch: dict, batch_idx: int) -> object:
        loss = super().training_step(batch, batch_idx)
        here = os.environ.get("RANK_SIGNALLED") == str(self.trainer.global_rank)
        if here and self.trainer.global_step == int(os.environ["AT"]):
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return loss


@pytest.fixture
def config(training) -> dict:
    """A run of 20 steps with dropout, whose checkpoints are far apart."""
    asked = training(net={"name": "helpers.toys.Dropping"}, checkpoint_every=50)
    asked["learner"]["name"] = f"{HERE}.Signalled"
    return asked


@pytest.fixture
def hung_up():
    """A hang-up ends what this process starts, though it was itself started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize(
    "name, rank", [("SIGUSR1", 0), ("SIGTERM", 1), ("SIGHUP", 0), ("SIGINT", 0)]
)
def test_all_ranks_save_and_stop_together(together, config, name, rank):
    """Whichever of them heard it; and the run that goes on equals one that nobody disturbed."""
    asked = {"RANK_SIGNALLED": str(rank), "SIGNAL": name, "AT": "7"}
    run = together(fit, config, "run_dir=run", **asked)
    status = 130 if name == "SIGINT" else REQUEUE
    assert run.wait() == [status, status]
    for err in run.said("err"):
        assert f"run: {name} ended it at step 8, where it is saved" in err.splitlines()[-1]
        assert "Traceback" not in err
    assert load(run.folder / "run")["global_step"] == 8
    assert not (run.folder / "run/manifest.json").exists()
    assert together(fit, config, "run_dir=run").wait() == [0, 0]
    assert together(fit, config, "run_dir=whole").wait() == [0, 0]
    assert_same(run.folder / "whole", run.folder / "run")


def test_ctrl_c_saves(call, config, monkeypatch):
    """Also of a plain process, which says how it goes on; before the first step it only ends it."""
    with monkeypatch.context() as patch:
        for name, value in {"RANK_SIGNALLED": "0", "SIGNAL": "SIGINT", "AT": "7"}.items():
            patch.setenv(name, value)
        ended = call(fit, config, "run_dir=run")
    assert ended.status == 130
    assert (
        "run: SIGINT ended it at step 8, where it is saved; started again it goes on" in ended.err
    )
    assert load("run")["global_step"] == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert call(fit, config, "run_dir=run").status == 0
    assert call(fit, config, "run_dir=whole").status == 0
    assert_same("whole", "run")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_process(call, config, monkeypatch, accumulate):
    config["trainer"]["accumulate_grad_batches"] = accumulate
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    assert call(fit, config, "run_dir=whole").status == 0
    with monkeypatch.context() as patch:
        for name, value in {"RANK_SIGNALLED": "0", "SIGNAL": "SIGTERM", "AT": "7"}.items():
            patch.setenv(name, value)
        assert call(fit, config, "run_dir=run").status == REQUEUE
    assert load("run")["global_step"] == 8
    assert call(fit, config, "run_dir=run").status == 0
    assert_same("whole", "run")
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    assert preemption.asked() == ""  # so that the next training of this process is not ended too


def test_a_hang_up_that_nohup_ignores_stays_ignored(call, config, monkeypatch):
    monkeypatch.setenv("RANK_SIGNALLED", "0")
    monkeypatch.setenv("SIGNAL", "SIGHUP")
    monkeypatch.setenv("AT", "7")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call(fit, config, "run_dir=run").status == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert load("run")["global_step"] == 20


def test_a_signal_in_the_last_step_changes_nothing(call, config, monkeypatch):
    for name, value in {"RANK_SIGNALLED": "0", "SIGNAL": "SIGUSR1", "AT": "19"}.items():
        monkeypatch.setenv(name, value)
    assert call(fit, config, "run_dir=run").status == 0
    assert load("run")["global_step"] == 20
    assert Path("run/manifest.json").is_file()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_signal_during_the_imports(config, tmp_path, devices):
    """It comes as soon as there is a handler: the run ends after its first step.

    Of two devices only the first process gets it, and has the status.
    """
    config["trainer"]["devices"] = devices
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_cfg.fit", "--config", "config.yaml", "run_dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not catches(process.pid, signal.SIGUSR1):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == REQUEUE
    assert "SIGUSR1 ended it at step 1," in err
    assert load(tmp_path / "run")["global_step"] == 1


@pytest.mark.parametrize("watch, ignored", [("watch_to_the_end", True), ("watch", False)])
def test_a_signal_when_python_has_shut_down(watch, ignored):
    """It has taken its handlers down by itself; the status is to stay what the run has said."""
    code = f"""
import ctypes, sys
from lightning_cfg.training import preemption
preemption.{watch}()
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.pause, None, None)  # after all that Python does
print("watching", flush=True)
sys.exit({REQUEUE})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "watching\n"
        while catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        assert catches(process.pid, signal.SIGTERM, "SigIgn") == ignored
    finally:
        process.kill()
        process.wait()


def test_a_run_that_goes_on_keeps_its_wandb_id(call, training, monkeypatch):
    import wandb

    wandb.teardown()  # what it remembers of this process's other runs
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    assert call(fit, training(logger="wandb"), "run_dir=run", "trainer.max_steps=5").status == 0
    name = Path("run", wandb_run.ID).read_text().strip()
    time.sleep(1)  # W&B's folders bear the second
    assert call(fit, training(logger="wandb"), "run_dir=run").status == 0
    wandb.teardown()  # its process writes the last of the files
    first, second = sorted(Path("run/wandb").glob(f"offline-run-*-{name}"))
    assert len(list(Path("run/wandb").glob("offline-run-*"))) == 2
    assert Path("run", wandb_run.ID).read_text().strip() == name
    for folder in (first, second):
        sent = next(folder.glob("*.wandb")).read_bytes()
        assert b"learner.ema_half_life" in sent  # the config, by dotted keys
        assert b"gradient_norm" in sent


@pytest.mark.slow
def test_twenty_kills(call, processes, training, tmp_path):
    """At random moments, while checkpoints are written too, which is most of the time here."""
    config = training(
        net={"name": "helpers.toys.Dropping"}, checkpoint_every=1, trainer={"max_steps": 4000}
    )
    Path("config.yaml").write_text(yaml.safe_dump(config))
    kills, step = 0, 0
    while kills < 20:
        process = processes.Process(target=fit_as_called, args=(str(tmp_path), ["run_dir=run"]))
        began = time.time()
        process.start()
        last = Path("run", LAST)
        while not (last.is_file() and last.stat().st_mtime > began):
            assert process.is_alive(), "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills, before, step = kills + 1, step, load("run")["global_step"]
        print(f"kill {kills} at step {step}")
        assert before < step < 4000
    assert call(fit, config, "run_dir=run").status == 0
    assert call(fit, config, "run_dir=whole").status == 0
    assert_same("whole", "run")
