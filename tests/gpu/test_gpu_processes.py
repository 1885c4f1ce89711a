"""One process by NCCL: the collectives, a training by DDP, and a score."""

import socket

import pytest
import torch
from closeness import assert_within
from helpers.runs import logged
from helpers.toys import UNET
from torch import distributed

from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.runs.checkpoints import load
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate


@pytest.fixture
def group(device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = "nccl" if device.type == "cuda" else "gloo"
    place = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(backend, init_method=place, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_sums_and_rows_go_by_the_backend(group):
    """Of tensors on the CPU, which NCCL does not take."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    alone = Moments().add(x)
    together = Moments().add(x).all_reduce()
    assert together.count == 30
    torch.testing.assert_close(together.covariance.cpu(), alone.covariance, rtol=1e-12, atol=1e-12)
    for everywhere in (True, False):
        rows = Ranks()._in_turn(x, everywhere=everywhere)
        assert torch.equal(rows, x)
    assert Ranks().sum({"n": 2}) == {"n": 2}


@pytest.mark.parametrize("sections", [{}, {"data": {"name": "helpers.toys.Halves"}, "net": UNET}],
                         ids=["points", "images"])  # fmt: skip
def test_a_training_by_ddp_is_that_of_one_process(
    sections, training, together, accelerator, tmp_path
):
    """Under torchrun's environment; what `auto` chooses on images is compiled."""
    trainer = {"accelerator": accelerator, "deterministic": True, "precision": "32-true"}
    config = training(**sections, trainer=trainer)
    config["trainer"]["strategy"] = "ddp"
    ddp = together(fit, config, "run_dir=ddp", ranks=1)
    assert ddp.wait(150) == [0], ddp.said("err")
    assert "torchrun: nodes 1" in ddp.said("out")[0]
    del config["trainer"]["strategy"]
    fit(**config, run_dir=str(tmp_path / "alone"))
    losses = [[row["loss"] for row in logged(tmp_path / run)] for run in ("ddp", "alone")]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # Adam makes large what rounding is
    weights = [load(tmp_path / run)["state_dict"] for run in ("ddp", "alone")]
    both = [torch.cat([w.flatten() for w in state.values()]) for state in weights]
    assert_within(0.1, *both)


def test_scores_under_torchrun(training, mixture, together, accelerator, tmp_path):
    config = training(trainer={"accelerator": accelerator})
    base = fit(**config, run_dir=str(tmp_path / "base"))
    made = generate(
        models={"model": str(base)}, guidance={"name": "classifier_free", "scale": 2.0},
        sampler={"name": "heun", "steps": 4}, n=60, run_dir=str(tmp_path / "made"),
    )  # fmt: skip
    scored = {"samples": {"made": str(made)}, "data": mixture, "real": 50, "bank": 50}
    ranks = together(evaluate, scored, "run_dir=scored", ranks=1)
    assert ranks.wait(100) == [0], ranks.said("err")
    alone = evaluate(**scored, run_dir=str(tmp_path / "alone"))
    one, other = (tmp_path / run / "metrics/metrics.csv" for run in ("scored", alone.name))
    assert one.read_text() == other.read_text()
