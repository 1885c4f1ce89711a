"""What an interrupted run has made is kept, and it ends as if it had not been interrupted."""

import importlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_cfg.diffusion.samplers import heun
from lightning_cfg.runs import parts
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import SAMPLES, TRAJECTORIES
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.run import Run
from lightning_cfg.runs.tensors import save_rows, save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.refine import refine

HERE = "test_parts"
batches: list[int] = []  # rows of each that was begun
at: dict[int, object] = {}  # what happens in the batch of this number


def heun_told(denoise, noise, c, *, steps: int = 4) -> Iterator:
    """Heun's steps, in a batch of which something may happen."""
    batches.append(len(noise))
    for step, state in enumerate(heun(denoise, noise, c, steps=steps)):
        if step == 2 and len(batches) - 1 in at:
            at[len(batches) - 1]()
        yield state


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def nothing_happens():
    batches.clear()
    at.clear()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(parts, "EVERY", -1.0)


@pytest.fixture
def config(mixture) -> dict:
    return {
        "models": {"model": "exact"}, "guidance": "unguided", "data": mixture, "n": 23,
        "sampler": {"name": f"{HERE}.heun_told"}, "batch_size": 5, "trajectories": 7,
    }  # fmt: skip


def same(one: str, two: str, *names: str) -> None:
    for name in names:
        assert sha256(Path(one, name)) == sha256(Path(two, name)), name


def test_rows_make_the_file_of_whole_tensors(tmp_path):
    x, c, s = torch.randn(7, 2, 3), torch.arange(7), torch.randn(4, dtype=torch.float64)
    save_tensors(tmp_path / "whole", x=x, c=c, sigma=s, zero=torch.zeros(0, 2))
    shapes = {"x": ((7, 2, 3), x.dtype), "c": ((7,), c.dtype), "sigma": ((4,), s.dtype)}
    shapes["zero"] = (0, 2), x.dtype
    blocks = [{"x": x[:3], "c": c[:3]}, {"x": x[3:4]}, {"c": c[3:], "sigma": s, "x": x[4:]}]
    save_rows(tmp_path / "rows", shapes, blocks)
    assert sha256(tmp_path / "whole") == sha256(tmp_path / "rows")
    with pytest.raises(ValueError, match="c: other rows came"):
        save_rows(tmp_path / "rows", shapes, blocks[:2])
    assert sha256(tmp_path / "whole") == sha256(tmp_path / "rows")


@pytest.mark.parametrize(("what", "status"), [(ctrl_c, 130), (sigterm, 75)])
def test_generate_goes_on_where_it_was(call, config, at_once, what, status):
    assert call(generate, config, "run_dir=whole").status == 0
    for first in (2, 3):  # interrupted twice
        batches.clear()
        at.clear()
        at[first if first == 2 else 1] = what
        cut = call(generate, config, "run_dir=cut")
        assert cut.status == status, cut.err
        name = "SIGINT" if status == 130 else "SIGTERM"
        done = {2: 10, 3: 15}[first]
        assert cut.err.splitlines() == [
            f"lightning_cfg: cut: {name} ended it, with {done} of 23 samples kept; started again "
            "it goes on"
        ]
        assert not Path("cut/manifest.json").exists()
    batches.clear()
    at.clear()
    assert call(generate, config, "run_dir=cut").status == 0
    assert batches == [5, 3]
    same("whole", "cut", SAMPLES, TRAJECTORIES)
    told = [json.loads(Path(run, "manifest.json").read_text()) for run in ("whole", "cut")]
    assert told[0]["evaluations"] == told[1]["evaluations"] == {"model": 7.0}
    assert not Path("cut/.parts").exists()


def test_without_time_for_a_part_an_interrupt_writes_what_is_in_memory(call, config):
    at[2] = ctrl_c
    assert call(generate, config, "run_dir=cut").status == 130
    assert len(list(Path("cut/.parts").iterdir())) == 1
    batches.clear()
    at.clear()
    assert call(generate, config, "run_dir=cut").status == 0
    assert batches == [5, 5, 3]


def test_a_killed_process_loses_what_was_not_written(call, config, at_once):
    """A part that is cut off or changed is made again; another config is refused."""

    def dies() -> None:
        raise SystemError("as a crash")

    at[3] = dies
    with pytest.raises(SystemError):
        call(generate, config, "run_dir=cut")
    other = call(generate, config, "run_dir=cut", "seed=5")
    assert other.status == 2
    assert "belongs to another run (settings.seed" in other.err
    first, second, _ = sorted(Path("cut/.parts").iterdir())
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-40])
    batches.clear()
    at.clear()
    again = call(generate, config, "run_dir=cut")
    assert again.status == 0
    assert "or is damaged, is made again" in again.out
    assert batches == [5, 5, 5, 3]  # of which the third was whole
    call(generate, config, "run_dir=whole")
    same("whole", "cut", SAMPLES, TRAJECTORIES)


def test_after_a_mistake_the_directory_is_free(call, config, at_once):
    """Also where an earlier call was interrupted: the same would come again."""
    at[1] = ctrl_c
    assert call(generate, config, "run_dir=run").status == 130
    batches.clear()

    def diverges() -> None:
        raise parts.UserError("the samples are not finite")

    at[1] = diverges
    assert call(generate, config, "run_dir=run").status == 2
    at.clear()
    assert call(generate, config, "run_dir=run", "seed=5").status == 0


def test_a_full_disk_keeps_what_was_made(call, config, at_once, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        at[2] = lambda: patch.setattr(parts, "save_file", full)
        cut = call(generate, config, "run_dir=run")
    assert (cut.status, "No space left" in cut.err) == (2, True)
    batches.clear()
    at.clear()
    assert call(generate, config, "run_dir=run").status == 0
    assert batches == [5, 5, 3]


def anonymous() -> int:
    """Bytes of memory that are of no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def test_memory_does_not_grow_with_n(call, monkeypatch, tmp_path):
    """Of 16 MiB of samples less than a third is in memory at any time."""
    monkeypatch.setattr(parts, "HELD", 2**20)
    data = {"name": "Mixture", "means": [[0.0] * 512], "stds": [0.1], "labels": [0]}
    config = {"models": {"model": "exact"}, "guidance": "unguided", "data": data, "n": 8192}
    config |= {"sampler": {"name": f"{HERE}.noisy"}, "batch_size": 256}
    seen: list[int] = []
    at.update({i: lambda: seen.append(anonymous()) for i in range(32)})
    in_order = parts.Parts.in_order

    def watched(*args: object, **how: object) -> Iterator:
        for block in in_order(*args, **how):
            seen.append(anonymous())
            yield block

    monkeypatch.setattr(parts.Parts, "in_order", watched)
    assert call(generate, config, "run_dir=run").status == 0
    assert len(seen) == 2 * 32
    assert max(seen) - seen[2] < 5 * 2**20
    assert Path("run", SAMPLES).stat().st_size > 8192 * 512 * 4


def noisy(denoise, noise, c) -> Iterator:
    """A sampler whose samples are their noise."""
    batches.append(len(noise))
    denoise(noise[:1], torch.ones(1, dtype=noise.dtype), c[:1])
    yield 1.0, noise
    at.get(len(batches) - 1, int)()
    yield 0.0, noise


def test_refine_goes_on_where_it_was(call, training, config, at_once, monkeypatch):
    verb = importlib.import_module("lightning_cfg.verbs.refine")  # not the function
    from lightning_cfg.verbs.pair import pair

    plain = {**config, "sampler": {"name": "heun", "steps": 2}, "trajectories": 0}
    assert call(generate, plain, "run_dir=samples").status == 0
    pairs = {"sources": ["samples"], "data": config["data"], "k": 3, "bank": 50}
    assert call(pair, pairs, "run_dir=pairs").status == 0
    flow = training(
        data={"name": "Pairs", "path": "pairs"}, model={"name": "Flow"},
        learner={"name": "Refinement", "lr": 1e-3}, trainer={"max_steps": 2},
    )  # fmt: skip
    assert call(fit, flow, "run_dir=flow").status == 0
    asked = {"flow": "flow", "samples": "samples", "batch_size": 5}
    assert call(refine, asked, "run_dir=whole").status == 0
    made = []

    def told(*args: object) -> tuple:
        made.append(len(args[1]))
        if len(made) == 3:
            ctrl_c()
        return moved(*args)

    moved = verb.moved
    monkeypatch.setattr(verb, "moved", told)
    cut = call(refine, asked, "run_dir=cut")
    assert (cut.status, "with 10 of 23 samples kept" in cut.err) == (130, True)
    assert call(refine, asked, "run_dir=cut").status == 0
    assert made == [5, 5, 5, 5, 5, 3]
    same("whole", "cut", SAMPLES)


def test_what_another_number_of_ranks_has_made_is_made_again(tmp_path, capsys):
    run = Run(tmp_path / "run", "generate", {"n": 4})
    made = parts.Parts(run, Ranks(0, 2), device="cpu")
    made.keep("0", {"x": torch.ones(2)}, rows=2)
    made.flush()
    assert "0" in parts.Parts(run, Ranks(0, 2), device="cpu")
    assert capsys.readouterr().out == ""
    assert "0" not in parts.Parts(run, Ranks(0, 1), device="cpu")
    assert "by another number of ranks" in capsys.readouterr().out
    assert list((tmp_path / "run/.parts").iterdir()) == []


def waits(denoise, noise, c, *, steps: int = 2) -> Iterator:
    """Heun's steps; the third batch waits for a signal, as long as nobody has said `go`."""
    batches.append(len(noise))
    if len(batches) == 3 and not Path("go").exists():
        Path(f"waits_{os.environ['RANK']}").touch()
        time.sleep(100)
    yield from heun(denoise, noise, c, steps=steps)


def test_several_ranks_go_on_where_they_were(together, config):
    """Each with what it had; the files are those of as many ranks that nobody interrupted."""
    asked = {**config, "sampler": {"name": f"{HERE}.waits"}, "n": 31, "batch_size": 4}
    cut = together(generate, asked, "run_dir=cut")
    until = time.monotonic() + 120
    while not all((cut.folder / f"waits_{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < until, cut.said("err")
        time.sleep(0.1)
    for process in cut.processes:
        os.kill(process.pid, signal.SIGTERM)
    assert cut.wait() == [75, 75], cut.said("err")
    for err in cut.said("err"):
        assert "SIGTERM ended it, with 8 of 31 samples kept, of this rank's 15" in err
    (cut.folder / "go").touch()
    again = together(generate, asked, "run_dir=cut")
    assert again.wait() == [0, 0], again.said("err")
    whole = together(generate, asked, "run_dir=whole")
    assert whole.wait() == [0, 0], whole.said("err")
    same(str(cut.folder / "whole"), str(cut.folder / "cut"), SAMPLES, TRAJECTORIES)
    assert not (cut.folder / "cut/.parts").exists()


def test_evaluate_goes_on_where_it_was(call, config, at_once):
    """Every number is that of an evaluation that was not interrupted, and so is what it cost."""
    made = {key: value for key, value in config.items() if key != "trajectories"}
    asked = {"generate": {"mine": made}, "data": config["data"], "real": 20, "bank": 20}
    asked |= {"metrics": ["frechet", "energy_distance"], "draws": 2}
    assert call(evaluate, asked, "run_dir=whole").status == 0
    assert batches == 2 * [5, 5, 5, 5, 3]
    for cut_off in (3, 4):  # in the first draw, and in the second
        batches.clear()
        at.clear()
        at[cut_off] = ctrl_c
        cut = call(evaluate, asked, "run_dir=cut")
        assert cut.status == 130, cut.err
        done = {3: 15, 4: 15 + 5 + 3 + 10}[cut_off]
        assert f"with {done} of 46 samples kept; started again it goes on" in cut.err
    batches.clear()
    at.clear()
    assert call(evaluate, asked, "run_dir=cut").status == 0
    assert batches == [5, 5, 3]
    same("whole", "cut", "metrics/metrics.json")
    numbers = [
        json.loads(Path(run, "metrics/numbers.json").read_text()) for run in ("whole", "cut")
    ]
    for one, two in zip(*numbers, strict=True):
        for row in (one, two):
            row.pop("seconds_per_sample")
        assert one == two
