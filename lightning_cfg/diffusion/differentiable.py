"""Gradients of samples, whatever mode of torch's is on where they are asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def differentiable(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """x as a leaf, and the others, by which gradients can be taken in here.

    Inside torch.no_grad() too, and inside torch.inference_mode(), whose tensors autograd refuses
    to save.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield _recorded(x).detach().requires_grad_(), *map(_recorded, others)


def _recorded(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x
