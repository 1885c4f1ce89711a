"""What counts of what a run reads: the file that is meant by a run directory, by its content."""

from functools import partial
from typing import Annotated

from lightning_cfg.config import AtLeast, Input
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.names import LAST, PAIRS, SAMPLES, TRAJECTORIES

CHECKPOINT = Input(partial(output_of, inside=LAST), words=("exact",))

Checkpoint = Annotated[str, CHECKPOINT]
SampleFile = Annotated[str, Input(partial(output_of, inside=SAMPLES))]
PairFile = Annotated[str, Input(partial(output_of, inside=PAIRS))]
# ema, raw, or the half-life in images of the average that is meant
Weights = str | Annotated[int, AtLeast(1)]
Trajectories = Annotated[str, Input(partial(output_of, inside=TRAJECTORIES))]
