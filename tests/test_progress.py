"""How far a run is, in a log: a line a minute."""

import io
import re

import pytest

from lightning_cfg.runs import progress as module
from lightning_cfg.runs.progress import Lines, progress
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute(clock, capsys):
    with progress(50_000, " samples", initial=10_000) as bar:
        for second in range(1, 131):
            clock[0] = 1000 + second
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update(100)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "lightning_cfg: 16,000 of 50,000 samples, 32%, 0:01:00 so far, 0:05:40 left, loss 0.5",
        "lightning_cfg: 22,000 of 50,000 samples, 44%, 0:02:00 so far, 0:04:40 left, loss 0.5",
    ]


def test_an_unknown_total_and_too_many(clock, capsys):
    for total, said in ((None, "7 B, 0:02:00 so far"), (5, "5 of 5 B, 100%, 0:02:00 so far, 0:00")):
        clock[0] = 1000
        bar = progress(total, "B")
        clock[0] = 1120
        bar.update(7)
        assert f"lightning_cfg: {said}" in capsys.readouterr().err


def test_only_the_rank_that_speaks_and_a_bar_on_a_terminal(monkeypatch, capsys):
    assert not isinstance(progress(5, "B", shown=False), Lines)
    monkeypatch.setattr(type(module.sys.stderr), "isatty", lambda self: True, raising=False)
    with progress(5, " samples", file=io.StringIO()) as bar:
        assert not isinstance(bar, Lines)


@pytest.mark.parametrize("verb", ["fit", "generate", "evaluate"])
def test_verbs_say_how_far_they_are(call, training, mixture, monkeypatch, verb):
    monkeypatch.setattr(module, "EVERY", 0.0)
    sampler = {"name": "heun", "steps": 2}
    made = {"models": {"model": "exact"}, "guidance": "unguided", "data": mixture, "n": 20}
    made |= {"sampler": sampler, "batch_size": 5}
    config = {
        "fit": training(trainer={"max_steps": 3}, log_every=1),
        "generate": made,
        "evaluate": {"generate": {"mine": made}, "data": mixture, "real": 20, "bank": 20},
    }[verb]
    said = call({"fit": fit, "generate": generate, "evaluate": evaluate}[verb], config, "run_dir=r")
    assert said.status == 0
    what = "of 96 images" if verb == "fit" else "of 20 samples"
    lines = [line for line in said.err.splitlines() if what in line]
    assert len(lines) == (3 if verb == "fit" else 4)
    assert re.search(r", 100%, 0:00:\d\d so far, 0:00:00 left", lines[-1])
    assert ("loss " in lines[-1]) == (verb == "fit")
