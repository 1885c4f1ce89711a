"""The scripts of launch/, with commands in SLURM's place that write down how they are called."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder of commands on the PATH, and this interpreter as python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    put(folder, "python", f'exec {sys.executable} "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(LAUNCH.parent))
    for name in os.environ:
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    return folder


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def called(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_bash_and_can_be_run(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.suffix == ".sbatch" or script.stat().st_mode & stat.S_IXUSR


def test_a_study_is_a_job_for_each_stage(commands, tmp_path):
    """Each waits for the jobs of the stages that it needs; the report for all."""
    put(commands, "sbatch", 'touch log; n=$(($(wc -l <log) + 1))\n'
                            'printf "%s|" "$STAGE" "$@" >>log; echo >>log; echo $n')  # fmt: skip
    study = str(LAUNCH.parent / "conf/studies/fractal_quick.yaml")
    done = called("slurm_study.sbatch", study, "run_dir=study", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in (tmp_path / "log").read_text().splitlines()]
    stages = [line[0] for line in lines]
    assert len(stages) == len(set(stages)) == 38
    needs = {
        line[0]: [w.removeprefix("--dependency=afterok:").split(":")
                  for w in line if w.startswith("--dependency")]
        for line in lines
    }  # fmt: skip

    def numbers(*names: str) -> list[list[str]]:
        return [[str(stages.index(name) + 1) for name in names]]

    assert needs["fit base"] == needs["evaluate real"] == []
    assert needs["generate classifier_free 2 fresh"] == numbers("fit base")
    assert needs["refine classifier_free 3 all"] == numbers(
        "fit flow classifier_free all", "generate classifier_free 3 fresh"
    )
    assert sorted(needs[""][0], key=int) == [str(i) for i in range(1, 38)]
    assert lines[0][-3:-1] == [study, "run_dir=study"]


def test_a_study_that_is_mistaken_submits_nothing(commands, tmp_path):
    put(commands, "sbatch", "touch log")
    done = called("slurm_study.sbatch", "none.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot read the config file 'none.yaml'" in done.stderr
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("state, again", [("RUNNING", True), ("COMPLETING", False)])
def test_a_run_that_was_asked_to_end_is_requeued(commands, tmp_path, monkeypatch, state, again):
    put(commands, "srun", 'printf "%s|" "$@" >words; exit 75')
    put(commands, "scontrol", f'echo "$@" >>log; [[ $1 != show ]] || echo "JobState={state} R"')
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_JOB_NODELIST": "n1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    done = called("slurm_fit.sbatch", "--config", "x.yaml", cwd=tmp_path)
    assert done.returncode == 75
    log = (tmp_path / "log").read_text().splitlines()
    assert log == ["show job 7", "requeue 7"] if again else ["show job 7"]
    words = (tmp_path / "words").read_text().split("|")
    assert words[1:-1] == [
        "python", "-m", "lightning_cfg.fit", "run_dir=runs/fit_7", "--config", "x.yaml"
    ]  # fmt: skip


def test_samples_that_were_asked_to_end_are_requeued(commands, tmp_path, monkeypatch):
    put(commands, "srun", 'printf "%s|" "$@" >words; exit 75')
    put(commands, "scontrol", 'echo "$@" >>log; [[ $1 != show ]] || echo "JobState=RUNNING R"')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = called("slurm_verb.sbatch", "generate", "--config", "x.yaml", cwd=tmp_path)
    assert done.returncode == 75
    assert (tmp_path / "log").read_text().splitlines() == ["show job 7", "requeue 7"]
    words = (tmp_path / "words").read_text().split("|")
    assert words[1:-1] == ["python", "-m", "lightning_cfg.generate", "--config", "x.yaml"]


def test_a_run_that_fails_is_not_requeued(commands, tmp_path, monkeypatch):
    put(commands, "srun", "exit 2")
    put(commands, "scontrol", "touch log")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_JOB_NODELIST": "n1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert called("slurm_fit.sbatch", "--config", "x.yaml", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "log").exists()


def test_runs_of_an_agent_go_by_srun(commands, tmp_path):
    """The agent itself does not, or every task would be one."""
    put(commands, "srun", 'printf "srun|%s\\n" "$2" >>log; shift; exec "$@"')
    put(commands, "python", 'printf "python|%s|" "$@" >>log; echo >>log; '
                            '[[ $2 != wandb ]] || /usr/bin/env python train.py seed=1')  # fmt: skip
    done = called("slurm_sweep.sbatch", "me/it/abc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().splitlines() == [
        "python|-m|python|wandb|python|agent|python|me/it/abc|",
        f"srun|{commands / 'python'}",
        "python|train.py|python|seed=1|",
    ]


def test_an_array_runs_a_sweep_without_an_agent(commands, tmp_path, monkeypatch):
    put(commands, "srun", 'printf "%s|" "$@" >log')
    assert called("slurm_sweep.sbatch", "sweep.yaml", cwd=tmp_path).returncode != 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert called("slurm_sweep.sbatch", "sweep.yaml", "device=cpu", cwd=tmp_path).returncode == 0
    words = (tmp_path / "log").read_text()
    assert words == "python|-m|lightning_cfg.sweep|sweep.yaml|--index|3|device=cpu|"
