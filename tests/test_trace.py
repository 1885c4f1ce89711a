"""`trace`: trajectories whose numbers are known, and runs of every kind of model."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.trajectories import along, closest, over_time, straightness, time_of
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import SAMPLES, TRAJECTORIES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.trace import BOUNDARIES, CURVES, SUMMARY, trace

F64 = torch.float64
MEAN, STD = 0.5, 0.25
PAIR = {"name": "Mixture", "means": [[-MEAN], [MEAN]], "stds": [STD, STD], "labels": [0, 1]}
LEVELS = torch.tensor([100.0, 20.0, 4.0, 1.0, 0.2, 0.05, 0.0], dtype=F64)
CLASSIFIER = {
    "net": {"name": "Linear"},
    "model": {"name": "NoisyClassifier"},
    "learner": {"name": "Classification", "lr": 1e-2},
}


class Squares:
    """Images of 1 x 4 x 4: dark ones, bright ones and noise."""

    shape, num_classes, truth = (1, 4, 4), 3, None

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        c = draws.integers(3)
        bright = torch.tensor([-0.5, 0.5, 0.0])[c][:, None, None, None]
        return {"y": bright + 0.1 * draws.normal(1, 4, 4), "c": c}


def tables(run: Path) -> list[list[dict]]:
    files = [run / name for name in (SUMMARY, CURVES, BOUNDARIES)]
    return [json.loads(file.read_text()) if file.is_file() else [] for file in files]


def straight(tmp_path: Path, u: Tensor, c: Tensor, sigma: Tensor = LEVELS) -> str:
    """A trajectory file of u (n, levels) in the plane."""
    path = (u * (1 + sigma**2).sqrt())[..., None]
    seed = torch.arange(len(u))
    return str(save_tensors(tmp_path / "known.safetensors", path=path, sigma=sigma, c=c, seed=seed))


@pytest.fixture
def traced(tmp_path) -> Callable[..., list[list[dict]]]:
    """The tables of a `trace` in a fresh directory."""

    def run(**settings: object) -> list[list[dict]]:
        return tables(trace(run_dir=str(tmp_path / "traced"), **settings))

    return run


def test_known_trajectories_have_known_numbers(traced, tmp_path):
    """At a constant u in front of the exact boundary at 0."""
    u = torch.tensor([0.4, 1.0, -0.2, -0.7, -0.1], dtype=F64)
    file = straight(tmp_path, u[:, None].expand(-1, 7), torch.tensor([1, 1, 1, 0, 0]))
    rows, curves, boundaries = traced(
        samples={"a": file}, classifiers={"posterior": "exact"}, data=PAIR
    )
    zero, one = rows
    assert [(row["samples"], row["classifier"]) for row in rows] == [("a", "posterior")] * 2
    assert [(row["class"], row["n"]) for row in rows] == [(0, 2), (1, 3)]
    assert [row["straightness"] for row in rows] == pytest.approx([1, 1], abs=1e-9)
    assert zero["distance"] == pytest.approx(0.4, abs=1e-9)
    assert zero["closest"] == pytest.approx(0.4, abs=1e-9)
    assert zero["wrong_time"] == zero["wrong_end"] == 0
    assert one["distance"] == pytest.approx(0.4, abs=1e-9)
    assert one["closest"] == pytest.approx(1.6 / 3, abs=1e-9)
    assert one["wrong_time"] == pytest.approx(1 / 3, abs=1e-9)
    assert one["wrong_end"] == pytest.approx(1 / 3, abs=1e-9)
    p = [1 / (1 + math.exp(-2 * x * MEAN / STD**2)) for x in (0.4, 1.0, -0.2)]
    assert one["confidence"] == pytest.approx(sum(p) / 3, rel=1e-9)

    own = [row for row in curves if row["class"] == 1]
    assert [row["sigma"] for row in own] == LEVELS.tolist()
    assert [row["t"] for row in own] == pytest.approx(time_of(LEVELS).tolist(), abs=1e-12)
    for row in own:
        assert row["distance"] == pytest.approx(0.4, abs=1e-9)
        assert row["distance_10"] == pytest.approx(-0.08, abs=1e-9)  # of -0.2, 0.4, 1
        assert row["distance_50"] == pytest.approx(0.4, abs=1e-9)
        assert row["distance_90"] == pytest.approx(0.88, abs=1e-9)
        assert row["wrong"] == pytest.approx(1 / 3, abs=1e-9)
    assert own[-1]["confidence"] == one["confidence"]
    assert own[0]["confidence"] == pytest.approx(0.5, abs=0.01)  # in noise nobody knows
    assert {(row["class"], row["t"]) for row in boundaries} == {
        (c, t) for c in (0, 1) for t in time_of(LEVELS).tolist()
    }
    assert [row["u"] for row in boundaries] == pytest.approx([0] * 14, abs=1e-9)


def test_time_beyond_the_boundary_is_a_share_of_t(traced, tmp_path):
    """Wrong until the fifth of seven levels; the step across counts half."""
    u = torch.tensor([[-1.0, -1, -1, -1, 0.5, 0.5, 0.5]], dtype=F64)
    file = straight(tmp_path, u, torch.tensor([1]))
    rows, curves, _ = traced(samples={"a": file}, classifiers={"p": "exact"}, data=PAIR)
    t = time_of(LEVELS)
    beyond = (t[0] - t[3] + (t[3] - t[4]) / 2) / t[0]
    assert rows[0]["wrong_time"] == pytest.approx(beyond.item(), rel=1e-9)
    assert rows[0]["wrong_end"] == 0
    assert [row["wrong"] for row in curves] == [1, 1, 1, 1, 0, 0, 0]
    assert rows[0]["straightness"] > 1.1


def test_without_a_boundary_there_is_no_number(traced, tmp_path):
    """Two classes of the same density: nowhere is one more likely; json has null, csv nothing."""
    same = {**PAIR, "means": [[0.0], [0.0]], "weights": [0.75, 0.25]}
    file = straight(tmp_path, torch.rand(4, 7, dtype=F64), torch.tensor([0, 0, 1, 1]))
    rows, curves, boundaries = traced(samples={"a": file}, classifiers={"p": "exact"}, data=same)
    for row, p in zip(rows, (0.75, 0.25), strict=True):
        assert row["closest"] is row["distance"] is None
        assert row["confidence"] == pytest.approx(p, rel=1e-9)
        assert row["wrong_time"] == row["wrong_end"] == (p < 0.5)
    assert all(row["distance"] is row["distance_90"] is None for row in curves)
    assert boundaries == []
    run = tmp_path / "traced"
    assert not (run / BOUNDARIES).exists()
    with (run / SUMMARY).with_suffix(".csv").open() as table:
        assert next(csv.DictReader(table))["distance"] == ""


# Through the verbs


@pytest.fixture(scope="module")
def chain(tmp_path_factory, training) -> SimpleNamespace:
    """Two sets of trajectories, a linear classifier, and what `trace` makes of them."""
    root = tmp_path_factory.mktemp("chain")
    config = training(data=PAIR, **CLASSIFIER, batch_size=256, trainer={"max_steps": 300})
    linear = fit(run_dir=str(root / "linear"), **config)
    made = {"data": PAIR, "sampler": {"name": "heun", "steps": 12}, "n": 60, "trajectories": 40}
    sets = {
        f"scale_{scale:g}": generate(
            run_dir=str(root / f"{scale:g}"),
            models={"model": "exact", "classifier": str(linear)},
            guidance={"name": "classifier_gradient", "scale": scale},
            **made,
        )
        for scale in (1.0, 3.0)
    }
    asked = {
        "samples": {label: str(run) for label, run in sets.items()},
        "classifiers": {"posterior": "exact", "linear": str(linear)},
        "data": PAIR,
    }
    return SimpleNamespace(
        root=root,
        linear=linear,
        sets=sets,
        asked=asked,
        run=trace(run_dir=str(root / "trace"), **asked),
    )


def test_a_row_for_every_set_classifier_and_class(chain):
    rows, curves, boundaries = tables(chain.run)
    expected = [
        (label, c, name) for label in chain.sets for name in ("posterior", "linear") for c in (0, 1)
    ]
    assert [(r["samples"], r["class"], r["classifier"]) for r in rows] == expected
    assert [(r["samples"], r["class"], r["classifier"]) for r in curves] == [
        key for key in expected for _ in range(13)  # levels
    ]  # fmt: skip
    for label, run in chain.sets.items():
        c = load_tensors(run / TRAJECTORIES, "c")["c"]
        counts = c.bincount().tolist()
        assert sum(counts) == 40
        assert [r["n"] for r in rows if r["samples"] == label] == counts * 2
    # a linear one has its boundary wherever A u + t/T puts it, the exact one's is at 0
    exact = [r["u"] for r in boundaries if r["classifier"] == "posterior"]
    assert max(map(abs, exact)) < 1e-9
    learned = [r["u"] for r in boundaries if r["classifier"] == "linear"]
    assert max(map(abs, learned)) > 1e-4


def test_rows_are_those_of_the_measures(chain):
    reader = restore(chain.linear)
    held = load_tensors(chain.sets["scale_3"] / TRAJECTORIES, "path", "sigma", "c")
    path, sigma = held["path"][held["c"] == 1], held["sigma"]
    seen = along(reader, path, sigma, 1)
    wrong = (seen.margin < 0).double()
    rows, curves, boundaries = tables(chain.run)
    key = ("scale_3", 1, "linear")
    (row,) = (r for r in rows if (r["samples"], r["class"], r["classifier"]) == key)
    expected = {
        "straightness": straightness(path, sigma).mean(),
        "closest": closest(seen.distance, sigma).nanmean(),
        "distance": over_time(seen.distance, sigma).nanmean(),
        "wrong_time": over_time(wrong, sigma).mean(),
        "wrong_end": wrong[:, -1].mean(),
        "confidence": seen.confidence[:, -1].mean(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-9
    )
    own = [r for r in curves if (r["samples"], r["class"], r["classifier"]) == key]
    assert [r["confidence"] for r in own] == pytest.approx(seen.confidence.mean(0).tolist())
    own = [r for r in boundaries if (r["samples"], r["class"], r["classifier"]) == key]
    assert [r["u"] for r in own] == torch.cat(seen.zeros).tolist()


def test_guidance_is_seen_to_push_away_from_the_exact_boundary(chain):
    rows = {(r["samples"], r["class"]): r for r in tables(chain.run)[0][::-1]}  # posterior's
    for c in (0, 1):
        assert rows["scale_3", c]["classifier"] == "posterior"
        assert rows["scale_3", c]["distance"] > rows["scale_1", c]["distance"] + 0.05
        assert rows["scale_3", c]["closest"] > rows["scale_1", c]["closest"]


def test_csv_and_json_agree(chain):
    for name, rows in zip((SUMMARY, CURVES, BOUNDARIES), tables(chain.run), strict=True):
        with (chain.run / name).with_suffix(".csv").open() as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(rows) > 0
        for line, row in zip(table, rows, strict=True):
            assert list(line) == list(row)
            for column, value in row.items():
                if isinstance(value, float):
                    assert float(line[column]) == pytest.approx(value, rel=1e-5, abs=1e-12)
                else:
                    assert line[column] == ("" if value is None else str(value))


def test_manifest_and_config_of_the_run(chain, tmp_path):
    told = json.loads((chain.run / "manifest.json").read_text())
    names = [SUMMARY, CURVES, BOUNDARIES]
    names += [name.replace(".json", ".csv") for name in names]
    assert told["outputs"] == {name: sha256(chain.run / name) for name in names}
    assert told["inputs"] == {
        **{f"samples.{label}": sha256(run / TRAJECTORIES) for label, run in chain.sets.items()},
        "classifiers.linear": sha256(chain.linear / LAST),
    }
    again = load(trace, chain.run / "config.yaml", [f"run_dir={tmp_path / 'again'}"])
    for name in names:
        assert sha256(trace(**again) / name) == told["outputs"][name]


def test_a_finished_trace_is_not_redone(chain, capsys):
    times = {path: path.stat().st_mtime_ns for path in chain.run.rglob("*")}
    trace(run_dir=str(chain.run), **chain.asked)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in chain.run.rglob("*")} == times


def test_another_classifier_is_another_trace(chain, tmp_path):
    """By content: the same file elsewhere is the same, another in the same place is not."""
    run, linear = tmp_path / "run", tmp_path / "linear"
    shutil.copytree(chain.run, run)
    shutil.copytree(chain.linear, linear)
    moved = {**chain.asked, "classifiers": {"posterior": "exact", "linear": str(linear)}}
    trace(run_dir=str(run), **moved)
    state = torch.load(linear / LAST, weights_only=True)
    next(iter(state["ema"].values()))["net.linear.bias"] += 1
    torch.save(state, linear / LAST)
    (linear / "manifest.json").unlink()  # whose hash says that it was changed
    with pytest.raises(UserError, match=r"inputs\.classifiers\.linear"):
        trace(run_dir=str(run), **moved)
    shifted = tables(trace(run_dir=str(tmp_path / "fresh"), **moved))[0]
    assert shifted[2]["distance"] != tables(chain.run)[0][2]["distance"]


def test_raw_weights_are_not_the_average(chain, tmp_path):
    raw = trace(run_dir=str(tmp_path / "raw"), **chain.asked, weights="raw")
    assert json.loads((raw / "manifest.json").read_text())["weights"] == "raw"
    average, own = tables(chain.run)[0], tables(raw)[0]
    assert own[0] == average[0]  # the exact one has none
    assert own[2]["distance"] != average[2]["distance"]
    with pytest.raises(UserError, match="weights: 'raw' there, 'ema' here"):
        trace(run_dir=str(raw), **chain.asked)


def test_images(training, tmp_path):
    """The same measurement on 1 x 4 x 4: a base and a linear classifier through fit."""
    data = {"name": f"{__name__}.Squares"}
    base = fit(run_dir=str(tmp_path / "base"), **training(data=data))
    linear = fit(
        run_dir=str(tmp_path / "linear"),
        **training(data=data, **CLASSIFIER, trainer={"max_steps": 50}),
    )
    run = generate(
        run_dir=str(tmp_path / "run"),
        models={"model": str(base), "classifier": str(linear)},
        guidance={"name": "classifier_gradient", "base": "conditional", "scale": 2.0},
        sampler={"name": "heun", "steps": 4, "sigma_min": 0.01},
        n=12,
        trajectories=9,
    )
    held = load_tensors(run / TRAJECTORIES, "path", "c")
    assert held["path"].shape == (9, 5, 1, 4, 4)
    assert torch.equal(held["path"][:, -1], load_tensors(run / SAMPLES, "x")["x"][:9])
    seen = trace(
        run_dir=str(tmp_path / "seen"),
        samples={"run": str(run)},
        classifiers={"linear": str(linear)},
    )
    rows, curves, boundaries = tables(seen)
    assert boundaries == []
    assert {r["class"]: r["n"] for r in rows} == {
        c: n for c, n in enumerate(held["c"].bincount().tolist()) if n
    }
    assert len(curves) == 5 * len(rows)
    layer = restore(linear).net.linear  # the plane between c and the best other class counts
    for row in rows:
        c, last = row["class"], held["path"][held["c"] == row["class"], -1].flatten(1)
        others = [k for k in range(3) if k != c]
        A = layer.weight[c, :-1] - layer.weight[others, :-1]
        margins = last @ A.T + layer.bias[c] - layer.bias[others]
        best = margins.argmin(1)
        distance = margins.gather(1, best[:, None])[:, 0] / A[best].norm(dim=1)
        (end,) = (r for r in curves if r["class"] == c and r["sigma"] == 0)
        assert end["distance"] == pytest.approx(distance.mean().item(), rel=1e-4, abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_same(chain, tmp_path):
    run = trace(run_dir=str(tmp_path / "run"), **chain.asked, device="cuda")
    here = trace(run_dir=str(tmp_path / "here"), **chain.asked, device="cpu")
    for one, other in zip(tables(run)[0], tables(here)[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
