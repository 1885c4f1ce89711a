"""`fit`: a config becomes a trained checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import lightning as L
import torch

from lightning_cfg.config import (
    Data,
    Keywords,
    Learner,
    Model,
    Net,
    TrainerKeys,
    build,
    identity_difference,
)
from lightning_cfg.data.pairs import bins
from lightning_cfg.diffusion.draws import Draws, key
from lightning_cfg.errors import Preempted, RankLost, UserError, did_you_mean
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.checkpoints import LAST, build_model, load
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.precision import matmul
from lightning_cfg.runs.ranks import launched, lost, told_lost, with_launch
from lightning_cfg.runs.run import Run, placeless
from lightning_cfg.training import preemption
from lightning_cfg.training.batches import KeyedBatches
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.evaluate_samples import EvaluateSamples
from lightning_cfg.training.grids import Grids
from lightning_cfg.training.progress import Progress
from lightning_cfg.training.speed import device_of, prepare, speed_of
from lightning_cfg.training.stop import StopWhenAsked
from lightning_cfg.training.trainer import logger_of, trainer_for

GridKeys = Annotated[dict, Keywords("lightning_cfg.training.grids.Grids")]
EvaluationKeys = Annotated[
    dict, Keywords("lightning_cfg.training.evaluate_samples.EvaluateSamples")
]


def fit(
    *,
    data: Data,
    net: Net,
    model: Model,
    learner: Learner,
    batch_size: int,
    trainer: TrainerKeys,
    run_dir: str,
    seed: int = 0,
    resume: str = "auto",
    checkpoint_every: int = 1000,
    keep: int = 0,
    keep_by: str = "loss",
    log_every: int = 50,
    grids: GridKeys | None = None,
    evaluation: EvaluationKeys | None = None,
    compile: bool | Literal["auto"] = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto",
    logger: Literal["csv", "tensorboard", "wandb"] = "csv",
) -> Path:
    """Train a model; its run directory then holds checkpoints/last.ckpt.

    batch_size        over all ranks and accumulated micro-batches
    trainer           what lightning.Trainer takes; trainer.max_steps is needed
    resume            auto: go on where the run stopped; never: refuse to; PATH: from a checkpoint
    checkpoint_every  steps between checkpoints
    keep              of which so many of the best are kept beside the last one
    keep_by           loss, or a score of `evaluation` such as fid_2k/scale_1
    grids             {every, scales, columns, sampler}: samples in figures/, see grids.Grids
    evaluation        {every, n, scales, features, metrics, ...}: scores of samples as curves, see
                      evaluate_samples.EvaluateSamples
    compile           the network, by torch.compile
    channels_last     memory layout of a network of images
    matmul_precision  of float32 products: highest is float32, high and medium may be TF32 or less

    The last three and trainer.precision are by default what is fastest: for images on CUDA
    compiled, channels-last, high and bf16-mixed; otherwise none of it and float32. What was chosen
    is in the manifest.
    """
    if trainer.get("max_steps", -1) < 1:
        raise UserError("trainer.max_steps is needed: the number of optimiser steps, 1 or more")
    if min(checkpoint_every, log_every) < 1:
        raise UserError(f"{checkpoint_every=} and {log_every=} must be at least 1")
    launch = launched()
    trainer = with_launch(trainer, launch)
    recipe = {"data": data, "net": net, "model": model, "learner": learner}
    recipe |= {"seed": seed, "batch_size": batch_size}
    if keep < 0:
        raise UserError(f"{keep=} must be 0 or more")
    free = {"trainer": trainer, "checkpoint_every": checkpoint_every, "log_every": log_every}
    free |= {"logger": logger, "resume": resume, "keep": keep, "grids": grids, "compile": compile}
    free |= {"channels_last": channels_last, "matmul_precision": matmul_precision}
    free |= {"keep_by": keep_by, "evaluation": evaluation}

    data_set = build("lightning_cfg.data", data)
    read = {"data": data_set.path} if hasattr(data_set, "path") else {}
    # files count by content: where they lie is recorded, but is not what the run is
    settings = _placeless(recipe)
    free |= {"data": data}
    run = Run(run_dir, "fit", settings, read, free)
    last = run.directory / LAST
    if run.finished() and run.manifest["step"] == trainer["max_steps"]:
        run.say(f"finished already, {run.manifest['step']} steps")
        return run.directory
    start = _start(resume, last, recipe, trainer["max_steps"])

    torch.manual_seed(key("init", seed))
    network = build_model(recipe, data_set.shape, data_set.num_classes)
    network.shape, network.num_classes = tuple(data_set.shape), data_set.num_classes
    asked = {"compile": compile, "channels_last": channels_last}
    speed = speed_of(trainer, data_set.shape, **asked, matmul_precision=matmul_precision)
    prepare(network, speed)
    module = build("lightning_cfg.training.learners", learner, network)
    module.check(data_set)
    module.described = {
        "config": recipe,
        "shape": list(data_set.shape),
        "num_classes": data_set.num_classes,
    }
    if getattr(data_set, "condition", None) is not None:
        told = {"pairs": str(data_set.path.absolute()), "values": bins(data_set.condition)}
        module.described["conditioned"] = told
        if evaluation is not None:
            raise UserError(
                "evaluation: the flow of pairs with a condition is scored by refine and evaluate"
            )
    callbacks: list[L.Callback] = [Progress()]
    if evaluation is not None:
        callbacks.append(EvaluateSamples(run.directory, **evaluation))
        callbacks[-1].check(module, data_set, data, device=device_of(trainer))
    _check_keep(keep, keep_by, checkpoint_every, callbacks[-1] if evaluation is not None else None)
    # after the evaluation of the same step, by which a checkpoint may be kept
    save = SaveLast(run.directory, every=checkpoint_every, keep=keep, by=keep_by)
    callbacks.append(save)
    if grids is not None:
        callbacks.append(Grids(run.directory, **grids))
        callbacks[-1].check(module, data_set)
    stop = StopWhenAsked(save)
    callbacks.append(stop)
    engine = trainer_for(
        {**trainer, "precision": speed["precision"]},
        run.directory,
        logger=logger_of(logger, run),
        log_every=log_every,
        callbacks=callbacks,
    )
    batches = KeyedBatches(data_set, seed=seed, batch_size=batch_size)
    # a size that does not divide, or data that cannot be read, stop before anything is written
    rows = batches.rows_per_batch(engine)
    if evaluation is not None and evaluation.get("n", engine.world_size) < engine.world_size:
        raise UserError(
            f"evaluation.n={evaluation['n']} is less than the {engine.world_size} ranks"
        )
    data_set.batch(Draws(seed=seed, step=0, batch_size=1))
    first = engine.is_global_zero  # the rank that writes and speaks for all
    if first:
        run.begin()
        if launch.by or engine.world_size > 1:
            tasks = launch.tasks if launch.by else engine.num_devices
            print(
                f"{launch.by or 'fit'}: nodes {engine.num_nodes}, tasks per node {tasks}, "
                f"devices per node {engine.num_devices}, world size {engine.world_size}, global "
                f"batch {batch_size} = {engine.world_size} ranks x "
                f"{engine.accumulate_grad_batches} accumulated x {rows}",
                flush=True,
            )
        if logger == "wandb":
            wandb_run.keep_id(run.directory, engine.logger.version)
    try:
        with matmul(speed["matmul_precision"]), preemption.watching():
            engine.fit(module, batches, ckpt_path=start, weights_only=True)
    except RuntimeError as error:
        if engine.world_size > 1 and lost(error):
            raise RankLost(told_lost(engine.global_rank, error)) from error
        raise
    finally:
        if logger == "wandb" and engine.logger is not None:
            engine.logger.experiment.finish()  # or the next fit of this process writes to it too
    if stop.signal and not (first or launch.by):
        return run.directory  # the first one's child, whose status must be 0 or Lightning kills it
    if stop.signal:
        raise Preempted(
            f"{run_dir}: {stop.signal} ended it at step {engine.global_step}, where it is saved; "
            "started again it goes on"
        )
    if not last.is_file() or engine.global_step > load(last)["global_step"]:
        engine.save_checkpoint(last)  # stopped by something other than max_steps
    facts = {"step": engine.global_step, **speed, "device": str(engine.strategy.root_device)}
    facts |= {"loss": module.logged.get("loss")}  # as it was logged last
    if first:
        run.finish(last, **facts, seconds=round(load(last)["seconds"], 1))
        print(f"{run_dir}: {engine.global_step} steps")
    return run.directory


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


def _start(resume: str, last: Path, recipe: dict, max_steps: int) -> Path | None:
    """The checkpoint to go on from, if any."""
    if resume == "never" and last.is_file():
        raise UserError(f"{last} exists: resume=auto goes on from it, or give another run_dir")
    if resume in ("auto", "never"):
        start = last if last.is_file() else None
    else:
        start = output_of(resume, LAST)
        if last.is_file() and start.resolve() != last.resolve():
            raise UserError(f"{last} would be overwritten: give another run_dir, or resume=auto")
    if start is not None:
        checkpoint = load(start)
        # where the data lie may have changed: the run's own inputs count by content
        difference = identity_difference(_placeless(checkpoint["config"]), _placeless(recipe))
        if difference:
            raise UserError(f"{start} is of another config ({difference})")
        if checkpoint["global_step"] > max_steps:
            raise UserError(
                f"{start} has {checkpoint['global_step']} steps already, more than "
                f"trainer.max_steps={max_steps}: give another run_dir, or remove it"
            )
    return start


def _placeless(recipe: dict) -> dict:
    """The recipe without the places of its files."""
    return {**recipe, "data": placeless(recipe["data"])}
