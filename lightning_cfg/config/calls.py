"""A verb called from Python: by a config and overrides, as on a command line, or by keywords."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from lightning_cfg.config.check import checked
from lightning_cfg.config.files import Document, load, read, set_key, set_value
from lightning_cfg.config.trust import trust_as_asked
from lightning_cfg.errors import UserError


def completed(function: Callable[..., Any], *, short: str = "") -> Callable[..., Any]:
    """The function, called with its keywords as its schema has them; see `keywords_of`.

    short  the key that a text stands for which is given in the place of a config
    """

    @functools.wraps(function)
    def called(config: Any = None, /, *overrides: str, **keys: Any) -> Any:
        if short and isinstance(config, str | os.PathLike):
            config, keys = None, {short: config, **keys}
        found = keywords_of(function, config, overrides, keys)
        trust_as_asked(found)
        with _recording():
            return function(**found)

    called.__signature__ = _signature(function)  # type: ignore[attr-defined]
    return called


def keywords_of(
    verb: Callable, config: Any, overrides: tuple[str, ...], keys: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a verb by a call `verb(config, *overrides, **keys)`, checked and completed.

    config     a config file, or one of the package's by its name, or a dict of keys; None: none
    overrides  key=value, as on a command line: "trainer.max_steps=100"
    keys       values of Python's, a path where a text is asked for; a dotted key by ** of a dict
    What is given later replaces what was before. UserError, as `load` raises it.
    """
    plain, named = _plain(dict(keys)), f"{verb.__name__}()"
    if config is None and not overrides and not any("." in key for key in plain):
        return checked(verb, plain)
    if isinstance(config, str | os.PathLike):
        document = read(os.fspath(config))
        document.by = named
    elif config is None or isinstance(config, Mapping):
        document = Document(None, _plain(config or {}), by=named)
    else:
        kind = type(config).__name__
        raise UserError(f"{named} takes a config's file or name, or a dict of keys, not a {kind}")
    for override in overrides:
        set_key(document, override)
    for key, value in plain.items():
        set_value(document, key, value)
    return load(verb, document)


def _plain(value: Any) -> Any:
    """As yaml would have it: paths as texts, sections as dicts of one's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = map(_plain, value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _recording() -> Any:
    """What is done in here can be differentiated, also where torch.inference_mode is on outside."""
    import torch  # which a verb has imported

    return torch.inference_mode(False)


def _signature(function: Callable) -> inspect.Signature:
    """The keys of a verb behind what may stand before them."""
    kinds, own = inspect.Parameter, inspect.signature(function)
    keys = [one for one in own.parameters.values() if one.kind is not one.POSITIONAL_ONLY]
    config = kinds("config", kinds.POSITIONAL_ONLY, default=None)
    overrides = kinds("overrides", kinds.VAR_POSITIONAL, annotation=str)
    return own.replace(parameters=[config, overrides, *keys])
