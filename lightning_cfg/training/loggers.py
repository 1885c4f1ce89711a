"""Where a training logs to: Lightning's loggers, by our names or by a dotted path."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning_cfg.config import build
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.run import Run

if TYPE_CHECKING:  # Lightning takes seconds, and these are a config's keys too
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

__all__ = ["csv", "tensorboard", "wandb"]  # what a config can name


def csv(run: Run, /) -> "CSVLogger":
    """logs/version_N/metrics.csv of the run, a folder for each call that goes on with it."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(run.directory, name="logs")


def tensorboard(run: Run, /) -> "TensorBoardLogger":
    """TensorBoard's files in logs/ of the run."""
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.directory, name="logs")


def wandb(
    run: Run,
    /,
    *,
    project: str | None = None,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: list[str] = [],
    notes: str | None = None,
) -> "WandbLogger":
    """A run of Weights & Biases, the same one however often it goes on.

    project   left out, $WANDB_PROJECT or lightning_cfg
    entity    left out, $WANDB_ENTITY or the account's own
    group     left out, $WANDB_RUN_GROUP
    job_type  left out, $WANDB_JOB_TYPE
    tags      left out, $WANDB_TAGS
    notes     left out, $WANDB_NOTES
    """
    from lightning.pytorch.loggers import WandbLogger

    folder = run.directory
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"entity": entity, "group": group, "job_type": job_type, "tags": tags, "notes": notes}
    return WandbLogger(
        save_dir=folder.absolute(),  # W&B's own process may be in another place
        project=project or wandb_run.project(),
        name=folder.name,
        id=wandb_run.run_id(folder),  # so that a run that goes on continues its curve
        mode=wandb_run.mode(),
        config=wandb_run.dotted({**run.identity["settings"], **run.free}),
        **{key: value for key, value in asked.items() if value},
    )


def loggers_of(asked: str | dict | list, run: Run) -> "list[Logger]":
    """The loggers of the key `logger`; UserError where one is not installed or refuses its keys."""
    sections = asked if isinstance(asked, list) else [asked]
    sections = [{"name": one} if isinstance(one, str) else one for one in sections]
    names = [section["name"] for section in sections]
    for name in names:
        if names.count(name) > 1 and name in __all__:
            raise UserError(f"logger: {name} stands there {names.count(name)} times")
    return [_logger(section, run) for section in sections]


def _logger(section: dict, run: Run) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.loggers import Logger

    name = section["name"]
    try:
        made = build("lightning_cfg.training.loggers", section, *[run] * (name in __all__))
    except ImportError as error:
        how = f"pip install 'lightning_cfg[{name}]'" if name in __all__ else one_line(error)
        raise UserError(f"logger={name} needs its package: {how}") from error
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"logger {name}: {one_line(error)}") from error
    if not isinstance(made, Logger):
        raise UserError(f"logger {name} makes a {type(made).__name__}, no logger of Lightning's")
    return made


def of_wandb(loggers: "Iterable[Logger]") -> "list[WandbLogger]":
    """Those among the loggers that are W&B's."""
    from lightning.pytorch.loggers import WandbLogger

    return [one for one in loggers if isinstance(one, WandbLogger)]
