"""A value against its annotation: the checked value, or one line that says what is wrong."""

import math
import os
import sys
import types
from collections import abc
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lightning_cfg.config.domain import Infinite, Ordered, domains_of, fits, rules_of
from lightning_cfg.config.schema import (
    REQUIRED,
    Choice,
    Keys,
    Keywords,
    Verb,
    choices,
    join,
    keys_of,
    marks,
    resolve,
    section_of,
)
from lightning_cfg.errors import UserError, nearest

SCALARS = (int, float, bool, str, types.NoneType)
SEQUENCES = (list, tuple, abc.Sequence, abc.Iterable)
MAPPINGS = (dict, abc.Mapping)
LARGEST = sys.float_info.max  # of what is finite; NaN is not below it
UNIONS = (Union, types.UnionType)


class Wrong(Exception):
    """A wrong value or key at a dotted path; who has read it adds where it was written."""

    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


def checked(function: Callable, config: dict) -> dict:
    """A function's keywords as its signature has them: short forms written out, defaults there.

    UserError, in one line, for what is unknown, missing, of a wrong type or out of its range.
    """
    try:
        keys, rules = keys_of(function)[0], rules_of(function)
        return check_keys(config, keys, "", function.__name__, rules=rules)
    except Wrong as wrong:
        raise UserError(str(wrong)) from None


def asked(annotation: Any, value: Any, name: str) -> Any:
    """A value, called so, as its annotation has it; UserError, in one line, where it is none."""
    try:
        return check(annotation, value, name)
    except Wrong as wrong:
        raise UserError(str(wrong)) from None


def changed(annotation: Any, section: dict, change: dict, path: str) -> dict:
    """A section of a verb's keys with a change laid over it, checked as the section itself is.

    What bears another name is replaced as a whole, the section itself too, everything else key by
    key. UserError, naming
    the key below `path`, for what is unknown or of a wrong type.
    """
    if change.get("name", section.get("name")) != section.get("name"):
        section = {}
    try:
        return check(annotation, _laid_over(section, change), path)
    except Wrong as wrong:
        raise UserError(str(wrong)) from None


def _laid_over(section: dict, change: dict) -> dict:
    merged = dict(section)
    for key, value in change.items():
        old = section.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if value.get("name", old.get("name")) == old.get("name"):
                value = _laid_over(old, value)
        merged[key] = value
    return merged


# In words


def show(value: Any) -> str:
    """A value as a message shows it."""
    text = "null" if value is None else getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def describe(kind: Any) -> str:
    """What an annotation asks for, in the words of a config."""
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        section = section_of(kind)
        if section is not None:
            return str(section)
        return " ".join([describe(args[0]), *filter(None, map(str, domains_of(kind)))])
    if base in UNIONS:
        words = list(dict.fromkeys(describe(arg) for arg in args if known(arg)))
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if base is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if base in SEQUENCES:
        return f"list of {describe(args[0])}" if args else "list"
    if base in MAPPINGS:
        return f"section of {describe(args[1])}" if args else "section"
    return "null" if kind in (None, types.NoneType) else getattr(kind, "__name__", str(kind))


def known(kind: Any) -> bool:
    """Whether it is an annotation that is checked here; others' types are left to the callable."""
    base = get_origin(kind) or kind
    return base in (Annotated, Literal, *UNIONS, *SCALARS, *SEQUENCES, *MAPPINGS)


# Sections


def check_keys(
    value: dict,
    keys: Keys,
    path: str,
    what: str,
    *,
    free: bool = False,
    fill: bool = True,
    rules: tuple[Ordered, ...] = (),
) -> dict:
    """The section with every value checked and, with `fill`, every default filled in.

    free   whether other keys may stand there too
    rules  over several of its keys
    """
    for key in value:
        if key not in keys and not free:
            hint = f"{what} has {'the keys ' + ', '.join(keys) if keys else 'no keys'}"
            near = nearest(key, keys)
            hint = f"did you mean '{join(path, near)}'?" if near else hint
            raise Wrong(join(path, key), f"unknown key '{join(path, key)}'; {hint}")
    found = {}
    for key, (kind, default) in keys.items():
        here = join(path, key)
        if key in value:
            given = value[key]
            if isinstance(given, dict) and "name" not in given and _is_choice(kind):
                given = _named(default) | given
            found[key] = check(kind, given, here)
        elif fill and default is REQUIRED:
            if not isinstance(section_of(kind), Keywords):
                raise Wrong(here, f"{here} is missing: {what} needs it, {describe(kind)}")
            found[key] = {}
        elif fill and is_plain(default):
            found[key] = default if default is None else check(kind, default, here)
    for rule in rules:
        if message := rule.broken(found, keys, path):
            raise Wrong(join(path, rule.low), message)
    return found | {key: at_home(item) for key, item in value.items() if key not in keys}


def _section(value: Any, path: str, what: object) -> dict:
    if value is None:  # a section of which every line is commented out
        return {}
    if not isinstance(value, dict):
        raise Wrong(path, f"{path} must be {what}, not {show(value)}")
    return value


def _is_choice(kind: Any) -> bool:
    parts = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
    return any(isinstance(mark, Choice) for part in parts for mark in marks(part))


def _named(default: Any) -> dict:
    """The default of a choice section as a section: a name, or {name: ...}, or nothing."""
    if isinstance(default, str):
        return {"name": default}
    return default if isinstance(default, dict) else {}


def is_plain(value: Any) -> bool:
    """Can yaml hold it? A default that it cannot hold is left to the callable."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return type(value) in SCALARS


def _check_section(mark: Choice | Keywords | Verb, value: Any, path: str) -> dict:
    if isinstance(mark, Choice):
        return _check_choice(mark, value, path)
    value = _section(value, path, mark)
    if isinstance(mark, Keywords):
        if not value:
            return {}  # nothing to check, so the callable need not be imported
        keys, free = mark.keys()
        rules = rules_of(resolve("", mark.callable))
        return check_keys(value, keys, path, mark.callable, free=free, fill=False, rules=rules)
    if mark.short and "name" in value:  # an override has made a section of the text
        if mark.short in value:
            raise Wrong(path, f"{path} has both name and {mark.short}: one of them")
        value = {mark.short if key == "name" else key: item for key, item in value.items()}
    rules = rules_of(resolve("", mark.callable))
    return check_keys(value, mark.keys(), path, mark.name, rules=rules)


def _check_choice(mark: Choice, value: Any, path: str) -> dict:
    value = {"name": value} if isinstance(value, str) else _section(value, path, mark)
    name = value.get("name")
    if isinstance(name, str) and "${" in name:
        return value
    if not isinstance(name, str):
        names = ", ".join(choices(mark.module))
        raise Wrong(f"{path}.name", f"{path}.name must be one of {names}, not {show(name)}")
    try:
        function = resolve(mark.module, name)
    except UserError as error:
        raise Wrong(f"{path}.name", f"{path}.name: {error}") from None
    keys, free = mark.keys(function)
    numbers = {key: value[key] for key in value if key != "name"}
    rules = rules_of(function)
    return {"name": name, **check_keys(numbers, keys, path, name, free=free, rules=rules)}


# Values


def check(kind: Any, value: Any, path: str) -> Any:
    """The value as its annotation has it; what is annotated with others' types is not checked."""
    if isinstance(value, str):
        value = at_home(value)
        if "${" in value:
            return value  # checked once it is resolved
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        section = section_of(kind)
        if section is not None:
            return _check_section(section, value, path)
        return _check_domain(kind, args[0], value, path)
    if base in UNIONS:
        return _check_union(kind, value, path)
    if base in SEQUENCES and isinstance(value, (list, tuple)):
        return _check_items(base, args, value, path)
    if base in MAPPINGS:
        section = _section(value, path, describe(kind))
        each = args[1] if args else Any
        return {key: check(each, item, join(path, key)) for key, item in section.items()}
    if not known(kind):
        return at_home(value)
    return _check_scalar(kind, value, path)


def at_home(value: Any) -> Any:
    """The value with ~ and ~somebody, at the beginning of any text in it, as the folder it is."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value[:1] == "~" and "\0" not in value else value
    if type(value) in (list, tuple):
        return type(value)(map(at_home, value))
    return {key: at_home(item) for key, item in value.items()} if type(value) is dict else value


def _check_domain(kind: Any, plain: Any, value: Any, path: str) -> Any:
    """The value as its type has it, if it also lies in the ranges that are marked beside it."""
    domains = domains_of(kind)
    if Infinite in domains and type(value) is float and math.isinf(value):
        found = value
    elif plain in SCALARS:
        found = _check_scalar(plain, value, path, kind)
    else:
        found = check(plain, value, path)
    if all(domain.holds(found) for domain in domains):
        return found
    hint = "" if fits(found) else " (64 bits cannot hold it)"
    raise Wrong(path, f"{path} must be {describe(kind)}, not {show(value)}{hint}")


def _check_scalar(kind: Any, value: Any, path: str, asked: Any = None) -> Any:
    """The value as its type has it; `asked` is the type with its range, for the message."""
    if get_origin(kind) is Literal:
        if any(value == arg and type(value) is type(arg) for arg in get_args(kind)):
            return value
    elif kind is float:
        if type(value) in (int, float) and abs(value) <= LARGEST:
            return float(value)
    elif kind is int:  # 1e5 is a float to yaml
        if type(value) is int or (type(value) is float and value.is_integer()):
            return int(value)
    elif kind is str and isinstance(value, str):  # of a kind of its own too, as `ToCome` is
        if "\0" in value:
            raise Wrong(path, f"{path} has a zero byte, which no name of a file has")
        return value
    elif value is None if kind is None else type(value) is kind:
        return value
    _refuse_text_of_a_number(asked or kind, [kind], value, path)
    hint = ""
    if kind is str and type(value) in (int, float, bool):
        hint = " (put it in quotes)"
    elif kind is float and type(value) in (int, float) and Infinite not in domains_of(asked):
        hint = " (it has to be finite)"
    raise Wrong(path, f"{path} must be {describe(asked or kind)}, not {show(value)}{hint}")


def _refuse_text_of_a_number(kind: Any, kinds: list, value: Any, path: str) -> None:
    """Wrong, saying so, where one of these kinds is a number and the value a text of one.

    What comes from the environment is a text, and '2.5' would be looked for among names.
    """
    marked = [one for one in kinds if get_origin(one) is Annotated and section_of(one) is None]
    kinds = [get_args(one)[0] if one in marked else one for one in kinds]
    numbers = {one for one in kinds if one in (int, float, bool)}
    if not numbers or not isinstance(value, str) or str in kinds:
        return
    try:
        float(value)
    except ValueError:
        if bool not in numbers or value.lower() not in ("true", "false"):
            return
    if not any(value in get_args(one) for one in kinds if get_origin(one) is Literal):
        must = f"{path} must be {describe(kind)}, not the text {value!r}"
        hint = "write it without quotes, or where it comes from the environment"
        raise Wrong(path, f"{must}: {hint} ${{oc.decode:${{oc.env:NAME}}}}")


def _check_items(base: Any, args: tuple, value: list | tuple, path: str) -> list | tuple:
    each = args[:1] * len(value) if base is not tuple or args[1:] == (...,) else args
    if args and len(each) != len(value):
        raise Wrong(path, f"{path} must have {len(each)} items, not {show(value)}")
    items = zip(each, value, strict=True) if args else ((Any, item) for item in value)
    found = [check(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(items)]
    return tuple(found) if base is tuple else found


def _check_union(kind: Any, value: Any, path: str) -> Any:
    """The value as the first of the union's kinds that it fits."""
    kinds = [arg for arg in get_args(kind) if known(arg)]
    if Any in get_args(kind) or all(arg is types.NoneType for arg in kinds):
        return at_home(value)
    if type(value) in kinds:  # 1.0 stays a float in `int | float`: to the Trainer it is not 1
        return check(type(value), value, path)
    _refuse_text_of_a_number(kind, kinds, value, path)
    deeper = None
    for one in likely(kinds, value):
        try:
            return check(one, value, path)
        except Wrong as wrong:
            deeper = wrong if wrong.path != path else deeper
    raise deeper or Wrong(path, f"{path} must be {describe(kind)}, not {show(value)}")


def likely(kinds: list, value: Any) -> list:
    """Which of a union's kinds a value may be meant as: with a name it is one choice, without one
    it holds several."""
    if isinstance(value, dict):
        one = [kind for kind in kinds if section_of(kind) is not None]
        several = [kind for kind in kinds if get_origin(kind) in MAPPINGS]
        return (one if "name" in value else several) or kinds
    return kinds
