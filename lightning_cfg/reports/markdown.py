"""Our own markdown (headings, lists, tables, figures) and its html, for reports."""

import base64
import html
import re
from pathlib import Path

ESCAPED = re.compile(r"\\([^\w\s]|_)")  # as `tables.in_markdown` writes what is no mark
FIGURE = re.compile(r"!\[(.*)\]\((figures/(?:\w+/)?\w+\.png)\)")  # nothing else is embedded
CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1240px;margin:2em auto;padding:0 1em}
h1,h2{line-height:1.2}h2{margin-top:2em;border-bottom:1px solid #ddd;padding-bottom:.2em}
code{background:#f3f3f3;padding:0 .25em;border-radius:3px}img{max-width:100%;height:auto}
div.table{overflow-x:auto;margin:1em 0}table{border-collapse:collapse;font-size:13px}
th,td{padding:.25em .55em;border-bottom:1px solid #e4e4e4;text-align:right;white-space:nowrap}
th{background:#f6f6f6;white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}td strong{color:#b3261e}
"""


def as_html(markdown: str, directory: Path) -> str:
    """Our own markdown (headings, lists, tables, figures) as one html file, its images inside."""
    out, title = [], _unmarked(markdown.partition("\n")[0].lstrip("# "))
    for part in markdown.strip().split("\n\n"):
        lines = part.split("\n")
        if part.startswith("#"):
            marks, text = part.split(" ", 1)
            out.append(f"<h{len(marks)}>{_inline(text)}</h{len(marks)}>")
        elif part.startswith("- "):
            out.append("<ul>" + "\n".join(f"<li>{_inline(i[2:])}</li>" for i in lines) + "</ul>")
        elif part.startswith("| "):
            table = [f"<tr>{_html_cells(line, 'td')}</tr>" for line in lines[2:]]
            table.insert(0, f"<tr>{_html_cells(lines[0], 'th')}</tr>")
            out.append("<div class=table><table>\n" + "\n".join(table) + "\n</table></div>")
        elif figure := FIGURE.fullmatch(part):
            says, file = figure.groups()
            data = base64.b64encode((directory / file).read_bytes()).decode()
            out.append(f'<img src="data:image/png;base64,{data}" alt="{html.escape(says)}">')
        else:
            out.append(f"<p>{_inline(part)}</p>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{CSS}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n" + "\n".join(out) + "\n"


def _unmarked(text: str) -> str:
    return ESCAPED.sub(r"\1", text)


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
