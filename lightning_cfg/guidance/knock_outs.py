"""Knock-outs: what stands in the place of a strength that each sample has of its own.

A method that gives every sample its own strength at every noise level knows three things: how much
on the whole, when, and which samples. Each knock-out takes some of them away, and what is lost by
it is what that knowledge was good for.
"""

from typing import Annotated, Literal

from torch import Tensor

from lightning_cfg.config import Share
from lightning_cfg.errors import UserError

PerSample = Literal["own", "permuted", "level_mean"]
Strength = PerSample | Annotated[float, Share]


def knocked_out(u: Tensor, strength: Strength) -> Tensor:
    """What stands in the place of the strengths u (B,) of a batch at one noise level, (B,).

    own         u
    permuted    that of another sample, the one before it in the batch: which is gone
    level_mean  the mean over the batch, at every evaluation anew: a schedule of sigma
    a number    the same at every noise level for every sample; only its product with the method's
                scale - 1 counts, so that over scales every number is the same variant, and 1 has w
                of the scale itself

    Permuted and level_mean make a sample depend on its batch: they are for finding out what u is
    good for, and many samples a batch. Raises UserError for a batch of one.
    """
    if strength == "own":
        return u
    if not isinstance(strength, str):
        return u.new_full(u.shape, strength)
    if len(u) == 1:
        raise UserError(f"{strength=} needs other samples in a batch of one: see batch_size")
    return u.roll(1) if strength == "permuted" else u.mean().expand_as(u)
