"""`fit`: stopped and resumed equals uninterrupted, and what is good is never lost."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import torch
import yaml
from helpers.killed import Killed
from helpers.runs import assert_same, flat, manifest
from helpers.toys import Dropping
from torch import Tensor, nn

import lightning_cfg
from lightning_cfg.config import NonNegative
from lightning_cfg.errors import UserError
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.checkpoints import LAST, load, restore
from lightning_cfg.runs.files import sha256
from lightning_cfg.training.checkpointing import AtomicCheckpointIO, SaveLast
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.fit import fit


class TurnsNaN(Dropping):
    """A net whose answers are NaN from the call numbered `at`, counted from 0."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, at: int):
        super().__init__(shape, num_classes, dropout=0.0)
        self.at, self.calls = at, 0

    def forward(self, x: Tensor, noise: Tensor, c: Tensor) -> Tensor:
        self.calls += 1
        out = super().forward(x, noise, c)
        return out * float("nan") if self.calls > self.at else out


class Refusing(Diffusion):
    """A learner whose optimiser refuses a number that its annotation lets through."""

    def __init__(self, model: nn.Module, *, beta: float):
        super().__init__(model)
        self.beta = beta

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), betas=(self.beta, 0.9), fused=True)


NETS = {"mlp": {}, "dropout": {"net": {"name": "helpers.toys.Dropping"}}}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("net", NETS)
def test_resumed_equals_uninterrupted(call, training, net, accumulate):
    config = training(trainer={"accumulate_grad_batches": accumulate}, **NETS[net])
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=7").status == 0
    assert load("parts")["global_step"] == 7
    assert call(fit, config, "run_dir=parts").status == 0  # max_steps may grow
    assert load("parts")["global_step"] == 20
    assert_same("whole", "parts")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_resumed_equals_uninterrupted_at_any_precision(call, training, precision):
    config = training(trainer={"precision": precision})
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=7").status == 0
    assert call(fit, config, "run_dir=parts").status == 0
    assert_same("whole", "parts")
    weights, averages = (flat(load("whole")[part]) for part in ("state_dict", "ema"))
    exact = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert {w.dtype for w in weights.values()} == {exact}
    # an average adds what is far smaller than itself
    assert {a.dtype for a in averages.values()} == {torch.promote_types(exact, torch.float32)}


def test_comparison_sees_a_difference(call, training):
    call(fit, training(), "run_dir=one", "trainer.max_steps=3")
    call(fit, training(), "run_dir=other", "trainer.max_steps=3", "seed=1")
    with pytest.raises(AssertionError, match="differs"):
        assert_same("one", "other")


def test_killed_within_an_accumulated_step_right_after_resuming(call, training, monkeypatch):
    """The first micro-batch after a resume must not overwrite the checkpoint by half a step."""
    config = training(trainer={"accumulate_grad_batches": 2})
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=10").status == 0
    saves = SaveLast.on_train_batch_end

    def saves_and_dies(self, trainer, *args):
        saves(self, trainer, *args)
        if trainer.global_step == 12:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SaveLast, "on_train_batch_end", saves_and_dies)
        with pytest.raises(Killed):
            call(fit, config, "run_dir=parts")
    assert load("parts")["global_step"] == 10
    assert call(fit, config, "run_dir=parts").status == 0
    assert_same("whole", "parts")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sigkill_at_a_random_moment(call, training, accumulate):
    config = training(
        net={"name": "helpers.toys.Dropping"},
        checkpoint_every=50,
        trainer={"max_steps": 800, "accumulate_grad_batches": accumulate},
    )
    Path("killed.yaml").write_text(yaml.safe_dump(config))
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, str(Path(lightning_cfg.__file__).parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "lightning_cfg.fit", "--config", "killed.yaml"]
    process = subprocess.Popen([*command, "run_dir=killed"], env=environment)
    deadline = time.monotonic() + 120
    while not Path("killed", LAST).is_file() and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.005)
    wait = random.uniform(0, 0.2)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    step = load("killed")["global_step"]
    print(f"killed {wait:.3f} s after the first checkpoint; the last is of step {step}")
    assert 50 <= step < 800
    assert not Path("killed/manifest.json").exists()

    assert call(fit, config, "run_dir=killed").status == 0
    assert call(fit, config, "run_dir=whole").status == 0
    assert_same("whole", "killed")


def test_accumulated_equals_whole_batches(call, training):
    """The same rows in two micro-batches: the same training up to rounding."""
    assert call(fit, training(), "run_dir=one").status == 0
    two = training(trainer={"accumulate_grad_batches": 2})
    assert call(fit, two, "run_dir=two").status == 0
    one, two = load("one"), load("two")
    assert one["global_step"] == two["global_step"] == 20
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, rtol=1e-3, atol=1e-4)


def test_nan_stops_and_keeps_the_last_good_checkpoint(call, training):
    """Weights are those of the last good step, and so is whatever is saved after it."""
    config = training(net={"name": "test_fit.TurnsNaN", "at": 7})
    stopped = call(fit, config, "run_dir=run", "learner.max_bad_steps=4")
    assert stopped.status == 1
    assert "not finite at step 7 and the 3 after it" in stopped.err
    assert "Traceback" not in stopped.err
    assert len(stopped.err.strip().splitlines()) == 1
    assert load("run")["global_step"] == 10
    assert not Path("run/manifest.json").exists()
    assert call(fit, config, "run_dir=good", "trainer.max_steps=7").status == 0
    for part in ("state_dict", "ema"):
        kept, good = flat(load("run")[part]), flat(load("good")[part])
        assert all(torch.equal(kept[name], good[name]) for name in good)
        assert all(weight.isfinite().all() for weight in good.values())
    restore("run")


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_nan_from_the_start(call, training, steps):
    """However short the run, one that has learned nothing has not finished."""
    config = training(net={"name": "test_fit.TurnsNaN", "at": 0})
    stopped = call(fit, config, "run_dir=run", f"trainer.max_steps={steps}")
    assert stopped.status == 1
    assert "not finite at step 0" in stopped.err
    assert len(stopped.err.strip().splitlines()) == 1
    assert not Path("run/manifest.json").exists()


@pytest.mark.parametrize("bad, status", [(3, 1), (6, 1), (2, 0), (1, 0)])
def test_a_run_that_ends_in_bad_steps_has_diverged(call, training, bad, status):
    """By hand: 3 of 12 or more at the end; less may be chance, and the weights are good."""
    config = training(net={"name": "test_fit.TurnsNaN", "at": 12 - bad})
    ended = call(fit, config, "run_dir=run", "trainer.max_steps=12")
    assert ended.status == status, ended.err
    assert Path("run/manifest.json").exists() == (status == 0)
    if status:
        assert f"not finite at step {12 - bad} and the {bad - 1} after it" in ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert load("run")["global_step"] == 10
        restore("run")


@pytest.mark.parametrize(
    "rate, steps, status",
    [(1e3, 2, 0), (1e3, 11, 1), *((rate, steps, 1) for rate in (1e30, 1e38) for steps in (3, 11))],
)
def test_a_rate_that_is_far_too_high(call, training, rate, steps, status):
    """It has diverged, or what is finished has a finite loss and finite weights."""
    config = training(learner={"name": "Diffusion", "lr": rate, "warmup": 0}, log_every=1)
    ended = call(fit, config, "run_dir=run", f"trainer.max_steps={steps}", "checkpoint_every=1")
    assert ended.status == status, ended.err
    assert Path("run/manifest.json").exists() == (ended.status == 0)
    if Path("run", LAST).exists():
        kept = load("run")
        for part in ("state_dict", "ema"):
            assert all(w.isfinite().all() for w in flat(kept[part]).values())
    if ended.status == 0:
        assert math.isfinite(manifest(Path("run"))["loss"])


def test_weights_that_are_not_finite_are_not_saved(call, training):
    """At lr 1e38 the second step makes them infinite, and no step after it is good."""
    config = training(learner={"name": "Diffusion", "lr": 1e38, "warmup": 0})
    ended = call(fit, config, "run_dir=run", "checkpoint_every=2", "learner.max_bad_steps=19")
    assert (ended.status, len(ended.err.strip().splitlines())) == (1, 1)
    assert "not finite" in ended.err
    assert not Path("run", LAST).exists()


def test_no_step_is_no_training(call, training):
    words = ("run_dir=run", "trainer.max_time=00:00:00:00")
    ended = call(fit, training(), *words)
    assert ended.status == 2, ended
    assert "run: not one step was trained" in ended.err
    assert not Path("run").exists()
    assert call(fit, training(), "run_dir=run", "seed=3").status == 0


class Raising(Diffusion):
    """Its loss raises an error until a step."""

    def __init__(self, *model: object, step: Annotated[int, NonNegative] = 0, **more: object):
        super().__init__(*model, **more)
        self.until = step

    def training_step(self, batch: dict, batch_idx: int) -> object:
        if self.trainer.global_step == self.until:
            raise UserError(f"nothing is learned in step {self.until}")
        return super().training_step(batch, batch_idx)


def test_what_fails_before_its_first_step_may_be_corrected(call, training):
    """The directory is not known by what was wrong; one with steps in it is."""
    for step, left in ((0, False), (2, True)):
        learner = {"name": "test_fit.Raising", "step": step}
        ended = call(fit, training(learner=learner), "run_dir=run")
        assert (ended.status, "nothing is learned" in ended.err) == (2, True)
        assert Path("run").exists() == left
    assert call(fit, training(), "run_dir=run").status == 2
    assert call(fit, training(learner=learner), "run_dir=run", "trainer.max_steps=2").status == 0
    ended = call(fit, training(learner=learner), "run_dir=run")
    assert ended.status == 2
    assert Path("run", LAST).is_file()


def test_what_the_optimiser_refuses_leaves_no_directory(call, training, monkeypatch):
    """Whatever the range of a number says: an optimiser of one's own has its own."""
    config = training(learner={"name": "test_fit.Refusing", "beta": 2.0})
    refused = call(fit, config, "run_dir=run")
    assert refused.status == 2
    assert "learner: its optimiser refuses it: Invalid beta parameter" in refused.err
    assert not Path("run").exists()
    assert call(fit, config, "run_dir=run", "learner.beta=0.9").status == 0


def test_another_config_is_refused(call, training):
    assert call(fit, training(), "run_dir=run").status == 0
    before = sha256(Path("run", LAST))
    refused = call(fit, training(), "run_dir=run", "learner.lr=0.5")
    assert refused.status == 2
    assert "learner.lr: 0.01 there, 0.5 here" in refused.err
    assert sha256(Path("run", LAST)) == before
    refused = call(fit, training(), "run_dir=elsewhere", f"resume=run/{LAST}", "net.width=8")
    assert refused.status == 2
    assert "net.width: 16 there, 8 here" in refused.err
    assert not Path("elsewhere").exists()


def test_resume_never(call, training):
    assert call(fit, training(), "run_dir=run", "resume=never", "trainer.max_steps=4").status == 0
    refused = call(fit, training(), "run_dir=run", "resume=never")
    assert refused.status == 2
    assert LAST in refused.err
    assert load("run")["global_step"] == 4


@pytest.mark.parametrize("path", ["first", f"first/{LAST}"])
def test_resume_from_a_path(call, training, path):
    assert call(fit, training(), "run_dir=whole").status == 0
    assert call(fit, training(), "run_dir=first", "trainer.max_steps=9").status == 0
    before = sha256(Path("first", LAST))
    assert call(fit, training(), "run_dir=second", f"resume={path}").status == 0
    assert_same("whole", "second")
    assert sha256(Path("first", LAST)) == before
    refused = call(fit, training(), "run_dir=second", f"resume={path}", "trainer.max_steps=30")
    assert refused.status == 2
    assert "would be overwritten" in refused.err


def test_moved_pairs_do_not_stop_a_run_from_resuming(call, training, tmp_path):
    from lightning_cfg.runs.tensors import save_tensors

    tensors = {
        "x": torch.randn(40, 2),
        "c": torch.arange(40) % 2,
        "neighbours": torch.randint(50, (40, 3)),
        "targets": torch.randn(50, 2),
        "num_classes": torch.tensor(2),
    }
    save_tensors("pairs.safetensors", **tensors)
    sections = {"model": {"name": "Flow"}, "learner": {"name": "Refinement"}}
    config = training(data={"name": "Pairs", "path": "pairs.safetensors"}, **sections)
    assert call(fit, config, "run_dir=run", "trainer.max_steps=3").status == 0
    shutil.move("pairs.safetensors", "moved.safetensors")
    assert call(fit, config, "run_dir=run", "data.path=moved.safetensors").status == 0
    assert load("run")["global_step"] == 20
    save_tensors("moved.safetensors", **{**tensors, "x": tensors["x"] + 1})
    refused = call(fit, config, "run_dir=run", "data.path=moved.safetensors")
    assert refused.status == 2
    assert "inputs.data" in refused.err


def test_finished_run_is_not_redone(call, training):
    assert call(fit, training(), "run_dir=run").status == 0
    file = Path("run", LAST)
    before = file.stat().st_mtime_ns
    again = call(fit, training(), "run_dir=run")
    assert again.status == 0
    assert "finished already" in again.out
    assert file.stat().st_mtime_ns == before


def test_cut_off_run_is_not_taken_for_finished(call, training):
    assert call(fit, training(), "run_dir=run").status == 0
    Path("run", LAST).unlink()
    assert call(fit, training(), "run_dir=run").status == 0
    assert load("run")["global_step"] == 20


def test_batch_size_that_does_not_divide(call, training):
    three = training(trainer={"accumulate_grad_batches": 3})
    refused = call(fit, three, "run_dir=run")
    assert refused.status == 2
    assert "batch_size=32 does not divide" in refused.err
    assert not Path("run").exists()  # so that the right size is not refused as another run's
    assert call(fit, three, "run_dir=run", "batch_size=33").status == 0


def test_failing_write_keeps_the_old_checkpoint(call, training, monkeypatch):
    assert call(fit, training(), "run_dir=run", "trainer.max_steps=5").status == 0
    before = sha256(Path("run", LAST))

    def half(checkpoint, path):
        Path(path).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", half)
        stopped = call(fit, training(), "run_dir=run")
    assert stopped.status == 2
    assert "No space left on device" in stopped.err
    assert sha256(Path("run", LAST)) == before
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    assert call(fit, training(), "run_dir=run").status == 0
    assert load("run")["global_step"] == 20


def test_disk_that_takes_no_more_bytes(tmp_path):
    """The operating system's own refusal, which torch reports as a RuntimeError."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"weight": torch.zeros(10)}, path)
    before = sha256(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(checkpoints.UserError, match="could not be written"):
            io.save_checkpoint({"weight": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sha256(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_fewer_steps_than_there_are_is_refused(call, training):
    assert call(fit, training(), "run_dir=run").status == 0
    refused = call(fit, training(), "run_dir=run", "trainer.max_steps=2")
    assert refused.status == 2
    assert "20 steps already" in refused.err


def test_gradient_clipping_is_the_learners(call, training):
    """It changes the weights, so it belongs to what a run is, and the Trainer's is refused."""
    refused = call(fit, training(trainer={"gradient_clip_val": 1.0}), "run_dir=run")
    assert refused.status == 2
    assert "learner.gradient_clip" in refused.err
    assert call(fit, training(), "run_dir=free").status == 0
    assert call(fit, training(), "run_dir=clipped", "learner.gradient_clip=1e-4").status == 0
    free, clipped = (load(run)["state_dict"] for run in ("free", "clipped"))
    assert any(not torch.equal(free[name], clipped[name]) for name in free)
    refused = call(fit, training(), "run_dir=free", "learner.gradient_clip=1.0")
    assert refused.status == 2
    assert "gradient_clip" in refused.err


def test_wandb_without_a_key_is_offline(call, training, monkeypatch, tmp_path):
    import wandb

    wandb.teardown()  # what it remembers of this process's other runs, their mode among it
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert call(fit, training(), "run_dir=run", "logger=wandb").status == 0
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    assert load("run")["global_step"] == 20


def test_time_is_counted_over_all_calls(call, training):
    assert call(fit, training(), "run_dir=run", "trainer.max_steps=10").status == 0
    first = load("run")["seconds"]
    assert call(fit, training(), "run_dir=run").status == 0
    assert load("run")["seconds"] > first > 0
    assert json.loads(Path("run/manifest.json").read_text())["seconds"] > first
