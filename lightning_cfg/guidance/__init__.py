"""Guidance: functions from denoisers to a denoiser, one file per method, each readable alone.

`scale` = 1 is the unguided conditional model, above 1 is guided, and a pass that would be
multiplied by zero is skipped. Positional parameters are networks, keyword-only ones are numbers;
a keyword `of` is another method, which this one changes. To add a method, write such a function
anywhere and name it in the config by its dotted path. docs/guidance.md has an overview.
"""

from lightning_cfg.guidance.apg import apg
from lightning_cfg.guidance.autoguidance import autoguidance
from lightning_cfg.guidance.cads import cads
from lightning_cfg.guidance.cfg_plus_plus import cfg_plus_plus
from lightning_cfg.guidance.cfg_zero_star import cfg_zero_star
from lightning_cfg.guidance.classifier_free import classifier_free
from lightning_cfg.guidance.classifier_gradient import classifier_gradient
from lightning_cfg.guidance.discriminator_gradient import discriminator_gradient
from lightning_cfg.guidance.feedback import feedback
from lightning_cfg.guidance.feynman_kac import feynman_kac
from lightning_cfg.guidance.frequency_decoupled import frequency_decoupled
from lightning_cfg.guidance.gfcg import gfcg
from lightning_cfg.guidance.gfcg_autoguidance import gfcg_autoguidance
from lightning_cfg.guidance.gibbs import gibbs
from lightning_cfg.guidance.guidance_free import guidance_free
from lightning_cfg.guidance.higs import higs
from lightning_cfg.guidance.interval import interval
from lightning_cfg.guidance.learned_weight import learned_weight
from lightning_cfg.guidance.momentum import momentum
from lightning_cfg.guidance.needs import require_classes as require_classes
from lightning_cfg.guidance.needs import require_null as require_null
from lightning_cfg.guidance.rejection import rejection
from lightning_cfg.guidance.rescale import rescale
from lightning_cfg.guidance.self_guidance import self_guidance
from lightning_cfg.guidance.tangential import tangential
from lightning_cfg.guidance.unguided import unguided

__all__ = [
    "apg",
    "autoguidance",
    "cads",
    "cfg_plus_plus",
    "cfg_zero_star",
    "classifier_free",
    "classifier_gradient",
    "discriminator_gradient",
    "feedback",
    "feynman_kac",
    "frequency_decoupled",
    "gfcg",
    "gfcg_autoguidance",
    "gibbs",
    "guidance_free",
    "higs",
    "interval",
    "learned_weight",
    "momentum",
    "rejection",
    "rescale",
    "self_guidance",
    "tangential",
    "unguided",
]  # what a config can name
