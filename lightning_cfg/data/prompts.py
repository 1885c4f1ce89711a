"""Prompts as classes: a file of texts, of which each is one."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import Input
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import DataSet


def prompt_file(text: str) -> Path:
    """The file of prompts, by whose content a run knows it; UserError where there is none."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"{text}: no such file of prompts")
    return path


PromptFile = Annotated[str, Input(prompt_file)]


class Prompts(DataSet):
    """Texts as classes, for a model that takes prompts: class i is the i-th of them, NULL none.

    path  of a text file, one prompt a line, of which empty ones are left out; or of JSON lines
          (.jsonl), {"prompt": ..., "candidates": [...]}: which others may be its reference in GFCG
    Samples are compared with statistics alone, as no pictures go with them. UserError for a file
    without prompts, with one twice, or with a candidate that is no prompt of it.
    """

    has_points = False

    def __init__(self, *, path: PromptFile):
        file = prompt_file(path)
        rows = _read(file)
        self.class_names = [row["prompt"] for row in rows]
        self.num_classes, self.shape = len(rows), ()  # which is that of the model's samples
        self.confusable = _confusable(file, rows, self.class_names)
        seen = set()
        for text in self.class_names:
            if text in seen:
                raise UserError(f"{file} has the prompt {text!r} twice: a class is one prompt")
            seen.add(text)


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, each with its prompt."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no text in UTF-8: {one_line(error)}") from error
    if file.suffix == ".jsonl":
        rows = [_row(file, i, line) for i, line in enumerate(lines, 1) if line]
    else:
        rows = [{"prompt": line} for line in lines if line]
    if not rows:
        raise UserError(f"{file} holds no prompts")
    return rows


def _row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}, line {number}: {one_line(error)}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise UserError(f'{file}, line {number} is no {{"prompt": "..."}}')
    others = row.get("candidates", [])
    if not isinstance(others, list) or set(row) - {"prompt", "candidates"}:
        raise UserError(f"{file}, line {number}: its keys are prompt and candidates, a list")
    return row


def _confusable(file: Path, rows: list[dict[str, Any]], names: list[str]) -> Tensor | None:
    """(K, K) bool: which may be the reference of which; None where no row says it.

    Of a row that does not, all others may.
    """
    if not any("candidates" in row for row in rows):
        return None
    number = {name: i for i, name in enumerate(names)}
    found = ~torch.eye(len(rows), dtype=torch.bool)
    for i, row in enumerate(rows):
        if "candidates" not in row:
            continue
        found[i] = False
        for other in row["candidates"]:
            if other not in number or number[other] == i:
                raise UserError(f"{file}: candidate {other!r} of {row['prompt']!r} is none of it")
            found[i, number[other]] = True
    return found
