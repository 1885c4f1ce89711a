"""What counts of what a run reads: the file that is meant by a run directory, by its content."""

from functools import partial
from typing import Annotated

from lightning_cfg.config import AtLeast, Input, Verb
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LAST, PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.power_ema import Std

CHECKPOINT = Input(partial(output_of, inside=LAST), words=("exact",))

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
