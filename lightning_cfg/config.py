"""Configuration: one yaml file and overrides, typed by the signatures of what they configure.

A verb is a function with keyword-only parameters; their names, annotations and defaults are its
schema. A section of a choice, {name: heun, steps: 18}, takes the keys of the callable it names. All
is checked before anything is built. This is the only place that knows OmegaConf, and it imports
nothing heavy: a missing file is answered before torch is imported.
"""

import difflib
import importlib
import inspect
import sys
import types
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml  # OmegaConf's own reader; here for the name of its errors
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_cfg.errors import Diverged, Preempted, RankLost, UserError

REQUIRED = inspect.Parameter.empty
SCALARS = (int, float, bool, str, types.NoneType)
SEQUENCES = (list, tuple, abc.Sequence, abc.Iterable)
MAPPINGS = (dict, abc.Mapping)
REQUEUE = 75  # exit status, EX_TEMPFAIL in sysexits.h: the batch scripts in launch/ know it


class _Wrong(Exception):
    """A wrong value or key at a dotted path; load adds where it was written."""

    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Choice:
    """Section {name, ...}: a name in `module` or a dotted path, and the numbers that it takes."""

    module: str

    def __str__(self):
        return f"a name in {self.module} or a section {{name: ...}}"

    def check(self, value, path: str) -> dict:
        value = {"name": value} if isinstance(value, str) else _section(value, path, self)
        name = value.get("name")
        if isinstance(name, str) and "${" in name:
            return value
        if not isinstance(name, str):
            names = ", ".join(_choices(self.module))
            raise _Wrong(f"{path}.name", f"{path}.name must be one of {names}, not {_show(name)}")
        try:
            keys, free = _keys(resolve(self.module, name))
        except UserError as error:
            raise _Wrong(f"{path}.name", f"{path}.name: {error}") from None
        numbers = {key: value[key] for key in value if key != "name"}
        return {"name": name, **_check_keys(numbers, keys, path, name, free=free)}


@dataclass(frozen=True)
class Keywords:
    """Section of any parameters of a callable; only those given are kept, without defaults."""

    callable: str

    def __str__(self):
        return f"keys of {self.callable}"

    def check(self, value, path: str) -> dict:
        value = _section(value, path, self)
        if not value:
            return {}  # nothing to check, so the callable need not be imported
        keys, free = _keys(resolve("", self.callable), every=True)
        return _check_keys(value, keys, path, self.callable, free=free, fill=False)


@dataclass(frozen=True)
class Verb:
    """Section with the schema of another verb, without the keys that the caller gives.

    short  the key that a text in place of the section stands for, where one may stand there
    """

    module: str
    without: tuple[str, ...] = ()
    short: str = ""

    def __str__(self):
        return f"keys of {self.module}"

    def keys(self) -> dict:
        keys, _ = _keys(resolve("", f"{self.module}.{self.module.rpartition('.')[2]}"))
        return {key: keys[key] for key in keys if key not in self.without}

    def check(self, value, path: str) -> dict:
        value = _section(value, path, self)
        if self.short and "name" in value:  # an override has made a section of the text
            value = {self.short if key == "name" else key: item for key, item in value.items()}
        return _check_keys(value, self.keys(), path, self.module)


Data = Annotated[dict, Choice("lightning_cfg.data")]
Net = Annotated[dict, Choice("lightning_cfg.nets")]
Model = Annotated[dict, Choice("lightning_cfg.diffusion.models")]
Learner = Annotated[dict, Choice("lightning_cfg.training.learners")]
Guidance = Annotated[dict, Choice("lightning_cfg.guidance")]
Sampler = Annotated[dict, Choice("lightning_cfg.diffusion.samplers")]
Features = Annotated[dict, Choice("lightning_cfg.evaluation.features")]
Metric = Annotated[dict, Choice("lightning_cfg.metrics")]
TrainerKeys = Annotated[dict, Keywords("lightning.Trainer")]


def changed(annotation, section: dict, change: dict, path: str) -> dict:
    """A section of a verb's keys with a change laid over it, checked as the section itself is.

    What bears another name is replaced as a whole, everything else key by key. UserError, naming
    the key below `path`, for what is unknown or of a wrong type.
    """
    (mark,) = (m for m in annotation.__metadata__ if isinstance(m, Verb))
    try:
        return mark.check(_laid_over(section, change), path)
    except _Wrong as wrong:
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


# What a name means


def _choices(module_name: str) -> list[str]:
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
    """The callable `name` of a module, or of a dotted path of anyone's own; UserError if none."""
    own_module, dot, attribute = name.rpartition(".")
    if dot:
        try:
            found = getattr(importlib.import_module(own_module), attribute, None)
        except (ImportError, SyntaxError, ValueError) as error:
            raise UserError(f"cannot import '{own_module}' of '{name}': {error}") from None
        if not callable(found):
            raise UserError(f"module '{own_module}' has no function or class '{attribute}'")
        return found
    names = _choices(module_name)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
        raise UserError(f"no '{name}' in {module_name}; {hint}")
    return getattr(importlib.import_module(module_name), name)


def build(module_name: str, section: dict, *positional) -> Any:
    """Call what a choice section names: networks are positional, the section's numbers keywords."""
    numbers = {key: value for key, value in section.items() if key != "name"}
    return resolve(module_name, section["name"])(*positional, **numbers)


def _keys(function: Callable, every: bool = False) -> tuple[dict[str, tuple[Any, Any]], bool]:
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


# Checking values against annotations


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _show(value) -> str:
    text = "null" if value is None else getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _describe(kind) -> str:
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        return str(args[1]) if hasattr(args[1], "check") else _describe(args[0])
    if base in (Union, types.UnionType):
        words = [_describe(arg) for arg in args if _known(arg)]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if base is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if base in SEQUENCES:
        return f"list of {_describe(args[0])}" if args else "list"
    if base in MAPPINGS:
        return f"section of {_describe(args[1])}" if args else "section"
    return "null" if kind in (None, types.NoneType) else getattr(kind, "__name__", str(kind))


def _known(kind) -> bool:
    base = get_origin(kind) or kind
    return base in (Annotated, Literal, Union, types.UnionType, *SCALARS, *SEQUENCES, *MAPPINGS)


def _plain(value) -> bool:
    """Can yaml hold it? A default that it cannot hold is left to the callable."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return type(value) in SCALARS


def _section(value, path: str, what) -> dict:
    if value is None:  # a section of which every line is commented out
        return {}
    if not isinstance(value, dict):
        raise _Wrong(path, f"{path} must be {what}, not {_show(value)}")
    return value


def _check_keys(value: dict, keys: dict, path: str, what: str, free=False, fill=True) -> dict:
    """The section with every value checked and, with `fill`, every default filled in."""
    for key in value:
        if key not in keys and not free:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"{what} has {'the keys ' + ', '.join(keys) if keys else 'no keys'}"
            hint = f"did you mean '{_join(path, near[0])}'?" if near else hint
            raise _Wrong(_join(path, key), f"unknown key '{_join(path, key)}'; {hint}")
    checked = {}
    for key, (kind, default) in keys.items():
        here = _join(path, key)
        if key in value:
            given = value[key]
            if isinstance(given, dict) and "name" not in given and _is_choice(kind):
                given = _named(default) | given
            checked[key] = _check(kind, given, here)
        elif fill and default is REQUIRED:
            if not any(isinstance(mark, Keywords) for mark in getattr(kind, "__metadata__", ())):
                raise _Wrong(here, f"{here} is missing: {what} needs it, {_describe(kind)}")
            checked[key] = {}
        elif fill and _plain(default):
            checked[key] = default if default is None else _check(kind, default, here)
    return checked | {key: item for key, item in value.items() if key not in keys}


def _is_choice(kind) -> bool:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    marks = [mark for part in parts for mark in getattr(part, "__metadata__", ())]
    return any(isinstance(mark, Choice) for mark in marks)


def _named(default) -> dict:
    """The default of a choice section as a section: a name, or {name: ...}, or nothing."""
    if isinstance(default, str):
        return {"name": default}
    return default if isinstance(default, dict) else {}


def _check(kind, value, path: str):
    """The value as its annotation has it; what is annotated with others' types is not checked."""
    if isinstance(value, str) and "${" in value:
        return value  # checked once it is resolved
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        mark = hasattr(args[1], "check")
        return args[1].check(value, path) if mark else _check(args[0], value, path)
    if base in (Union, types.UnionType):
        return _check_union(args, value, path, _describe(kind))
    if base is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
    elif base is float:
        if type(value) in (int, float):
            return float(value)
    elif base is int:  # 1e5 is a float to yaml
        if type(value) is int or (type(value) is float and value.is_integer()):
            return int(value)
    elif base in (*SCALARS, None):
        if value is None if base is None else type(value) is base:
            return value
    elif base in SEQUENCES:
        if isinstance(value, (list, tuple)):
            each = args[:1] * len(value) if base is not tuple or args[1:] == (...,) else args
            if args and len(each) != len(value):
                raise _Wrong(path, f"{path} must have {len(each)} items, not {_show(value)}")
            items = zip(each, value, strict=True) if args else ((Any, item) for item in value)
            checked = [_check(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(items)]
            return tuple(checked) if base is tuple else checked
    elif base in MAPPINGS:
        section = _section(value, path, _describe(kind))
        return (
            {key: _check(args[1], section[key], _join(path, key)) for key in section}
            if args
            else section
        )
    else:
        return value
    hint = " (put it in quotes)" if base is str and type(value) in (int, float, bool) else ""
    raise _Wrong(path, f"{path} must be {_describe(kind)}, not {_show(value)}{hint}")


def _check_union(kinds: tuple, value, path: str, described: str):
    known = [kind for kind in kinds if _known(kind)]
    if Any in kinds or all(kind is types.NoneType for kind in known):
        return value
    if type(value) in known:  # 1.0 stays a float in `int | float`: to the Trainer it is not 1
        return value
    if isinstance(value, dict):  # with a name it is one choice, without one it holds several
        choices = [kind for kind in known if get_origin(kind) is Annotated]
        several = [kind for kind in known if get_origin(kind) in MAPPINGS]
        known = (choices if "name" in value else several) or known
    deeper = None
    for kind in known:
        try:
            return _check(kind, value, path)
        except _Wrong as wrong:
            deeper = wrong if wrong.path != path else deeper
    raise deeper or _Wrong(path, f"{path} must be {described}, not {_show(value)}")


# Reading, merging, resolving


def _parse(text: str, where: str):
    """Yaml as OmegaConf reads it (1e-3 is a float, 400_000 an int), keys as strings, unresolved."""
    try:
        document = OmegaConf.from_dotlist([f"_={text}"])
        return _with_string_keys(OmegaConf.to_container(document, resolve=False)["_"])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        lines = len(text.splitlines())  # at the end of the text the mark is one line too far
        line = f", line {min(mark.line + 1, lines)}" if mark else ""
        raise UserError(f"{where}{line}: not yaml: {getattr(error, 'problem', error)}") from None
    except OmegaConfBaseException as error:
        key = (error.full_key or "").removeprefix("_").removeprefix(".")
        raise UserError(f"{where}: {key}: {str(error).splitlines()[0]}") from None


def _with_string_keys(value):
    if isinstance(value, dict):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    return [_with_string_keys(item) for item in value] if isinstance(value, list) else value


def _read(file: str | Path, overrides: list[str]) -> tuple[dict, set[str]]:
    """The file with the overrides set in it, unresolved; and the paths that overrides gave."""
    try:
        config = _parse(Path(file).read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"cannot read the config file '{file}': {reason}") from None
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise UserError(f"{file}: must be a mapping of keys to values, not {_show(config)}")
    given = set()
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        *parents, last = key.split(".")
        if not equals or not last or not all(parents):
            raise UserError(f"command line: '{override}' is not an override; write key=value")
        if not text.strip():
            hint = f"write {key}=null, or {key}='\"\"' for an empty text"
            raise UserError(f"command line: '{override}' has no value; {hint}")
        section, path = config, ""
        for parent in parents:
            path = _join(path, parent)
            inner = section.get(parent)
            if inner is None:
                given.add(path)
                inner = {}
            elif isinstance(inner, str) and "${" not in inner:
                inner = {"name": inner}  # the short form of a choice
            elif not isinstance(inner, dict):
                raise UserError(f"command line: '{key}': {path} is {_show(inner)}, not a section")
            section[parent] = inner
            section = inner
        section[last] = _parse(text, f"command line: '{override}'")
        given.add(key)
    return config, given


def load(verb_function: Callable, file: str | Path, overrides: list[str] = ()) -> dict:
    """The keywords of a verb as plain data: schema < file < overrides, then interpolations.

    An override sets its key to its value, a whole section too. UserError, in one line, for what is
    unknown, missing or of a wrong type; nothing is built or written.
    """
    config, given = _read(file, overrides)
    name, (keys, _) = verb_function.__name__, _keys(verb_function)
    if "run_dir" in keys:
        config.setdefault("run_dir", f"runs/{Path(file).stem}")

    def where(path):
        ancestors = [path.split("[")[0]]
        while ancestors[-1]:
            ancestors.append(ancestors[-1].rpartition(".")[0])
        return "command line" if given.intersection(ancestors) else file

    try:
        config = _check_keys(config, keys, "", name)  # fills in what interpolations may refer to
        config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        return _check_keys(config, keys, "", name)
    except _Wrong as wrong:
        raise UserError(f"{where(wrong.path)}: {wrong}") from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise UserError(f"{where(key)}: {key}: {str(error).splitlines()[0]}") from None


def dump(config: dict) -> str:
    """Yaml text that `load` reads back to the same config (a tuple is a list in yaml)."""

    def escaped(value):
        if isinstance(value, dict):
            return {key: escaped(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [escaped(item) for item in value]
        return value.replace("${", "\\${") if isinstance(value, str) else value

    return OmegaConf.to_yaml(OmegaConf.create(escaped(config)))


def identity_difference(a: dict, b: dict) -> str | None:
    """First difference of two configs, "learner.lr: 0.001 there, 0.0003 here"; None if equal.

    A key that is null and one that is not there are the same: an older run knew fewer.
    """
    for key in a | b:
        one, other = a.get(key, REQUIRED), b.get(key, REQUIRED)
        if all(value is None or value is REQUIRED for value in (one, other)):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            inner = identity_difference(one, other)
            if inner:
                return f"{key}.{inner}"
            continue
        one, other = (list(x) if isinstance(x, tuple) else x for x in (one, other))  # as in yaml
        if one != other:
            there, here = ("nothing" if x is REQUIRED else _show(x) for x in (one, other))
            return f"{key}: {there} there, {here} here"
    return None


# The command line


@dataclass
class _Arguments:
    """What stands on the command line."""

    file: str | None
    overrides: list[str]
    help: bool
    print_config: bool


def _arguments(argv: list[str]) -> _Arguments:
    """Parse argv and read the file, without a schema, so that its absence is told at once."""
    arguments = _Arguments(None, [], False, False)
    words = iter(argv)
    for word in words:
        if word == "--config":
            arguments.file = next(words, None)
        elif word.startswith("--config="):
            arguments.file = word.removeprefix("--config=")
        elif word in ("-h", "--help"):
            arguments.help = True
        elif word == "--print-config":
            arguments.print_config = True
        else:
            arguments.overrides.append(word)
    if arguments.file:
        _read(arguments.file, arguments.overrides)
    elif not arguments.help:
        raise UserError("needs --config FILE")
    return arguments


def from_arguments(verb_function: Callable, argv: list[str]) -> dict:
    """The config that a verb's own command line, without its name, gives; UserError as `load`."""
    arguments = _arguments(argv)
    return load(verb_function, arguments.file, arguments.overrides)


def _stop(message, status: int):
    print(f"lightning_cfg: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)


def check_arguments(module_name: str) -> None:
    """Stop with status 2 at an unreadable config file, before the caller's heavy imports."""
    if module_name == "__main__":
        try:
            _arguments(sys.argv[1:])
        except UserError as error:
            _stop(f"error: {error}", 2)


def main(verb_function: Callable) -> None:
    """Run a verb from the command line.

    Status 2 for a user's mistake, 1 for divergence or a lost rank, 75 for a run that was asked to
    end early and is to be started again.
    """
    try:
        arguments = _arguments(sys.argv[1:])
        if arguments.help:
            print(_help(verb_function, arguments))
            return
        config = load(verb_function, arguments.file, arguments.overrides)
        if arguments.print_config:
            print(dump(config), end="")
            return
        verb_function(**config)
    except UserError as error:
        _stop(f"error: {error}", 2)
    except (Diverged, RankLost) as error:
        _stop(f"error: {error}", 1)
    except Preempted as error:
        _stop(error, REQUEUE)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _help(verb_function: Callable, arguments: _Arguments) -> str:
    name, (keys, _) = verb_function.__name__, _keys(verb_function)
    values = _read(arguments.file, arguments.overrides)[0] if arguments.file else {}
    if "run_dir" in keys:
        keys["run_dir"] = (keys["run_dir"][0], "runs/<name of the config file>")
    rows = list(_rows(keys, values, ""))
    width = max((len(path) for path, _ in rows), default=0)
    return "\n".join(
        [
            inspect.cleandoc(verb_function.__doc__ or name).split("\n\n")[0],
            "",
            f"usage: python -m lightning_cfg.{name} --config FILE [key=value ...] [--print-config]",
            "",
            *(f"  {path:{width}}  {text}" for path, text in rows),
        ]
    )


def _rows(keys: dict, values, path: str):
    """(dotted key, its type and default), those of the named choices and of nested verbs too."""
    for key, (kind, default) in keys.items():
        here, value = _join(path, key), values.get(key) if isinstance(values, dict) else None
        note = "required" if default is REQUIRED else f"default {_show(default)}"
        yield here, f"{_describe(kind)}; {note}"
        yield from _inner_rows(kind, default if value is None else value, here)


def _inner_rows(kind, value, path: str):
    mark = next((m for m in getattr(kind, "__metadata__", ()) if hasattr(m, "check")), None)
    if isinstance(mark, Verb):
        yield from _rows(mark.keys(), value, path)
    elif isinstance(mark, Choice):
        yield f"{path}.name", f"one of {', '.join(_choices(mark.module))}"
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and "${" not in name:
            yield from _rows(_keys(resolve(mark.module, name))[0], value, path)
    elif get_origin(kind) in MAPPINGS:
        yield from _inner_rows(get_args(kind)[1], None, f"{path}.NAME")
    else:
        for arg in get_args(kind):
            yield from _inner_rows(arg, value, path)
