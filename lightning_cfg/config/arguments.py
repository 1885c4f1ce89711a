"""The words after a verb's name: its file, overrides and flags, without a schema."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_cfg.config.files import Document, load, read
from lightning_cfg.errors import UserError


@dataclass
class Arguments:
    """What stands on a verb's command line; the file has been read."""

    document: Document | None = None
    help: bool = False
    print_config: bool = False
    overrides: list[str] = field(default_factory=list)


def parse(words: list[str]) -> Arguments:
    """The arguments, the file read, so that its absence is told at once; UserError as `read`."""
    found, file = Arguments(), None
    rest = iter(words)
    for word in rest:
        if word == "--config":
            file = next(rest, None)
        elif word.startswith("--config="):
            file = word.removeprefix("--config=")
        elif word in ("-h", "--help"):
            found.help = True
        elif word == "--print-config":
            found.print_config = True
        else:
            found.overrides.append(word)
    if file:
        found.document = read(file, found.overrides)
    elif not found.help:
        raise UserError("needs --config FILE")
    return found


def from_arguments(verb: Callable, words: list[str]) -> dict:
    """The config that a verb's own command line, without its name, gives; UserError as `load`."""
    document = parse(words).document
    if document is None:
        raise UserError("needs --config FILE")
    return load(verb, document)
