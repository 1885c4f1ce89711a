"""What has been worked out of a tensor, kept as long as the tensor lives."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def cached_on(points: Tensor, key: Any, compute: Callable[[], Any]) -> Any:
    """What `compute()` finds out about these points, worked out once for each tensor.

    A table has many rows over the same real points, and what is computed of these alone can cost
    most (E|Y - Y'| over 20,000 points has 200 million pairs); two metrics ask for the density of
    the same x.
    """
    version = 0 if points.is_inference() else points._version  # written into: other points
    held: dict = _cache.setdefault(points, {})  # type: ignore[assignment]
    if (key, version) not in held:
        held[key, version] = compute()
    return held[key, version]
