"""What every method has in common: its guided denoiser says of which model it is."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from lightning_cfg.interfaces import Denoiser, as_guided

M = TypeVar("M", bound=Callable[..., Denoiser])


def method(function: M) -> M:
    """A method, of whose guided denoiser is known what is known of its model: shape, classes, ...

    So it can be sampled from by itself, as the model can.
    """

    @wraps(function)
    def called(model: Denoiser, *others: Any, **keys: Any) -> Denoiser:
        guided = function(model, *others, **keys)
        return guided if guided is model else replace(as_guided(guided), of_model=model)

    return cast(M, called)
