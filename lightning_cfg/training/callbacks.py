"""Lightning's callbacks, and anyone's, in a training: which may be there, what they are told."""

from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)

from lightning_cfg.config import build
from lightning_cfg.errors import UserError, did_you_mean, one_line
from lightning_cfg.training.each_step import EachStep
from lightning_cfg.training.evaluate_samples import EvaluateSamples
from lightning_cfg.training.learners import Learner
from lightning_cfg.training.stop import StopWhenAsked

__all__ = [  # Lightning's own, which a config can name; some are then refused with a reason
    "BackboneFinetuning", "BatchSizeFinder", "DeviceStatsMonitor", "EMAWeightAveraging",
    "EarlyStopping", "GradientAccumulationScheduler", "LambdaCallback", "LearningRateFinder",
    "LearningRateMonitor", "ModelCheckpoint", "ModelPruning", "ModelSummary",
    "OnExceptionCheckpoint", "RichModelSummary", "RichProgressBar", "SpikeDetection",
    "StochasticWeightAveraging", "TQDMProgressBar", "ThroughputMonitor", "Timer", "WeightAveraging",
]  # fmt: skip

AVERAGES = "averages of the weights are learner.ema_half_life and learner.ema_std"
ALONE = "it trains by itself before the training, which then would not be the run that is asked for"
EPOCHS = "it works by epochs, and the data have none"
CLASHES = {  # with what fit does itself, or without effect in it
    lightnings.Checkpoint: "fit keeps checkpoints by checkpoint_every, keep and keep_by",
    lightnings.WeightAveraging: AVERAGES,
    lightnings.StochasticWeightAveraging: AVERAGES,
    lightnings.GradientAccumulationScheduler: EPOCHS,
    lightnings.BaseFinetuning: EPOCHS,
    lightnings.ModelPruning: EPOCHS,
    lightnings.BatchSizeFinder: ALONE,
    lightnings.LearningRateFinder: ALONE,
    lightnings.Timer: "here it is trainer.max_time",
    lightnings.BasePredictionWriter: "fit predicts nothing",
    lightnings.LambdaCallback: "a config holds no functions: name a class of your own by its path",
}
LOGGED = ("loss", "lr", "gradient_norm", "bad_gradients", "images_per_second")


def callbacks_of(sections: list[dict], scores: EvaluateSamples | None) -> list[L.Callback]:
    """The callbacks of the key `callbacks`.

    scores  of samples, which can be monitored too
    UserError for one that clashes with what fit does, or that would monitor what nobody logs.
    """
    made = [_callback(section, f"callbacks[{i}]") for i, section in enumerate(sections)]
    known = [*LOGGED, *(() if scores is None else scores.names)]
    own = any("." in section["name"] for section in sections)  # which may log anything
    for i, callback in enumerate(made):
        name = getattr(callback, "monitor", None)
        logged = not isinstance(name, str) or name in known or name.startswith("loss_")
        if not logged and not own:
            hint = did_you_mean(str(name), known)
            raise UserError(f"callbacks[{i}].monitor: nothing is logged as '{name}'; {hint}")
    return made


def _callback(section: dict, path: str) -> L.Callback:
    name = section["name"]
    try:
        made: Any = build("lightning_cfg.training.callbacks", section)
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} refuses it: {one_line(error)}") from error
    if not isinstance(made, L.Callback):
        raise UserError(f"{path}: {name} makes a {type(made).__name__}, no callback of Lightning's")
    for kind, why in CLASHES.items():
        if isinstance(made, kind):
            raise UserError(f"{path}: {name} cannot be used: {why}")
    if isinstance(made, lightnings.EarlyStopping) and made._check_on_train_epoch_end is None:
        made._check_on_train_epoch_end = False  # there are no epochs: see `Told`
    return made


class Told(EachStep):
    """Tells callbacks when there is something new to monitor, in the place of a validation's end.

    `on_validation_end` is called after each evaluation of samples or, without any, when the loss is
    logged; `trainer.callback_metrics` has all that was logged last. A training that one of them
    ends is finished: it stays so where it is called again.
    scores  the evaluation of samples, if there is one
    stop    by whose group the first rank's scores come to all ranks
    """

    def __init__(
        self, callbacks: list[L.Callback], scores: EvaluateSamples | None, stop: StopWhenAsked
    ):
        self.callbacks, self.scores, self.stop = callbacks, scores, stop
        self.ended = ""  # which callback ended the training and why, in words
        self._of = -1  # the steps that it was to have then

    def state_dict(self) -> dict:
        return {"ended": self.ended, "of": self._of}

    def load_state_dict(self, state_dict: dict) -> None:
        self.ended, self._of = state_dict["ended"], state_dict["of"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if self.ended and self._of == trainer.max_steps:  # it was killed before it could say so
            trainer.should_stop = True
        else:
            self.ended = ""

    def after_step(self, trainer: L.Trainer, learner: Learner, step: int) -> None:
        self._note(trainer, "a callback")
        if self.scores is None:
            new = step % trainer.log_every_n_steps == 0
        else:
            new = self.scores.due(step, trainer.max_steps)
            if new and self.callbacks and trainer.world_size > 1:  # only the first rank has scored
                told = self.stop.broadcast((learner.scores, learner.scored_at))
                learner.scores, learner.scored_at = told
                learner.publish(learner.scores)
            new = new and learner.scored_at == step  # an evaluation may have been left out
        for callback in self.callbacks if new else ():
            name = type(callback).__name__
            try:
                callback.on_validation_end(trainer, learner)
            except RuntimeError as error:
                if not isinstance(callback, lightnings.EarlyStopping):
                    raise
                raise UserError(f"callbacks: {name}: {one_line(error)}") from error
            reason = getattr(callback, "stopping_reason_message", None)
            self._note(trainer, f"{name}: {one_line(reason)}" if reason else name)

    def _note(self, trainer: L.Trainer, who: str) -> None:
        if trainer.should_stop and not self.ended:
            self.ended, self._of = (
                who.removesuffix(" Signaling Trainer to stop."),
                trainer.max_steps,
            )
