"""What a study calls a method: a guidance with its networks."""

from lightning_cfg.config import Guidance


def method(*, models: dict[str, str], guidance: Guidance) -> None:
    """The keys of one entry of a study's `methods`.

    models  {model, weak, classifier}: names in the study's `fits`, paths, or exact
    """
