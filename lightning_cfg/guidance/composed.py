"""Methods of methods: how one guidance changes another.

`of` is a method whose other networks are given already, a function from the model to the guided
denoiser, such as functools.partial(classifier_free, scale=2.0). In a config it is a guidance
section inside the section: {name: interval, of: {name: classifier_free, scale: 2.0}}.
"""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Choice
from lightning_cfg.interfaces import HOOKS, Denoiser

Of = Annotated[Callable[[Denoiser], Denoiser], Choice("lightning_cfg.guidance")]


def pass_on(outer: Denoiser, inner: Denoiser) -> Denoiser:
    """The outer denoiser, which asks of a sampler also what the inner one does; see `HOOKS`.

    A hook that both have is the outer's business: it calls the inner's by `tell`.
    """
    for hook in HOOKS:
        if hasattr(inner, hook) and not hasattr(outer, hook):
            setattr(outer, hook, getattr(inner, hook))
    return outer


def tell(denoise: Denoiser, hook: str, *what: object) -> None:
    """Call a hook of a denoiser that has it."""
    if hasattr(denoise, hook):
        getattr(denoise, hook)(*what)


class Changed:
    """A model with another answer; everything else is the model's own.

    It answers one pass at a time, since `scales.both` makes no single batch of two for it.
    """

    def __init__(self, model: Denoiser, answer: Denoiser):
        self._model, self._answer = model, answer

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor, **rows: Tensor) -> Tensor:
        return self._answer(x, sigma, c, **rows)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)
