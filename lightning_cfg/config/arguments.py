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
    """The arguments, the file read, so that its absence is told at once; UserError as `read`.

    FILE is as --config FILE, and --key value as key=value.
    """
    found, file, plain = Arguments(), "", []
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            found.help = True
        elif word == "--print-config":
            found.print_config = True
        elif word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            value = value if equals else next(rest, "")
            if key == "config":
                file = value
            else:
                found.overrides.append(f"{key}={value}")
        else:
            (found.overrides if "=" in word else plain).append(word)
    if plain and not file:
        file = plain.pop(0)
    found.overrides += plain  # `read` says that they are none
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
