"""What a study calls a discriminator: a noisy classifier of real data and a model's own samples."""

from typing import Annotated

from lightning_cfg.config import Verb

Training = Annotated[dict, Verb("lightning_cfg.verbs.fit", without=("data", "seed", "run_dir"))]


def discriminator(*, of: str, n: int, fit: Training) -> None:
    """The keys of one entry of a study's `discriminators`.

    of   one of the study's `fits`, whose unguided samples it tells from real data
    n    of them
    fit  how it is trained, on the data set RealOrGenerated
    """
