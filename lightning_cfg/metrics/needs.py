"""What a metric asks for, by the names of its parameters."""

import inspect
from collections.abc import Callable

OF_A_SPACE = {  # what a metric is given once for each feature space
    "features_x",
    "features_y",
    "features_held_out",
    "features_bank",
    "moments_x",
    "moments_y",
    "head_logits",
}


def needs(metric: Callable[..., dict[str, float]]) -> set[str]:
    """Names of what a metric must be given: its parameters without a default."""
    parameters = inspect.signature(metric).parameters.values()
    return {p.name for p in parameters if p.default is p.empty}
