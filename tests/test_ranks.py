"""Verbs on several processes write what one process writes, and end together."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import ROOT
from helpers.processes import SRUN, Together
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.errors import REQUEUE, UserError
from lightning_cfg.runs import waiting
from lightning_cfg.runs.names import PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.ranks import Launch, Ranks, launched, meeting_place
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.runs.waiting import Waiting
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study
from lightning_cfg.verbs.trace import trace

HERE = "test_ranks"


def breaks(denoise: Callable, noise: Tensor, c: Tensor, *, seed: int, how: str) -> Iterator:
    """One step to samples, of which that of this seed is NaN, or kills its process."""
    yield 1.0, noise
    x = denoise(noise, torch.ones(len(noise), dtype=noise.dtype), c)
    unlucky = (noise == seeded([seed], tuple(noise.shape[1:]), 2)[0]).flatten(1).all(1)
    if unlucky.any() and how == "dies":
        signal.raise_signal(signal.SIGKILL)
    x[unlucky] = torch.nan
    yield 0.0, x


@pytest.fixture(scope="module")
def made(tmp_path_factory, training, mixture) -> Path:
    """A base model, sources, a flow and refined samples, by one process."""
    root = tmp_path_factory.mktemp("made")
    fit(**training(), run_dir=str(root / "base"))
    generate(**sampling(root), run_dir=str(root / "samples"))
    pair(**pairing(root, mixture), run_dir=str(root / "pairs"))
    flow = training(model={"name": "Flow"}, learner={"name": "Refinement", "ema_half_life": [99]},
                    data={"name": "Pairs", "path": str(root / "pairs" / PAIRS)})  # fmt: skip
    fit(**flow, run_dir=str(root / "flow"))
    refine(**refining(root), run_dir=str(root / "refined"))
    evaluate(**scoring(root, mixture), run_dir=str(root / "scores"))
    return root


def sampling(root: Path) -> dict:
    return {
        "models": {"model": str(root / "base")}, "n": 71, "batch_size": 20, "trajectories": 5,
        "guidance": {"name": "classifier_free", "scale": 2.0}, "device": "cpu",
        "sampler": {"name": "ddpm", "steps": 4},
    }  # fmt: skip


def pairing(root: Path, mixture: dict) -> dict:
    return {"sources": [str(root / "samples")], "data": mixture, "k": 3, "bank": 150,
            "keep_close": 0.2, "device": "cpu"}  # fmt: skip


def refining(root: Path) -> dict:
    return {"flow": str(root / "flow"), "samples": str(root / "samples"), "method": "heun",
            "batch_size": 20, "device": "cpu"}  # fmt: skip


def scoring(root: Path, mixture: dict) -> dict:
    own = {k: v for k, v in sampling(root).items() if k not in ("trajectories", "device")}
    full = {"seed": 5, "data": None, "class_label": None, "weights": "ema"}
    return {"samples": {"before": str(root / "samples"), "after": str(root / "refined")},
            "generate": {"made": {**own, **full}}, "data": mixture, "real": 200, "bank": 150,
            "fresh": 40, "device": "cpu"}  # fmt: skip


VERBS = {"samples": generate, "pairs": pair, "refined": refine, "scores": evaluate}


@pytest.fixture(scope="module")
def config(made, mixture) -> dict[str, dict]:
    configs = (sampling(made), pairing(made, mixture), refining(made), scoring(made, mixture))
    return dict(zip(VERBS, configs, strict=True))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("what", VERBS)
def test_the_same_files(together, made, config, what, ranks):
    """As one process has written; a second call finds them finished on every rank."""
    run = together(VERBS[what], config[what], f"run_dir={what}", ranks=ranks)
    assert run.wait() == [0] * ranks, run.said("err")
    assert run.said("out")[1:] == [""] * (ranks - 1)
    one, several = made / what, run.folder / what

    def files(folder: Path) -> list[str]:
        return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())

    assert files(one) == files(several)
    if what == "scores":
        same_scores(one, several)
    else:
        for name in {"samples": (SAMPLES, TRAJECTORIES), "pairs": (PAIRS,), "refined": (SAMPLES,)}[
            what
        ]:
            same_tensors(one / name, several / name)
    manifest = (several / "manifest.json").stat().st_mtime_ns
    again = together(VERBS[what], config[what], f"run_dir={what}", ranks=ranks)
    assert again.wait() == [0] * ranks
    assert "finished already" in again.said("out")[0]
    assert (several / "manifest.json").stat().st_mtime_ns == manifest


def same_tensors(one: Path, several: Path) -> None:
    a, b = (safetensors.torch.load_file(file) for file in (one, several))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.is_floating_point():  # batches are others, and their rounding
            torch.testing.assert_close(b[name], value, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, b[name]), name


def same_scores(one: Path, several: Path) -> None:
    a, b = (json.loads((run / "metrics/metrics.json").read_text()) for run in (one, several))
    assert len(a) == len(b) == 8  # four sets of two classes
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            same = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert right[name] == same, name
    told = [json.loads((run / "metrics/numbers.json").read_text()) for run in (one, several)]
    for left, right in zip(*told, strict=True):
        for name in ("seeds", "evaluations", "source", "metric", "n"):
            assert left.get(name) == right.get(name)


def test_noise_and_labels_are_of_the_seed(together, made, config):
    """Exactly, whatever the number of ranks: a sampler that does nothing shows them."""
    asked = {**config["samples"], "sampler": {"name": f"{HERE}.nothing"}, "trajectories": 0}
    run = together(generate, asked, "run_dir=run", ranks=3)
    assert run.wait() == [0, 0, 0]
    held = load_tensors(run.folder / "run" / SAMPLES, "x", "c", "seed")
    noise, c, _ = seeded([*range(71)], (2,), 2)
    assert torch.equal(held["x"], noise.float())
    assert torch.equal(held["c"], c)
    assert held["seed"].tolist() == [*range(71)]


def nothing(denoise: Callable, noise: Tensor, c: Tensor) -> Iterator:
    """A sampler whose samples are their noise."""
    denoise(noise, torch.ones(len(noise), dtype=noise.dtype), c)
    yield 0.0, noise


def test_samples_that_diverge_on_one_rank_end_all(together, config):
    sampler = {"name": f"{HERE}.breaks", "seed": 7, "how": "diverges"}
    run = together(
        generate, {**config["samples"], "sampler": sampler, "trajectories": 0}, "run_dir=run"
    )
    assert run.wait(60) == [2, 2]
    for err in run.said("err"):
        assert "are not finite" in err
        assert len(err.strip().splitlines()) == 1
    assert not (run.folder / "run").exists()


@pytest.mark.parametrize("seed", [6, 7])
def test_a_rank_that_dies_ends_the_others(together, config, seed):
    sampler = {"name": f"{HERE}.breaks", "seed": seed, "how": "dies"}
    began = time.monotonic()
    run = together(
        generate, {**config["samples"], "sampler": sampler, "trajectories": 0}, "run_dir=run"
    )
    codes = run.wait(60)
    assert time.monotonic() - began < 60
    dead = seed % 2
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] == 1
    assert "another rank has ended or cannot be reached" in run.said("err")[1 - dead]


def waits(denoise: Callable, noise: Tensor, c: Tensor, *, seed: int, how: str) -> Iterator:
    """`breaks`, but a process whose own samples are in order has work for a minute before."""
    yield 1.0, noise
    unlucky = (noise == seeded([seed], tuple(noise.shape[1:]), 2)[0]).flatten(1).all(1)
    for _ in range(0 if unlucky.any() else 600):
        time.sleep(0.1)
    yield from breaks(denoise, noise, c, seed=seed, how=how)


@pytest.mark.parametrize("seed", [6, 7])
def test_a_rank_that_dies_is_heard_of_in_the_midst_of_the_work(together, config, seed):
    sampler = {"name": f"{HERE}.waits", "seed": seed, "how": "dies"}
    asked = {**config["samples"], "sampler": sampler, "trajectories": 0, "batch_size": 1000}
    began = time.monotonic()
    run = together(generate, asked, "run_dir=run")
    codes = run.wait(50)
    assert time.monotonic() - began < 45
    dead = seed % 2
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] == 1
    lines = run.said("err")[1 - dead].strip().splitlines()
    assert "another rank has ended or cannot be reached" in lines[-1]
    assert len(lines) == 1


def listening(run: Together) -> None:
    """Wait until the first rank waits for the others to meet it."""
    first = run.processes[0]
    until = time.monotonic() + 60
    while True:
        assert first.is_alive()
        assert time.monotonic() < until
        try:
            socket.create_connection(("127.0.0.1", run.port)).close()
            return
        except OSError:
            time.sleep(0.05)


def test_a_rank_that_waits_for_one_that_nobody_started_is_ended_by_ctrl_c(together, config):
    run = together(generate, {**config["samples"], "trajectories": 0}, "run_dir=run")
    first, other = run.processes
    other.kill()
    listening(run)
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGINT)
    assert run.wait(20)[0] == 130
    assert run.said("err")[0] == "lightning_cfg: interrupted: while it waited for other ranks\n"
    assert not (run.folder / "run/manifest.json").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, REQUEUE)])
def test_a_training_that_waits_for_one_that_nobody_started(together, training, number, status):
    """Before its first step there is nothing to save: the first signal ends it."""
    run = together(fit, training(), "run_dir=run")
    first, other = run.processes
    other.kill()
    listening(run)
    time.sleep(0.5)
    os.kill(first.pid, number)
    assert run.wait(20)[0] == status
    assert "before its first step, waiting for other ranks" in run.said("err")[0]
    assert "Traceback" not in run.said("err")[0]


def test_one_that_nobody_started_is_waited_for_until_the_limit(together, config, training):
    for verb, asked in ((generate, {**config["samples"], "trajectories": 0}), (fit, training())):
        run = together(verb, asked, f"run_dir={verb.__name__}", LIGHTNING_CFG_WAIT="3")
        run.processes[1].kill()
        assert run.wait(40)[0] == 1
        line = run.said("err")[0].splitlines()[-1]
        assert "rank 0: waited for the others to meet it" in line
        assert re.search(r"for \d s: were they started\?", line)


def hangs(denoise: Callable, noise: Tensor, c: Tensor, *, seed: int, how: str) -> Iterator:
    """A process with the sample of this seed stops, as it is, or sleeps for ever."""
    yield 1.0, noise
    if (noise == seeded([seed], tuple(noise.shape[1:]), 2)[0]).flatten(1).all(1).any():
        if how == "stops":
            signal.raise_signal(signal.SIGSTOP)
        time.sleep(1000)
    yield 0.0, denoise(noise, torch.ones(len(noise), dtype=noise.dtype), c)


@pytest.mark.parametrize("seed, how", [(6, "stops"), (7, "sleeps")])
def test_a_rank_that_hangs_is_waited_for_until_the_limit(together, config, seed, how):
    """By name, whichever of them it is, and whether its other threads still live or not."""
    sampler = {"name": f"{HERE}.hangs", "seed": seed, "how": how}
    asked = {**config["samples"], "sampler": sampler, "trajectories": 0, "batch_size": 1000}
    run = together(generate, asked, "run_dir=run", LIGHTNING_CFG_WAIT="12")
    hung = seed % 2
    run.processes[1 - hung].join(60)
    assert run.wait(0)[1 - hung] == 1
    line = run.said("err")[1 - hung].splitlines()[-1]
    assert re.search(
        rf"rank {1 - hung} of 2 waits for rank {hung} since 1\d s, and no longer", line
    )
    assert not (run.folder / "run/manifest.json").exists()


class Hangs(Diffusion):
    """Rank $RANK_THAT_HANGS stops at step 3, before it or in its forward pass."""

    def training_step(self, batch: dict, batch_idx: int) -> object:
        if self.trainer.global_step == 3:
            self.hang("forward")
        return super().training_step(batch, batch_idx)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if self.trainer.global_step == 3:
            self.hang("before")
        return batch

    def hang(self, where: str) -> None:
        here = os.environ["RANK_THAT_HANGS"] == str(self.trainer.global_rank)
        if here and os.environ["WHERE"] == where:
            print("at step 3")
            time.sleep(1000)


@pytest.mark.parametrize("rank, where", [(0, "forward"), (1, "before")])
def test_a_training_waits_for_a_rank_that_hangs_until_the_limit(together, training, rank, where):
    asked = training()
    asked["learner"]["name"] = f"{HERE}.Hangs"
    how = {"RANK_THAT_HANGS": str(rank), "WHERE": where, "LIGHTNING_CFG_WAIT": "12"}
    run = together(fit, asked, "run_dir=run", **how)
    run.processes[1 - rank].join(60)
    assert run.wait(0)[1 - rank] == 1
    line = run.said("err")[1 - rank].splitlines()[-1]
    assert re.search(
        rf"rank {1 - rank} of 2 waits for rank {rank} since 1\d s, and no longer", line
    )


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_training_that_waits(together, training, number, status):
    asked = training()
    asked["learner"]["name"] = f"{HERE}.Hangs"
    run = together(fit, asked, "run_dir=run", RANK_THAT_HANGS="1", WHERE="forward")
    until = time.monotonic() + 60
    while "at step 3" not in "".join(run.said("out")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    for _ in range(2):
        os.kill(run.processes[0].pid, number)
        time.sleep(1)
    assert run.wait(5)[0] == status
    assert "the second signal" in run.said("err")[0].splitlines()[-1]


def test_for_whom_a_rank_waits_is_told_where_it_takes_long(monkeypatch, capfd):
    """Two of three ranks of a store, in one process; the third has not come to the second place."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.4)
    ports: list[int] = []

    def tell(value: int) -> list[int]:
        ports.append(value)
        return [ports[0]]

    ranks = [Waiting(rank, 3, "127.0.0.1", tell) for rank in range(3)]
    try:
        for rank in ranks:
            rank.come()
        time.sleep(1)
        for rank in ranks:
            rank.leave()
        assert capfd.readouterr().err == ""  # all have come
        for rank in ranks[:2]:
            rank.come()
        time.sleep(1.5)
        said = sorted(capfd.readouterr().err.splitlines())
        assert [line.partition(",")[0] for line in said] == [
            f"lightning_cfg: rank {rank} of 3 waits for rank 2" for rank in (0, 1)
        ]
        assert ranks[0].missing() == [2]
    finally:
        for rank in ranks:
            rank.close()


@pytest.mark.parametrize("told", ["soon", "0", "-3", "nan", "inf"])
def test_the_limit_is_a_number_of_seconds(monkeypatch, told):
    monkeypatch.setenv(waiting.VARIABLE, told)
    with pytest.raises(UserError, match=f"LIGHTNING_CFG_WAIT={told} must be a number of seconds"):
        waiting.limit()


def test_fewer_samples_than_ranks(together, config):
    run = together(
        generate, {**config["samples"], "n": 2, "trajectories": 0}, "run_dir=run", ranks=3
    )
    assert run.wait(60) == [2, 2, 2]
    assert "n=2: 2 cannot be shared by 3 ranks" in run.said("err")[0]


def test_real_images_are_gone_over_by_the_first_rank_alone(together, training, tmp_path):
    """In a feature space with statistics that are kept: the scores are those of one process."""
    data = {"name": "helpers.toys.Halves"}
    net = {"name": "ConvNet", "channels": 4}
    learner = {"name": "Classification", "ema_half_life": [50]}
    model = {"name": "NoisyClassifier", "clean": True}
    judge = fit(**training(data=data, net=net, model=model, learner=learner),
                run_dir=str(tmp_path / "judge"))  # fmt: skip
    x, c = torch.rand(90, 1, 8, 8) * 2 - 1, torch.arange(90) % 2
    save_tensors(tmp_path / "x.safetensors", x=x, c=c, seed=torch.arange(90))
    asked = {
        "samples": {"mine": str(tmp_path / "x.safetensors")}, "data": data, "by_class": False,
        "features": {"judge": {"name": "classifier", "path": str(judge)}}, "draws": 2,
        "metrics": [{"name": "frechet_features", "allow_few": True}, "precision_recall"],
        "classifier": str(judge), "device": "cpu",
    }  # fmt: skip
    one = evaluate(**asked, run_dir=str(tmp_path / "one"))
    run = together(evaluate, asked, "run_dir=two", "cache=false")
    assert run.wait() == [0, 0], run.said("err")
    a, b = (json.loads((p / "metrics/metrics.json").read_text()) for p in (one, tmp_path / "two"))
    assert len(a) == len(b) == 4  # two draws, their minimum and mean
    for left, right in zip(a, b, strict=True):
        assert left == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v
                        for k, v in right.items()}  # fmt: skip


def test_a_verb_of_one_process_is_refused_on_several(call, monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    refused = call(trace, {"samples": {"a": "a"}, "classifiers": {"b": "b"}}, "run_dir=run")
    assert refused.status == 2
    assert "trace runs in one process, and srun has started 4" in refused.err


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "named"},  # the shell of `salloc -J named`
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"},
    ],
)
def test_a_shell_in_a_job_is_one_process(monkeypatch, variables):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch()


def test_the_shell_of_an_interactive_step_is_none_of_the_jobs_tasks(monkeypatch):
    """Its step has one task, and the job two: `generate` would wait for one that nobody starts."""
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", SRUN["SLURM_NTASKS"])
    assert launched().size == int(SRUN["SLURM_NTASKS"])
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with pytest.raises(UserError, match="this process is none of them: start it by srun"):
        launched()


def test_a_study_trains_on_one_device(tmp_path):
    """Lightning would start the whole study once for each."""
    words = ["fits.base.trainer.devices=2", f"run_dir={tmp_path / 'study'}"]
    config = load(study, ROOT / "conf/studies/fractal_quick.yaml", words)
    with pytest.raises(UserError, match=r"fits\.base\.trainer\.devices=2: a study trains on one"):
        study(**config)
    assert not (tmp_path / "study").exists()


# One process, and where several meet


def test_one_rank_shares_with_nobody():
    rows = torch.arange(5)
    assert torch.equal(Ranks().share(rows), rows)
    assert Ranks().gather_rows(rows) is rows
    assert Ranks().sum({"a": 2}) == {"a": 2}
    assert Ranks(1, 3).share(rows).tolist() == [1, 4]


@pytest.mark.parametrize(
    "nodes, first",
    [("n1", "n1"), ("n[3-5,8],m1", "n3"), ("a,b", "a"), ("gpu-[007,9]", "gpu-007")],
)
def test_tasks_of_srun_meet_on_the_first_node(monkeypatch, nodes, first):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in {**SRUN, "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_ID": "70123"}.items():
        monkeypatch.setenv(name, value)
    assert meeting_place(Launch("srun", 2, 2, 3, 1)) == (first, 15_123)
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert meeting_place(Launch("srun", 2, 2, 3, 1)) == ("host", 1234)
