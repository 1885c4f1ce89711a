"""docs/python.md: its examples run, one after the other, and it has every name."""

import re

import pytest
import torch
from helpers import ROOT

import lightning_cfg as lc

TEXT = (ROOT / "docs/python.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the names stand for once all examples have run, in an empty folder."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for number, code in enumerate(EXAMPLES):
            exec(compile(code, f"example {number}", "exec"), names)
        names["files"] = {path.name for path in tmp_path_factory.getbasetemp().glob("page*/*")}
    return names


def test_the_examples_run(found):
    assert found["model"].step == 20
    assert tuple(found["model"].shape) == (2,)
    assert found["samples"].x.shape == (100, 2)
    assert [row["samples"] for row in found["scores"].rows] == ["before"] * 2 + ["after"] * 2
    assert found["paths"].path.shape == (20, 9, 2)
    assert not torch.equal(found["better"].x, found["samples"].x)
    assert {"before_after.png", "mine.safetensors", "runs", "pairs"} <= found["files"]


def test_every_name_has_its_line_and_its_example():
    table, code = TEXT.split("## Verbs")[0], "\n".join(EXAMPLES)
    for name in (name for name in lc.__all__ if name != "UserError"):
        assert f"`lc.{name}`" in table, name
        assert f"lc.{name}" in code, name
    for verb in lc.verbs.__all__:
        assert f"`{verb}`" in table, verb
