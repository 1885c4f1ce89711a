"""One process writes a directory at a time, and what killed ones leave locks nobody out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import LOCK, is_empty, remove_temporaries, write_text
from lightning_cfg.runs.lock import Lock
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

HOLDER = """
import sys, time
from pathlib import Path
from lightning_cfg.runs.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("has it", flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path) -> Callable[[Path], subprocess.Popen]:
    """Another process that has a directory."""
    started = []

    def hold(directory: Path) -> subprocess.Popen:
        words = [sys.executable, "-c", HOLDER, str(directory)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "has it\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.wait()


def sampling(**keys: object) -> dict:
    return {
        "models": {"model": "exact"},
        "guidance": "unguided",
        "sampler": {"name": "heun", "steps": 2},
        "n": 4,
        **keys,
    }


@pytest.mark.parametrize("name", ["fit", "generate"])
def test_a_directory_that_another_process_writes_is_refused(
    call, training, mixture, held, tmp_path, name
):
    asked = {"fit": (fit, training()), "generate": (generate, sampling(data=mixture))}
    other = held(tmp_path / "run")
    before = (tmp_path / "run" / LOCK).read_text()
    refused = call(*asked[name], "run_dir=run")
    assert refused.status == 2
    assert f"run is being written by process {other.pid} of " in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert [path.name for path in Path("run").iterdir()] == [LOCK]
    assert (tmp_path / "run" / LOCK).read_text() == before


def test_after_a_kill_it_can_be_taken_at_once(call, mixture, held, tmp_path):
    other = held(tmp_path / "run")
    other.kill()
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    assert call(generate, sampling(data=mixture), "run_dir=run").status == 0
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_finished_run_takes_no_lock(call, mixture, held, tmp_path):
    assert call(generate, sampling(data=mixture), "run_dir=run").status == 0
    held(tmp_path / "run")
    again = call(generate, sampling(data=mixture), "run_dir=run")
    assert (again.status, "finished already" in again.out) == (0, True)


def test_a_process_has_it_once_and_a_forked_child_does_not(tmp_path):
    lock, other = Lock(tmp_path / "a/b"), Lock(tmp_path / "a/b")
    lock.take()
    lock.take()
    with pytest.raises(UserError, match=f"process {os.getpid()} of "):
        other.take()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    lock.release()
    other.take()  # though the child lives
    other.release()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_folders_made_for_nothing_are_removed(tmp_path):
    (tmp_path / "there").mkdir()
    lock = Lock(tmp_path / "there/a/b")
    lock.take()
    lock.release()
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_the_work(call, mixture, tmp_path):
    (tmp_path / "file").write_text("")
    refused = call(generate, sampling(data=mixture), "run_dir=file/run")
    assert refused.status == 2
    assert "file/run cannot be written: " in refused.err


def test_without_locks_it_says_so_and_looks_again_before_writing(tmp_path, monkeypatch, capsys):
    def none(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(UserError, match=r"belongs to another run .*number: 1 there, 2 here"):
        slow(run_dir=str(tmp_path / "run"), number=2, meanwhile=1)
    assert "this file system has no locks" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/out").read_text()) == 1


@verb()
def slow(run: Run, /, *, run_dir: str, number: int = 0, meanwhile: int = 0) -> Path:
    """A verb, during whose work another run of it, of another number, may begin and end."""
    run.claim()
    if meanwhile:
        slow(run_dir=run_dir, number=meanwhile)
    run.begin()
    run.finish(write_text(run.directory / "out", str(number)))
    return run.directory


RACER = """
import sys, time
from pathlib import Path
from lightning_cfg.cli import main
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.run import Run, verb

@verb()
def racing(run: Run, /, *, run_dir: str, number: int) -> Path:
    run.claim()
    time.sleep(1)
    run.begin()
    run.finish(write_text(run.directory / "out", str(number)))
    return run.directory

racing.__module__ = "__main__"
main(racing, ["--config", "race.yaml", "run_dir=run", f"number={sys.argv[1]}"])
"""


def test_of_two_runs_with_other_settings_one_wins(tmp_path):
    (tmp_path / "race.py").write_text(RACER)
    (tmp_path / "race.yaml").write_text("{}")
    started = [
        subprocess.Popen(
            [sys.executable, "race.py", str(number)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in (1, 2)
    ]
    said = [process.communicate()[1] for process in started]
    statuses = [process.returncode for process in started]
    assert sorted(statuses) == [0, 2], said
    won = statuses.index(0)
    assert said[won] == ""
    assert len(said[1 - won].strip().splitlines()) == 1
    assert (tmp_path / "run/out").read_text() == str(won + 1)
    assert json.loads((tmp_path / "run/manifest.json").read_text())["settings"]["number"] == won + 1


# What killed processes leave


@pytest.mark.parametrize(
    "left",
    [
        [".identity.json.1.tmp.json"],
        [".lock"],
        ["checkpoints/.last.ckpt.7.tmp.ckpt", ".config.yaml.7.tmp.yaml", ".lock"],
        ["samples/.images.3.tmp/000000/000000.png"],
        ["empty/"],
    ],
)
def test_what_a_kill_leaves_locks_nobody_out(call, mixture, tmp_path, left):
    for name in left:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("half")
    assert is_empty(tmp_path / "run")
    assert call(generate, sampling(data=mixture), "run_dir=run").status == 0
    assert not [p for p in (tmp_path / "run").rglob("*") if ".tmp" in p.name or p.name == LOCK]


@pytest.mark.parametrize("name", [".git", "a.1.tmp.txt", ".a.tmp.json", ".a.b.tmp", "notes.txt"])
def test_what_is_not_ours_still_does(call, mixture, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    refused = call(generate, sampling(data=mixture), "run_dir=run")
    assert (refused.status, "exists and is no run of ours" in refused.err) == (2, True)
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_stale_temporaries_of_a_run_are_removed_when_it_goes_on(call, training, tmp_path):
    assert call(fit, training(), "run_dir=run", "trainer.max_steps=5").status == 0
    (stale := tmp_path / "run/checkpoints/.last.ckpt.1.tmp.ckpt").write_text("as large as one")
    assert call(fit, training(), "run_dir=run").status == 0
    assert not stale.exists()


def test_those_of_other_runs_inside_are_left_alone(tmp_path):
    ours = tmp_path / ".study.json.1.tmp.json"
    theirs = [tmp_path / f"stages/{name}/.x.1.tmp.json" for name in ("a", "b")]
    for path in (ours, *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (tmp_path / "stages/a" / LOCK).write_text("")
    (tmp_path / "stages/b/identity.json").write_text("{}")
    remove_temporaries(tmp_path)
    assert [path.exists() for path in (ours, *theirs)] == [False, True, True]
