"""Yaml files and overrides, read, merged, resolved, written: the only place with OmegaConf."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # OmegaConf's own reader; here for the name of its errors
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_cfg.config.check import Wrong, check_keys, show
from lightning_cfg.config.domain import rules_of
from lightning_cfg.config.schema import join, keys_of
from lightning_cfg.errors import UserError, nearest, one_line


@dataclass
class Document:
    """A config with the overrides set in it, its interpolations not yet resolved.

    file  that it was read from; None of a call from Python that names none
    by    who has given the overrides
    """

    file: Path | None
    values: dict
    given: set[str] = field(default_factory=set)  # the paths that overrides gave
    by: str = "command line"

    def where(self, path: str) -> str:
        """Who wrote what stands at a dotted path: the overrides, or the file."""
        ancestors = [path.split("[")[0]]
        while ancestors[-1]:
            ancestors.append(ancestors[-1].rpartition(".")[0])
        overridden = self.file is None or self.given.intersection(ancestors)
        return self.by if overridden else str(self.file)


def shipped() -> dict[str, Path]:
    """The configs that come with the package, {name without .yaml: file}."""
    root = Path(__file__).parents[1] / "conf"
    found = {
        file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.yaml")
    }
    return dict(sorted(found.items()))


def place_of(file: str | Path) -> Path:
    """The config file that is meant: one that there is, or one of the package's by its name.

    A folder of that name, such as that of the data, is no config.
    """
    place, name = Path(file).expanduser(), str(file).removesuffix(".yaml").removeprefix("conf/")
    names = shipped()
    if (place.exists() and not place.is_dir()) or name not in names:
        return place
    return names[name]


def read(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Document:
    """The file, read once (it may be a pipe), with the overrides set; UserError, in one line."""
    file = place_of(file)
    try:
        values = _parse(Path(file).read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        near = nearest(str(file).removesuffix(".yaml").removeprefix("conf/"), shipped())
        hint = f"; did you mean '{near}', which comes with the package?" if near else ""
        hint = hint if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read the config file '{file}': {reason}{hint}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{file}: must be a mapping of keys to values, not {show(values)}")
    document = Document(Path(file), values)
    for override in overrides:
        set_key(document, override)
    return document


def set_key(document: Document, override: str) -> None:
    """Set a dotted key to its value, a whole section too, by key=value; UserError as `read`."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{document.by}: '{override}' is not an override; write key=value")
    if not text.strip():
        hint = f"write {key}=null, or {key}='\"\"' for an empty text"
        raise UserError(f"{document.by}: '{override}' has no value; {hint}")
    # None is how W&B's agents write null
    value = None if text == "None" else _parse(text, f"{document.by}: '{override}'")
    set_value(document, key, value)


def set_value(document: Document, key: str, value: Any) -> None:
    """Set a dotted key to its value, a whole section too; UserError where no section can be."""
    *parents, last = key.split(".")
    section, path = document.values, ""
    inner: Any
    for parent in parents:
        path = join(path, parent)
        inner = section.get(parent)
        if inner is None:
            document.given.add(path)
            inner = {}
        elif isinstance(inner, str) and "${" not in inner:
            inner = {"name": inner}  # the short form of a choice
        elif not isinstance(inner, dict):
            raise UserError(f"{document.by}: '{key}': {path} is {show(inner)}, not a section")
        section[parent] = inner
        section = inner
    section[last] = value
    document.given.add(key)


def _parse(text: str, where: str) -> Any:
    """Yaml as OmegaConf reads it (1e-3 is a float, 400_000 an int), keys as strings, unresolved."""
    try:
        document: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"_={text}"]))
        return _with_string_keys(document["_"])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        lines = len(text.splitlines())  # at the end of the text the mark is one line too far
        line = f", line {min(mark.line + 1, lines)}" if mark else ""
        raise UserError(f"{where}{line}: not yaml: {getattr(error, 'problem', error)}") from None
    except OmegaConfBaseException as error:
        key = (error.full_key or "").removeprefix("_").removeprefix(".")
        raise UserError(f"{where}: {key}: {str(error).splitlines()[0]}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{where}: not a number: {one_line(error)}") from None


def _with_string_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    return [_with_string_keys(item) for item in value] if isinstance(value, list) else value


def load(
    verb: Callable, file: str | Path | Document, overrides: list[str] | tuple[str, ...] = ()
) -> dict:
    """The keywords of a verb as plain data: schema < file < overrides, then interpolations.

    An override sets its key to its value, a whole section too. UserError, in one line, for what is
    unknown, missing, of a wrong type or out of its range; nothing is built or written.
    """
    document = file if isinstance(file, Document) else read(file, overrides)
    (keys, _), name, rules = keys_of(verb), verb.__name__, rules_of(verb)
    config = dict(document.values)
    if "run_dir" in keys and document.file is not None:
        config.setdefault("run_dir", f"runs/{document.file.stem}")
    try:
        # fills in what interpolations may refer to
        config = check_keys(config, keys, "", name, rules=rules)
        resolved: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        return check_keys(resolved, keys, "", name, rules=rules)
    except Wrong as wrong:
        raise UserError(f"{document.where(wrong.path)}: {wrong}") from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise UserError(f"{document.where(key)}: {key}: {str(error).splitlines()[0]}") from None


def dump(config: dict) -> str:
    """Yaml text that `load` reads back to the same config (a tuple is a list in yaml)."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [escaped(item) for item in value]
        return value.replace("${", "\\${") if isinstance(value, str) else value

    return OmegaConf.to_yaml(OmegaConf.create(escaped(config)))
