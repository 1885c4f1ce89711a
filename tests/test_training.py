"""What a training logs, skips, keeps and how it is made fast."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.killed import Killed
from helpers.runs import assert_same, flat, kept, logged
from helpers.toys import Dots
from torch import Tensor, nn
from tqdm import tqdm

import lightning_cfg
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.runs.precision import matmul
from lightning_cfg.training import learners
from lightning_cfg.training import train as train_module
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.ema import EMA
from lightning_cfg.training.learners import NOISE_LEVELS, Diffusion, edges
from lightning_cfg.training.speed import speed_of
from lightning_cfg.verbs.fit import fit


class Poisoned(Diffusion):
    """A learner whose loss, or only the gradient of it, is NaN at the `bad` steps.

    half  in the first of two micro-batches only
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        bad: list[int],
        gradient: bool = False,
        half: bool = False,
        max_bad_steps: int = 10,
        lr: float = 1e-2,
    ):
        super().__init__(model, lr=lr, ema_half_life=[100, 1000], max_bad_steps=max_bad_steps)
        self.bad, self.gradient, self.half = bad, gradient, half

    def losses(self, batch: dict, draws: Draws) -> Tensor:
        losses = super().losses(batch, draws)
        if draws.step not in self.bad or (self.half and draws.rows.start > 0):
            return losses
        if not self.gradient:
            return losses * float("nan")
        p = next(self.model.parameters())
        return losses + (p - p.detach()).sum().square().sqrt()  # + 0, of gradient 0 / 0


class Known(nn.Module):
    """A model whose loss is its noise level, uniform t or ln sigma."""

    def __init__(self, net: nn.Module, *, level: str):
        super().__init__()
        self.net, self.level = net, level

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        t = draws.uniform()
        level = t if self.level == "t" else 10 ** (5 * t - 2.5)
        draws.level = self.level, level
        return (level if self.level == "t" else level.log()) + 0 * self.net(y, t, c).sum(1)


class Conv(nn.Module):
    """One convolution; where it takes augmentation labels, they are its answer."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, augment_dim: int = 0):
        super().__init__()
        self.augment_dim = augment_dim
        self.enter, self.leave = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        h = self.leave(self.enter(x).relu())
        return h if augment is None else h + augment.sum(1)[:, None, None, None]


IMAGES = {"data": {"name": "helpers.toys.Dots"}, "net": {"name": "test_training.Conv"}}


# Steps whose gradient is not finite


@pytest.mark.parametrize("how", [{}, {"gradient": True}, {"half": True}])
def test_bad_step_changes_nothing_and_counts(call, training, how):
    accumulate = {"accumulate_grad_batches": 2} if "half" in how else {}
    learner = {"name": "test_training.Poisoned", "bad": [7], **how}
    config = training(learner=learner, log_every=1, trainer=accumulate)
    assert call(fit, config, "run_dir=before", "trainer.max_steps=7").status == 0
    assert call(fit, config, "run_dir=after", "trainer.max_steps=8").status == 0
    before, after = load("before"), load("after")
    assert (before["global_step"], after["global_step"]) == (7, 8)
    for part in ("state_dict", "ema", "optimizer_states"):
        one, other = flat(before[part]), flat(after[part])
        one.pop(".0.param_groups.0.lr", None), other.pop(".0.param_groups.0.lr", None)
        for name, value in one.items():
            same = torch.equal(value, other[name]) if torch.is_tensor(value) else True
            assert same, f"{part}{name} changed"
    rows = logged("after")
    assert [row["bad_gradients"] for row in rows] == [0] * 7 + [1]
    assert not math.isfinite(rows[7]["gradient_norm"])
    # the step before did change them, so that the comparison means something
    assert call(fit, config, "run_dir=earlier", "trainer.max_steps=6").status == 0
    earlier = load("earlier")["state_dict"]
    assert any(not torch.equal(earlier[k], v) for k, v in before["state_dict"].items())


def test_training_goes_on_after_bad_steps_and_stops_at_too_many_in_a_row(call, training):
    learner = {"name": "test_training.Poisoned", "bad": [2, 3, 5, 6, 8], "max_bad_steps": 3}
    assert call(fit, training(learner=learner), "run_dir=goes_on").status == 0
    assert logged("goes_on")[-1]["bad_gradients"] == 5
    stopped = call(fit, training(learner={**learner, "max_bad_steps": 2}), "run_dir=stops")
    assert stopped.status == 1
    assert "not finite at step 2 and the 1 after it" in stopped.err


@pytest.mark.parametrize("bad, status", [([1, 5, 6, 7, 8], 0), ([1, 5, 6, 7, 8, 9], 1)])
def test_resumed_within_bad_steps_equals_uninterrupted(call, training, bad, status):
    learner = {"name": "test_training.Poisoned", "bad": bad, "max_bad_steps": 5}
    config = training(learner=learner, checkpoint_every=1)
    whole = call(fit, config, "run_dir=whole")
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=7").status == 0
    parts = call(fit, config, "run_dir=parts")
    assert (whole.status, parts.status) == (status, status)
    assert whole.err == parts.err
    assert_same("whole", "parts")
    one, other = (load(run)["watch"] for run in ("whole", "parts"))
    assert one["bad"] == other["bad"] == 5
    assert torch.equal(one["tally"], other["tally"])


@pytest.mark.slow
def test_two_processes_equal_accumulation(call, training):
    """A loss that is NaN on one rank has both skip the step, and both write to the log."""
    learner = {"name": "test_training.Poisoned", "bad": [3, 4], "half": True}
    config = training(learner=learner, keep=2, **IMAGES)
    config["trainer"] = {"max_steps": 20, "accelerator": "cpu"}
    config["grids"] = {"every": 10, "columns": 2, "sampler": {"steps": 3}}
    two = {**config, "trainer": {**config["trainer"], "devices": 2, "strategy": "ddp"}}
    Path("two.yaml").write_text(yaml.safe_dump(two))
    here = [str(Path(__file__).parent), str(Path(lightning_cfg.__file__).parents[1])]
    subprocess.run(
        [sys.executable, "-m", "lightning_cfg.fit", "--config", "two.yaml", "run_dir=two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)},
        timeout=300,
        check=True,
    )
    assert call(fit, config, "run_dir=one", "trainer.accumulate_grad_batches=2").status == 0
    assert_same("one", "two")
    assert kept("one") == kept("two")
    assert len(list(Path("two/figures").iterdir())) == 2
    for a, b in zip(logged("one"), logged("two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["bad_gradients"] == b["bad_gradients"] == 2


def test_too_many_between_two_looks_stop_the_run_too(call, training, monkeypatch):
    """On a GPU the run is looked at now and then, and good steps may have come after the bad."""
    learner = {"name": "test_training.Poisoned", "bad": [2, 3, 4], "max_bad_steps": 3}
    looks = Diffusion._stop_if_diverged

    def seldom(self):
        if (self.trainer.global_step + 1) % 5 == 0 or self.trainer.global_step % 5 == 0:
            looks(self)

    monkeypatch.setattr(learners.Learner, "_stop_if_diverged", seldom)
    config = training(learner=learner, checkpoint_every=1, log_every=10)
    stopped = call(fit, config, "run_dir=run")
    assert stopped.status == 1
    assert "not finite at step 2 and the 2 after it" in stopped.err


def test_optimiser_that_cannot_skip(call, training, monkeypatch):
    def plain(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.1)

    monkeypatch.setattr(Diffusion, "configure_optimizers", plain)
    refused = call(fit, training(), "run_dir=run")
    assert refused.status == 2
    assert "fused=True" in refused.err


def test_skipping_average():
    net = nn.Linear(3, 2)
    plain, skipping = EMA(net, [10, 100], 0.1), EMA(net, [10, 100], 0.1)
    for step in range(1, 6):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3))
        plain.update(step, 4)
        skipping.update(step, 4, torch.tensor(1.0))
    for half_life, averages in plain.averages.items():
        for a, b in zip(averages, skipping.averages[half_life], strict=True):
            torch.testing.assert_close(a, b)
    before = [a.clone() for a in skipping.averages[10]]
    skipping.update(6, 4, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, skipping.averages[10], strict=True))


def test_devices_are_not_asked_for_through_nvml_while_a_cpu_trains(call, training, monkeypatch):
    name, seen = "PYTORCH_NVML_BASED_CUDA_CHECK", []
    before = os.environ.get(name)
    monkeypatch.setenv(name, "1")

    def step(self, *args, original=learners.Learner.optimizer_step, **kwargs):
        seen.append(os.environ.get(name))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(learners.Learner, "optimizer_step", step)
    assert call(fit, training(), "run_dir=run", "trainer.max_steps=2").status == 0
    assert seen == [None, None]
    assert os.environ[name] == "1"
    assert before in (None, "1")  # Lightning's own, which nothing else here has set


# What is logged


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_and_gradient_norm_are_those_of_the_model(call, training, mixture, accumulate):
    """Against the model of the checkpoint, whose next step is computed by hand."""
    config = training(
        log_every=1, checkpoint_every=1, trainer={"accumulate_grad_batches": accumulate}
    )
    assert call(fit, config, "run_dir=run", "trainer.max_steps=3").status == 0
    assert call(fit, config, "run_dir=run", "trainer.max_steps=4").status == 0
    row = logged("run")[-1]

    assert call(fit, config, "run_dir=short", "trainer.max_steps=3").status == 0
    model = restore("short", weights="raw").requires_grad_(True)
    data = train_module.build("lightning_cfg.data", mixture)
    draws = Draws(seed=0, step=3, batch_size=32)
    batch = data.batch(draws)
    loss = model.loss(batch["y"], batch["c"], draws).mean()
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert row["lr"] == pytest.approx(1e-2 * 4 / 5)
    assert row["bad_gradients"] == 0


def test_logged_norm_is_that_before_clipping(call, training):
    for run, clip in (("free", "null"), ("clipped", "1e-4")):
        call(fit, training(log_every=1), f"run_dir={run}", f"learner.gradient_clip={clip}")
    assert logged("free")[0]["gradient_norm"] == logged("clipped")[0]["gradient_norm"] > 1e-2


def test_log_of_a_resumed_run_equals_the_uninterrupted(call, training):
    """An average that began before the run was stopped goes on."""
    config = training(log_every=10, checkpoint_every=7)
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=14").status == 0
    assert call(fit, config, "run_dir=parts").status == 0
    for one, other in zip(logged("whole"), logged("parts"), strict=True):
        one.pop("images_per_second"), other.pop("images_per_second")
        assert one == other


@pytest.mark.parametrize("name", ["t", "sigma"])
def test_loss_by_noise_level(call, training, name):
    """Each column holds the mean of just the levels nearest to its own."""
    config = training(model={"name": "test_training.Known", "level": name})
    assert call(fit, config, "run_dir=run", "batch_size=4096", "log_every=20").status == 0
    (row,) = logged("run")
    columns = {k: v for k, v in row.items() if k.startswith("loss_")}
    assert columns.keys() == {f"loss_{name}_{level:g}" for level in NOISE_LEVELS[name]}
    limits = [0.0, *edges("t"), 1.0] if name == "t" else [10**-2.5, *edges("sigma"), 10**2.5]
    limits = torch.tensor(limits) if name == "t" else torch.tensor(limits).log()
    for level, low, high in zip(NOISE_LEVELS[name], limits, limits[1:], strict=False):
        # levels are uniform between the limits: standard error of the mean below 0.4 % of a column
        mean = columns[f"loss_{name}_{level:g}"]
        assert mean == pytest.approx((low + high).item() / 2, abs=0.02 * (high - low).item())


def test_columns_that_appear_later_do_not_break_the_log(call, training):
    config = training(model={"name": "test_training.Known", "level": "t"}, log_every=1)
    assert call(fit, config, "run_dir=run", "batch_size=2", "trainer.max_steps=12").status == 0
    rows = logged("run")
    assert [row["step"] for row in rows] == list(range(1, 13))
    seen = [{k for k in row if k.startswith("loss_")} for row in rows]
    assert all(1 <= len(columns) <= 2 for columns in seen)
    assert set.union(*seen[:3]) < set.union(*seen)
    for row, columns in zip(rows, seen, strict=True):
        values = [row[column] for column in columns]
        assert min(values) <= row["loss"] <= max(values) + 1e-6


def test_bad_losses_are_left_out_of_the_averages(call, training):
    learner = {"name": "test_training.Poisoned", "bad": [3]}
    assert call(fit, training(learner=learner), "run_dir=run").status == 0
    assert all(math.isfinite(row["loss"]) for row in logged("run"))


def test_images_per_second(call, training):
    """The times that follow from the speeds are no longer than the run."""
    assert call(fit, training(), "run_dir=run").status == 0
    seconds = sum(5 * 32 / row["images_per_second"] for row in logged("run"))
    assert 0 < seconds <= load("run")["seconds"]


def test_progress_shows_images_and_loss(call, training, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm, mininterval=0))
    shown = call(fit, training(), "run_dir=run").err
    assert "640/640" in shown  # 20 steps of 32
    assert "images/s" in shown
    assert "loss=" in shown
    assert "step=20" in shown


# Checkpoints that are kept


@pytest.fixture
def keeping(training):
    return training(trainer={"max_steps": 60}, keep=2)


def test_the_best_are_kept(call, keeping):
    assert call(fit, keeping, "run_dir=run").status == 0
    rows = sorted(logged("run"), key=lambda row: row["loss"])
    best = sorted(int(row["step"]) for row in rows[:2])
    assert kept("run") == best
    assert sorted(file.name for file in Path("run/checkpoints").iterdir()) == [
        *(f"best_{step:06d}.ckpt" for step in best),
        "last.ckpt",
    ]
    for step in best:
        file = f"run/checkpoints/best_{step:06d}.ckpt"
        assert load(file)["global_step"] == step
        restore(file)
        assert call(fit, keeping, f"run_dir=to_{step}", f"trainer.max_steps={step}").status == 0
        assert_same(file, f"to_{step}")


def test_kept_by_a_resumed_run_equals_uninterrupted(call, keeping):
    assert call(fit, keeping, "run_dir=whole").status == 0
    for steps in (10, 35, 60):
        assert call(fit, keeping, "run_dir=parts", f"trainer.max_steps={steps}").status == 0
    assert kept("parts") == kept("whole")
    best = load("whole")["callbacks"]["SaveLast"]["best"]
    assert load("parts")["callbacks"]["SaveLast"]["best"] == best
    assert sorted(best) == kept("whole")


def test_going_on_from_elsewhere_keeps_its_own(call, keeping):
    assert call(fit, keeping, "run_dir=one", "trainer.max_steps=30").status == 0
    assert call(fit, keeping, "run_dir=other", "resume=one").status == 0
    assert len(kept("other")) == 2
    assert min(kept("other")) > 30
    assert len(kept("one")) == 2


def test_killed_between_saving_and_keeping(call, keeping, monkeypatch):
    assert call(fit, keeping, "run_dir=whole").status == 0
    when = kept("whole")[0]
    copy = SaveLast._copy

    def dies(self):
        if self._saved == when:
            raise Killed
        copy(self)

    with monkeypatch.context() as patch:
        patch.setattr(SaveLast, "_copy", dies)
        with pytest.raises(Killed):
            call(fit, keeping, "run_dir=parts")
    assert when not in kept("parts")
    assert call(fit, keeping, "run_dir=parts").status == 0
    assert kept("parts") == kept("whole")
    for step in kept("whole"):
        assert_same(*(f"{run}/checkpoints/best_{step:06d}.ckpt" for run in ("whole", "parts")))


def test_nothing_is_kept_unless_asked(call, training):
    assert call(fit, training(), "run_dir=run").status == 0
    assert kept("run") == []


# Speed


def test_auto_is_fast_for_images_on_cuda_only(monkeypatch):
    plain = {
        "precision": "32-true",
        "compile": False,
        "channels_last": False,
        "matmul_precision": "highest",
    }
    fast = {
        "precision": "bf16-mixed",
        "compile": True,
        "channels_last": True,
        "matmul_precision": "high",
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed_of({}, (3, 32, 32)) == plain
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert speed_of({}, (3, 32, 32)) == speed_of({"accelerator": "gpu"}, (1, 28, 28)) == fast
    assert speed_of({"accelerator": "cpu"}, (3, 32, 32)) == plain
    assert speed_of({}, (2,)) == plain
    asked = speed_of({"precision": "32-true"}, (3, 32, 32), compile=False, channels_last=False)
    assert asked == plain | {"matmul_precision": "high"}
    assert speed_of({}, (2,), matmul_precision="medium", compile=True) == plain | {
        "matmul_precision": "medium",
        "compile": True,
    }


def test_what_was_chosen_is_recorded_and_is_not_the_runs_identity(call, training):
    config = training(**IMAGES)
    assert call(fit, config, "run_dir=run", "trainer.max_steps=3").status == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["precision"] == "32-true"
    assert (manifest["compile"], manifest["channels_last"]) == (False, False)
    assert (manifest["matmul_precision"], manifest["device"]) == ("highest", "cpu")
    again = call(fit, config, "run_dir=run", "channels_last=true", "matmul_precision=medium")
    assert again.status == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["step"] == 20
    assert (manifest["channels_last"], manifest["matmul_precision"]) == (True, "medium")


def test_channels_last(call, training, monkeypatch):
    """Another layout of the same training, which resumes bit for bit as any other."""
    config = training(**IMAGES)
    weights = []
    prepare = train_module.prepare

    def remembers(model, speed):
        prepare(model, speed)
        weights.append(model.net.leave.weight)

    monkeypatch.setattr(train_module, "prepare", remembers)
    assert call(fit, config, "run_dir=plain").status == 0
    assert call(fit, config, "run_dir=last", "channels_last=true").status == 0
    assert [w.is_contiguous() for w in weights] == [True, False]
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    one, other = load("plain")["state_dict"], load("last")["state_dict"]
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)
    for steps in (7, 20):
        args = "run_dir=parts", "channels_last=true", f"trainer.max_steps={steps}"
        assert call(fit, config, *args).status == 0
    assert_same("last", "parts")


def test_channels_last_without_images(call, training):
    refused = call(fit, training(), "run_dir=run", "channels_last=true")
    assert refused.status == 2
    assert "channels_last" in refused.err
    assert not Path("run").exists()


def test_compiled(call, training, monkeypatch):
    """The same training up to rounding, and a checkpoint that tells no difference."""
    calls = []

    def compile(self):
        self._compiled_call_impl = torch.compile(
            lambda *args: calls.append(1) or self._call_impl(*args), backend="eager"
        )

    monkeypatch.setattr(nn.Module, "compile", compile)
    assert call(fit, training(), "run_dir=plain").status == 0
    assert not calls
    assert call(fit, training(), "run_dir=compiled", "compile=true").status == 0
    assert calls
    one, other = load("plain")["state_dict"], load("compiled")["state_dict"]
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)
    restore("compiled")


def test_matmul_precision_is_that_of_the_run_only(call, training, monkeypatch):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []
    step = Diffusion.training_step

    def looks(self, *args):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return step(self, *args)

    monkeypatch.setattr(learners.Learner, "training_step", looks)
    assert call(fit, training(), "run_dir=run", "trainer.max_steps=1").status == 0
    args = "run_dir=other", "trainer.max_steps=1", "matmul_precision=medium"
    assert call(fit, training(), *args).status == 0
    assert seen == [("highest", False), ("medium", True)]
    with pytest.raises(Killed), matmul("high"):
        raise Killed
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_loss_scaling_is_refused(call, training, precision):
    refused = call(fit, training(trainer={"precision": precision}), "run_dir=run")
    assert refused.status == 2
    assert "bf16-mixed" in refused.err


def test_bfloat16_keeps_float32_weights(call, training):
    assert call(fit, training(trainer={"precision": "bf16-mixed"}), "run_dir=run").status == 0
    assert {w.dtype for w in load("run")["state_dict"].values()} == {torch.float32}


# Data


def test_augmentation_needs_its_place_in_the_network(call, training):
    augmented = {"data.augment_dim=3", "run_dir=run"}
    refused = call(fit, training(**IMAGES), *augmented)
    assert refused.status == 2
    assert "net.augment_dim=3" in refused.err
    refused = call(fit, training(**IMAGES), *augmented, "net.augment_dim=3", "model={name: DDPM}")
    assert refused.status == 2
    assert "DDPM takes no augmentation" in refused.err
    assert not Path("run").exists()


def test_augmentation_labels_reach_the_network(call, training):
    """They are the network's answer, so the loss is another with them."""
    both = training(**IMAGES, log_every=1, trainer={"max_steps": 1})
    labelled = call(fit, both, "run_dir=with", "data.augment_dim=3", "net.augment_dim=3")
    assert labelled.status == 0, labelled.err
    model, data = restore_initial(both), Dots(augment_dim=3)
    draws = Draws(seed=0, step=0, batch_size=32)
    batch = data.batch(draws)
    loss = model.loss(batch["y"], batch["c"], draws, augment=batch["augment"]).mean()
    assert logged("with")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def restore_initial(config: dict) -> nn.Module:
    from lightning_cfg.diffusion.draws import key
    from lightning_cfg.runs.checkpoints import build_model

    torch.manual_seed(key("init", 0))
    config["net"]["augment_dim"] = 3
    return build_model(config, Dots.shape, Dots.num_classes)


@pytest.mark.parametrize("change", ["data.memory=false", "data.held_out=elsewhere.zip"])
def test_what_does_not_change_training_is_not_the_runs_identity(call, training, change):
    config = training(**IMAGES)
    assert call(fit, config, "run_dir=run", "trainer.max_steps=3").status == 0
    assert call(fit, config, "run_dir=run", change).status == 0
    assert load("run")["global_step"] == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_follow_to_the_gpu(call, training, monkeypatch):
    moved = []
    monkeypatch.setattr(Dots, "to", lambda self, device: moved.append(device), raising=False)
    config = training(**IMAGES, trainer={"accelerator": "gpu"})
    assert call(fit, config, "run_dir=run").status == 0
    assert [device.type for device in moved] == ["cuda"]
    assert logged("run")[-1]["peak_memory_gib"] > 0


def test_a_classifier_needs_classes(call, training):
    """Data of one class, or without labels, stop before anything is trained or written."""
    one = {"name": "Mixture", "means": [[0.0], [1.0]], "stds": [0.1, 0.1], "labels": [0, 0]}
    config = training(
        data=one, net={"name": "Linear"}, model={"name": "NoisyClassifier"},
        learner={"name": "Classification"},
    )  # fmt: skip
    refused = call(fit, config, "run_dir=run")
    assert refused.status == 2
    assert "2 classes or more, not 1" in refused.err
    assert not Path("run").exists()
