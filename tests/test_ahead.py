"""Batches made while a step runs: the same, in order, bit for bit, of a run that goes on too."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cfg.data import ImageFolder
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.training.batches import AHEAD, ahead
from lightning_cfg.verbs.fit import fit


def alive() -> int:
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_results_come_in_order_while_the_user_works_and_at_most_so_many_ahead():
    began: list[int] = []
    ready = threading.Event()

    def job(i: int):
        def work() -> int:
            began.append(i)
            if i == AHEAD:
                ready.set()
            return i

        return work

    results = ahead(job(i) for i in range(20))
    assert next(results) == 0
    assert ready.wait(10)  # without being asked for
    time.sleep(0.05)
    assert began == list(range(AHEAD + 1))
    assert list(results) == list(range(1, 20))
    assert began == list(range(20))
    assert alive() == 0


def test_an_error_comes_where_its_result_would_have_and_no_thread_is_left():
    def job(i: int):
        def work() -> int:
            if i == 3:
                raise UserError("item 3")
            return i

        return work

    results, seen = ahead(job(i) for i in range(9)), []
    with pytest.raises(UserError, match="item 3"):
        seen.extend(iter(results))
    assert (seen, alive()) == ([0, 1, 2], 0)
    cut = ahead(job(i) for i in range(9))
    next(cut)
    cut.close()
    assert alive() == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures")
    y = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for i, one in enumerate(y):
        place = Path(path, f"{i % 2}", f"{i:02}.jpg")
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(one).save(place)
    return str(path)


@pytest.fixture
def trained(training, pictures, tmp_path):
    def train(name: str, steps: int, memory: float) -> dict:
        data = {"name": "ImageFolder", "path": pictures, "flip": True, "memory": memory}
        net = {"name": "UnshuffleUNet", "channels": 8, "blocks": 1, "channel_mult": [1]}
        trainer = {"max_steps": steps, "accumulate_grad_batches": 2}
        config = training(data=data, net=net, batch_size=10, trainer=trainer)
        run = fit(run_dir=str(tmp_path / name), **config)
        return torch.load(run / LAST, weights_only=True)["state_dict"]

    return train


def test_a_training_ahead_is_the_one_in_memory_also_when_it_goes_on(trained, pictures):
    assert ImageFolder(path=pictures, memory=0).reads_files
    assert not ImageFolder(path=pictures).reads_files
    whole, read = trained("memory", 7, 1), trained("ahead", 7, 0)
    trained("cut", 4, 0)
    resumed = trained("cut", 7, 0)
    assert alive() == 0
    for name, weight in whole.items():
        assert torch.equal(weight, read[name])
        assert torch.equal(weight, resumed[name])
