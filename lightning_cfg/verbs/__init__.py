"""What is called, as on the command line: each verb is a function, imported when it is asked for.

    fit("fractal_base", "trainer.max_steps=100", run_dir="runs/short")

is `python -m lightning_cfg.fit fractal_base trainer.max_steps=100 run_dir=runs/short`: the same
schema, defaults and run. `config.calls` says what may stand in a call. `sweep` and `assets` have a
command line only.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cfg.verbs.adopt import adopt
    from lightning_cfg.verbs.encode import encode
    from lightning_cfg.verbs.evaluate import evaluate
    from lightning_cfg.verbs.export import export
    from lightning_cfg.verbs.fit import fit
    from lightning_cfg.verbs.generate import generate
    from lightning_cfg.verbs.pair import pair
    from lightning_cfg.verbs.refine import refine
    from lightning_cfg.verbs.study import study
    from lightning_cfg.verbs.trace import trace
    from lightning_cfg.verbs.tune import tune

__all__ = [
    "adopt",
    "encode",
    "evaluate",
    "export",
    "fit",
    "generate",
    "pair",
    "refine",
    "study",
    "trace",
    "tune",
]


class _Verbs(ModuleType):
    """A package whose verbs stay functions when their modules, of the same names, are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):  # as the import system sets it
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs


if not TYPE_CHECKING:  # to which any name would then be one

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
