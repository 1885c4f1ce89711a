"""What a study calls a method: a guidance with its networks."""

from lightning_cfg.config import Guidance
from lightning_cfg.sampling.network import Networks


def method(
    *,
    models: Networks,
    guidance: Guidance,
    scales: list[float] | None = None,
    generation: dict = {},  # noqa: B006  a default section, never changed
) -> None:
    """The keys of one entry of a study's `methods`.

    models      {model, weak, classifier, discriminator}: names in the study's `fits`, paths, or
                exact; with weights of its own: {path: base, weights: 100_000}
    scales      at which it is tried instead of the study's, as what is much for one is little for
                another
    generation  what is different from the study's `generation`, such as a sampler of fewer steps
                where the method takes more evaluations each
    """
