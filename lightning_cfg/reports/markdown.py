"""Our own markdown (headings, lists, tables, figures) as html, for reports."""

import base64
import html
import re
from pathlib import Path

ESCAPED = re.compile(r"\\([^\w\s]|_)")  # as `tables.in_markdown` writes what is no mark
# nothing else is embedded; its caption is the paragraph below it, if there is one
FIGURE = re.compile(
    r"!\[(?P<says>.*)\]\((?P<file>figures/(?:\w[\w.+-]*/)?\w[\w.+-]*\.png)\)(?:\n\n(?P<caption>.*\[PDF\]\(.*\)))?"
)


def as_html(markdown: str, directory: Path, room: float = float("inf")) -> str:
    """Our own markdown (headings, lists, tables, figures) as html, its images inside.

    A chapter is a section with a name. What no longer fits into `room` bytes is a link.
    """
    out, chapters, at = [], 0, 0
    text = markdown.strip()
    while at < len(text):
        figure = FIGURE.match(text, at)
        end = figure.end() if figure else text.find("\n\n", at)
        part = text[at : end if end >= 0 else len(text)]
        at += len(part) + 2
        if figure:
            block = _figure(figure, directory, room)
            room -= len(block)
        else:
            block = _block(part)
        if part.startswith("## "):
            name = re.sub(r"\W+", "-", part[3:].lower()).strip("-")
            block = "</section>\n" * (chapters > 0) + f"<section id={name}>\n{block}"
            chapters += 1
        out.append(block)
    return "\n".join(out) + "\n" + "</section>\n" * (chapters > 0)


def _block(part: str) -> str:
    """A heading, a list, a table or a paragraph."""
    lines = part.split("\n")
    if part.startswith("#"):
        marks, text = part.split(" ", 1)
        return f"<h{len(marks)}>{_inline(text)}</h{len(marks)}>"
    if part.startswith("- "):
        return "<ul>" + "\n".join(f"<li>{_inline(i[2:])}</li>" for i in lines) + "</ul>"
    if part.startswith("| "):
        table = [f"<tr>{_html_cells(line, 'td')}</tr>" for line in lines[2:]]
        table.insert(0, f"<tr>{_html_cells(lines[0], 'th')}</tr>")
        rows = "\n".join(table)
        return f"<div class=table tabindex=0><table>\n{rows}\n</table></div>"
    return f"<p>{_inline(part)}</p>"


def _figure(found: re.Match, directory: Path, room: float) -> str:
    """A figure that a click makes larger; a link to its file where it is too large."""
    says, file = html.escape(ESCAPED.sub(r"\1", found["says"])), found["file"]
    picture = (directory / file).read_bytes()
    if len(picture) * 4 / 3 + 2 * len(says) + 500 > room:
        return f'<p><a href="{file}">{says}</a></p>'
    data = base64.b64encode(picture).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{says}">'
    caption = f"<figcaption>{_inline(found['caption'])}</figcaption>" if found["caption"] else ""
    button = f"<button type=button class=enlarge aria-expanded=false>{image}</button>"
    return f"<figure>{button}{caption}</figure>"


def _html_cells(line: str, tag: str) -> str:
    cells = [_inline(cell) for cell in line[2:-2].split(" | ")]
    if tag == "th":  # long names break at their underscores, so that tables stay narrow
        cells = [cell.replace("_", "_<wbr>") for cell in cells]
    return "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)


def _inline(text: str) -> str:
    """Our few marks, **bold**, `code` and [text](link), as html; what is escaped is none."""
    text = ESCAPED.sub(lambda found: f"\\{ord(found[1])};", text)
    text = html.escape(text).replace("\\", "&#")
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\[(.+?)\]\((.+?)\)", r'<a href="\2">\1</a>', text)
