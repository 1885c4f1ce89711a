"""What a training keeps of its averages along the way, for those that are made afterwards."""

from pathlib import Path
from typing import Any

import lightning as L

from lightning_cfg.errors import UserError
from lightning_cfg.runs import snapshots
from lightning_cfg.runs.names import LAST
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.learners import Learner

MOST = 10_000  # files; each is as large as the averages


class Snapshots(EachStep):
    """Writes the averages by a power of time every `every` steps and after the last one.

    The files lie beside the checkpoints, which know them by their hashes; none is ever removed but
    those of steps that a training, started again, has still to come to.
    """

    def __init__(self, directory: Path, *, every: int):
        self.folder, self.every = (directory / LAST).parent, every
        self.kept: dict[int, str] = {}  # the files' hashes by step

    def check(self, learner: Learner, max_steps: int) -> None:
        """UserError where there is nothing to keep, or more than can be meant."""
        if not learner.ema.exponents:
            raise UserError(
                f"snapshots={self.every} keep averages by a power of time, and there are none: "
                "learner.ema_std, such as [0.05, 0.10]"
            )
        if max_steps > MOST * self.every:
            raise UserError(
                f"snapshots={self.every} are {max_steps // self.every} files of all averages in "
                f"trainer.max_steps={max_steps}, more than {MOST}"
            )

    def to_come(self, max_steps: int) -> dict[int, str]:
        """What the last checkpoint will know of them, without the hashes."""
        return dict.fromkeys([*range(self.every, max_steps, self.every), max_steps], "")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict) -> None:
        checkpoint["snapshots"] = dict(self.kept)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict) -> None:
        self.kept = dict(checkpoint.get("snapshots") or {})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        # one that goes on from elsewhere has none of the files; a run that was killed may have
        # written some after its checkpoint
        places = {step: snapshots.place(self.folder, step) for step in self.kept}
        self.kept = {step: self.kept[step] for step, file in places.items() if file.is_file()}
        for file in self.folder.glob(snapshots.place(Path(), 0).name.replace("0000000", "*")):
            if file not in places.values():
                file.unlink()

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        if (step % self.every and step != trainer.max_steps) or not trainer.is_global_zero:
            return
        self.kept[step] = snapshots.save(self.folder, step, learner.ema.state_dict())
