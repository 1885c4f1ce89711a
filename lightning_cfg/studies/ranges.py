"""What is tried of a method's parameters: drawn at random from their ranges, by a seed."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin

from lightning_cfg.config import Guidance, Real, Verb, asked, ordered
from lightning_cfg.config.check import UNIONS
from lightning_cfg.config.schema import join, keys_of, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.sampling.guided import check_together
from lightning_cfg.sampling.network import Networks, told

TRIES = 100  # draws in a row that two keys' order refuses: then it is the ranges that are wrong
SCHEDULES = "lightning_cfg.guidance.schedules"


@ordered("min", "max")
def between(*, min: Annotated[float, Real], max: Annotated[float, Real], log: bool = False) -> None:
    """A range of a parameter.

    min, max  between which it is drawn
    log       evenly in its logarithm
    """


Range = list[Any] | Annotated[dict, Verb("lightning_cfg.studies.ranges.between")]


@dataclass(frozen=True)
class Setting:
    """A method with one choice of its parameters.

    values  {dotted key: value} of what is other than it is written; {} of the method as it is
    """

    models: dict
    guidance: dict
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return ", ".join(f"{key} {_in_words(value)}" for key, value in self.values.items())


def parameters(method: dict) -> dict[str, Any]:
    """{dotted key: annotation} of all numbers of a method but for the scale that a study sets.

    A weak model is one too: `models.weak`.
    """
    weak = {"models.weak": Networks} if "weak" in method["models"] else {}
    return weak | dict(_numbers(method["guidance"], "lightning_cfg.guidance", "", True))


def _numbers(section: dict, module: str, path: str, scales: bool) -> Iterator[tuple[str, Any]]:
    """scales: whether the first scale among them is the study's, see `guided.with_scale`."""
    keys, _ = keys_of(resolve(module, section["name"]))
    for key in sorted(keys, key=lambda key: (key == "of", key != "scale")):
        value, here = section.get(key), join(path, key)
        if isinstance(value, dict):
            yield from _numbers(value, SCHEDULES if key != "of" else module, here, scales)
            scales = scales and key == "of"
        elif key == "scale" and scales:
            scales = False
        elif _is_number(keys[key][0]) and not isinstance(value, str):  # own, of a knock-out
            yield here, keys[key][0]


def _is_number(kind: Any) -> bool:
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        return _is_number(args[0])
    return any(map(_is_number, args)) if base in UNIONS else base in (int, float)


def check_ranges(name: str, method: dict) -> None:
    """UserError unless every parameter of a method has a range, and each is one of it."""
    own, ranges = parameters(method), method["ranges"]
    for key in own:
        if key not in ranges:
            raise UserError(
                f"methods.{name}.ranges has no {key}: where methods are tuned, each brings a "
                f"range, or a list of values, of every parameter ({', '.join(own)}); "
                f"[{_usual(method, key)}] is the one that is written"
            )
    for key, given in ranges.items():
        path = f"methods.{name}.ranges.{key}"
        if isinstance(given, list) and not given:
            raise UserError(f"{path} is an empty list")
        if isinstance(given, dict) and given["log"] and given["min"] <= 0:
            raise UserError(f"{path}: min={given['min']:g} has no logarithm")
        for value in given if isinstance(given, list) else (given["min"], given["max"]):
            if key in own and key != "models.weak":
                asked(own[key], _of_kind(own[key], value), path)
            _laid(method, key, value, path)


def _usual(method: dict, key: str) -> Any:
    held: Any = method if key.startswith("models.") else method["guidance"]
    for part in key.split("."):
        held = held[part]
    return held


def tried(name: str, method: dict, n: int, seed: int) -> list[Setting]:
    """A method's own setting, and others of its ranges, `n` in all; of a small grid, all of it.

    Each parameter is drawn by itself: of a list one of its values, of a range evenly, three digits
    of it. So the k-th setting is the same whatever n is.
    UserError where so many draws in a row are refused, as by the order of two limits.
    """
    own, ranges = Setting(method["models"], method["guidance"]), method["ranges"]
    kinds, found = parameters(method), [own]
    if all(isinstance(given, list) for given in ranges.values()):
        every = itertools.product(*ranges.values())
        whole = [dict(zip(ranges, values, strict=True)) for values in itertools.islice(every, n)]
        if next(every, None) is None:
            settings = [_with(name, method, values) for values in whole]
            others = [one for one in settings if not _same(one, own)]
            return [own, *others]
    generator, refused = random.Random(f"{seed} {name}"), 0
    while len(found) < n:
        values = {key: _drawn(given, kinds.get(key), generator) for key, given in ranges.items()}
        try:
            found.append(_with(name, method, values))
            refused = 0
        except UserError as error:
            refused += 1
            if refused == TRIES:
                told = f"methods.{name}.ranges: {TRIES} draws in a row are refused, as {error}"
                raise UserError(told) from error
    return found


def _same(one: Setting, other: Setting) -> bool:
    return (one.models, one.guidance) == (other.models, other.guidance)


def _drawn(given: list | dict, kind: Any, generator: random.Random) -> Any:
    if isinstance(given, list):
        return given[generator.randrange(len(given))]
    share, low, high = generator.random(), given["min"], given["max"]
    if given["log"]:
        value = math.exp(math.log(low) + share * math.log(high / low))
    else:
        value = low + share * (high - low)
    return _of_kind(kind, float(f"{value:.3g}"))


def _of_kind(kind: Any, value: Any) -> Any:
    """A number of a range as an int where it has to be one."""
    whole = kind is not None and (get_args(kind) or (kind,))[0] is int
    return round(value) if whole and type(value) is float else value


def _with(name: str, method: dict, values: dict[str, Any]) -> Setting:
    """A method with these values, checked as it is itself; UserError for what does not go."""
    path, changed = f"methods.{name}", method
    for key, value in values.items():
        changed = _laid(changed, key, value, path)
    guidance = asked(Guidance, changed["guidance"], f"{path}.guidance")
    models = asked(Networks, changed["models"], f"{path}.models")
    check_together(guidance, method["generation"]["sampler"])
    other = {key: value for key, value in values.items() if value != _usual(method, key)}
    return Setting(models, guidance, other)


def _laid(method: dict, key: str, value: Any, path: str) -> dict:
    """A method with one value at a dotted key, in its guidance or its models."""
    section, _, rest = key.partition(".")
    if section == "models" and rest in method["models"]:
        return {**method, "models": {**method["models"], rest: value}}
    return {**method, "guidance": _at(method["guidance"], key, value, f"{path}: {key}")}


def _at(section: Any, key: str, value: Any, told_as: str) -> dict:
    first, _, rest = key.partition(".")
    if not isinstance(section, dict) or first not in section or first == "name":
        raise UserError(f"{told_as} is no key of the method's guidance or models")
    return {**section, first: _at(section[first], rest, value, told_as) if rest else value}


def _in_words(value: Any) -> str:
    """A number as it is, a network in a few words."""
    if isinstance(value, dict) and isinstance(value.get("weaken"), dict):
        weaken = " ".join(str(item) for item in value["weaken"].values())
        return f"{value['path']} (weakened by {weaken})"
    if isinstance(value, dict) and ("path" in value or "name" in value):
        return told(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
