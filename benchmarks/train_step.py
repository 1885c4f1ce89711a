"""The training step of `fit` against a plain PyTorch loop, and what each choice of speed is worth.

    python benchmarks/train_step.py --net song --accelerator gpu --batch 512
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --net mlp --batch 1024 4096
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --net song --channels 32 --batch 4 --choices

mlp        the base network of conf/studies/fractal_quick.yaml, on the fractal
unshuffle  UnshuffleUNet on random bytes of MNIST's shape
song       EDM's DDPM++ on random bytes of CIFAR-10's shape

Both train the same network with the same loss, averages, clipping, warm-up and fused AdamW; the
plain loop is the one that a researcher would write: it draws from the global generator and averages
by torch._foreach_lerp_. One process trains both: Lightning's run, with its Trainer, callbacks and
logger as `fit` makes them, hands over to the plain loop after every block of steps, so that the
blocks alternate and whatever else the machine does meets both. The ratio of each pair of
neighbouring blocks is taken, and their median is the result. --cpu takes the process' CPU time for
it, where the cores are shared with others. On a CPU a first run of 20 steps in which the plain loop
takes our keyed draws shows that both train the same network.

--choices times the plain loop alone, compiled or not, channels-last or not, in bfloat16 or not: a
block of each in turn, medians of so many rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from lightning_cfg.config import build, load
from lightning_cfg.data.build import build_data
from lightning_cfg.data.images import Images
from lightning_cfg.diffusion.draws import Draws, key
from lightning_cfg.runs.checkpoints import build_model
from lightning_cfg.runs.precision import matmul
from lightning_cfg.runs.run import Run
from lightning_cfg.training.batches import KeyedBatches
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.learners import Described
from lightning_cfg.training.loggers import loggers_of
from lightning_cfg.training.progress import Progress
from lightning_cfg.training.speed import prepare, speed_of
from lightning_cfg.training.stop import StopWhenAsked
from lightning_cfg.training.trainer import trainer_for
from lightning_cfg.training.undisturbed import cheap_device_checks, undisturbed
from lightning_cfg.verbs.study import study

TARGETS = {"mlp": 1.15, "unshuffle": 1.03, "song": 1.03}
CONFIG = Path(__file__).parent.parent / "conf/studies/fractal_quick.yaml"
PLAIN = {
    "precision": "32-true",
    "compile": False,
    "channels_last": False,
    "matmul_precision": "highest",
}
CHOICES = {
    "plain float32": {},
    "compile": {"compile": True},
    "channels-last": {"channels_last": True},
    "TF32": {"matmul_precision": "high"},
    "bf16": {"precision": "bf16-mixed"},
    "compile, channels-last": {"compile": True, "channels_last": True},
    "compile, bf16": {"compile": True, "precision": "bf16-mixed"},
    "all": {
        "compile": True,
        "channels_last": True,
        "matmul_precision": "high",
        "precision": "bf16-mixed",
    },
}


class RandomBytes(Images):
    """4096 images of noise in 10 classes."""

    num_classes = 10

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        bytes_ = torch.randint(256, (4096, *shape), dtype=torch.uint8)
        self._bank = bytes_, torch.arange(4096) % 10


def task(net: str, channels: int | None, batch_size: int) -> tuple[dict, object]:
    """The sections of a run, and its data set."""
    learner = {"name": "Diffusion", "lr": 1e-3, "weight_decay": 0.0, "warmup": 100}
    learner |= {"gradient_clip": None, "ema_half_life": [500_000], "ema_ramp": 0.05}
    recipe = {"model": {"name": "EDM"}, "learner": learner, "seed": 0, "batch_size": batch_size}
    if net == "mlp":
        config = load(study, CONFIG)
        section = config["fits"]["base"]
        recipe |= {name: section[name] for name in ("net", "model", "learner")}
        return recipe, build_data(config["data"])
    if net == "unshuffle":
        recipe["net"] = {"name": "UnshuffleUNet", "channels": channels or 48, "blocks": 2}
        return recipe, RandomBytes((1, 28, 28))
    recipe["net"] = {"name": "SongUNet", "channels": channels or 128}
    return recipe, RandomBytes((3, 32, 32))


def model_of(recipe: dict, data: object, speed: dict) -> torch.nn.Module:
    torch.manual_seed(key("init", recipe["seed"]))
    model = build_model(recipe, data.shape, data.num_classes)
    prepare(model, speed)
    return model


class Plain:
    """Random numbers of a step as a plain loop draws them, from the global generator."""

    level = None

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.batch_size, *shape)

    def uniform(self) -> torch.Tensor:
        return torch.rand(self.batch_size)

    def integers(self, high: int) -> torch.Tensor:
        return torch.randint(high, (self.batch_size,))

    def permuted(self, n: int) -> torch.Tensor:
        return self.integers(n)


class Bare:
    """The same training without a framework: everything that changes the weights, no more.

    keyed  it draws as `fit` does
    """

    def __init__(
        self, recipe: dict, data: object, speed: dict, device: torch.device, *, keyed: bool = False
    ):
        learner, self.keyed = recipe["learner"], keyed
        self.model = model_of(recipe, data, speed).to(device)
        self.data, self.seed, self.size = data, recipe["seed"], recipe["batch_size"]
        self.clip, self.device, self.step_number = learner["gradient_clip"], device, 0
        self.half = speed["precision"] == "bf16-mixed"
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learner["lr"], weight_decay=learner["weight_decay"], fused=True
        )
        warmup = max(1, learner["warmup"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warmup)
        )
        self.half_life, self.ramp = learner["ema_half_life"][0], learner["ema_ramp"]
        self.weights = [p.detach() for p in self.parameters]
        self.average = [p.clone() for p in self.weights]

    def step(self) -> None:
        draws = Plain(self.size)
        if self.keyed:
            draws = Draws(seed=self.seed, step=self.step_number, batch_size=self.size)
        batch = self.data.batch(draws)
        y, c = batch["y"].to(self.device), batch["c"].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.model.loss(y, c, draws).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        ramped = min(self.half_life, self.step_number * self.size * self.ramp)
        torch._foreach_lerp_(self.average, self.weights, 1 - 0.5 ** (self.size / ramped))


class Interleaved(L.Callback):
    """After each block of Lightning's steps, as many of the bare loop; the first is not counted."""

    def __init__(self, bare: Bare, *, steps: int, clock: Callable[[], float]):
        self.bare, self.steps, self.clock = bare, steps, clock
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
            self.bare_seconds.append(timed(self.bare, self.steps, self.clock))
        self._start = self._now()

    def _now(self) -> float:
        return now(self.bare.device, self.clock)


def now(device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock()


def timed(bare: Bare, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
    start = now(bare.device, clock)
    for _ in range(steps):
        bare.step()
    return now(bare.device, clock) - start


def trained(
    asked: argparse.Namespace, recipe: dict, data: object, steps: int, callback: L.Callback
) -> torch.nn.Module:
    """Lightning's training of so many steps, as `fit` does it; the model."""
    speed = speed_of({"accelerator": asked.accelerator}, data.shape)
    module = build(
        "lightning_cfg.training.learners", recipe["learner"], model_of(recipe, data, speed)
    )
    module.described = Described.of(recipe, data)
    trainer = {"max_steps": steps, "accelerator": asked.accelerator, "devices": 1}
    with tempfile.TemporaryDirectory() as folder, matmul(speed["matmul_precision"]), undisturbed():
        run = Run(folder, "fit", {})
        save = SaveLast(run.directory, every=1000)
        engine = trainer_for(
            {**trainer, "precision": speed["precision"]},
            run.directory,
            logger=loggers_of("csv", run),
            log_every=50,
            callbacks=[Progress(), save, callback, StopWhenAsked(save)],
        )
        batches = KeyedBatches(data, seed=0, batch_size=recipe["batch_size"])
        with cheap_device_checks(engine.strategy.root_device):
            engine.fit(module, batches)
    return module.model


def check(asked: argparse.Namespace, recipe: dict, data: object, device: torch.device) -> None:
    """Both train the same network, or the comparison would mean nothing."""
    speed = speed_of({"accelerator": asked.accelerator}, data.shape)
    bare = Bare(recipe, data, speed, device, keyed=True)
    timed(bare, 20)
    model = trained(asked, recipe, data, 20, L.Callback())
    for name, weight in bare.model.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name])


def ratio(asked: argparse.Namespace, batch_size: int, device: torch.device) -> float:
    """The median ratio of Lightning's time to the plain loop's, over pairs of blocks."""
    recipe, data = task(asked.net, asked.channels, batch_size)
    if device.type == "cpu":  # elsewhere two runs differ by rounding, which Adam makes large
        check(asked, recipe, data, device)
    speed = speed_of({"accelerator": asked.accelerator}, data.shape)
    bare = Bare(recipe, data, speed, device)
    clock = time.process_time if asked.cpu else time.perf_counter
    blocks = Interleaved(bare, steps=asked.steps, clock=clock)
    # a block of warming up, and one step more, at whose start the last block is over
    trained(asked, recipe, data, (asked.pairs + 1) * asked.steps + 1, blocks)
    times = list(zip(blocks.lightning_seconds, blocks.bare_seconds, strict=True))[1:]
    own, other = (statistics.median(side) / asked.steps for side in zip(*times, strict=True))
    ratios = [lightning / own for lightning, own in times]
    median, target = statistics.median(ratios), TARGETS[asked.net]
    print(
        f"batch {batch_size}: Lightning {1e3 * own:.2f} ms, plain {1e3 * other:.2f} ms a step "
        f"({batch_size / own:.0f} images/s); ratio {median:.3f} (median of {len(ratios)} pairs, "
        f"{min(ratios):.3f} ... {max(ratios):.3f}), target {target}: "
        f"{'met' if median <= target else 'MISSED'}"
    )
    return median


def choices(asked: argparse.Namespace, batch_size: int, device: torch.device) -> None:
    """A row per choice: milliseconds a step, and its speed over plain float32."""
    bare = {}
    for name, choice in CHOICES.items():
        if device.type == "cpu" and "TF32" in name:
            continue
        recipe, data = task(asked.net, asked.channels, batch_size)
        if hasattr(data, "to"):
            data.to(device)
        speed = PLAIN | choice
        if len(data.shape) < 3 and speed["channels_last"]:
            continue
        bare[name] = Bare(recipe, data, speed, device), speed["matmul_precision"]
    seconds = {name: [] for name in bare}
    for _ in range(asked.pairs + 1):  # the first, in which compilation falls, is not counted
        for name, (loop, precision) in bare.items():
            with matmul(precision):
                seconds[name].append(timed(loop, asked.steps))
    plain = seconds["plain float32"][1:]
    for name, times in seconds.items():
        each = statistics.median(times[1:]) / asked.steps
        faster = statistics.median(p / t for p, t in zip(plain, times[1:], strict=True))
        print(
            f"batch {batch_size}: {name:24} {1e3 * each:8.2f} ms a step, "
            f"{batch_size / each:7.0f} images/s, {faster:.2f} times plain float32"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=TARGETS, default="mlp")
    parser.add_argument("--channels", type=int, help="of the first level, for images")
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40, help="of each block")
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall time")
    parser.add_argument("--choices", action="store_true")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    asked = parser.parse_args()
    device = torch.device("cuda" if asked.accelerator == "gpu" else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, lightning {L.__version__}, {where}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    missed = False
    for batch_size in asked.batch:
        if asked.choices:
            choices(asked, batch_size, device)
        else:
            missed |= ratio(asked, batch_size, device) > TARGETS[asked.net]
    sys.exit(missed)


if __name__ == "__main__":
    main()
