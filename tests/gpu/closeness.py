"""When two devices say the same: the measure that all tests of this folder share."""

import torch
from torch import Tensor

# Sums of products in another order differ by some 1e-6; TF32's 10 bits by 5e-4 a product. So 1e-4
# tells the two apart.
FLOAT32 = 1e-4
# bfloat16 has 8 bits: each of a network's 20 or so layers rounds by 2e-3, independently. On a CPU
# these networks are apart by 0.005 to 0.021, without their classes by 0.3 and more.
BFLOAT16 = 5e-2


def apart(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, over all numbers; NaN where one of them is not finite."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert found.shape == expected.shape
    if not (found.isfinite().all() and expected.isfinite().all()):
        return torch.nan
    return float((found - expected).norm() / expected.norm())


def assert_within(tolerance: float, found: Tensor, expected: Tensor) -> None:
    """So far apart at most; NaN never passes."""
    distance = apart(found, expected)
    print(f"apart by {distance:.2e}, {tolerance:.0e} allowed")
    assert distance <= tolerance, f"apart by {distance:.2e}, more than {tolerance:.0e}"
