"""An extension of Griffe: the package's docstrings, which are plain text, as Markdown.

Their lines `name   meaning` become a list, as `--help` reads them too (`config/meanings.py`);
blocks that are indented stay as they are; `*`, `[` and `<` mean themselves.
"""

import re
from typing import Any

import griffe

ENTRY = re.compile(r"(?P<names>\S+(?:,? \S+)*?) {2,}(?P<text>\S.*)")
SPECIAL = re.compile(r"(`[^`]*`)|([*\[<])")


class Docstrings(griffe.Extension):
    """Every docstring of the package, once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and "as_markdown" not in obj.extra["docstrings"]:
            obj.extra["docstrings"]["as_markdown"] = True
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring, its indentation taken away, as Markdown."""
    lines: list[str] = []
    inside = ""  # of which block the line before is: an entry, an indented one, text
    column = 0  # at which the meanings of a block of entries begin
    for line in text.splitlines():
        entry = None if line.startswith(" ") else _entry(line, column if inside == "entry" else 0)
        if not line.strip():
            inside = "" if inside != "block" else inside
            lines.append("")
        elif line.startswith("  ") and inside == "entry":
            lines.append("    " + _escaped(line.strip()))
        elif line.startswith("    ") and inside in ("", "block"):
            inside = "block"
            lines.append(line)
        elif entry:
            lines += [""] if inside != "entry" else []
            inside, column = "entry", len(line) - len(entry[1])
            lines.append(f"- **`{entry[0]}`**: {_escaped(entry[1])}")
        else:
            inside = "text"
            lines.append(_escaped(line.strip()))
    return "\n".join(lines)


def _entry(line: str, column: int) -> tuple[str, str] | None:
    """Name and meaning, also where the name fills its column and one space is left."""
    if found := ENTRY.fullmatch(line):
        return found["names"], found["text"]
    name, _, text = line.partition(" ")
    return (name, text) if text and len(name) + 1 == column else None


def _escaped(text: str) -> str:
    """The text with what Markdown would take for its own, but for what stands in backquotes."""
    return SPECIAL.sub(lambda m: m[1] or ("&lt;" if m[2] == "<" else "\\" + m[2]), text)
