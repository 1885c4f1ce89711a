"""Configuration: one yaml file and overrides, typed by the signatures of what they configure.

A verb is a function with keyword-only parameters; their names, annotations and defaults are its
schema. A section of a choice, {name: heun, steps: 18}, takes the keys of the callable it names. All
is checked before anything is built. Nothing heavy is imported: a missing file is answered before
torch is.
"""

from lightning_cfg.config.arguments import Arguments, from_arguments, parse
from lightning_cfg.config.calls import completed, keywords_of
from lightning_cfg.config.check import asked, changed, checked
from lightning_cfg.config.domain import (
    AtLeast,
    Between,
    Count,
    Depth,
    Filled,
    Infinite,
    MultipleOf,
    NonNegative,
    Odd,
    Positive,
    Real,
    Scales,
    Seed,
    Share,
    Sigma,
    Steps,
    Width,
    ordered,
)
from lightning_cfg.config.files import Document, dump, load, read, set_key
from lightning_cfg.config.help import help_of
from lightning_cfg.config.identity import Identity, identity_difference, identity_of, replaced
from lightning_cfg.config.schema import (
    Choice,
    Data,
    Decode,
    Features,
    Free,
    Guidance,
    Input,
    Keywords,
    Learner,
    Metric,
    Model,
    Net,
    Newer,
    Place,
    Sampler,
    Verb,
    build,
    resolve,
)
from lightning_cfg.config.trainer import TrainerKeys

__all__ = [
    "Arguments", "AtLeast", "Between", "Choice", "Count", "Data", "Decode", "Depth", "Document",
    "Features", "Filled", "Free", "Guidance", "Identity", "Infinite", "Input", "Keywords",
    "Learner", "Metric", "Model", "MultipleOf", "Net", "Newer", "NonNegative", "Odd", "Place",
    "Positive", "Real", "Sampler", "Scales", "Seed", "Share", "Sigma", "Steps", "TrainerKeys",
    "Verb", "Width", "asked", "build", "changed", "checked", "completed", "dump", "from_arguments",
    "help_of", "identity_difference", "identity_of", "keywords_of", "load", "ordered", "parse",
    "read", "replaced", "resolve", "set_key",
]  # fmt: skip
