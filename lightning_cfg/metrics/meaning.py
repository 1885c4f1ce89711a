"""What the columns of a metric mean: which way is better, a definition, how a value is written."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lightning_cfg.errors import UserError
from lightning_cfg.metrics.needs import OF_A_SPACE, needs
from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.metrics.settings import settings_of

WAYS = ("lower", "higher", "real")


def digits(value: float) -> str:
    """Three significant digits; counts, and what has more than three before the point, whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"


def percent(value: float) -> str:
    """A share, in per cent."""
    return f"{100 * value:.3g} %"


class Meaning(NamedTuple):
    """Of one column."""

    better: str | None  # lower, higher, or real: closer to what real data have; None: not declared
    text: str
    format: Callable[[float], str] = digits
    metrics: tuple[str, ...] = ()  # whose it is, as dotted paths; several are of the package only
    in_spaces: bool = False  # the label of a feature space follows the column's name
    settings: tuple[str, ...] = ()  # one of these may follow it, with its value


UNDECLARED = Meaning(None, "a metric of one's own")
COLUMNS: dict[str, Meaning] = {  # all that is declared; of what no metric measures first
    "effective_scale": Meaning(
        None,
        "scale of CFG that does most nearly the same, averaged along the path",
        metrics=("lightning_cfg.guidance.effective_scale",),
    )
}


def better(
    way: str, text: str, *, column: str = "", format: Callable[[float], str] = digits
) -> Callable[[Callable], Callable]:
    """Declare what a column of a metric means, in one line above it for each of its columns.

    way     lower or higher is better, or real: closer to what a fresh draw of real data has
    text    definition, with the unit
    column  left out: called like the metric
    format  how a value is written in tables; `percent` for shares
    Raises UserError for another way, and for a column of a metric of the package's, or of another
    one that is better another way.
    """
    if way not in WAYS:
        raise UserError(f"@better('{way}', ...): a metric is better {', '.join(WAYS[:2])} or real")

    def declared(metric: Callable) -> Callable:
        name = column or metric.__name__
        known, own = COLUMNS.get(name), path_of(metric)
        if known is not None and own not in known.metrics:
            ours = is_ours(known.metrics[0])
            if known.better != way or ours != is_ours(own):
                raise UserError(
                    f"@better('{way}', ...) of {metric.__name__}: column {name} of "
                    f"{_short(known.metrics[0])} is better {known.better}: call it otherwise"
                )
            if ours:  # the same number by two of the package's metrics
                COLUMNS[name] = known._replace(metrics=(*known.metrics, own))
                return metric
        in_spaces = bool(needs(metric) & OF_A_SPACE)
        settings = tuple(settings_of(metric, {}))
        # of one's own the last word counts: a module may be read again
        COLUMNS[name] = Meaning(way, text, format, (own,), in_spaces, settings)
        return metric

    return declared


def path_of(metric: Callable) -> str:
    """The dotted path of a function."""
    return f"{metric.__module__}.{metric.__qualname__}"


def is_ours(path: str) -> bool:
    """Whether this is the path of a metric of the package."""
    return path.startswith("lightning_cfg.metrics.")


def _short(path: str) -> str:
    return path.rpartition(".")[2] if is_ours(path) else path


def kind_of(column: str) -> str:
    """The declared column that this one of a table is of; the column itself where there is none.

    In a table a feature space's label, a metric's numbers and a second reference follow the name.
    """
    words = column.split("_")
    for i in range(len(words), 0, -1):
        start, rest = "_".join(words[:i]), "_".join(words[i:])
        if start in COLUMNS and _may_follow(COLUMNS[start], rest):
            return start
    return column


def _may_follow(means: Meaning, rest: str) -> bool:
    """Whether this may stand behind a column's name: nothing, an error, a reference, a setting."""
    set_here = any(re.match(rf"{key}[-\d.]", rest) for key in means.settings)
    return means.in_spaces or rest in ("", "se") or rest.startswith("vs_") or set_here


def meaning(column: str) -> Meaning:
    """What a column of a table means; of one that nobody has declared, no way is better."""
    kind = kind_of(column)
    found = COLUMNS.get(kind, UNDECLARED)
    if kind != column and "_std" in column:
        return Meaning(None, f"deviation of {kind} over the subsets or splits")
    if kind != column and column.endswith("_se"):
        return Meaning(None, f"standard error of {kind}", found.format)
    if kind != column and "_infinity" in column:
        return found._replace(text=f"{found.text}, extrapolated to endless samples")
    return found


def show(column: str, value: Any) -> str:
    """A value as the metric of the column says; words as they are, nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return written(value, meaning(column).format)


def written(value: float, format: Callable[[float], str]) -> str:
    """A value by its format, over seeds as mean ± half of its interval: 12.3 ± 0.45 %."""
    if not isinstance(value, OverSeeds):
        return format(value)
    least = 1e-6 * abs(value)  # below it is rounding
    mean, half = format(value), format(float(f"{value.half:.2g}") if value.half > least else 0.0)
    unit = " %" if mean.endswith(" %") and half.endswith(" %") else ""
    return f"{mean.removesuffix(unit)} ± {half.removesuffix(unit)}{unit}"


def check_columns(metric: Callable, columns: Iterable[str]) -> None:
    """UserError for a column that tables, reports and `keep_by` would take for another metric's."""
    for column in columns:
        kind = kind_of(column)
        if kind in COLUMNS and path_of(metric) not in COLUMNS[kind].metrics:
            other = _short(COLUMNS[kind].metrics[0])
            how = "call it otherwise"
            if kind != column:
                how = "declare it with @better of lightning_cfg.metrics.meaning"
            raise UserError(
                f"metric {metric.__name__}: its column {column} would be read as {kind} of "
                f"{other}: {how}"
            )
