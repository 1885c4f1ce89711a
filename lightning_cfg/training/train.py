"""A training from its recipe to the last checkpoint: what the verb `fit` does with Lightning."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_cfg.config import build
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.draws import Draws, key
from lightning_cfg.errors import (
    Diverged,
    Interrupted,
    Preempted,
    RankLost,
    UserError,
    did_you_mean,
    one_line,
)
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.checkpoints import build_model, load
from lightning_cfg.runs.names import EVALUATIONS, LAST
from lightning_cfg.runs.precision import matmul
from lightning_cfg.runs.ranks import Launch, launched, lost, told_lost
from lightning_cfg.runs.run import Run
from lightning_cfg.runs.signals import before_the_end, nothing_lost
from lightning_cfg.runs.snapshots import place
from lightning_cfg.runs.waiting import limited
from lightning_cfg.training import preemption
from lightning_cfg.training.batches import KeyedBatches
from lightning_cfg.training.callbacks import Told, callbacks_of
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.evaluate_samples import EvaluateSamples
from lightning_cfg.training.from_weights import begin_from
from lightning_cfg.training.grids import Grids
from lightning_cfg.training.learners import Described
from lightning_cfg.training.loggers import loggers_of, of_wandb
from lightning_cfg.training.progress import Progress
from lightning_cfg.training.snapshots import Snapshots
from lightning_cfg.training.speed import device_of, prepare, speed_of
from lightning_cfg.training.stop import StopWhenAsked
from lightning_cfg.training.told import TellTime, tell
from lightning_cfg.training.trainer import leave_constants_alone, trainer_for
from lightning_cfg.training.undisturbed import cheap_device_checks


@dataclass(frozen=True)
class Ready:
    """A training that has not begun.

    rows   of a process's batch
    speed  what was chosen, see `speed_of`
    """

    engine: L.Trainer
    module: Any
    batches: KeyedBatches
    snapshots: Snapshots | None
    stop: StopWhenAsked
    told: Told
    rows: int
    speed: dict


def ready_to_train(
    directory: Path,
    recipe: dict,
    trainer: dict,
    logger: list[Logger],
    *,
    init: str | None,
    callbacks: list[dict],
    checkpoint_every: int,
    keep: int,
    keep_by: str,
    snapshots: int,
    log_every: int,
    grids: dict | None,
    evaluation: dict | None,
    **asked: Any,
) -> Ready:
    """All that can be refused is tried, and nothing is written; as in `train`."""
    data_set = build_data(recipe["data"])
    speed = speed_of(trainer, data_set.shape, **asked)
    module = _learner(recipe, data_set, speed)
    if init is not None:
        begin_from(init, module, data_set)
    scores = None
    if evaluation is not None:
        scores = EvaluateSamples(directory, **evaluation)
        scores.check(module, data_set, recipe["data"], device=device_of(trainer))
    _check_keep(keep, keep_by, checkpoint_every, scores)
    save = SaveLast(directory, every=checkpoint_every, keep=keep, by=keep_by)
    along = _snapshots(directory, snapshots, module, trainer["max_steps"])
    stop = StopWhenAsked(save)
    pictures = _pictures(directory, grids, module, data_set)
    # a checkpoint after the evaluation of the same step, by which it may be kept, and after its
    # snapshot, which it has to know
    own = callbacks_of(callbacks, scores)
    told = Told(own, scores, stop)  # before the checkpoint, which has their state too
    before, after = filter(None, (scores, along)), filter(None, (save, pictures))
    every = [Progress(), TellTime(), *before, *own, told, *after, stop]
    how = {"logger": logger, "log_every": log_every, "callbacks": every}
    engine = trainer_for({**trainer, "precision": speed["precision"]}, directory, **how)
    leave_constants_alone(engine, module.model)
    # Lightning does it after it has read a checkpoint, whose float64 would pass through float32
    module.ema.to(engine.precision_plugin.convert_module(module).model)
    batches = KeyedBatches(data_set, seed=recipe["seed"], batch_size=recipe["batch_size"])
    rows = _tried(batches, module, engine, scores)
    return Ready(engine, module, batches, along, stop, told, rows, speed)


def untrained(recipe: dict, trainer: dict, **how: Any) -> dict:
    """The checkpoint of a training that has not begun; UserError as `train` raises it."""
    nowhere = Path("nowhere")  # nothing is written
    ready = ready_to_train(nowhere, recipe, trainer, [CSVLogger(nowhere)], **how)
    module, along = ready.module, ready.snapshots
    state = {f"model.{name}": value for name, value in module.model.state_dict().items()}
    described = {key: value for key, value in vars(module.described).items() if value is not None}
    if along is not None:
        described["snapshots"] = along.to_come(trainer["max_steps"])
    return {**described, "state_dict": state, "ema": module.ema.state_dict(), "global_step": 0}


def train(
    run: Run,
    recipe: dict,
    start: Path | None,
    trainer: dict,
    *,
    logger: str | dict | list,
    **how: Any,
) -> None:
    """Train, and finish the run; the keys are those of `fit`.

    recipe  data, net, model, learner, seed and batch_size
    start   the checkpoint to go on from
    how     the other keys of `fit`; of the speed: see `speed_of`
    Raises UserError before anything is written, Preempted after a signal, RankLost, Diverged.
    """
    launch = launched()
    ready = ready_to_train(run.directory, recipe, trainer, loggers_of(logger, run), **how)
    engine, stop = ready.engine, ready.stop
    run.check_room(_checkpoints(ready, how["keep"], anew=start is None))
    first = engine.is_global_zero  # the rank that writes and speaks for all
    if first:
        _begin(run, next((str(one.version) for one in of_wandb(engine.loggers)), None))
        tell(ready.batches.data, ready.module, engine, recipe["batch_size"], ready.speed)
        if launch.by or engine.world_size > 1:
            print(_ranks_in_words(launch, engine, recipe["batch_size"], ready.rows), flush=True)
    try:
        with matmul(ready.speed["matmul_precision"]):
            _train(ready, start)
        _check_trained(run, engine)
    except Exception as error:
        ended = isinstance(error, Preempted | Diverged | RankLost)
        if first and engine.global_step == 0 and not ended:
            run.withdraw()
        raise
    finally:
        for one in of_wandb(engine.loggers):
            one.experiment.finish()  # or the next fit of this process writes to it too
    if stop.signal and not (first or launch.by):
        return  # the first one's child, whose status must be 0 or Lightning kills it
    if stop.signal:
        kind = Interrupted if stop.signal == "SIGINT" else Preempted
        raise kind(
            f"{run.directory}: {stop.signal} ended it at step {engine.global_step}, where it is "
            "saved; started again it goes on"
        )
    _finish(run, engine, ready.module, ready.told.ended, **ready.speed)


def _checkpoints(ready: Ready, keep: int, *, anew: bool) -> int:
    """Bytes of the checkpoints to come: each is written beside the one that it replaces."""
    module = ready.module
    weights = sum(value.nbytes for value in module.model.state_dict().values())
    one = weights * (3 + len(module.ema.averages))  # Adam has two numbers for each
    return one * (2 + keep if anew else 1)


def _learner(recipe: dict, data_set: Any, speed: dict) -> Any:
    """The learner of a new model, its network initialised by the seed and laid out."""
    torch.manual_seed(key("init", recipe["seed"]))
    names = data_set.class_names
    network = build_model(recipe, data_set.shape, data_set.num_classes, names)
    prepare(network, speed)
    module = build("lightning_cfg.training.learners", recipe["learner"], network)
    module.check(data_set)
    module.described = Described.of(recipe, data_set)
    return module


def _tried(
    batches: KeyedBatches, learner: Any, engine: L.Trainer, scores: EvaluateSamples | None
) -> int:
    """Rows of a process's batch; a size that does not divide, data that cannot be read, or what
    the optimiser refuses stop before anything is written."""
    rows = batches.rows_per_batch(engine)
    if scores is not None and scores.n < engine.world_size:
        raise UserError(f"evaluation.n={scores.n} is less than the {engine.world_size} ranks")
    batches.data.batch(Draws(seed=batches.seed, step=0, batch_size=1))
    try:
        learner.configure_optimizers()
    except RuntimeError:
        pass  # one of one's own may ask its trainer, which is not there yet
    except (ValueError, TypeError) as error:
        raise UserError(f"learner: its optimiser refuses it: {one_line(error)}") from error
    return rows


def _snapshots(directory: Path, every: int, module: Any, max_steps: int) -> Snapshots | None:
    if every == 0:
        return None
    found = Snapshots(directory, every=every)
    found.check(module, max_steps)
    return found


def _pictures(directory: Path, grids: dict | None, module: Any, data_set: Any) -> Grids | None:
    if grids is None:
        return None
    found = Grids(directory, **grids)
    found.check(module, data_set)
    return found


def _begin(run: Run, wandb_id: str | None) -> None:
    """The directory is this run's from now on; of one that is done again nothing is kept."""
    run.begin()
    if wandb_id is not None:
        wandb_run.keep_id(run.directory, wandb_id)
    if run.again:
        shutil.rmtree((run.directory / LAST).parent, ignore_errors=True)
        (run.directory / EVALUATIONS).unlink(missing_ok=True)


def _check_trained(run: Run, engine: L.Trainer) -> None:
    if engine.global_step == 0:
        raise UserError(
            f"{run.directory}: not one step was trained, as trainer.max_time or another key of "
            "trainer ended it before"
        )


def _finish(run: Run, engine: L.Trainer, module: Any, ended: str, **facts: object) -> None:
    """The last step is saved, and the manifest tells of the training; Diverged if that is bad.

    ended  which callback has ended it, in words
    """
    module.check_end()
    last, loss = run.directory / LAST, module.logged.get("loss")
    names = None if module.described is None else module.described.class_names
    facts |= {} if names is None else {"class_names": names}
    facts["loss"] = loss if loss is not None and isfinite(loss) else None  # json has no NaN
    if not last.is_file() or engine.global_step > load(last)["global_step"]:
        engine.save_checkpoint(last)  # stopped by something other than max_steps
    if engine.is_global_zero:
        facts |= {"step": engine.global_step, "device": str(engine.strategy.root_device)}
        if ended:
            facts["ended"] = {"by": ended, "of": engine.max_steps}
        saved = load(last)
        kept = [place(last.parent, step) for step in saved.get("snapshots") or {}]
        run.finish(last, *kept, **facts, seconds=round(saved["seconds"], 1))
        print(f"{run.directory}: {engine.global_step} steps" + (ended and f", ended by {ended}"))


def _ranks_in_words(launch: Launch, engine: L.Trainer, batch_size: int, rows: int) -> str:
    tasks = launch.tasks if launch.by else engine.num_devices
    return (
        f"{launch.by or 'fit'}: nodes {engine.num_nodes}, tasks per node {tasks}, "
        f"devices per node {engine.num_devices}, world size {engine.world_size}, global "
        f"batch {batch_size} = {engine.world_size} ranks x "
        f"{engine.accumulate_grad_batches} accumulated x {rows}"
    )


def _train(ready: Ready, start: Path | None) -> None:
    """The training itself, from a checkpoint or the beginning; RankLost where a rank ends early."""
    engine = ready.engine
    try:
        checks = cheap_device_checks(engine.strategy.root_device)
        with preemption.watching(), checks, _meeting(engine) as met:
            ready.stop.met = met
            engine.fit(ready.module, ready.batches, ckpt_path=start, weights_only=True)
    except RuntimeError as error:
        if engine.world_size > 1 and lost(error):
            raise RankLost(told_lost(engine.global_rank, error)) from error
        raise


@contextmanager
def _meeting(engine: L.Trainer) -> Iterator[Callable[[], object]]:
    """Until the ranks have met, which is said by calling what it gives, a signal ends the process.

    Whatever ends it then or later ends the processes that Lightning has started too.
    """
    with ExitStack() as training, ExitStack() as waiting:
        if engine.world_size > 1:
            launcher = engine.strategy.launcher
            if launcher is not None:
                training.enter_context(before_the_end(partial(launcher.kill, signal.SIGKILL)))
            waiting.enter_context(nothing_lost("before its first step, waiting for other ranks"))
            waiting.enter_context(limited(engine.global_rank, "for the others to meet it"))
        yield waiting.close


def _check_keep(keep: int, by: str, every: int, evaluation: EvaluateSamples | None) -> None:
    """UserError if there is no such score to keep checkpoints by, or not when they are written."""
    if by == "loss":
        return
    if keep == 0:
        raise UserError(f"keep_by={by} needs keep, how many checkpoints are kept")
    if evaluation is None:
        raise UserError(f"keep_by={by} needs an evaluation, or is loss")
    if by not in evaluation.names:
        hint = did_you_mean(by, evaluation.names)
        raise UserError(f"keep_by: the evaluation has no score '{by}'; {hint}")
    if evaluation.every % every:
        raise UserError(
            f"keep_by={by}: evaluation.every={evaluation.every} is no multiple of "
            f"checkpoint_every={every}, so there would be no checkpoint of what was scored"
        )
