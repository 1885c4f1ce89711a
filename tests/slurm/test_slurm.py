"""launch/ on a real SLURM of two nodes: preempted, out of time, outranked, and none the worse."""

import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from helpers.runs import assert_same

from lightning_cfg.runs.checkpoints import LAST, load
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

pytestmark = pytest.mark.slow
ONE_EACH = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


class Slow(Diffusion):
    """A step of a tenth of a second, so that there is time to be asked to end."""

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)


@pytest.fixture
def config(training) -> dict:
    asked = training(
        net={"name": "helpers.toys.Dropping"}, checkpoint_every=10_000, trainer={"max_steps": 300}
    )
    asked["learner"]["name"] = "test_slurm.Slow"
    return asked


@pytest.fixture
def undisturbed(together, config) -> Path:
    """The same training by two processes that nobody ends early, and without its waits."""
    quick = {**config, "learner": {**config["learner"], "name": "Diffusion"}}
    run = together(fit, quick, "run_dir=whole")
    assert run.wait() == [0, 0]
    return run.folder / "whole"


def start(cluster, folder: Path, config: dict, *words: str) -> str:
    (folder / "slow.yaml").write_text(yaml.safe_dump(config))
    return cluster.submit(
        folder, *ONE_EACH, *words, ROOT / "launch/slurm_fit.sbatch", "--config", "slow.yaml"
    )


def until_it_trains(folder: Path, number: str, restarts: int) -> None:
    """The log has the line that `fit` prints before its first step, once per start."""
    end, log = time.monotonic() + 180, folder / f"fit_{number}.log"
    while not log.is_file() or log.read_text().count("world size 2") <= restarts:
        assert time.monotonic() < end, log.read_text() if log.is_file() else "no log"
        time.sleep(0.3)
    time.sleep(2)


def finished(cluster, folder: Path, number: str, whole: Path) -> None:
    """The job ended well, and its run equals the undisturbed one but for the learner's name."""
    job = cluster.ended(number)
    log = (folder / f"fit_{number}.log").read_text()
    assert job["JobState"] == "COMPLETED", log
    assert f"runs/fit_{number}: 300 steps" in log
    assert_same(whole, folder / f"runs/fit_{number}")


def by_signal(cluster, number: str) -> None:
    cluster.call("scancel", "--signal=SIGUSR1", number)


def by_priority(cluster, number: str) -> None:
    """A job of the partition `high` that needs both nodes."""
    cluster.submit(
        Path("/tmp"), "--partition=high", "--nodes=2", "--exclusive", "--time=1",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip


@pytest.mark.parametrize("asks, times", [(by_signal, 4), (by_priority, 3)])
def test_preempted_again_and_again(cluster, undisturbed, config, tmp_path, asks, times):
    number = start(cluster, tmp_path, config)
    step = 0
    for restarts in range(times):
        until_it_trains(tmp_path, number, restarts)
        asks(cluster, number)
        cluster.wait(number, lambda job, n=restarts: int(job["Restarts"]) > n)
        before, step = step, load(tmp_path / f"runs/fit_{number}")["global_step"]
        assert before < step < 300
    finished(cluster, tmp_path, number, undisturbed)
    log = (tmp_path / f"fit_{number}.log").read_text()
    assert log.count("SIGUSR1 ended it at step") == 2 * times
    assert f"start number {times + 1}" in log


def test_out_of_time_again_and_again(cluster, undisturbed, config, tmp_path):
    """Of a minute each, which SLURM counts roughly: three are not enough for 75 s of steps."""
    config["trainer"]["max_steps"] = 300
    slow = {**config, "learner": {**config["learner"], "name": "test_slurm.Slower"}}
    number = start(cluster, tmp_path, slow, "--time=00:01:00", "--signal=SIGUSR1@30")
    cluster.wait(number, lambda job: int(job["Restarts"]) >= 3, 500)
    finished(cluster, tmp_path, number, undisturbed)


class Slower(Slow):
    """A step of a quarter of a second."""

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        time.sleep(0.15)
        return super().training_step(batch, batch_idx)


def test_a_cancelled_job_is_saved_and_does_not_come_back(cluster, config, tmp_path):
    number = start(cluster, tmp_path, config)
    until_it_trains(tmp_path, number, 0)
    cluster.call("scancel", number)
    assert cluster.ended(number)["JobState"] == "CANCELLED"
    time.sleep(8)
    assert cluster.job(number)["JobState"] == "CANCELLED"
    assert (tmp_path / f"runs/fit_{number}" / LAST).is_file()


def test_a_mistake_fails_at_once_and_is_not_requeued(cluster, config, tmp_path):
    config["trainer"]["devices"] = 2
    number = start(cluster, tmp_path, config)
    job = cluster.ended(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    log = (tmp_path / f"fit_{number}.log").read_text()
    assert "trainer.devices=2, but srun has started 1 tasks on each node" in log
    assert "--ntasks-per-node=2" in log


def test_samples_of_two_nodes_are_those_of_one_process(cluster, training, tmp_path):
    base = fit(**training(), run_dir=str(tmp_path / "base"))
    asked = {
        "models": {"model": str(base)}, "n": 41, "device": "cpu", "batch_size": 8,
        "guidance": {"name": "classifier_free", "scale": 2.0},
        "sampler": {"name": "heun", "steps": 3},
    }  # fmt: skip
    generate(**asked, run_dir=str(tmp_path / "one"))
    (tmp_path / "generate.yaml").write_text(yaml.safe_dump(asked))
    script = ROOT / "launch/slurm_verb.sbatch"
    words = ("generate", "--config", "generate.yaml", "run_dir=two")
    number = cluster.submit(tmp_path, *ONE_EACH, script, *words)
    job = cluster.ended(number)
    assert job["JobState"] == "COMPLETED", (tmp_path / f"generate_{number}.log").read_text()
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / SAMPLES) for name in ("one", "two"))
    assert torch.equal(one["seed"], two["seed"])
    assert torch.equal(one["c"], two["c"])
    torch.testing.assert_close(one["x"], two["x"], rtol=1e-5, atol=1e-5)
