"""Averages of any width, made afterwards of those that a training kept along its way."""

import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from helpers.runs import assert_same, kept, manifest
from safetensors.torch import load_file, save_file

from lightning_cfg.config.check import checked
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import read_set
from lightning_cfg.runs import snapshots
from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.to_come import ToCome
from lightning_cfg.training.ema import EMA
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.fit import _tried as tried
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

EDM2 = np.load(Path(__file__).parent / "reference/edm2/edm2_phema.npz")
LEARNER = {"name": "Diffusion", "lr": 3e-3, "ema_half_life": [100], "ema_std": [0.05, 0.1]}


def files(run):
    return sorted(Path(run, "checkpoints").glob("snapshot_*"))


def steps(run):
    return [int(file.stem.rpartition("_")[2]) for file in files(run)]


class Followed(Diffusion):
    """A learner that also follows averages of other widths itself, outside of the checkpoint."""

    others: ClassVar[dict] = {}

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        done = self.trainer.global_step + 1
        if done == 1:
            Followed.others = {}
            self.beside = EMA(self.model, [], stds=(0.04, 0.07, 0.13))
        self.beside.update(done, self.images_a_step(), self._good)
        copies = self.beside.state_dict().items()
        Followed.others[done] = {
            std: {name: tensor.clone() for name, tensor in held.items()} for std, held in copies
        }


@pytest.fixture
def followed(call, training):
    """A training of 64 steps with 8 snapshots."""
    learner = {**LEARNER, "name": "test_snapshots.Followed"}
    config = training(learner=learner, checkpoint_every=16)
    words = ("run_dir=run", "trainer.max_steps=64", "snapshots=8", "keep=1")
    assert call(fit, config, *words).status == 0
    return config


def far(held, other):
    """The norm of the difference of weights by name."""
    return sum((held[n] - other[n]).double().square().sum() for n in other).sqrt().item()


def test_made_afterwards_is_nearly_what_was_followed(followed, capsys):
    """The error is as small, relative to how far the average is from the last weights, as in EDM2's
    own run of as many snapshots: 1.2 % at 0.07."""
    raw = dict(restore("run", weights="raw").named_parameters())
    for std, allowed in ((0.04, 0.1), (0.07, 0.03), (0.13, 0.04)):
        capsys.readouterr()
        made = dict(restore("run", weights={"std": std}).named_parameters())
        assert capsys.readouterr().err == ""
        direct = Followed.others[64][std]
        assert far(made, direct) < allowed * far(raw, direct)
        assert far(raw, direct) > 0
    # as of an earlier step, by what had been seen until then
    at = restore("run", weights={"std": 0.07, "step": 40})
    assert at.step == 40
    direct = Followed.others[40][0.07]
    assert far(dict(at.named_parameters()), direct) < 0.05 * far(raw, direct)
    assert restore("run", weights={"std": 0.07}).step == 64
    Path("run/manifest.json").unlink()
    files("run")[-1].unlink()  # of a later step, of which this one knew nothing
    assert restore("run", weights={"std": 0.07, "step": 40}).step == 40


def test_one_that_was_followed_is_itself(followed):
    held = load("run")["ema"][0.1]
    model = restore("run", weights={"std": 0.1})
    for name, p in model.named_parameters():
        assert torch.equal(p, held[name])
    saved = load_file(snapshots.place(Path("run/checkpoints"), 40))
    model = restore("run", weights={"std": 0.1, "step": 40})
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, saved[f"0.1/{name}"], rtol=1e-5, atol=1e-6)


def test_what_is_kept(followed, call):
    """Files of both averages alone, in float32, which nothing removes and the manifest names."""
    assert steps("run") == [8, 16, 24, 32, 40, 48, 56, 64]
    assert kept("run") != []
    held, last = load_file(files("run")[-1]), load("run")
    names = [name for name, _ in restore("run").named_parameters()]
    assert set(held) == {f"{std}/{name}" for std in (0.05, 0.1) for name in names}
    for name in names:
        assert torch.equal(held[f"0.05/{name}"], last["ema"][0.05][name])
        assert held[f"0.1/{name}"].dtype == torch.float32
    outputs = manifest(Path("run"))["outputs"]
    assert {k for k in outputs if "snapshot" in k} == {
        f"checkpoints/{file.name}" for file in files("run")
    }
    assert last["snapshots"] == {
        int(s): sha256(f) for s, f in zip(steps("run"), files("run"), strict=True)
    }
    best = load(f"run/checkpoints/best_{kept('run')[0]:06d}.ckpt")
    assert max(best["snapshots"]) <= best["global_step"]


@pytest.mark.parametrize("n", [4096, 8192])
def test_reconstructions_are_the_originals(tmp_path, n):
    """Of EDM2's own snapshots, whose times are in images."""
    names = [key.removeprefix("run/weights/") for key in EDM2 if key.startswith("run/weights/")]
    recorded = {}
    for time in sorted(set(EDM2["in/nimg"])):
        rows = [i for i, at in enumerate(EDM2["in/nimg"]) if at == time]
        averages = {
            float(EDM2["in/std"][i]): {
                name: torch.as_tensor(EDM2[f"in/ema_float16/{name}"][i]) for name in names
            }
            for i in rows
        }
        recorded[int(time)] = snapshots.save(tmp_path, int(time), averages)
    checkpoint = {"global_step": 9000, "ema": averages, "snapshots": recorded}
    for std in EDM2["out/std"]:
        found, step = snapshots.average_of(tmp_path / "last.ckpt", checkpoint, std, n)
        assert step == n
        for name in names:
            original = torch.as_tensor(EDM2[f"out/{n}/{std:g}/{name}"])
            torch.testing.assert_close(found[name].half(), original, rtol=1e-3, atol=1e-4)
            assert found[name].dtype == torch.float32


# Killed and resumed


def test_resumed_equals_uninterrupted(call, training):
    config = training(learner=LEARNER, checkpoint_every=5)
    assert call(fit, config, "run_dir=whole", "snapshots=4").status == 0
    assert call(fit, config, "run_dir=parts", "snapshots=4", "trainer.max_steps=10").status == 0
    assert steps("parts") == [4, 8, 10]  # after the last step too
    assert call(fit, config, "run_dir=parts", "snapshots=4").status == 0
    assert_same("whole", "parts")
    assert steps("whole") == [4, 8, 12, 16, 20]
    assert steps("parts") == [4, 8, 10, 12, 16, 20]
    for file in files("whole"):
        assert file.read_bytes() == Path("parts/checkpoints", file.name).read_bytes()
    assert load("parts")["snapshots"].keys() == set(steps("parts"))


def test_files_of_steps_to_come_go_and_those_of_elsewhere_are_unknown(call, training):
    config = training(learner=LEARNER, checkpoint_every=5)
    assert call(fit, config, "run_dir=run", "snapshots=5", "trainer.max_steps=10").status == 0
    stale = snapshots.place(Path("run/checkpoints"), 12)
    shutil.copy(files("run")[0], stale)  # as of a run that was killed after it had written it
    other = Path("run/checkpoints/mine.safetensors")
    shutil.copy(stale, other)
    assert call(fit, config, "run_dir=run", "snapshots=5").status == 0
    assert steps("run") == [5, 10, 15, 20]
    assert other.is_file()
    shutil.copy("run/checkpoints/last.ckpt", "copy.ckpt")
    words = ("run_dir=further", "resume=copy.ckpt", "snapshots=5", "trainer.max_steps=30")
    assert call(fit, config, *words).status == 0
    assert steps("further") == [25, 30]
    assert sorted(load("further")["snapshots"]) == [25, 30]


@pytest.mark.parametrize("snapshots", [0, 5])
def test_snapshots_change_nothing_of_the_training(call, training, snapshots):
    config = training(learner=LEARNER)
    assert call(fit, config, "run_dir=run", f"snapshots={snapshots}").status == 0
    assert call(fit, config, "run_dir=plain").status == 0
    assert_same("run", "plain")
    assert bool(files("run")) == (snapshots > 0)
    assert not files("plain")
    again = call(fit, config, "run_dir=run", "snapshots=7")
    assert "finished already" in again.out


def test_two_ranks_keep_what_one_keeps(together, call, training):
    config = training(learner=LEARNER, batch_size=8)
    two = together(fit, config, "run_dir=two", "snapshots=10")
    assert two.wait() == [0, 0]
    assert call(fit, config, "run_dir=one", "snapshots=10").status == 0
    assert steps(two.folder / "two") == steps("one") == [10, 20]
    for a, b in zip(files("one"), files(two.folder / "two"), strict=True):
        one, both = load_file(a), load_file(b)
        for name, average in one.items():
            torch.testing.assert_close(both[name], average, rtol=1e-3, atol=1e-4)
    assert restore(two.folder / "two", weights={"std": 0.08}).step == 20


# What is told


@pytest.fixture
def few(call, training):
    config = training(learner=LEARNER)
    assert call(fit, config, "run_dir=run", "snapshots=10").status == 0
    return config


def test_a_line_where_they_are_few_or_far_apart(followed, capsys):
    """The condition number is that of EDM2's own run, which has as many snapshots."""
    for weights, words in (
        ({"std": 0.02}, r"std 0.02 made of 8 snapshots, up to 8 steps apart, misses 25% of it"),
        ({"std": 0.25}, r"misses 18% of it \(condition number 535\)"),
        ({"std": 0.07, "step": 24}, r"made of 3 snapshots, .* nearer to 0.05, 0.1"),
    ):
        capsys.readouterr()
        restore("run", weights=weights)
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1, (weights, told)
        assert re.search(words, told), told


def test_a_line_where_rounding_is_all_there_is(capsys):
    for condition, told in ((9e9, ""), (1.1e10, "condition number 11000000000")):
        snapshots._warn(Path("x"), 0.07, [1, 2, 3, 4], [0.05, 0.1], 0.0, condition)
        err = capsys.readouterr().err
        assert told in err
        assert bool(told) == bool(err)


@pytest.mark.parametrize(
    "weights, named",
    [
        ({"std": 0.07, "step": 11}, "no snapshot of step 11; it has those of 10, 20"),
        (77, "half-life 77; it has 100, std 0.05, std 0.1, or raw"),
    ],
)
def test_what_is_not_there_is_named(few, weights, named):
    with pytest.raises(UserError, match=re.escape(named)):
        restore("run", weights=weights)


def test_no_snapshots(call, training):
    for run, learner in (("none", LEARNER), ("half_life", {"name": "Diffusion"})):
        assert call(fit, training(learner=learner), f"run_dir={run}").status == 0
        with pytest.raises(UserError, match=r"knows no snapshots.*learner\.ema_std and snap"):
            restore(run, weights={"std": 0.07})
    assert restore("none", weights={"std": 0.05})  # which it has followed


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("fault", ["cut", "changed", "missing", "nan", "others"])
def test_a_damaged_snapshot_is_seen(few, fault, finished):
    file = files("run")[0]
    if not finished:
        Path("run/manifest.json").unlink()
    held = load_file(file)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif fault == "missing":
        file.unlink()
    else:
        name = next(iter(held))
        held[name].view(-1)[0] += float("nan") if fault == "nan" else 1
        if fault == "others":
            del held[name]
        save_file(held, file)
    with pytest.raises(UserError, match=r"snapshot_0000010.safetensors is (damaged|missing)"):
        restore("run", weights={"std": 0.07})
    restore("run")  # which needs none


@pytest.mark.parametrize(
    "words, named",
    [
        (("snapshots=-1",), "snapshots must be int of at least 0, not -1"),
        (("snapshots=5", "learner.ema_std=[]"), "learner.ema_std, such as"),
        (("snapshots=1", "trainer.max_steps=20000"), "more than 10000"),
    ],
)
def test_fit_refuses(call, training, words, named):
    refused = call(fit, training(learner=LEARNER), "run_dir=run", *words)
    assert refused.status == 2
    assert named in refused.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "value",
    [{"a": "b"}, {0: "b"}, {3: 4}, [1]],
)
def test_a_checkpoint_with_something_else_is_refused(few, value):
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    torch.save({**checkpoint, "snapshots": value}, "other.ckpt")
    with pytest.raises(UserError, match="its snapshots must be"):
        restore("other.ckpt")
    torch.save({**checkpoint, "ema": {0.3: checkpoint["ema"][0.1]}}, "other.ckpt")
    with pytest.raises(UserError, match="its ema must be"):
        restore("other.ckpt")


# In verbs


TEXT = (Path(__file__).parents[1] / "docs/training.md").read_text()
YAML = dict(re.findall(r"```yaml\n# (\w+)\n(.*?)```", TEXT, re.S))


def test_what_the_docs_say_runs(call, training):
    """At other sizes, and the line of warning word for word."""
    recipe = yaml.safe_load(YAML["fit"])
    recipe["net"] |= {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [8]}
    recipe["net"] |= {"channels_per_head": 8}
    recipe |= {"data": {"name": "helpers.toys.Dots"}, "batch_size": 4, "snapshots": 1}
    recipe["trainer"] = {"max_steps": 3, "accelerator": "cpu"}
    assert call(fit, recipe, "run_dir=runs/base").status == 0
    assert list(load("runs/base")["ema"]) == [0.05, 0.1]
    weak = yaml.safe_load(YAML["generate"])["models"]["weak"]
    assert weak["weights"]["step"] == 2**27 // 2048  # EDM2's weak network, after 2^27 images
    words = ("run_dir=out", "n=2", "models.weak.weights.step=2", "sampler.steps=2")
    made = call(generate, YAML["generate"], *words, "device=cpu")
    assert made.status == 0, made.err
    told = [line for line in TEXT.splitlines() if line.startswith("lightning_cfg: runs/base")]
    numbers = r"std \S+ made of \d+ snapshots, up to \d+|\d+% of it|number \d+"
    assert re.sub(numbers, "", told[0]) in re.sub(numbers, "", made.err)


def test_every_verb_takes_them(few, call):
    sampler = {"name": "heun", "steps": 3}
    base = {"models": {"model": "run"}, "sampler": sampler, "n": 4, "device": "cpu"}
    made = {**base, "guidance": {"name": "unguided"}}
    assert call(generate, made, "run_dir=all", "weights.std=0.08").status == 0
    assert manifest(Path("all"))["weights"] == {"std": 0.08, "step": None}
    assert read_set("all").about["model_weights"] == "std 0.08"
    early = {"path": "run", "weights": {"std": 0.12, "step": 10}}
    guided = {**base, "guidance": {"name": "autoguidance"}, "weights": {"std": 0.08}}
    guided["models"] = {"model": "run", "weak": early}
    assert call(generate, guided, "run_dir=guided").status == 0
    assert manifest(Path("guided"))["steps"] == {"model": 20, "weak": 10}
    assert read_set("guided").about["model_weights"] == "std 0.08, weak std 0.12 at step 10"
    assert json.loads(Path("guided/manifest.json").read_text())["settings"]["models"] == {
        "weak": {"weights": {"std": 0.12, "step": 10}}
    }
    other = call(generate, guided, "run_dir=guided", "models.weak.weights.step=20")
    assert "models.weak.weights.step: 10 there, 20 here" in other.err
    for bad, named in (
        ("weights.std=0.3", "weights.std must be float from 0.001 to 0.288, not 0.3"),
        ("weights={sdt: 0.1}", "did you mean 'weights.std'"),
        ("weights={step: 3}", "weights.std is missing"),
    ):
        assert named in call(generate, made, "run_dir=bad", bad).err


def test_a_study_knows_before_it_trains(training):
    """The stage after a training is tried with the snapshots that there will be."""

    def to_come(**keys):
        config = {"run_dir": "run", **training(learner=LEARNER), **keys}
        return ToCome("run", tried(checked(fit, config)))

    weights = {"std": 0.07, "step": None}
    assert restore(to_come(snapshots=8), weights=weights).step == 20
    assert restore(to_come(snapshots=8), weights={"std": 0.07, "step": 16}).step == 16
    with pytest.raises(UserError, match="no snapshot of step 10; it has those of 8, 16, 20"):
        restore(to_come(snapshots=8), weights={"std": 0.07, "step": 10})
    with pytest.raises(UserError, match="knows no snapshots"):
        restore(to_come(), weights=weights)
