"""What a study calls a method: a guidance with its networks."""

from lightning_cfg.config import Guidance
from lightning_cfg.network import Networks


def method(*, models: Networks, guidance: Guidance) -> None:
    """The keys of one entry of a study's `methods`.

    models  {model, weak, classifier, discriminator}: names in the study's `fits`, paths, or exact;
            with weights of its own: {path: base, weights: 100_000}
    """
