"""The notebooks are whole and short, hold no outputs, and use the package by its public names.

That they run is seen by `.ci/run_notebooks.py`, which takes minutes.
"""

import ast
import json
from pathlib import Path

import pytest
from helpers import ROOT

import lightning_cfg as lc

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINES = 60  # of code, those that are empty apart
FOLDERS = {"guidance": lc.guidance, "verbs": lc.verbs, "data": lc.data}


def code_of(file: Path) -> str:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(one["source"]) + "\n" for one in cells if one["cell_type"] == "code")


def unknown(code: str) -> list[str]:
    """What the code asks of the package beyond its public names, and modules that it imports."""
    wrong, tree = [], ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_cfg"):
            wrong.append(node.module)
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname) for alias in node.names]
            wrong += [name for name, named in names if "lightning_cfg" in name and named != "lc"]
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node).split(".")
            if path[0] == "lc" and path[1] not in lc.__all__:
                wrong.append(".".join(path))
            if len(path) == 3 and path[0] == "lc" and path[1] in FOLDERS:
                wrong += [] if path[2] in FOLDERS[path[1]].__all__ else [".".join(path)]
    return wrong


def test_there_are_four():
    assert [file.stem for file in NOTEBOOKS] == [
        "a_method_of_your_own", "guide_your_first_model", "repair_samples", "your_own_images",
    ]  # fmt: skip


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_whole_and_short(file):
    book = json.loads(file.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["cells"][0]["cell_type"] == "markdown"
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    code = code_of(file)
    assert sum(bool(line.strip()) for line in code.splitlines()) < LINES
    assert "import lightning_cfg as lc" in code
    assert unknown(code) == []


def test_what_is_not_public_would_be_seen():
    wrong = (
        "import lightning_cfg.api\nfrom lightning_cfg.runs import run\nlc.api.x\nlc.verbs.fits\n"
    )
    right = "lc.verbs.fit(lc.sample)\nlc.data.Fractal().truth\n"
    named = {"lightning_cfg.api", "lightning_cfg.runs", "lc.api.x", "lc.api", "lc.verbs.fits"}
    assert set(unknown(wrong + right)) == named
    assert unknown(right) == []
