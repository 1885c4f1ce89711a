"""A real SLURM of two virtual nodes on this machine, if the script that starts one is at hand."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT.parent / "shared/tools/slurm_cluster.sh"


class Cluster:
    """SLURM's commands, with this interpreter as the jobs' python."""

    def __init__(self, configuration: Path):
        paths = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/slurm'}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
            "SLURM_CONF": str(configuration), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip

    def call(self, *words: object, cwd: Path | None = None) -> str:
        """What a command prints."""
        done = subprocess.run(
            [*map(str, words)], env=self.environment, cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, folder: Path, *words: object) -> str:
        """The number of a new job."""
        return self.call("sbatch", "--parsable", *words, cwd=folder)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        told = self.call("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def wait(self, number: str, what: Callable[[dict], bool], seconds: float = 180) -> dict:
        """Until this is true of the job."""
        end = time.monotonic() + seconds
        while not what(job := self.job(number)):
            assert time.monotonic() < end, f"job {number} after {seconds} s: {job}"
            time.sleep(0.5)
        return job

    def ended(self, number: str, seconds: float = 300) -> dict:
        """The job once it is neither waiting nor running."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE")
        return self.wait(number, lambda job: job["JobState"] in over, seconds)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not SCRIPT.is_file():
        pytest.skip(f"no script to start a SLURM with: {SCRIPT}")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM")
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))  # short, for a socket's name
    asked = {**os.environ, "DIR": str(folder), "NET": "netns", "NODES": "2"}

    def script(word: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(SCRIPT), word], env=asked, capture_output=True, text=True, timeout=300
        )

    up = script("up")
    try:
        if up.returncode:
            pytest.skip(f"SLURM did not start: {up.stdout[-500:]} {up.stderr[-500:]}")
        yield Cluster(folder / "etc/slurm.conf")
    finally:
        script("purge")  # also what it has installed, if anything
        shutil.rmtree(folder, ignore_errors=True)
