"""Lightning's Trainer with this package's defaults, its loggers, and what it may say."""

import logging
import warnings
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_cfg.errors import UserError
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.run import Run
from lightning_cfg.training.checkpointing import AtomicCheckpointIO


def trainer_for(
    trainer: dict, directory: Path, *, logger: object, log_every: int, callbacks: list[L.Callback]
) -> L.Trainer:
    """The Trainer of a run in `directory`, with the `trainer` section over our own defaults.

    Raises UserError for what Lightning refuses, such as an accelerator that is not there.
    """
    quiet()
    for name in ("callbacks", "plugins"):
        if name in trainer:
            raise UserError(f"trainer.{name} cannot be set: fit gives its own")
    instead = {"gradient_clip_val": "learner.gradient_clip", "log_every_n_steps": "log_every"}
    for name, ours in instead.items():
        if name in trainer:
            raise UserError(f"trainer.{name} cannot be set: here it is {ours}")
    if str(trainer.get("precision")) in ("16", "16-mixed"):
        raise UserError(
            "trainer.precision=16-mixed cannot be set: its loss scaling makes gradients that are "
            "not finite, which here count as bad; use bf16-mixed"
        )
    try:
        made = L.Trainer(
            **{
                "inference_mode": False,  # the default breaks classifier guidance in validation
                "max_epochs": -1,
                "logger": logger,
                "log_every_n_steps": log_every,
                "enable_checkpointing": False,  # SaveLast does it
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "default_root_dir": directory,
                **trainer,
            },
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
        )
        # its handlers start collectives wherever a signal lands, and hang: see `preemption`
        made._signal_connector.register_signal_handlers = lambda: None
        return made
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: Lightning refuses it: {error}") from error


def logger_of(name: str, run: Run) -> object:
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        folder, title = run.directory, run.directory.name
        folder.mkdir(parents=True, exist_ok=True)
        config = wandb_run.dotted({**run.identity["settings"], **run.free})
        return WandbLogger(
            save_dir=folder.absolute(),  # W&B's own process may be in another place
            project=wandb_run.PROJECT,
            name=title,
            id=wandb_run.run_id(folder),  # so that a run that goes on continues its curve
            mode=wandb_run.mode(),
            config=config,
        )
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            return TensorBoardLogger(run.directory, name="logs")
        except ModuleNotFoundError as error:
            raise UserError(
                "logger=tensorboard needs its package: pip install 'lightning_cfg[tensorboard]'"
            ) from error
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(run.directory, name="logs")  # each resume in a folder of its own


def quiet() -> None:
    """Lightning's advertising and its advice for other data loaders than ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in (".*srun.*", ".*LeafSpec.*", ".*GPU available.*"):
        warnings.filterwarnings("ignore", advice)
