"""`report.html`: one file to explore a study with, without anything from elsewhere.

The report's own text and figures stand below what can be chosen, sorted and moved. Script and style
are the files in `web/`; the data are JSON within the page, in which no text can end a script.
"""

import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_cfg.reports.case import Case
from lightning_cfg.reports.finding import finding
from lightning_cfg.reports.markdown import FIGURE, as_html
from lightning_cfg.reports.page_data import table_of
from lightning_cfg.reports.page_samples import samples_of, trajectories_of

LIMIT = 4_900_000  # bytes of the page
FRAME = 150_000  # of them at most for script, style and text
SAMPLES = 1_600_000  # of them for samples, of all cases together
TRAJECTORIES = 1_000_000
SCRIPTS = ("drawing", "chart", "samples", "trajectories", "table", "page")  # in this order
POLICY = (  # the browser itself fetches nothing
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
WITHOUT = "Every class"  # a chapter of the report that the page has as a table to be sorted


def page(markdown: str, directory: Path, *, title: str, cases: list[Case], config: dict) -> str:
    """The page of a study whose report is `markdown`, with figures as they lie in `directory`."""
    title = " ".join(title.split())
    found = [
        {
            **table_of(case, config),
            "samples": samples_of(case, config, SAMPLES // len(cases)),
            "trajectories": trajectories_of(case, TRAJECTORIES // len(cases)),
        }
        for case in cases
    ]
    data = as_json({"title": title, "cases": found})
    chapters = markdown.strip().split("\n\n## ")
    report = "\n\n## ".join(part for part in chapters if not part.startswith(f"{WITHOUT}\n"))
    report = report.partition("\n\n")[2]  # its title is the page's
    first = FIGURE.search(report)
    room = LIMIT - FRAME - len(data.encode())
    figure = "" if first is None else as_html(first[0], directory, room)
    rest = report if first is None else report.replace(first[0], "", 1)
    rest = re.sub(r"\n{3,}", "\n\n", rest)
    rest = re.sub(r"## Figures\n\n(?=## |$)", "", rest)  # the only one stands above
    return _filled(
        {
            "policy": POLICY,
            "title": html.escape(title),
            "style": _web("page.css"),
            "heading": html.escape(title),
            "finding": _sentences(cases, config) + figure,
            "report": as_html(rest, directory, room - len(figure)),
            "data": data,
            "script": "\n".join(_web(f"{name}.js") for name in SCRIPTS),
        }
    )


def _sentences(cases: list[Case], config: dict) -> str:
    """What was found, as a list."""
    lines = []
    for case in cases:
        name = f"<strong>{html.escape(case.name)}:</strong> " if case.name else ""
        lines += [f"<li>{name}{html.escape(line)}</li>" for line in finding(case, config)]
    return f"<ul>{''.join(lines)}</ul>\n" if lines else ""


def _filled(parts: dict[str, str]) -> str:
    """The frame with each part in its place, in the order of both; no part is looked into."""
    rest, out = _web("page.html"), []
    for name, part in parts.items():
        before, mark, rest = rest.partition(f"<!--{name}-->")
        assert mark, name
        out += [before, part]
    return "".join(out) + rest


def as_json(data: Any) -> str:
    """JSON that may stand in a script of a page: no text in it ends the script or begins a tag."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _web(name: str) -> str:
    return (files("lightning_cfg.reports") / "web" / name).read_text("utf-8")
