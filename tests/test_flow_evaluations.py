"""What evaluations of a flow buy: which variants are of one flow, and what its figure has."""

import pytest

from lightning_cfg.reports.evaluations import followed, of_one, of_several
from lightning_cfg.reports.rows import Rows

PAIRS = {"coupling": "transport", "condition": "scale"}
VARIANTS = {
    "own_2": {"pairs": {}, "flow": None, "refinement": {"method": "euler", "steps": 2}},
    "moved": {"pairs": PAIRS, "refinement": {"extrapolate": True}},
    "moved_1": {"pairs": PAIRS, "refinement": {"method": "euler", "steps": 1}, "scales": [2.0]},
    "moved_half": {"pairs": PAIRS, "refinement": {"strength": 0.5}},
    "longer": {"pairs": PAIRS, "flow": {"trainer": {"max_steps": 9}}, "refinement": {}},
    "distilled": {"reflow": "moved", "refinement": {"steps": 1}},
    "row": {"then": ["moved", "all"]},
}
EVALUATIONS = {"all": 16, "own_2": 2, "moved": 16, "moved_1": 1, "moved_half": 16, "distilled": 1}


@pytest.fixture
def averages() -> Rows:
    rows = {}
    for scale in (1.0, 2.0):
        rows["cfg", scale, "before", ""] = {"nfe": 20, "fd": 8 * scale, "n": 100}
        for i, (flow, spent) in enumerate(EVALUATIONS.items()):
            rows["cfg", scale, "after", flow] = {"nfe": 20 + spent, "fd": i + scale, "n": 100}
    del rows["cfg", 1.0, "after", "moved_1"]  # tried at scale 2 only
    return Rows(rows)


def lines(panel) -> dict:
    return {
        line.get_label(): list(zip(*line.get_data(), strict=True))
        for line in panel.get_lines()
        if not line.get_label().startswith("_")
    }


def test_variants_of_one_flow_are_together():
    assert followed(VARIANTS) == [
        ["all", "own_2"], ["moved", "moved_1"], ["moved_half"], ["longer"], ["distilled"], ["row"]
    ]  # fmt: skip
    assert followed({}) == [["all"]]


def test_a_line_per_flow_from_before_over_its_evaluations(averages):
    groups = [["all", "own_2"], ["moved", "moved_1"], ["distilled"], ["longer"]]
    named = {"all": "own", "own_2": "own, 2 steps", "moved": "Moved, 8 steps",
             "moved_1": "Moved, 1 step", "distilled": "one_step", "longer": "longer"}  # fmt: skip
    figure = of_several(averages, groups, named, ["fd"], {"fd": 0.5})
    one, two = figure.axes
    for scale, panel in ((1, one), (2, two)):
        assert panel.get_title() == f"scale {scale}: Fréchet distance ↓"
    assert lines(one) == {
        "own": [(0, 8), (2, 2), (16, 1)],
        "Moved": [(0, 8), (16, 3)],
        "one step": [(0, 8), (1, 6)],
        "real": [(0, 0.5), (1, 0.5)],
    }  # of what was not measured there is no line
    assert lines(two)["Moved"] == [(0, 16), (1, 5), (16, 4)]


def test_of_one_flow_a_line_per_scale(averages):
    (panel,) = of_one(averages, ["all", "own_2"], ["fd"], {}).axes
    assert lines(panel) == {
        "scale 1": [(0, 8), (2, 2), (16, 1)],
        "scale 2": [(0, 16), (2, 3), (16, 2)],
    }
