"""What a metric is computed with, and how its columns and records say so."""

import inspect
from collections.abc import Callable
from typing import Any

PERMITS = "allow_"  # how a parameter is called that permits something and changes no number


def settings_of(metric: Callable[..., dict[str, float]], given: dict[str, Any]) -> dict[str, Any]:
    """All parameters that its numbers depend on, given or by default."""
    parameters = inspect.signature(metric).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {k: v for k, v in (defaults | given).items() if not k.startswith(PERMITS)}


def words(settings: dict[str, Any], between: str = "") -> list[str]:
    """Settings as words: {"k": 10} as ["k10"]."""
    return [f"{key}{between}{_short(value)}" for key, value in settings.items()]


def with_settings(column: str, metric: Callable[..., dict[str, float]], given: dict) -> str:
    """A column's name with the settings that are not the metric's defaults: recall_k10.

    One that says a setting by itself, such as precision_k3, is left as it is.
    """
    usual, said = settings_of(metric, {}), column.split("_")
    other = {k: v for k, v in settings_of(metric, given).items() if k not in usual or v != usual[k]}
    return "_".join([column, *(word for word in words(other) if word not in said)])


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
