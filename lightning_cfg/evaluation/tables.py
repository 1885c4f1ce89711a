"""Tables of metrics: csv, aligned text, and markdown in which each number says how it was made."""

import csv
import io
import re
from typing import Any

from lightning_cfg.metrics.meaning import meaning, show

FRONT = ("samples", "class", "class_name", "draw", "n")


def as_csv(rows: list[dict]) -> str:
    """Rows as csv, with every column that any of them has; numbers keep six digits."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def in_markdown(text: str) -> str:
    """A text of the user's, in one line, of which nothing is read as a mark, a link or TeX."""
    return re.sub(r"[\\`*\[\]<>$|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def markdown_table(head: list[str], body: list[list[str]], *, left: int = 1) -> str:
    """A table in markdown; the first `left` columns are to the left, numbers to the right."""
    lines = [head, [":--"] * left + ["--:"] * (len(head) - left), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(rows: list[dict]) -> list[dict]:
    """The rows of several draws, each set's followed by its minimum and mean over them."""
    out: list[dict] = []
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["samples"], row["class"]), []).append(row)
    for group in groups.values():
        out += group
        if "draw" not in group[0]:
            continue
        names = [name for name in group[0] if name not in FRONT]
        for word, over in (("min", min), ("mean", lambda v: sum(v) / len(v))):
            front = {**{k: group[0][k] for k in FRONT if k in group[0]}, "draw": word}
            out.append(front | {name: over([row[name] for row in group]) for name in names})
    return out


def named(rows: list[dict], names: list[str] | None) -> list[dict]:
    """The rows with their class's name beside its number, where classes have names."""
    if names is None or any(row["class"] == "all" for row in rows):
        return rows
    return [
        {"samples": row["samples"], "class": row["class"], "class_name": names[row["class"]], **row}
        for row in rows
    ]


def as_text(rows: list[dict]) -> str:
    """The rows turned on their side for a terminal: a line per metric, a column per set."""
    table = _turned(rows)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def as_markdown(rows: list[dict], numbers: list[dict]) -> str:
    """A line per metric and a column per set, then what each metric is, and how a set was made."""
    head, *body = ([in_markdown(cell) for cell in line] for line in _turned(rows))
    made: dict[str, list[str]] = {}
    sets: dict[str, list[str]] = {}
    for number in numbers:
        _once(made, number["metric"], _made(number))
        keys = ("source", "left_out", "sampler", "guidance", "model_weights", "seeds")
        keys += ("evaluations", "seconds_per_sample")  # of each network, and by the clock
        keys += ("effective_scale",)  # where `generate` has measured it
        _once(sets, number["samples"], ", ".join(f"{k} {number[k]}" for k in keys if number.get(k)))
    columns = []
    for column, said in made.items():
        if "_std" in column:
            continue  # beside its mean
        better, text = meaning(column)[:2]
        way = f"; {better} is better" if better in ("lower", "higher") else ""
        columns.append(f"- `{column}`: {'; '.join([text + way, *filter(None, said)])}")
    told = {in_markdown(label): in_markdown("; ".join(said)) for label, said in sets.items()}
    labels = [f"- **{label}**: {said}" for label, said in told.items()]
    parts = (markdown_table(head, body), *("\n".join(lines) for lines in (columns, labels)))
    return "\n\n".join(parts) + "\n"


def _once(said: dict[str, list[str]], about: str, text: str) -> None:
    """Note what is said about a column or a set, the same only once."""
    if text not in said.setdefault(about, []):
        said[about].append(text)


def _turned(rows: list[dict]) -> list[list[str]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name != "class" or any(r["class"] != "all" for r in rows)]
    return [[name, *(_cell(name, row.get(name)) for row in rows)] for name in names]


def _made(number: dict) -> str:
    """What one number is taken in and against."""
    words = []
    if "extractor" in number:
        parts = [number["extractor"], *(number[k] for k in ("layer", "resize") if k in number)]
        text = ", ".join(parts)
        if "weights" in number:
            text += f", weights {number['weights'][:12]}"
        words.append(f"in {text}")
    if number.get("reference"):
        m = f" (M = {number['m']})" if number.get("m") else ""
        words.append(f"against {number['reference']}{m}")
    if number.get("classifier"):
        words.append(f"by classifier {number['classifier'][:12]}")
    return ", ".join(words)


def _cell(name: str, value: Any) -> str:
    if name in FRONT or isinstance(value, str):
        return f"{value:,}" if name == "n" else "" if value is None else str(value)
    return show(name, value)
