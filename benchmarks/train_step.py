"""The Lightning training step of the fractal model against a bare PyTorch loop.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--pairs 20] [--steps 40] [--batch 1024 4096]

Both train the base network of conf/studies/fractal_quick.yaml with the same loss, keyed draws,
averages, clipping, warm-up and fused AdamW. One process trains both: Lightning's run, with its
Trainer as `fit` makes it, hands over to the bare loop after every block of steps, so that the
blocks alternate and whatever else the machine does meets both. The ratio of each pair of
neighbouring blocks is taken, and their median is the result; the target is at most 1.15.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch

from lightning_cfg.callbacks import Progress, SaveLast
from lightning_cfg.checkpoints import build_model
from lightning_cfg.config import build, load
from lightning_cfg.data.module import KeyedBatches
from lightning_cfg.draws import Draws, key
from lightning_cfg.ema import EMA
from lightning_cfg.fit import _logger, trainer_for
from lightning_cfg.runs import Run
from lightning_cfg.study import study

TARGET = 1.15
CONFIG = Path(__file__).parent.parent / "conf/studies/fractal_quick.yaml"


class Bare:
    """The same training without a framework: everything that changes the weights, no more."""

    def __init__(self, recipe: dict, data: object, clip: float, device: torch.device):
        learner = recipe["learner"]
        torch.manual_seed(key("init", recipe["seed"]))
        self.model = build_model(recipe, data.shape, data.num_classes).to(device)
        self.data, self.seed, self.size = data, recipe["seed"], recipe["batch_size"]
        self.clip, self.device, self.step_number = clip, device, 0
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learner["lr"], weight_decay=learner["weight_decay"], fused=True
        )
        warmup = max(1, learner["warmup"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warmup)
        )
        self.ema = EMA(self.model, list(learner["ema_half_life"]), learner["ema_ramp"])

    def step(self) -> None:
        draws = Draws(seed=self.seed, step=self.step_number, batch_size=self.size)
        batch = self.data.batch(draws)
        y, c = batch["y"].to(self.device), batch["c"].to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(y, c, draws).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        self.ema.update(self.step_number, self.size)


class Interleaved(L.Callback):
    """After each block of Lightning's steps, as many of the bare loop; the first is not counted."""

    def __init__(self, bare: Bare, *, steps: int):
        self.bare, self.steps = bare, steps
        self.lightning_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        # The hand-over is here, so that a block of Lightning's ends with all of its last step, the
        # loggers included. The batch of this step has been drawn: one more in each block, as well
        # as one fewer.
        step = trainer.global_step
        if step % self.steps:
            return
        if step:
            self.lightning_seconds.append(self._now() - self._start)
            start = self._now()
            for _ in range(self.steps):
                self.bare.step()
            self.bare_seconds.append(self._now() - start)
        self._start = self._now()

    def _now(self) -> float:
        if self.bare.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(batch_size: int, *, pairs: int, steps: int, accelerator: str) -> list[float]:
    """Ratios of Lightning's time to the bare loop's, one per pair of blocks."""
    config = load(study, CONFIG)
    section = config["fits"]["base"]
    recipe = {name: section[name] for name in ("net", "model", "learner")}
    recipe |= {"data": config["data"], "batch_size": batch_size, "seed": 0}
    data = build("lightning_cfg.data", recipe["data"])
    clip = section["learner"]["gradient_clip"]
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    bare = Bare(recipe, data, clip, device)

    torch.manual_seed(key("init", 0))
    model = build_model(recipe, data.shape, data.num_classes)
    module = build("lightning_cfg.learners", recipe["learner"], model)
    # a block of warming up, and one step more, at whose start the last block is over
    last = (pairs + 1) * steps + 1
    trainer = {**section["trainer"], "max_steps": last, "accelerator": accelerator, "devices": 1}
    with tempfile.TemporaryDirectory() as folder:
        blocks = Interleaved(bare, steps=steps)
        run = Run(folder, "fit", {})
        every = section["checkpoint_every"]
        module.described = {"config": recipe, "shape": list(data.shape), "num_classes": 2}
        engine = trainer_for(
            trainer,
            run.directory,
            logger=_logger("csv", run),
            log_every=section["log_every"],
            callbacks=[Progress(), SaveLast(run.directory, every=every), blocks],
        )
        engine.fit(module, KeyedBatches(data, seed=0, batch_size=batch_size))
    # both have trained the same network, or the comparison would mean nothing
    bare.step()
    for name, weight in bare.model.state_dict().items():
        torch.testing.assert_close(weight.cpu(), module.model.state_dict()[name].cpu())
    times = zip(blocks.lightning_seconds, blocks.bare_seconds, strict=True)
    times = list(times)[1:]
    per_step = [1e3 * statistics.median(side) / steps for side in zip(*times, strict=True)]
    print(f"batch {batch_size}: Lightning {per_step[0]:.2f} ms, bare {per_step[1]:.2f} ms a step")
    return [lightning / own for lightning, own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40, help="of each block")
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    asked = parser.parse_args()
    where = torch.cuda.get_device_name() if asked.accelerator == "gpu" else "CPU"
    print(f"torch {torch.__version__}, lightning {L.__version__}, {where}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    worst = 0.0
    for batch_size in asked.batch:
        ratios = measure(
            batch_size, pairs=asked.pairs, steps=asked.steps, accelerator=asked.accelerator
        )
        median = statistics.median(ratios)
        worst = max(worst, median)
        low, high = min(ratios), max(ratios)
        print(
            f"batch {batch_size}: ratio {median:.3f} (median of {len(ratios)} pairs, "
            f"{low:.3f} ... {high:.3f}), target {TARGET}: {'met' if median <= TARGET else 'MISSED'}"
        )
    sys.exit(worst > TARGET)


if __name__ == "__main__":
    main()
