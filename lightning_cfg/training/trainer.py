"""Lightning's Trainer with this package's defaults."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.training.checkpointing import AtomicCheckpointIO

ENDLESS = "the data have no epochs, and trainer.max_steps is the length"
NO_VALIDATION = "fit has no validation: `evaluation` scores samples"
REFUSED = {  # keys of lightning.Trainer that fit sets itself, or that would change nothing
    "callbacks": "here it is callbacks",
    "plugins": "fit gives its own",
    "gradient_clip_val": "here it is learner.gradient_clip",
    "gradient_clip_algorithm": "learner.gradient_clip is the norm's",
    "log_every_n_steps": "here it is log_every",
    "logger": "here it is logger",
    "default_root_dir": "here it is run_dir",
    "use_distributed_sampler": "fit shares out the rows of every batch",
    "barebones": "fit logs and saves",
    "enable_autolog_hparams": "what a run was asked is in its config.yaml",
    "model_registry": "checkpoints are in the run directory",
    **dict.fromkeys(("max_epochs", "min_epochs", "min_steps", "overfit_batches"), ENDLESS),
    **dict.fromkeys(("limit_train_batches", "reload_dataloaders_every_n_epochs"), ENDLESS),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches"), NO_VALIDATION),
    **dict.fromkeys(("limit_predict_batches", "inference_mode"), NO_VALIDATION),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), NO_VALIDATION),
    "num_sanity_val_steps": NO_VALIDATION,
}


class Unprofiled(PassThroughProfiler):
    """No profile, in no time: Lightning enters one some eighty times a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


def trainer_for(
    trainer: dict,
    directory: Path,
    *,
    logger: list[Logger],
    log_every: int,
    callbacks: list[L.Callback],
) -> L.Trainer:
    """The Trainer of a run in `directory`, with the `trainer` section over our own defaults.

    Raises UserError for a key without effect, and for what Lightning refuses, such as an
    accelerator that is not there.
    """
    for name, value in trainer.items():
        if name in REFUSED and value is not False:  # which is what fit does, or no logger at all
            raise UserError(f"trainer.{name} cannot be set: {REFUSED[name]}")
    strategy = str(trainer.get("strategy", "auto"))
    if strategy != "auto" and strategy != "ddp" and not strategy.startswith("ddp_find_unused"):
        raise UserError(
            f"trainer.strategy={strategy} cannot be set: every process has the whole model and is "
            "started as one (auto, ddp)"
        )
    if str(trainer.get("precision")) in ("16", "16-mixed"):
        raise UserError(
            "trainer.precision=16-mixed cannot be set: its loss scaling makes gradients that are "
            "not finite, which here count as bad; use bf16-mixed"
        )
    ours = {
        "profiler": Unprofiled(),
        "inference_mode": False,
        "max_epochs": -1,
        "logger": logger,
        "log_every_n_steps": log_every,
        "enable_checkpointing": False,  # SaveLast does it
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": directory,
    }
    try:
        made = L.Trainer(**ours | trainer, plugins=[AtomicCheckpointIO()], callbacks=callbacks)
    except RuntimeError as error:  # of callbacks that would have one state
        raise UserError(f"callbacks: Lightning refuses them: {one_line(error)}") from error
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        raise UserError(f"trainer: Lightning refuses it: {one_line(error)}") from error
    leave_signals_alone(made)
    return made


def leave_constants_alone(trainer: L.Trainer, model: nn.Module) -> None:
    """Keep DDP from sending the first rank's buffers to all others before every step.

    Those of our modules are constants that each rank has by itself, and all ranks would wait for
    the slowest one. What keeps buffers of another kind, such as batch norm's, is sent as ever.
    """
    if not isinstance(trainer.strategy, DDPStrategy):
        return
    keepers = [type(part) for part in model.modules() if part._buffers]
    if all(kind.__module__.partition(".")[0] == "lightning_cfg" for kind in keepers):
        trainer.strategy._ddp_kwargs["broadcast_buffers"] = False


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning from handling signals: see `preemption`, which does.

    Its handlers start collectives wherever a signal lands, and hang. There is no public way: it
    registers them between on_fit_start and on_train_start, where other ranks may be waited for.
    Nor do ranks ask each other at every step whether one has come, which waits for all of them and
    for the GPU.
    """
    connector = trainer._signal_connector
    if not callable(getattr(connector, "register_signal_handlers", None)):
        raise AttributeError("this version of Lightning handles signals in another way")
    connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
