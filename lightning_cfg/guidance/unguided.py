"""No guidance."""

from lightning_cfg.guidance.method import method
from lightning_cfg.interfaces import Denoiser


@method
def unguided(model: Denoiser) -> Denoiser:
    """D(x; sigma, c): the conditional model as it is."""
    return model
