"""W&B where there is a key and no network, a mode that is none, or a server that refuses."""

import json
import socket
from pathlib import Path

import pytest

from lightning_cfg.errors import UserError
from lightning_cfg.runs import wandb_run
from lightning_cfg.verbs.fit import fit

KEY = "a" * 40


@pytest.fixture
def closed() -> str:
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_reachable(closed, listening, monkeypatch):
    assert wandb_run.reachable(listening)
    assert not wandb_run.reachable(closed)
    assert not wandb_run.reachable("http://no-such-host.invalid")
    monkeypatch.setenv("http_proxy", listening)  # which is asked in its place
    assert wandb_run.reachable("http://no-such-host.invalid")
    monkeypatch.setenv("http_proxy", closed.removeprefix("http://"))
    assert not wandb_run.reachable("http://no-such-host.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert wandb_run.reachable(listening)


def test_a_key_without_a_network_trains_offline(call, training, closed, monkeypatch):
    """As on compute nodes: it took half a minute and trained nothing."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    done = call(fit, training(), "run_dir=run", "logger=wandb")
    assert done.status == 0
    assert f"W&B: {closed} cannot be reached: offline" in done.err
    assert json.loads(Path("run/manifest.json").read_text())["step"] == 20
    assert list(Path("run/wandb").glob("offline-run-*"))


def test_a_mode_that_is_none_is_told_before_anything(call, training, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    refused = call(fit, training(), "run_dir=run", "logger=wandb")
    assert refused.status == 2
    assert refused.err.endswith("WANDB_MODE=onlin must be one of online, offline, disabled, "
                                "shared, dryrun, run\n")  # fmt: skip
    assert not Path("run/identity.json").exists()


def test_a_table_that_cannot_be_sent_says_that_it_is_scored(tmp_path, monkeypatch):
    import wandb

    def refuses(**asked: object):
        raise wandb.errors.CommError("nobody is there")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(UserError, match="is scored, but not sent to W&B: nobody is there"):
        wandb_run.log_scores(tmp_path, {}, [{"samples": "a", "class": 0, "fid": 1.0}])
