"""What makes two runs the same: said once, by the marks in the signatures of what they configure.

A parameter that bears no mark is a setting, by which a run is known. One that names a file counts
by the file's content (`Input`), one that says where something lies (`Place`) or how it is done
(`Free`) does not count. A callable of one's own, a dotted path, counts by its source file too.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from lightning_cfg.config.check import (
    MAPPINGS,
    SEQUENCES,
    UNIONS,
    Wrong,
    check,
    is_plain,
    known,
    likely,
    show,
)
from lightning_cfg.config.schema import (
    REQUIRED,
    Choice,
    Free,
    Input,
    Keys,
    Keywords,
    LaterKey,
    Mark,
    Place,
    Verb,
    join,
    keys_of,
    marks,
    resolve,
    section_of,
)

DROPPED = object()  # in place of a value that is no setting
# By these names in a callable of one's own, which may know no marks; no file's path is a setting.
BY_NAME = {name: Input(lambda text: Path(text) if is_there(text) else None)
           for name in ("path", "held_out", "weights", "code")}  # fmt: skip
BY_NAME |= {"root": Place, "memory": Free}

Visit = Callable[[Any, Any, str], Any]  # (mark, value, dotted path) -> what to put in its place


@dataclass(frozen=True)
class Code:
    """The mark of a callable of one's own: the file in which it is defined."""

    file: Path


@dataclass
class Identity:
    """What a run is, and what is only recorded of it.

    settings  what its result depends on, as plain data
    inputs    {dotted key: file or folder} that count by content
    code      {dotted key: source file} of callables of one's own, which count by content too
    free      {top-level key: its whole value} where not all of it is among the settings
    usual     the dotted keys of settings that are as the signatures have them: an older run, which
              did not know such a key, is none the other for it
    """

    settings: dict = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict)
    code: dict[str, Path] = field(default_factory=dict)
    free: dict = field(default_factory=dict)
    usual: set[str] = field(default_factory=set)


def identity_of(
    verb: Callable,
    config: dict,
    *,
    find: bool = True,
    unread: Callable[[str], bool] = lambda key: False,
) -> Identity:
    """The identity of a run of the verb with this config, or a part of it, which has been checked.

    find    whether the inputs are looked for; UserError where one is not there
    unread  which inputs, by dotted key, do not count
    """
    found = Identity()

    def visit(mark: Any, value: Any, path: str) -> Any:
        if isinstance(mark, Code):
            found.code[path] = mark.file
        elif isinstance(mark, Input) and value is not None and value not in mark.words:
            file = mark.find(value) if find and not unread(path) else Path()
            if file is None:
                return value
            if find and not unread(path):
                found.inputs[path] = file
            return DROPPED
        elif isinstance(mark, Mark):
            return DROPPED
        return value

    walk = _Walk(visit)
    found.settings = walk.keys(keys_of(verb)[0], config, "")
    found.free = {k: v for k, v in config.items() if found.settings.get(k, DROPPED) != v}
    found.usual = walk.usual
    return found


def replaced(annotation: Any, value: Any, visit: Visit) -> Any:
    """A checked value with everything in it that its annotation marks as `visit` has it."""
    return _Walk(visit).value(annotation, value, "")


class _Walk:
    """Goes through a checked config with the annotations that it was checked by."""

    def __init__(self, visit: Visit):
        self.visit = visit
        self.usual: set[str] = set()

    def keys(self, keys: Keys, section: dict, path: str) -> dict:
        out = {}
        for key, value in section.items():
            kind, default = keys.get(key, (Any, REQUIRED))
            here = join(path, key)
            if is_plain(default) and value == (default and check(kind, default, here)):
                self.usual.add(here)
                if any(isinstance(mark, LaterKey) for mark in marks(kind)):
                    continue
            new = self.value(kind, value, here)
            if new is not DROPPED:
                out[key] = new
        return out

    def value(self, kind: Any, value: Any, path: str) -> Any:
        base, args = get_origin(kind) or kind, get_args(kind)
        if base is Annotated:
            mark = run_mark(kind)
            if mark is not None:
                return self.visit(mark, value, path)
            section = section_of(kind)
            if section is None or value is None:
                return self.value(args[0], value, path)
            return self.section(section, value, path)
        if base in UNIONS:
            return self.value(_meant(kind, value, path), value, path)
        if base in SEQUENCES and args and isinstance(value, (list, tuple)):
            each = args[:1] * len(value) if base is not tuple or args[1:] == (...,) else args
            items = enumerate(zip(each, value, strict=True))
            found = [self.value(k, item, join(path, str(i))) for i, (k, item) in items]
            return [item for item in found if item is not DROPPED]
        if base in MAPPINGS and args and isinstance(value, dict):
            return self.keys(dict.fromkeys(value, (args[1], REQUIRED)), value, path)
        return value

    def section(self, mark: Choice | Keywords | Verb, section: dict, path: str) -> dict:
        if isinstance(mark, Verb):
            return self.keys(mark.keys(), section, path)
        if isinstance(mark, Keywords):
            return self.keys(mark.keys()[0], section, path)
        name = section["name"]
        function = resolve(mark.module, name)
        keys, _ = mark.keys(function)
        if "." in name:
            keys |= _by_name(keys)
            file = source_of(function)
            if file is not None:
                self.visit(Code(file), name, join(path, "name"))
        return self.keys(keys, section, path)


def _by_name(keys: Keys) -> Keys:
    """Marks of those keys of one's own that have none."""
    return {
        key: (Annotated[Any, meant], keys[key][1])
        for key, meant in BY_NAME.items()
        if key in keys and run_mark(keys[key][0]) is None
    }


def run_mark(kind: Any) -> Input | Mark | None:
    """What a parameter is to a run, if its annotation says so."""
    return next((mark for mark in marks(kind) if isinstance(mark, (Input, Mark))), None)


def _meant(kind: Any, value: Any, path: str) -> Any:
    """Which of a union's kinds a checked value is of."""
    for one in likely([arg for arg in get_args(kind) if known(arg)], value):
        try:
            check(one, value, path)
            return one
        except Wrong:
            continue
    return Any


def is_there(value: Any) -> bool:
    """Whether it is the path of a file or folder."""
    return isinstance(value, str) and value != "" and Path(value).exists()


def source_of(function: Callable) -> Path | None:
    """The file in which a callable is defined; None for what is compiled."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return Path(file) if file else None


def identity_difference(
    a: dict, b: dict, usual: set[str] | frozenset[str] = frozenset(), path: str = ""
) -> str | None:
    """First difference of two configs, "learner.lr: 0.001 there, 0.0003 here"; None if equal.

    A key that is null, or empty, and one that is not there are the same; and so is one that is not
    there and is among the `usual` ones here.
    """
    for key in a | b:
        one, other, here = a.get(key, REQUIRED), b.get(key, REQUIRED), join(path, key)
        if (_empty(one) and _empty(other)) or (one is REQUIRED and here in usual):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            inner = identity_difference(one, other, usual, here)
            if inner:
                return inner
            continue
        one, other = (list(x) if isinstance(x, tuple) else x for x in (one, other))  # as in yaml
        if one != other:
            there, now = ("nothing" if x is REQUIRED else show(x) for x in (one, other))
            return f"{here}: {there} there, {now} here"
    return None


def _empty(value: Any) -> bool:
    return value in (None, REQUIRED) or (
        isinstance(value, dict) and all(map(_empty, value.values()))
    )
