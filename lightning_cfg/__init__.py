"""Guidance in diffusion models: train, guide, measure, refine.

    import lightning_cfg as lc

    model = lc.load("runs/fractal_base")
    guided = lc.guidance.classifier_free(model, scale=2.0)
    lc.sample(guided, range(1000))

docs/python.md has every name. Each is imported when it is first asked for: this takes a moment, and
`import lightning_cfg` none.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cfg import data, guidance, verbs
    from lightning_cfg.api.networks import load
    from lightning_cfg.api.samples import pictures, refined, sample
    from lightning_cfg.api.scores import score
    from lightning_cfg.api.trajectories import trajectory
    from lightning_cfg.errors import UserError
    from lightning_cfg.interfaces import NULL

__version__ = "0.1.0"

__all__ = [
    "NULL",
    "UserError",
    "data",
    "guidance",
    "load",
    "pictures",
    "refined",
    "sample",
    "score",
    "trajectory",
    "verbs",
]

_IN = {  # of what is no folder: in which module it is
    "NULL": "interfaces",
    "UserError": "errors",
    "load": "api.networks",
    "pictures": "api.samples",
    "refined": "api.samples",
    "sample": "api.samples",
    "score": "api.scores",
    "trajectory": "api.trajectories",
}


if not TYPE_CHECKING:  # to which any name would then be one

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_IN.get(name, name)}")
        found = getattr(module, name) if name in _IN else module
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return [*sorted(__all__), "__version__"]
