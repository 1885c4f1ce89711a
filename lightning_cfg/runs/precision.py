"""At what precision float32 products are computed, said where it matters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    """Multiply float32 matrices, and convolve on CUDA, at this precision in the meantime."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
