"""A hook of mkdocs: pages are read as GitHub reads them, so that each is written once.

GitHub begins a list or a table below a line of text; Python-Markdown asks for an empty line before.
"""

import re

LIST = re.compile(r"([-*+]|\d+\.) +\S")
ROW, FENCE = re.compile(r"\|.*\|\s*$"), re.compile(r"\s*(```|~~~)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with these empty lines; what stands in fences is left as it is."""
    lines: list[str] = []
    fenced, kind_before = False, None
    for line in markdown.splitlines():
        if FENCE.match(line):
            fenced, kind_before = not fenced, "text"
        elif not fenced:
            kind = next((kind for kind in (LIST, ROW) if kind.match(line)), "text")
            begins = kind != "text" and kind_before != kind
            if begins and lines and lines[-1].strip():
                lines.append("")
            if not (kind_before is LIST and line.startswith("  ")):  # an item goes on
                kind_before = kind if line.strip() else None
        lines.append(line)
    return "\n".join(lines) + "\n"
