"""Training on images that do not fit in memory: decoded while a step runs, or before each step.

    OMP_NUM_THREADS=1 python benchmarks/loading.py --images 4000 --side 64 --batch 512

JPEGs of smooth noise in a folder of two classes are trained on by `ImageFolder(memory=0)` and fit's
own batches. A step waits for --wait ms and leaves the CPU alone, as a GPU's does, or with --train
is that of UnshuffleUNet and AdamW on this CPU. Blocks of steps in turn, so that whatever else the
machine does meets all: decoded before each step, decoded two batches ahead, and kept in memory.
Printed are medians over the blocks, and the median ratio of neighbouring blocks. First the batches
of both ways are compared, bit by bit.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from lightning_cfg.data import ImageFolder
from lightning_cfg.runs.checkpoints import build_model
from lightning_cfg.training.batches import KeyedBatches, ahead

WAYS = ("before each step", "ahead", "in memory")


def pictures(folder: Path, images: int, side: int) -> None:
    """JPEGs of smooth noise, which compress as photographs do, in the folders cat and dog."""
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
    for i in range(images):
        small = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        place = folder / ("cat", "dog")[i % 2] / f"{i:06}.jpg"
        small.resize((side, side), Image.Resampling.BICUBIC).save(place, quality=90)


def jobs_of(data: ImageFolder, batch: int) -> Iterator[Callable[[], dict]]:
    """What makes the batches of a training from its first step."""
    batches = KeyedBatches(data, seed=0, batch_size=batch)
    batches.trainer = SimpleNamespace(
        world_size=1, accumulate_grad_batches=1, global_rank=0, global_step=0
    )
    return batches._jobs()


def step_of(data: ImageFolder, channels: int) -> Callable[[dict], None]:
    """A step of training on this CPU."""
    recipe = {"net": {"name": "UnshuffleUNet", "channels": channels, "blocks": 1}}
    model = build_model(recipe | {"model": {"name": "EDM"}}, data.shape, data.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(batch: dict) -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch["y"], batch["c"], batch["draws"]).mean().backward()
        optimizer.step()

    return step


def waiting(ms: float) -> Callable[[dict], None]:
    """A step that leaves the CPU alone."""
    return lambda batch: time.sleep(ms / 1e3)


def compare(lazy: ImageFolder, batch: int) -> None:
    one, other = (jobs_of(lazy, batch) for _ in range(2))
    for job, batch_ahead in zip(islice(one, 5), ahead(other), strict=False):
        batch_before = job()
        assert torch.equal(batch_before["y"], batch_ahead["y"])
        assert torch.equal(batch_before["c"], batch_ahead["c"])


def measure(asked: argparse.Namespace, folder: str, what: str, step: Callable) -> float:
    """Print a row; the median ratio of the time ahead to that before each step."""
    lazy, kept = ImageFolder(path=folder, memory=0), ImageFolder(path=folder)
    before = (job() for job in jobs_of(lazy, asked.batch))
    in_memory = (job() for job in jobs_of(kept, asked.batch))
    sources = dict(zip(WAYS, (before, ahead(jobs_of(lazy, asked.batch)), in_memory), strict=True))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for block in range(asked.blocks + 1):
        for way, source in sources.items():
            if way == "ahead":  # which has had the time of the other blocks to be ahead
                for _ in range(2):
                    step(next(source))
            start = time.perf_counter()
            for _ in range(asked.steps):
                step(next(source))
            if block:  # the first is a warming up
                times[way].append((time.perf_counter() - start) / asked.steps)
    sources["ahead"].close()
    ms = {way: 1e3 * statistics.median(taken) for way, taken in times.items()}
    pairs = zip(times["ahead"], times["before each step"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    each = ", ".join(f"{way} {value:.0f} ms" for way, value in ms.items())
    print(f"{what}: {each} a step; ahead takes {ratio:.3f} of the time before each step")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--train", type=int, help="also on this CPU, a network of so many channels")
    parser.add_argument("--wait", type=float, nargs="+", default=[50.0, 100.0, 150.0], help="ms")
    parser.add_argument("--steps", type=int, default=6, help="of each block")
    parser.add_argument("--blocks", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder), asked.images, asked.side)
        lazy = ImageFolder(path=folder, memory=0)
        compare(lazy, asked.batch)
        print(f"{asked.images} JPEGs of {asked.side} x {asked.side}, batch {asked.batch}, ", end="")
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        for ms in asked.wait:
            measure(asked, folder, f"a step of {ms:g} ms that waits", waiting(ms))
        if asked.train:
            measure(asked, folder, "a step on this CPU", step_of(lazy, asked.train))


if __name__ == "__main__":
    main()
