"""`fit` on several processes: the training of one, and no hang where one of them ends."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from helpers import ROOT
from helpers.processes import SRUN
from torch import nn

from lightning_cfg.errors import UserError
from lightning_cfg.nets.mlp import MLP
from lightning_cfg.runs.checkpoints import load
from lightning_cfg.runs.ranks import Launch, launched, with_launch
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.training.trainer import leave_constants_alone
from lightning_cfg.verbs.fit import fit

HERE = "test_ddp"


class Tells(Diffusion):
    """It writes down what each rank has in the end."""

    def on_train_end(self) -> None:
        file = f"{self.trainer.default_root_dir}_rank_{self.trainer.global_rank}.pt"
        sent = getattr(self.trainer.strategy.model, "broadcast_buffers", False)
        weights = {**self.model.state_dict(), **dict(self.model.named_parameters())}
        torch.save({**weights, "buffers are sent": torch.tensor(sent)}, file)


class Dies(Diffusion):
    """Its process is killed at step 5 if it is the rank that $DIES names."""

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 5 and os.environ["DIES"] == str(self.trainer.global_rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def curve(run: str | Path) -> list[dict]:
    with open(Path(run, "logs/version_0/metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_two_ranks_train_as_one(together, call, training):
    """The same parameters on both, and the curve of one process with the same global batch."""
    config = training(batch_size=8, log_every=1)
    config["learner"]["name"] = f"{HERE}.Tells"
    two = together(fit, config, "run_dir=two")
    assert two.wait() == [0, 0]
    assert call(fit, config, "run_dir=one").status == 0
    first, second = (torch.load(two.folder / f"two_rank_{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first) > 5
    assert not first["buffers are sent"]
    one, both = curve("one"), curve(two.folder / "two")
    assert len(one) == len(both) == 20
    for a, b in zip(one, both, strict=True):
        for column in ("loss", "gradient_norm", "loss_sigma_0.3", "lr"):
            same = pytest.approx(float(a[column]), rel=1e-4) if a[column] else None
            assert (float(b[column]) if b[column] else None) == same, (a["step"], column)
    for name, weight in load("one")["state_dict"].items():
        torch.testing.assert_close(load(two.folder / "two")["state_dict"][name], weight)
    out, silent = two.said("out")
    assert "nodes 1, tasks per node 2, devices per node 2, world size 2" in out
    assert "global batch 8 = 2 ranks x 1 accumulated x 4" in out
    assert silent == ""


def test_one_rank_resumes_what_two_began(together, call, training):
    """Devices are no part of what a run is."""
    config = training(batch_size=8)
    assert call(fit, config, "run_dir=one").status == 0
    assert together(fit, config, "run_dir=run", "trainer.max_steps=10").wait() == [0, 0]
    assert call(fit, config, "run_dir=run").status == 0
    for name, weight in load("one")["state_dict"].items():
        torch.testing.assert_close(load("run")["state_dict"][name], weight)


@pytest.mark.parametrize(
    "made, sent",
    [(nn.Linear(2, 2), False), (MLP((2,), 2, fourier=4), False), (nn.BatchNorm1d(2), True),
     (nn.Sequential(MLP((2,), 2, fourier=4), nn.BatchNorm1d(2)), True)],
)  # fmt: skip
def test_buffers_are_sent_where_they_may_change(made, sent):
    """Batch norm's are the first rank's on all, as they are evaluated with; ours are constants."""
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    leave_constants_alone(trainer, made)
    assert trainer.strategy._ddp_kwargs.get("broadcast_buffers", True) == sent


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_others(together, training, rank):
    config = training(trainer={"max_steps": 1_000_000})
    config["learner"]["name"] = f"{HERE}.Dies"
    began = time.monotonic()
    run = together(fit, config, "run_dir=run", DIES=str(rank))
    codes = run.wait(60)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1, run.said("err")
    assert time.monotonic() - began < 60
    last = run.said("err")[1 - rank].strip().splitlines()[-1]
    assert f"rank {1 - rank}: another rank has ended or cannot be reached" in last
    assert "Traceback" not in run.said("err")[1 - rank]


@pytest.mark.parametrize("how", ["devices", "torchrun"])
def test_from_the_command_line(training, tmp_path, how):
    """By trainer.devices=2 alone, and by torchrun, which ends where a rank has died."""
    config = training(trainer={"max_steps": 1_000_000})
    config["learner"]["name"] = f"{HERE}.Dies"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", "config.yaml", "run_dir=run"]
    if how == "devices":
        command = [sys.executable, "-m", "lightning_cfg.fit", *words, "trainer.devices=2"]
    else:
        command = [str(ROOT / "launch/torchrun.sh"), "2", "fit", *words]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "DIES": "none"}
    paths["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    good = subprocess.run(
        [*command, "trainer.max_steps=6"], env={**os.environ, **paths}, timeout=120, **run
    )
    assert good.returncode == 0, good.stderr
    assert "world size 2, global batch 32 = 2 ranks x 1 accumulated x 16" in good.stdout
    assert good.stdout.count("run: 6 steps") == 1
    config["run_dir"] = "died"
    dead = subprocess.run(
        [*command, "run_dir=died"], env={**os.environ, **paths, "DIES": "1"}, timeout=90, **run
    )
    assert dead.returncode != 0
    assert "another rank has ended or cannot be reached" in dead.stderr


def test_a_batch_that_does_not_divide(together, training):
    run = together(fit, training(batch_size=9), "run_dir=run")
    assert run.wait() == [2, 2]
    for err in run.said("err"):
        assert "batch_size=9 does not divide by 2 ranks" in err
        assert len(err.strip().splitlines()) == 1


# What the launcher says

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "4"}  # fmt: skip


@pytest.fixture
def environment(monkeypatch) -> Callable[[dict], None]:
    for name in os.environ:
        if re.match("SLURM|TORCHELASTIC|RANK|LOCAL_|WORLD_|GROUP_", name):
            monkeypatch.delenv(name)

    def put(variables: dict) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_the_launcher_is_asked(environment):
    assert launched() == Launch()
    environment(SRUN)
    assert launched() == Launch("srun", nodes=2, tasks=2, rank=3, local_rank=1)
    environment(TORCHRUN)  # within a job
    assert launched() == Launch("torchrun", nodes=2, tasks=2, rank=3, local_rank=1)
    assert launched().size == 4


def test_an_interactive_job_is_one_process(environment):
    environment({**SRUN, "SLURM_JOB_NAME": "interactive"})
    assert launched() == Launch()


@pytest.mark.parametrize(
    "without, words",
    [("SLURM_STEP_ID", "start it by srun"), ("SLURM_NTASKS_PER_NODE", "--ntasks-per-node=2")],
)
def test_tasks_that_nobody_started(environment, without, words):
    environment({name: value for name, value in SRUN.items() if name != without})
    with pytest.raises(UserError, match=words):
        launched()


@pytest.mark.parametrize(
    "trainer, words",
    [
        ({"devices": 4}, "trainer.devices=4, but srun has started 2 tasks on each node"),
        ({"devices": [0]}, r"--ntasks-per-node=1"),
        ({"num_nodes": 1}, "trainer.num_nodes=1, but srun has started tasks on 2 nodes"),
    ],
)
def test_other_devices_than_tasks_are_refused(call, training, environment, trainer, words):
    environment(SRUN)
    refused = call(fit, training(trainer=trainer), "run_dir=run")
    assert refused.status == 2
    assert re.search(words, refused.err)
    assert not Path("run").exists()


def test_what_is_left_out_is_the_launchers():
    launch = Launch("srun", nodes=2, tasks=4)
    filled = {"max_steps": 1, "devices": 4, "num_nodes": 2}
    for devices in ({}, {"devices": "auto"}, {"devices": -1}, {"devices": 4}, {"devices": "4"}):
        assert with_launch({"max_steps": 1, **devices}, launch) == filled
    chosen = with_launch({"devices": [0, 1, 2, 3]}, launch)
    assert chosen == {"devices": [0, 1, 2, 3], "num_nodes": 2}
    assert with_launch({"devices": 2}, Launch()) == {"devices": 2}
