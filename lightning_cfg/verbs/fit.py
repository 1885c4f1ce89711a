"""`fit`: a config becomes a trained checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

from lightning_cfg.config import (
    AtLeast,
    Between,
    Choice,
    Data,
    Free,
    Keywords,
    Learner,
    Model,
    Net,
    Newer,
    NonNegative,
    Seed,
    TrainerKeys,
    identity_difference,
    identity_of,
)
from lightning_cfg.config.trust import names_of
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoint_keys import check_to_go_on
from lightning_cfg.runs.checkpoints import LAST, load
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.inputs import Checkpoint
from lightning_cfg.runs.manifests import as_written, fault_of, trained
from lightning_cfg.runs.ranks import launched, with_launch
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.training.undisturbed import undisturbed

GridKeys = Annotated[dict, Keywords("lightning_cfg.training.grids.Grids"), Free]
Callback = Annotated[dict, Choice("lightning_cfg.training.callbacks", every=True)]
Logger = Annotated[dict, Choice("lightning_cfg.training.loggers", every=True)]
RECIPE = ("data", "net", "model", "learner", "seed", "batch_size")
EvaluationKeys = Annotated[
    dict, Keywords("lightning_cfg.training.evaluate_samples.EvaluateSamples"), Free
]


def _unread(config: dict, key: str) -> bool:
    """Nothing is learned from held-out data."""
    return key.startswith("data.") and key.endswith(".held_out")


def _tried(config: dict) -> dict[str, Any]:
    _check_steps(config["trainer"])
    from lightning_cfg.training.train import untrained

    recipe = {key: config[key] for key in RECIPE}
    others = (*RECIPE, "trainer", "run_dir", "resume", "logger", "trust", "force")
    how = {key: value for key, value in config.items() if key not in others}
    with undisturbed():
        return {LAST: untrained(recipe, config["trainer"], **how)}


@verb(_unread, tried=_tried)
@undisturbed()
def fit(
    run: Run,
    /,
    *,
    data: Data,
    net: Net,
    model: Model,
    learner: Learner,
    batch_size: Annotated[int, Between(1, 2**24)],  # which is drawn as a whole on every rank
    trainer: TrainerKeys,
    run_dir: str,
    seed: Seed = 0,
    resume: Annotated[str, Free] = "auto",
    checkpoint_every: Annotated[int, AtLeast(1), Free] = 1000,
    keep: Annotated[int, NonNegative, Free] = 0,
    keep_by: Annotated[str, Free] = "loss",
    snapshots: Annotated[int, NonNegative, Free] = 0,
    log_every: Annotated[int, AtLeast(1), Free] = 50,
    grids: GridKeys | None = None,
    evaluation: EvaluationKeys | None = None,
    compile: Annotated[bool | Literal["auto"], Free] = "auto",
    channels_last: Annotated[bool | Literal["auto"], Free] = "auto",
    matmul_precision: Annotated[Literal["auto", "highest", "high", "medium"], Free] = "auto",
    callbacks: Annotated[list[Callback], Newer] = [],
    init: Annotated[Checkpoint | None, Newer] = None,
    logger: Annotated[Literal["csv", "tensorboard", "wandb"] | Logger | list[Logger], Free] = "csv",
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Train a model; its run directory then holds checkpoints/last.ckpt.

    batch_size        over all ranks and accumulated micro-batches
    trainer           what lightning.Trainer takes; trainer.max_steps is needed
    resume            auto: go on where the run stopped; never: refuse to; PATH: from a checkpoint
    checkpoint_every  steps between checkpoints
    keep              of which so many of the best are kept beside the last one
    keep_by           loss, or a score of `evaluation` such as fid_2k/scale_1
    snapshots         steps between files of the averages of learner.ema_std alone, of which
                      {std: 0.15} of any width is made afterwards; 0: none
    grids             {every, scales, columns, sampler}: samples in figures/, see grids.Grids
    evaluation        {every, n, scales, features, metrics, ...}: scores of samples as curves, see
                      evaluate_samples.EvaluateSamples
    compile           the network, by torch.compile
    channels_last     memory layout of a network of images
    matmul_precision  of float32 products: highest is float32, high and medium may be TF32 or less
    callbacks         [{name: EarlyStopping, monitor: loss, patience: 5}, {name: mine.Callback}]:
                      Lightning's by name, anyone's by dotted path; see docs/training.md
    init              a run whose weights and averages it begins with, at step 0
    logger            csv, tensorboard or wandb; a section of one, {name: wandb, project: mine}; or
                      a list of these and of anyone's by dotted path
    trust             modules of one's own that a checkpoint may name; see docs/security.md
    force             does a finished run again, from its first step

    compile, channels_last, matmul_precision and trainer.precision are by default what is fastest:
    for images on CUDA compiled, channels-last, high and bf16-mixed; otherwise none of it and
    float32. What was chosen is in the manifest.
    """
    _check_steps(trainer)
    trainer = with_launch(trainer, launched())
    recipe = {"data": data, "net": net, "model": model, "learner": learner}
    recipe |= {"seed": seed, "batch_size": batch_size}
    _refuse_damaged(run)
    if run.finished() and trained(run.manifest, trainer["max_steps"]):
        run.say(f"finished already, {run.manifest['step']} steps")
        return run.directory
    run.claim()
    start = (
        None if run.again else _start(resume, run.directory / LAST, recipe, trainer["max_steps"])
    )

    run.kept = "" if start is None else f"with what {start} holds kept"
    # only now: Lightning takes seconds to import, and a study reads this verb's keys too
    from lightning_cfg.training.train import train

    train(
        run,
        recipe,
        start,
        trainer,
        compile=compile,
        channels_last=channels_last,
        matmul_precision=matmul_precision,
        checkpoint_every=checkpoint_every,
        keep=keep,
        keep_by=keep_by,
        snapshots=snapshots,
        log_every=log_every,
        grids=grids,
        evaluation=evaluation,
        callbacks=callbacks,
        init=init,
        logger=logger,
    )
    return run.directory


def _check_steps(trainer: dict) -> None:
    if "max_steps" not in trainer:
        raise UserError("trainer.max_steps is needed: the number of optimiser steps, 1 or more")


def _refuse_damaged(run: Run) -> None:
    """UserError for a finished training whose checkpoint is another: it is not gone on with."""
    fault = "" if run.again else fault_of(run.directory)
    if fault and (run.directory / LAST).is_file():
        raise UserError(
            f"{run.directory}: {fault}; bring back a whole copy, or have it trained again from its "
            "first step: force=true, or remove the directory"
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
        here = identity_of(fit, recipe, find=False)
        there = _identity_inside(start, checkpoint)
        difference = identity_difference(there, here.settings, here.usual)
        if difference:
            raise UserError(f"{start} is of another config ({difference})")
        if checkpoint["global_step"] > max_steps:
            raise UserError(
                f"{start} has {checkpoint['global_step']} steps already, more than "
                f"trainer.max_steps={max_steps}: give another run_dir, or remove it"
            )
    return start


def _identity_inside(path: Path, checkpoint: dict) -> dict:
    """The settings of the training that wrote a checkpoint; its names are a stranger's."""
    check_to_go_on(path, checkpoint)
    with names_of(path), as_written(path):
        return identity_of(fit, checkpoint["config"], find=False).settings
