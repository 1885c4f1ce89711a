"""What the tests of the verbs share: a small data set, a small training run, and a caller."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.processes import Together

from lightning_cfg.cli import main
from lightning_cfg.config import trust
from lightning_cfg.metrics.meaning import COLUMNS
from lightning_cfg.training import preemption

pytest.register_assert_rewrite("helpers.runs")
torch.set_num_threads(1)  # bit for bit equality is per number of threads
# Started in the background, or by nohup, these would be ignored, also by the processes of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Reference statistics of tests are not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path_factory.mktemp("statistics")))
        yield


@pytest.fixture(autouse=True)
def own_declarations():
    """What a test trusts, or declares of metrics, is forgotten after it, but not a module's."""
    columns = dict(COLUMNS)
    with trust.only(trust.trusted()):
        yield
    COLUMNS.clear()
    COLUMNS.update(columns)


@pytest.fixture(autouse=True)
def own_signals():
    """A command line called within a test watches signals to the end of its process, as it should.

    That process is the one of all tests, so what it watches is forgotten after each of them.
    """
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    preemption.forget()


@pytest.fixture(scope="session")
def mixture() -> dict:
    """The `data` section of two classes of two Gaussians each."""
    return {
        "name": "Mixture",
        "means": [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],
        "stds": [0.1, 0.2, 0.1, 0.2],
        "labels": [0, 0, 1, 1],
    }


@pytest.fixture(scope="session")
def training(mixture) -> Callable[..., dict]:
    """A `fit` config of 20 small steps; keywords replace its sections, `trainer` adds to it."""

    def make(*, trainer: dict | None = None, **sections: object) -> dict:
        return {
            "data": mixture,
            "net": {"name": "MLP", "width": 16, "blocks": 1, "fourier": 4, "fourier_std": 1.0},
            "model": {"name": "EDM", "label_dropout": 0.2},
            "learner": {
                "name": "Diffusion",
                "lr": 1e-2,
                "warmup": 5,
                "ema_half_life": [100, 1000],
            },
            "batch_size": 32,
            "checkpoint_every": 5,
            "log_every": 5,
            **sections,
            "trainer": {"max_steps": 20, "accelerator": "cpu", **(trainer or {})},
        }

    return make


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Callable[..., SimpleNamespace]:
    """Call a verb as the command line does, in an empty folder: its status, out and err."""
    monkeypatch.chdir(tmp_path)

    def run(verb: Callable, config: dict | str, *overrides: object) -> SimpleNamespace:
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        Path("config.yaml").write_text(text)
        words = [verb.__name__, "--config", "config.yaml", *map(str, overrides)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        try:
            main(verb)
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


@pytest.fixture(scope="session")
def processes():
    """A context whose processes are copies of one that has imported everything once."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_cfg.fit"])
    return context


@pytest.fixture
def together(processes, tmp_path) -> Callable[..., Together]:
    started = []

    def start(verb: Callable, config: dict, *words: object, **how: object) -> Together:
        started.append(Together(processes, tmp_path, verb, config, *words, **how))
        return started[-1]

    yield start
    for one in started:
        one.wait(0)
