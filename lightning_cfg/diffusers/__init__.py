"""Networks of diffusers under our guidance, and our guidance in their pipelines.

`models: {model: {name: diffusers, path: FOLDER}}` of a verb that samples; `guide` the other way.
"""

from lightning_cfg.diffusers.clip import clip
from lightning_cfg.diffusers.guider import guider as guider
from lightning_cfg.diffusers.in_pipeline import guide as guide
from lightning_cfg.diffusers.model import diffusers

__all__ = ["clip", "diffusers"]  # what a config can name in the place of a run's network
