"""What counts of what a run reads: the file that is meant by a run directory, by its content."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated

from lightning_cfg.config import AtLeast, Input, Verb
from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LAST, PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.power_ema import Std
from lightning_cfg.runs.to_come import ToCome

PUBLISHED = re.compile(r"(edm2?|adm|(ot)?cfm|fm|dit|resnet\d+)-.+")  # as `assets` names networks


def checkpoint_of(path: str) -> Path:
    """The last checkpoint of a run, or the file itself; UserError as `output_of` raises it.

    Of a run with the name of a published network it says what makes it.
    """
    name = Path(path).name
    if PUBLISHED.fullmatch(name) and not isinstance(path, ToCome) and not Path(path).exists():
        made = f"`python -m lightning_cfg.adopt {name} run_dir={path}` makes it"
        raise UserError(f"{path}: no such run; {made} of the published network")
    return output_of(path, LAST)


CHECKPOINT = Input(checkpoint_of, words=("exact",))

Checkpoint = Annotated[str, CHECKPOINT]
SampleFile = Annotated[str, Input(partial(output_of, inside=SAMPLES))]
PairFile = Annotated[str, Input(partial(output_of, inside=PAIRS))]
Trajectories = Annotated[str, Input(partial(output_of, inside=TRAJECTORIES))]
# ema, raw, the half-life in images of the average that is meant, or its relative width
Weights = (
    str | Annotated[int, AtLeast(1)] | Annotated[dict, Verb("lightning_cfg.runs.inputs.average")]
)


def average(*, std: Std, step: Annotated[int, AtLeast(1)] | None = None) -> dict:
    """The keys of an average by a power of time; see `runs.snapshots`.

    std   relative width: one of learner.ema_std, or any, made of snapshots
    step  of a snapshot, at which it is meant; left out, the last one's
    """
    return {"std": std, "step": step}


def told_weights(weights: str | int | dict) -> str:
    """Which weights of a network, in a few words."""
    if not isinstance(weights, dict):
        return str(weights)
    asked = average(**weights)
    at = "" if asked["step"] is None else f" at step {asked['step']}"
    return f"std {asked['std']:g}{at}"
