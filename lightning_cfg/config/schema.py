"""What stands in a config: the signatures of what it configures, and marks on their parameters."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from lightning_cfg.config.trust import check_trusted
from lightning_cfg.errors import UserError, did_you_mean

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Choice:
    """Section {name, ...}: a name in `module` or a dotted path, and the numbers that it takes.

    every  also those that it takes by position, as others' callables do: the caller gives none so
    """

    module: str
    every: bool = False

    def __str__(self):
        return f"a name in {self.module} or a section {{name: ...}}"

    def keys(self, function: Callable) -> tuple["Keys", bool]:
        """The keys that may stand beside the name, and whether others may too."""
        keys, free = keys_of(function, self.every)
        return {key: keys[key] for key in keys if key != "name"}, free


@dataclass(frozen=True)
class Keywords:
    """Section of any parameters of a callable; only those given are kept, without defaults.

    callable  its dotted path
    kinds     annotations of keys of others' callables, in place of their own: with ranges
    """

    callable: str
    kinds: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self):
        return f"keys of {self.callable}"

    def keys(self) -> tuple["Keys", bool]:
        """The keys that may stand in the section, and whether others may too."""
        keys, free = keys_of(resolve("", self.callable), every=True)
        kinds = {key: self.kinds.get(key, kind) for key, (kind, _) in keys.items()}
        return {key: (kinds[key], keys[key][1]) for key in keys}, free


@dataclass(frozen=True)
class Verb:
    """Section of the keyword-only parameters of a callable, such as another verb.

    callable  its dotted path
    without   the keys that the caller gives
    short     the key that a text in place of the section stands for, where one may stand there
    """

    callable: str
    without: tuple[str, ...] = ()
    short: str = ""

    def __str__(self):
        return f"keys of {self.name}"

    @property
    def name(self) -> str:
        return self.callable.rpartition(".")[2]

    def keys(self) -> "Keys":
        """The keys that may stand in the section."""
        keys, _ = keys_of(resolve("", self.callable))
        return {key: keys[key] for key in keys if key not in self.without}


SECTIONS = (Choice, Keywords, Verb)
Keys = dict[str, tuple[Any, Any]]  # {name: (annotation, default)}

Data = Annotated[dict, Choice("lightning_cfg.data", every=True)]
Net = Annotated[dict, Choice("lightning_cfg.nets")]
Model = Annotated[dict, Choice("lightning_cfg.diffusion.models")]
Learner = Annotated[dict, Choice("lightning_cfg.training.learners")]
Guidance = Annotated[dict, Choice("lightning_cfg.guidance")]
Sampler = Annotated[dict, Choice("lightning_cfg.diffusion.samplers")]
Features = Annotated[dict, Choice("lightning_cfg.evaluation.features")]
Decode = Annotated[dict, Choice("lightning_cfg.latents")]
Metric = Annotated[dict, Choice("lightning_cfg.metrics")]


# What a parameter is to the run that it configures


def existing(text: str) -> Path:
    """The file or folder of this path; UserError if there is none."""
    path = Path(text)
    if not path.exists():
        raise UserError(f"{text}: no such file or folder")
    return path


@dataclass(frozen=True)
class Input:
    """A text that names something read: the run depends on its content, not on where it lies.

    find   the file or folder that counts, from the text; UserError where there is none; None where
           the text is to count as it is
    words  texts that name no file and count as they are, such as "exact"
    """

    find: Callable[[str], Path | None] = existing
    words: tuple[str, ...] = ()


class Mark(Enum):
    """What a result does not depend on: it is recorded, and may differ between calls."""

    PLACE = "where something lies"
    FREE = "how it is done"


Place, Free = Mark.PLACE, Mark.FREE


@dataclass(frozen=True)
class LaterKey:
    """A key that its callable got later: at its default it is no part of what a run is, so that
    runs of before are found again, also where a directory has their hash in its name."""


Newer = LaterKey()

# What a name means


def join(path: str, key: str) -> str:
    """The dotted path of a key below another."""
    return f"{path}.{key}" if path else key


def choices(module_name: str) -> list[str]:
    """The public callables of a module: its __all__, or what it or its submodules define."""
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None)
    if names is None:
        inside = f"{module_name}."
        names = [
            name
            for name, item in vars(module).items()
            if not name.startswith("_") and f"{getattr(item, '__module__', '')}.".startswith(inside)
        ]
    return [name for name in names if callable(getattr(module, name, None))]


def resolve(module_name: str, name: str) -> Callable:
    """The callable `name` of a module, or of a dotted path of anyone's own; UserError if none, or
    if a file names it whose code nobody trusts (`trust.names_of`)."""
    own_module, dot, attribute = name.rpartition(".")
    if dot:
        check_trusted(name)
        try:
            found = getattr(importlib.import_module(own_module), attribute, None)
        except (ImportError, SyntaxError, ValueError) as error:
            raise UserError(f"cannot import '{own_module}' of '{name}': {error}") from None
        if not callable(found):
            raise UserError(f"module '{own_module}' has no function or class '{attribute}'")
        return found
    names = choices(module_name)
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(f"no '{name}' in {module_name}; {hint}")
    return getattr(importlib.import_module(module_name), name)


def build(module_name: str, section: dict, *positional: Any) -> Any:
    """Call what a choice section names: networks are positional, the section's numbers keywords."""
    numbers = {key: value for key, value in section.items() if key != "name"}
    return resolve(module_name, section["name"])(*positional, **numbers)


def keys_of(function: Callable, every: bool = False) -> tuple[Keys, bool]:
    """{name: (annotation, default)} of keyword-only (or all) parameters; does it take **others?"""
    try:
        of = function.__init__ if inspect.isclass(function) else function
        hints = get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # names imported for type checkers only: keys without types
        hints = {}
    keys, free = {}, False
    for parameter in inspect.signature(function).parameters.values():
        free |= parameter.kind is parameter.VAR_KEYWORD
        if parameter.kind is parameter.KEYWORD_ONLY or (
            every and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            keys[parameter.name] = (hints.get(parameter.name, Any), parameter.default)
    return keys, free


def marks(kind: Any) -> tuple:
    """What an annotation says beyond its type."""
    return getattr(kind, "__metadata__", ())


def section_of(kind: Any) -> Choice | Keywords | Verb | None:
    """The section that stands where the annotation is, if one does."""
    return next((mark for mark in marks(kind) if isinstance(mark, SECTIONS)), None)
