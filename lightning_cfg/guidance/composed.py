"""Methods of methods: how one guidance changes another.

`of` is a method whose other networks are given already, a function from the model to the guided
denoiser, such as functools.partial(classifier_free, scale=2.0). In a config it is a guidance
section inside the section: {name: interval, of: {name: classifier_free, scale: 2.0}}.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Annotated

from torch import Tensor

from lightning_cfg.config import Choice
from lightning_cfg.interfaces import Denoiser, Guided, Known, as_guided

Of = Annotated[Callable[[Denoiser], Denoiser], Choice("lightning_cfg.guidance")]


class Changed(Known):
    """A model with another answer, of which is known what is known of the model.

    It answers one pass at a time, since `scales.two_passes` makes no single batch of two for it.
    takes_rows  it keeps something of every sample, and is told which ones it gets by `rows` (B,),
                as is all that is made of it
    """

    def __init__(self, model: Denoiser, answer: Callable[..., Tensor], *, takes_rows: bool = False):
        super().__init__(model)
        self._answer = answer
        self.takes_rows = takes_rows or (isinstance(model, Changed) and model.takes_rows)

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor, **rows: Tensor) -> Tensor:
        return self._answer(x, sigma, c, **rows)


def pass_on(outer: Denoiser, inner: Denoiser) -> Guided:
    """The outer denoiser, which asks of a sampler what the inner one does where it asks nothing.

    As `dataclasses.replace(as_guided(inner), denoise=outer)`, for functions that ask by attributes.
    """
    own = as_guided(outer)
    asked = {f.name: getattr(own, f.name) for f in fields(Guided) if f.name != "denoise"}
    asked = {name: what for name, what in asked.items() if what != getattr(Guided, name)}
    return replace(as_guided(inner), denoise=own.denoise, **asked)
