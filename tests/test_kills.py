"""Killed at any file operation, a run that is started again ends as if nothing had happened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.dying import Dying
from helpers.killed import Killed
from helpers.runs import assert_same, kept

from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import LAST, SAMPLES
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

POINTS = 30


@pytest.fixture
def killed_at(call, monkeypatch) -> Callable[..., int]:
    """Call a verb that is killed at a file operation, or count these."""

    def run(at: int | None, *words: object) -> int:
        with monkeypatch.context() as patch:
            dying = Dying(patch, at)
            if at is None:
                assert call(*words).status == 0
            else:
                with pytest.raises(Killed):
                    call(*words)
        return dying.count

    return run


def left_over(run: str) -> list[Path]:
    return [path for path in Path(run).rglob("*") if ".tmp" in path.name]


def sampled(count: int, points: int) -> list[int]:
    """So many of the numbers 0 ... count - 1, evenly, the last ones among them."""
    last = set(range(max(0, count - 6), count))
    return sorted({i * count // points for i in range(points)} | last)


def test_fit_that_keeps_the_best(call, training, killed_at):
    """`keep` loses none, above all not the one of the last step."""
    config = training(keep=2, learner={"name": "Diffusion", "lr": 1e-3, "warmup": 5})
    config |= {"trainer": {"max_steps": 15, "accelerator": "cpu"}}
    assert call(fit, config, "run_dir=whole").status == 0  # what is done once a process is done
    count = killed_at(None, fit, config, "run_dir=counted")
    best = kept("whole")
    assert 15 in best  # or the last save does not say anything
    for at in sampled(count, POINTS):
        killed_at(at, fit, config, "run_dir=parts")
        again = call(fit, config, "run_dir=parts")
        assert again.status == 0, (at, again.err)
        assert kept("parts") == best, at
        assert_same(Path("whole", LAST), Path("parts", LAST))
        for step in best:
            name = f"checkpoints/best_{step:06d}.ckpt"
            assert_same(Path("whole", name), Path("parts", name))
        assert left_over("parts") == [], at
        shutil.rmtree("parts")


def test_generate(call, mixture, killed_at):
    config = {"models": {"model": "exact"}, "guidance": "unguided", "data": mixture, "n": 4}
    config |= {"sampler": {"name": "heun", "steps": 2}}
    assert call(generate, config, "run_dir=whole").status == 0
    count = killed_at(None, generate, config, "run_dir=counted")
    for at in range(count):
        killed_at(at, generate, config, "run_dir=parts")
        again = call(generate, config, "run_dir=parts")
        assert again.status == 0, (at, again.err)
        assert sha256(Path("parts", SAMPLES)) == sha256(Path("whole", SAMPLES))
        assert json.loads(Path("parts/manifest.json").read_text())["outputs"]
        assert left_over("parts") == [], at
        shutil.rmtree("parts")
