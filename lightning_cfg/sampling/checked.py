"""What a network or a guidance method answers at first: is it what it must be?"""

from torch import Tensor

from lightning_cfg.errors import UserError


def check_answer(who: str, answer: object, x: Tensor, shape: tuple[int, ...]) -> None:
    """UserError unless an answer for samples x is of this shape, in real numbers.

    Another shape would be broadcast silently: (B, 1) to (B, d), say.
    """
    if not isinstance(answer, Tensor):
        raise UserError(f"{who} gives {type(answer).__name__} for samples, not a tensor")
    if tuple(answer.shape) != shape:
        raise UserError(
            f"{who} gives {tuple(answer.shape)} for samples of {tuple(x.shape)}, not {shape}"
        )
    if not answer.is_floating_point():
        raise UserError(f"{who} gives {answer.dtype} for samples, not real numbers")
