"""What `fit` says before it trains: what it has read, what is trained, on what, and how long."""

import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

from lightning_cfg.interfaces import DataSet
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner

FEW = 12  # classes that are named one by one
WARM, MEASURED, SECONDS = 3, 10, 5.0  # steps not counted, steps and seconds that are, at least


def tell(data: DataSet, learner: Learner, engine: L.Trainer, batch_size: int, speed: dict) -> None:
    """Print what is trained, in three lines, and on standard error what of the data is odd."""
    for doubt in data.doubts:
        print(f"lightning_cfg: warning: {doubt}", file=sys.stderr)
    n, said = in_words(data)
    print(f"data: {said}")
    numbers = sum(p.numel() for p in learner.model.parameters())
    net = getattr(learner.model, "net", learner.model)
    how = ", compiled" * bool(speed.get("compile"))
    device = engine.strategy.root_device
    several = "" if engine.world_size == 1 else f" x {engine.world_size}"
    print(
        f"network: {type(net).__name__}, {numbers:,} parameters, {type(learner.model).__name__}; "
        f"on {device}{several}, {speed['precision']}{how}"
    )
    times = engine.max_steps * batch_size / (n or 1)
    epochs = (
        f", each image {times:,.0f} times" if times >= 10 else f", each image {times:.2g} times"
    )
    steps = f"{engine.max_steps:,} steps of batch {batch_size:,}"
    print(f"training: {steps}{epochs if n else ''}", flush=True)


def in_words(data: DataSet) -> tuple[int | None, str]:
    """How many points there are to train on, if they are counted, and what is told of the data."""
    name = type(data).__name__ + (f" {data.path}" if data.path else "")
    shape = " x ".join(map(str, data.shape))
    if data.rows is None:
        classes = f", {data.num_classes} classes" if data.num_classes else ""
        return None, f"{name}: points of {shape}{classes}"
    c = data.rows("bank")[2]
    what = f"{name}: {len(c):,} images of {shape}"
    if not data.num_classes:
        return len(c), f"{what}, without classes"
    counts = c.bincount(minlength=data.num_classes).tolist()
    if len(counts) > FEW:
        return len(c), f"{what}, {len(counts):,} classes of {min(counts):,} to {max(counts):,}"
    names = data.class_names or [f"class {k}" for k in range(len(counts))]
    each = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True))
    return len(c), f"{what}, {len(counts)} class{'es' * (len(counts) > 1)}: {each}"


class TellTime(EachStep):
    """One line of how long the training will take, once its first steps have been measured.

    Nothing of one that is over before.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._from, self._told = trainer.global_step + WARM, False

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if self._told or step < self._from:
            return
        if step == self._from:
            self._began = time.monotonic()
            return
        seconds, steps = time.monotonic() - self._began, step - self._from
        if steps < MEASURED or seconds < SECONDS:
            return
        self._told, left = True, trainer.max_steps - step
        if trainer.is_global_zero and left:
            each = seconds / steps
            tqdm.write(
                f"training: about {duration(left * each)} for the {left:,} steps that are left, "
                f"{1e3 * each:.3g} ms each"
            )


def duration(seconds: float) -> str:
    """A time in the largest unit that it has, with one more: 2 h 5 min, 3 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
