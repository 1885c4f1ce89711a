"""docs/own_parts.md: its parts are one file, its configs run, and the answers are those by hand."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from lightning_cfg.diffusion.noise import karras
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

TEXT = (ROOT / "docs/own_parts.md").read_text()
CODE = "\n\n".join(re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S))
CONFIGS = dict(re.findall(r"^```yaml\n# (\w+): lightning_cfg.\w+\n(.*?)^```", TEXT, re.M | re.S))
VERBS = {"base": fit, "judge": fit, "samples": generate, "scores": evaluate}


@pytest.fixture
def made(tmp_path, monkeypatch, call):
    """The page's parts as a module `mine`, and a run of each of its configs."""
    sys.modules.pop("mine", None)  # another test's
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, verb in VERBS.items():
        done = call(verb, CONFIGS[name], f"run_dir={name}")
        assert done.status == 0, done.err
    yield sys.modules["mine"]
    sys.modules.pop("mine", None)


def by_hand(mine, denoise) -> torch.Tensor:
    """The page's samples in one loop: noise by seeds, levels, slopes half way."""
    noise, c, _ = seeded(list(range(100)), (2,), 2)
    levels = karras(8, 0.05, 20.0).tolist()
    x = levels[0] * noise

    def slope(x, s):
        sigma = torch.full((len(x),), s, dtype=torch.float64)
        D, other = denoise(x, sigma, c), denoise(x, sigma, torch.ones_like(c))
        return (x - D - (2.0 if s < 2.0 else 0.0) * (D - other)) / s

    for s, t in pairwise(levels):
        x = x + (t - s) * slope(x + (t - s) / 2 * slope(x, s), (s + t) / 2)
    return x


def test_every_part_is_named_in_a_config():
    named = "".join(CONFIGS.values())
    parts = re.findall(r"^(?:class|def) (\w+)", CODE, re.M)
    assert [name for name in parts if f"mine.{name}" not in named] == ["ring"]
    assert CONFIGS.keys() == VERBS.keys()


def test_the_parts_work_together_as_by_hand(made):
    samples = load_tensors(f"samples/{SAMPLES}", "x", "c")
    x, c = samples["x"], samples["c"]
    expected = by_hand(made, restore("base"))
    assert torch.allclose(x.double(), expected, atol=1e-5)
    # guided away from the outer ring, those of the inner one end nowhere near it
    radius = x.norm(dim=1)
    assert radius[c == 0].mean() < 1.2 < radius[c == 1].mean()
    rows = json.loads(Path("scores/metrics/metrics.json").read_text())
    (row,) = (row for row in rows if row["samples"] == "away")
    assert row["radius"] == pytest.approx(x.double().norm(dim=1).mean().item())
    assert row["fd_polar"] > 0
    y, c = made.Rings().real("held_out", 100)
    logits = restore("judge")(y, torch.full((200,), 0.05))
    assert (logits.argmax(1) == c).float().mean() > 0.95
