"""What `--help` prints: a verb's keys, those of the chosen parts and of nested verbs too."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin

from lightning_cfg.config.check import MAPPINGS, describe, show
from lightning_cfg.config.meanings import meanings
from lightning_cfg.config.schema import (
    REQUIRED,
    Choice,
    Keys,
    Verb,
    choices,
    join,
    keys_of,
    resolve,
    section_of,
)


def help_of(verb: Callable, values: dict) -> str:
    """A verb in a sentence, its usage, and a line for every key.

    values  of a config file, whose choices are shown; may be empty
    """
    (keys, _), name = keys_of(verb), verb.__name__
    if "run_dir" in keys:
        keys["run_dir"] = (keys["run_dir"][0], "runs/<name of the config file>")
    rows = list(_rows(keys, meanings(verb), values, ""))
    return "\n".join(
        [
            inspect.cleandoc(verb.__doc__ or name).split("\n\n")[0],
            "",
            f"usage: python -m lightning_cfg.{name} --config FILE [key=value ...] [--print-config]",
            "or FILE alone, a config or one of the package's by its name, and --key value",
            "",
            *itertools.chain(*(_shown(*row) for row in rows)),
        ]
    )


def _shown(path: str, text: str, meaning: str) -> Iterator[str]:
    yield f"  {path}  {text}"
    indent = " " * 6
    yield from textwrap.wrap(meaning, 96, initial_indent=indent, subsequent_indent=indent)


def _rows(
    keys: Keys, means: dict[str, str], values: Any, path: str
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, its type and default, what it means)."""
    for key, (kind, default) in keys.items():
        here, value = join(path, key), values.get(key) if isinstance(values, dict) else None
        note = "required" if default is REQUIRED else f"default {show(default)}"
        yield here, f"{describe(kind)}; {note}", means.get(key, "")
        yield from _inner_rows(kind, default if value is None else value, here)


def _inner_rows(kind: Any, value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    section = section_of(kind)
    if isinstance(section, Verb):
        yield from _rows(section.keys(), meanings(resolve("", section.callable)), value, path)
    elif isinstance(section, Choice):
        name = value.get("name") if isinstance(value, dict) else value
        part = resolve(section.module, name) if isinstance(name, str) and "${" not in name else None
        what = "" if part is None else inspect.cleandoc(part.__doc__ or "").split("\n\n")[0]
        names = ", ".join(_names(section.module))
        yield f"{path}.name", f"one of {names}", f"{name}: {what}" if what else ""
        if part is not None:
            yield from _rows(section.keys(part)[0], meanings(part), value, path)
    elif get_origin(kind) in MAPPINGS and get_args(kind):
        yield from _inner_rows(get_args(kind)[1], None, f"{path}.NAME")
    elif section is None:
        rows = (row for arg in get_args(kind) for row in _inner_rows(arg, value, path))
        yield from dict.fromkeys(rows)  # one that stands alone or in a list is shown once


def _names(module: str) -> list[str]:
    """`choices`; of a module that says its __all__ without importing it, as Lightning is slow."""
    spec = find_spec(module)
    for node in ast.parse(Path(spec.origin).read_text()).body if spec and spec.origin else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return choices(module)
