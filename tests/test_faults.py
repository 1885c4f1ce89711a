"""Odd numbers, kills and flipped bits in every verb; all of them by `pytest -m slow`."""

from pathlib import Path

import pytest
from helpers.faults import GOOD, KINDS, prepared, run_all

EACH = 10  # of a kind in the ordinary suite


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """All faults by kind: (what, does it and says how it ends)."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        root = folder / "whole"
        prepared(root)
        yield {kind: list(points(root)) for kind, points in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", range(EACH))
def test_a_fault_is_answered(faults, kind, i):
    """Evenly spread over all of them: other ones whenever a key or an output is added."""
    points = faults[kind]
    what, work = points[(2 * i + 1) * len(points) // (2 * EACH)]
    assert (what, work()) in [(what, end) for end in GOOD]


def test_there_are_as_many_as_there_should_be(faults):
    assert len(faults["numbers"]) > 800
    assert len(faults["kills"]) > 100
    assert len(faults["flips"]) > 200


@pytest.mark.slow
def test_every_fault_is_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(Path("cache").absolute()))
    counts, bad = run_all()
    assert bad == []
    assert sum(map(sum, (count.values() for count in counts.values()))) > 1100
