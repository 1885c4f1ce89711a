"""What only a GPU can show: the same numbers as on a CPU, by another way.

    launch/gpu_trial.sh tests                              # a process for each file, as it is meant
    LIGHTNING_CFG_GPU_TESTS=cpu python -m pytest tests/gpu  # the tests' own code, tried on a CPU

Without a GPU they are skipped, and played on a CPU (the second line) only what needs CUDA is.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

PLAYED = os.environ.get("LIGHTNING_CFG_GPU_TESTS") == "cpu"
CUDA = torch.cuda.is_available() and not PLAYED
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
sys.path.insert(0, str(Path(__file__).parent))  # for closeness.py, before xdist or importlib


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker("gpu")
        # an unforeseen warning of a device never tried is told, and hides nothing behind it
        item.add_marker(pytest.mark.filterwarnings("default:::lightning_cfg"))
        if not CUDA and not PLAYED:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
        elif not CUDA and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="has no meaning on a CPU"))


@pytest.fixture(scope="session")
def processes(processes):
    """Begun anew rather than forked: CUDA does not go on in a copy of a process that has it."""
    return torch.multiprocessing.get_context("spawn") if CUDA else processes


@pytest.fixture
def device() -> torch.device:
    """Where the tests run."""
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture
def accelerator() -> str:
    """The same in Lightning's words."""
    return "gpu" if CUDA else "cpu"


@pytest.fixture(autouse=True)
def by_itself(monkeypatch):
    """No test sees what another has compiled, nor goes on after a device that is lost."""
    if not CUDA:  # traced as on a GPU, and not made into code, which takes a minute a network

        def compile(self):
            self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager")

        monkeypatch.setattr(nn.Module, "compile", compile)
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if not CUDA:
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:  # every later call would fail, and say nothing of its own
        pytest.exit(f"the CUDA device is lost to this process: {error}", returncode=3)
