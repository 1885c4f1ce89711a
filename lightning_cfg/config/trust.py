"""Whose code a file may name: a checkpoint's config is a stranger's, a user's own config is not.

A name in a config is resolved by importing its module, which runs it. What a user has written in a
config of this process, in the key `trust` or in $LIGHTNING_CFG_TRUST, is trusted; a file may name
these modules and the package's own, and nothing else.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lightning_cfg.errors import UserError

VARIABLE = "LIGHTNING_CFG_TRUST"  # modules between commas
OWN = ("lightning_cfg.nets", "lightning_cfg.diffusion.models")
OWN += ("lightning_cfg.data", "lightning_cfg.training.learners")

_named: set[str] = set()  # by the user, in this process
_file: ContextVar[Path | None] = ContextVar("file", default=None)  # whose names are resolved now


def trust(modules: Iterable[str]) -> None:
    """Let files of this process name these modules, and what lies in them."""
    _named.update(modules)


def trusted() -> frozenset[str]:
    """The modules that files of this process may name, the package's own apart."""
    return frozenset(_named)


@contextmanager
def only(modules: Iterable[str]) -> Iterator[None]:
    """Meanwhile these alone are trusted; afterwards those that were before."""
    before, wanted = trusted(), set(modules)
    try:
        _named.clear()
        _named.update(wanted)
        yield
    finally:
        _named.clear()
        _named.update(before)


def trust_as_asked(config: dict[str, Any]) -> None:
    """Let files name what the user's own config does: by names of its own, and by its key."""
    own = [name for name in named_in(config) if not is_pythons(name)]
    trust([*own, *config.get("trust", ())])


def named_in(config: Any) -> Iterator[str]:
    """The modules of all dotted names in the sections of a config."""
    if isinstance(config, dict):
        name = config.get("name")
        if isinstance(name, str) and "." in name:
            yield name.rpartition(".")[0]
    for item in config.values() if isinstance(config, dict) else config:
        if isinstance(item, (dict, list, tuple)):
            yield from named_in(item)


def is_pythons(module: str) -> bool:
    """Whether it is of Python's own library, which holds no networks: a slip trusts none of it."""
    return module.partition(".")[0] in sys.stdlib_module_names


@contextmanager
def names_of(file: str | Path) -> Iterator[None]:
    """Names that are resolved in the meantime stand in this file: dotted ones need trust."""
    before = _file.set(Path(file))
    try:
        yield
    finally:
        _file.reset(before)


def check_trusted(name: str) -> None:
    """UserError, before anything is imported, for a dotted name of a file that nobody trusts."""
    file, module = _file.get(), name.rpartition(".")[0]
    if file is None:
        return
    given = filter(None, re.split(r"[,:\s]+", os.environ.get(VARIABLE, "")))
    known = {*OWN, *_named, *given}
    if not any(module == own or module.startswith(f"{own}.") for own in known):
        raise UserError(
            f"{file} names {name}, which would run code of the module {module}; where you know it "
            f"and trust it, write trust: [{module}]"
        )
