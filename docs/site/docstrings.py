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
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        if not line.strip():
            inside = "" if inside != "block" else inside
            lines.append("")
        elif line.startswith("  ") and inside == "entry":
            lines.append("    " + _escaped(line.strip()))
        elif line.startswith("    ") and inside in ("", "block"):
            inside = "block"
            lines.append(line)
        elif entry and not line.startswith(" "):
            lines += [""] if inside != "entry" else []
            inside = "entry"
            lines.append(f"- **`{entry['names']}`**: {_escaped(entry['text'])}")
        else:
            inside = "text"
            lines.append(_escaped(line.strip()))
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """The text with what Markdown would take for its own, but for what stands in backquotes."""
    return SPECIAL.sub(lambda m: m[1] or ("&lt;" if m[2] == "<" else "\\" + m[2]), text)
