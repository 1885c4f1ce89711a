"""launch/gpu_trial.sh from its first line to its last, tiny and on a CPU."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "launch/gpu_trial.sh"
BENCH = """
import argparse, pathlib
asked = argparse.ArgumentParser()
asked.add_argument("--out"), asked.add_argument("--seconds", type=float)
asked = asked.parse_known_args()[0]
print("a line of the table", asked.seconds > 0)
pathlib.Path(asked.out, "gpu.json").write_text("[]")
"""


def packed(folder: Path) -> Path:
    """Twenty digits of noise for each split, as MNIST's files are published."""
    folder.mkdir()
    for split in ("train", "t10k"):
        pixels = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
        files = {
            "images-idx3": (b"\0\0\x08\x03", (20, 28, 28), bytes(pixels.flatten().tolist())),
            "labels-idx1": (b"\0\0\x08\x01", (20,), bytes(i % 10 for i in range(20))),
        }
        for name, (magic, shape, content) in files.items():
            head = magic + b"".join(n.to_bytes(4, "big") for n in shape)
            with gzip.open(folder / f"{split}-{name}-ubyte.gz", "wb") as file:
                file.write(head + content)
    return folder


def called(tmp_path: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess:
    known = {"DRY": "1", "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "JOBS": "3"}
    return subprocess.run(
        ["bash", str(SCRIPT), *parts], cwd=tmp_path, env={**os.environ, **known, **environment},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_all_parts_run_and_leave_eight_small_files_at_most(tmp_path):
    (tmp_path / "bench.py").write_text(BENCH)
    data = packed(tmp_path / "data")
    done = called(tmp_path, BENCH=str(tmp_path / "bench.py"), DATA=str(data))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done in" in done.stdout
    assert "all well" in done.stdout
    out = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert set(out) == {
        "trial.txt", "tests.txt", "tests.json", "gpu.json", "mnist.txt", "mnist.csv", "mnist.png"
    }  # fmt: skip
    tests = json.loads(out["tests.json"].read_text())
    outcomes = [test["outcome"] for test in tests["tests"]]
    assert set(outcomes) == {"passed"}
    assert len(outcomes) == 4
    assert {test["file"] for test in tests["tests"]} == {"test_gpu_sampling"}
    assert "a line of the table True" in out["trial.txt"].read_text()
    assert "step 4" in out["mnist.txt"].read_text()
    assert sum(file.stat().st_size for file in out.values()) < 2**20


def test_a_part_that_fails_hides_no_other(tmp_path):
    """And none is begun for which no time is left."""
    (tmp_path / "bench.py").write_text("raise SystemExit('broken')")
    parts = ("other", "bench", "mnist")
    done = called(tmp_path, *parts, BENCH=str(tmp_path / "bench.py"), DATA=str(tmp_path))
    assert done.returncode == 1
    for said in ("no part other", "broken", "== bench FAILED", "== mnist", "with failures"):
        assert said in done.stdout, said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they run")
def test_without_a_gpu_its_tests_are_skipped_and_say_why():
    file = Path(__file__).parent / "gpu/test_gpu_networks.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(file)],
        capture_output=True, text=True, cwd=SCRIPT.parent.parent,
        env={k: v for k, v in os.environ.items() if k != "LIGHTNING_CFG_GPU_TESTS"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs a CUDA device, and there is none" in done.stdout
    assert "passed" not in done.stdout
