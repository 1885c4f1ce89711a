"""Other ways of pairing and refining than the paper's, and studies that try them side by side."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lightning_cfg.config import checked, load
from lightning_cfg.data import Fractal, ImageZip, Mixture, Pairs
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.refinement.condition import ByDistance, condition_of
from lightning_cfg.refinement.targets import balanced
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.manifests import read_manifest
from lightning_cfg.runs.names import PAIRS, SAMPLES
from lightning_cfg.runs.pngs import save_images
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Targets that are drawn equally often


def test_balanced_weights_against_what_is_known():
    hub = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4]])  # all four have 0, each one of its own
    w = balanced(hub)
    torch.testing.assert_close(w, torch.tensor([0.2, 0.8]).expand(4, 2))
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6], 1)
    torch.testing.assert_close(balanced(ring), torch.full((6, 2), 0.5))


def test_balanced_draws_are_even_where_neighbours_allow_it():
    """Sources are narrower than the data, so that those in the middle are drawn too often."""
    sources, bank = normal(400, 2) * 0.7, normal(300, 2, seed=1)
    index = (sources[:, None] - bank).norm(dim=2).topk(60, largest=False).indices
    w = balanced(index).double()
    torch.testing.assert_close(w.sum(1), torch.ones(400).double(), atol=1e-6, rtol=0)
    drawn = torch.zeros(300).double().index_add(0, index.flatten(), w.flatten())
    even = torch.zeros(300).index_add(0, index.flatten(), torch.full((400 * 60,), 1 / 60))
    used = even > 0
    assert drawn[used].std() < 0.15 * even[used].std()


def test_pairs_draw_neighbours_by_their_weights(tmp_path):
    weights = torch.tensor([[0.1, 0.0, 0.9], [0.5, 0.5, 0.0]])
    tensors = {
        "x": torch.tensor([[0.0], [1.0]]),
        "c": torch.zeros(2).long(),
        "neighbours": torch.tensor([[0, 1, 2], [3, 4, 5]]),
        "targets": torch.arange(6.0)[:, None],
        "weights": weights,
        "num_classes": torch.tensor(1),
    }
    pairs = Pairs(path=str(save_tensors(tmp_path / "pairs.safetensors", **tensors)))
    counts = Counter()
    for step in range(50):
        batch = pairs.batch(Draws(seed=0, step=step, batch_size=400))
        assert ((batch["y"] >= 3) == (batch["x0"] == 1)).all()
        counts.update(batch["y"].flatten().tolist())
    n = 50 * 200  # of each source
    for i, share in enumerate(weights.flatten().tolist()):
        error = 4 * (share * (1 - share) / n) ** 0.5
        assert counts[float(i)] / n == pytest.approx(share, abs=error)


@pytest.fixture
def samples(tmp_path) -> str:
    tensors = {"x": normal(60, 2), "c": torch.arange(60) % 2, "seed": torch.arange(60)}
    return str(save_tensors(tmp_path / "samples.safetensors", **tensors))


def test_balance_uses_more_targets(samples, mixture, tmp_path):
    """And the same ones: only how often each is drawn changes."""
    told = []
    for balance in (False, True):
        how = {"sources": [samples], "data": mixture, "bank": 200, "k": 8, "balance": balance}
        run = pair(**how, run_dir=str(tmp_path / str(balance)))
        told.append(json.loads((run / "manifest.json").read_text()))
    plain, even = told
    assert even["distinct_targets"] == plain["distinct_targets"]
    assert plain["effective_targets"] < even["effective_targets"] <= even["distinct_targets"]
    with (run / "metrics/pairs.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["effective_targets"]) == pytest.approx(even["effective_targets"])


# Conditions beside the class


def generated(folder: Path, x: Tensor, scale: float) -> str:
    """Samples in the files of a run of `generate` at this guidance scale."""
    n = len(x)
    save_tensors(folder / SAMPLES, x=x, c=torch.zeros(n).long(), seed=torch.arange(n))
    settings = {
        "guidance": {"name": "classifier_free", "scale": scale},
        "sampler": {"name": "heun"},
        "weights": "ema",
    }
    told = {"verb": "generate", "settings": settings, "outputs": {}}
    (folder / "manifest.json").write_text(json.dumps(told))
    return str(folder)


def flow_on(pairs: str, root: Path, training, **learner: object) -> str:
    config = training(
        data={"name": "Pairs", "path": pairs},
        model={"name": "Flow"},
        net={"name": "MLP", "width": 32, "blocks": 1},
        learner={"name": "Refinement", "lr": 1e-2, "warmup": 0, "ema_half_life": [1000], **learner},
        batch_size=128,
        trainer={"max_steps": 400},
    )
    (root / "flow.yaml").write_text(json.dumps(config))
    return str(fit(**load(fit, root / "flow.yaml", [f"run_dir={root / 'flow'}"])))


LINE = {"name": "Mixture", "means": [[0.0]], "stds": [1.0], "labels": [0]}


def test_a_flow_that_knows_the_scale(tmp_path, training, monkeypatch):
    """The same samples have targets on the left at scale 1 and on the right at scale 3."""
    x = normal(200, 1) * 0.1
    bank = torch.cat([x - 1, x + 1])
    monkeypatch.setattr(
        Mixture, "real", lambda self, split, per_class=None: (bank, torch.zeros(400).long())
    )
    sources = [
        generated(tmp_path / "low", x - 0.1, 1.0),
        generated(tmp_path / "high", x + 0.1, 3.0),
    ]
    how = {"sources": sources, "data": LINE, "k": 1, "condition": "scale"}
    run = pair(**how, run_dir=str(tmp_path / "pairs"))
    held = load_tensors(run / PAIRS, "x", "neighbours", "targets", "c")
    # whatever is nearest: what the test is about are the targets by scale
    targets = torch.where(torch.arange(400) < 200, -1.0, 1.0)[:, None]
    rest = load_tensors(run / PAIRS, "num_classes", "scales", "bin")
    tensors = {**held, "neighbours": torch.arange(400)[:, None], "targets": targets, **rest}
    save_tensors(run / PAIRS, **tensors)
    (run / "manifest.json").unlink()  # whose hash says that they were changed
    pairs = Pairs(path=str(run))
    assert pairs.condition.scales == [1.0, 3.0]
    assert pairs.num_classes == 2
    batch = pairs.batch(Draws(seed=0, step=0, batch_size=256))
    assert torch.equal(batch["c"], (batch["y"][:, 0] > 0).long())

    flow = flow_on(str(run), tmp_path, training)
    model = restore(flow)
    assert (model.num_classes, model.net.class_embedding.num_embeddings) == (1, 3)
    means = []
    for scale, end in ((1.0, -1.0), (1.4, None), (2.0, None), (3.0, 1.0), (7.0, 1.0)):
        made = generated(tmp_path / f"fresh_{scale}", normal(50, 1, seed=3) * 0.1, scale)
        moving = {"flow": flow, "samples": made, "run_dir": str(tmp_path / f"refined_{scale}")}
        if scale == 7.0:
            with pytest.raises(UserError, match=r"scale 7, and the flow knows those from 1 to 3"):
                refine(**moving)
            assert not Path(moving["run_dir"]).exists()
            moving["extrapolate"] = True
        out = refine(**moving)
        moved = load_tensors(out / SAMPLES, "x", "c")
        if end is not None:
            assert (moved["x"] - end).abs().mean() < 0.2
        assert (moved["c"] == 0).all()  # their own classes stay
        assert read_manifest(out)["extrapolated"] is (scale == 7.0)
        means.append(moved["x"].mean().item())
    assert means[:4] == sorted(means[:4])  # between two known scales it goes between their ends
    assert means[3] == means[4]
    moving |= {"samples": str(out), "run_dir": str(tmp_path / "twice")}  # of refined ones
    again = refine(**moving)
    assert load_tensors(again / SAMPLES, "x")["x"].mean() > 0.5
    bare = save_tensors(
        tmp_path / "bare.safetensors", x=x, c=torch.zeros(200).long(), seed=torch.arange(200)
    )
    with pytest.raises(UserError, match=r"bare.safetensors does not say its guidance scale"):
        refine(flow=flow, samples=str(bare), run_dir=str(tmp_path / "r"))
    at = refine(flow=flow, samples=str(bare), at=3.0, run_dir=str(tmp_path / "at"))
    assert load_tensors(at / SAMPLES, "x")["x"].mean() > 0.8
    with pytest.raises(UserError, match=r"at=3: .* says that its guidance scale is 1"):
        refine(flow=flow, samples=sources[0], at=3.0, run_dir=str(tmp_path / "r"))
    with pytest.raises(UserError, match=r"condition=scale: .*bare.safetensors does not say"):
        pair(**{**how, "sources": [str(bare)]}, run_dir=str(tmp_path / "p"))


def test_a_flow_that_knows_the_distance(samples, mixture, tmp_path, training, call):
    how = {"sources": [samples], "data": mixture, "bank": 300, "k": 3, "condition": "distance"}
    run = pair(**how, keep_close=0.5, run_dir=str(tmp_path / "pairs"))
    pairs = Pairs(path=str(run))
    held = load_tensors(run / PAIRS, "x", "c", "bin", "distance")
    assert held["bin"].bincount().tolist() == [15, 15, 15, 15]
    order = held["distance"][:, 0].argsort()
    assert (held["bin"][order].diff() >= 0).all()  # quarters by distance
    assert pairs.num_classes == 8
    # fresh samples are put where training put them
    given = pairs.condition.told(held["x"], held["c"], None)
    assert torch.equal(given, held["c"] + 2 * held["bin"])
    flow = flow_on(str(run), tmp_path, training)
    out = refine(flow=flow, samples=samples, run_dir=str(tmp_path / "refined"))
    assert torch.equal(load_tensors(out / SAMPLES, "c")["c"], held["c"])
    before = (out / SAMPLES).read_bytes()

    # a checkpoint of before said where its pairs lie
    old = torch.load(Path(flow, LAST), weights_only=True)
    old["conditioned"] = {"pairs": str(run / PAIRS), "values": 4}
    torch.save(old, tmp_path / "old.ckpt")
    refined = {"flow": str(tmp_path / "old.ckpt"), "samples": samples}
    out = refine(**refined, run_dir=str(tmp_path / "by_old"))
    assert (out / SAMPLES).read_bytes() == before

    shutil.rmtree(run)
    out = refine(flow=flow, samples=samples, run_dir=str(tmp_path / "without"))
    assert (out / SAMPLES).read_bytes() == before
    with pytest.raises(UserError, match=r"pairs.safetensors"):
        refine(**refined, run_dir=str(tmp_path / "again"))


def test_where_there_is_no_distance_to_condition_on(samples, mixture, tmp_path, training):
    """Every sample is its own target, or a class has none, in `pair` and in `refine`."""
    how = {"data": mixture, "bank": 300, "k": 3, "condition": "distance"}
    held = load_tensors(samples, "x", "c", "seed")
    y, c = Mixture(**{k: v for k, v in mixture.items() if k != "name"}).real("bank", 300)
    near = {"x": y[::10] + 1e-6, "c": c[::10], "seed": torch.arange(len(c[::10]))}
    near = str(save_tensors(tmp_path / "near.safetensors", **near))
    told = "no real point of class {} is a target of the pairs, so its samples have no distance"
    with pytest.raises(UserError, match=told.format(0)):
        pair(**how, sources=[near], keep_close=0.5, run_dir=str(tmp_path / "own"))
    swapped = {**held, "x": y[held["c"].eq(0).long() * 300 + torch.arange(len(y[:60]))]}
    swapped = {name: t[held["c"] == 1] for name, t in swapped.items()}
    swapped = str(save_tensors(tmp_path / "swapped.safetensors", **swapped))
    with pytest.raises(UserError, match=told.format(1)):  # whose neighbours are of class 0
        pair(**how, sources=[swapped], same_class=False, run_dir=str(tmp_path / "other"))
    assert not (tmp_path / "own").exists()
    assert not (tmp_path / "other").exists()
    first = {name: t[held["c"] == 0] for name, t in held.items()}
    first = str(save_tensors(tmp_path / "first.safetensors", **first))
    run = pair(**how, sources=[first], run_dir=str(tmp_path / "pairs"))
    flow = flow_on(str(run), tmp_path, training)
    with pytest.raises(UserError, match=told.format(1)):
        refine(flow=flow, samples=samples, run_dir=str(tmp_path / "refined"))


def test_a_flow_that_knows_the_scale_needs_no_pairs(tmp_path, training):
    sources = [generated(tmp_path / f"s{w}", normal(40, 1) * w, w) for w in (1.0, 3.0)]
    run = pair(
        sources=sources, data=LINE, bank=50, k=2, condition="scale", run_dir=str(tmp_path / "pairs")
    )
    flow = flow_on(str(run), tmp_path, training)
    ends = []
    for name in ("with", "without"):
        out = refine(flow=flow, samples=sources[1], run_dir=str(tmp_path / name))
        ends.append((out / SAMPLES).read_bytes())
        shutil.rmtree(run, ignore_errors=True)
    assert ends[0] == ends[1]


def test_a_condition_keeps_images_as_bytes():
    """A quarter of the size, and the same distances; points keep all their digits."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    c = torch.tensor([0, 0, 1, 1])
    for targets, size in ((pixels.float() / 127.5 - 1, 1), (normal(4, 1, 8, 8), 4)):
        condition = ByDistance(2, torch.tensor([5.0]), targets, c)
        state = condition.state()
        assert state["targets"].element_size() == size
        again = condition_of(state)
        assert (again.classes, again.values) == (2, 2)
        assert torch.equal(again.targets, targets)
        x = torch.cat([targets[:1], targets[1:2] + 1])  # at distance 0 and 8 of class 0
        assert again.told(x, torch.tensor([0, 0]), None).tolist() == [0, 2]


def test_evaluation_within_fit_is_refused_for_conditions(samples, mixture, tmp_path, training):
    how = {"sources": [samples], "data": mixture, "bank": 300, "k": 3, "condition": "distance"}
    run = pair(**how, run_dir=str(tmp_path / "pairs"))
    config = training(
        data={"name": "Pairs", "path": str(run)}, model={"name": "Flow"},
        learner={"name": "Refinement"}, evaluation={"every": 5, "n": 8, "sources": {"cfg": samples},
        "data": mixture},
    )  # fmt: skip
    (tmp_path / "flow.yaml").write_text(json.dumps(config))
    with pytest.raises(UserError, match="scored by refine and evaluate"):
        fit(**load(fit, tmp_path / "flow.yaml", [f"run_dir={tmp_path / 'flow'}"]))


# Few real data

MIX = {"means": [[-1.0, 0.0], [1.0, 0.0]], "stds": [0.1, 0.2], "labels": [0, 1]}


@pytest.mark.parametrize("data, keys", [(Fractal, {}), (Mixture, MIX)])
def test_limited_mixtures_train_on_the_same_points(data, keys):
    few = data(**keys, limit=7)
    y, c = few.real("bank")
    assert len(y) == 14
    some = few.real("bank", 3)[0]
    assert torch.equal(some, torch.cat([y[:3], y[7:10]]))  # and not another draw
    known = set(map(tuple, y.tolist()))
    seen = set()
    for step in range(20):
        batch = few.batch(Draws(seed=1, step=step, batch_size=10))
        seen |= set(map(tuple, batch["y"].tolist()))
        for point, label in zip(batch["y"], batch["c"], strict=True):
            assert (y[c == label] == point).all(1).any()
    assert seen == known
    assert len(few.real("held_out", 50)[0]) == 100
    with pytest.raises(UserError, match=r"data.limit=7 points a class, not 8"):
        few.real("bank", 8)
    with pytest.raises(UserError, match=r"limit must be int from 1 to .*, not 0"):
        checked(data, keys | {"limit": 0})


def test_limited_images(tmp_path):
    x, c = normal(20, 1, 4, 4).clamp(-1, 1), torch.arange(20) % 2
    file = save_images(tmp_path / "i.zip", x=x, c=c, seed=torch.arange(20), labelled=True)
    few, all_of_them = ImageZip(path=str(file), limit=3), ImageZip(path=str(file))
    y, labels = few.real("bank")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(y, all_of_them.real("bank", 3)[0])
    batch = torch.cat([few.batch(Draws(seed=0, step=i, batch_size=6))["y"] for i in range(4)])
    assert len(batch.flatten(1).unique(dim=0)) == 6
    with pytest.raises(UserError, match="between 1 and 3, the images of class 0 in split bank"):
        few.rows("bank", 4)
    with pytest.raises(UserError, match=r"data.limit must be between 1 and 10"):
        ImageZip(path=str(file), limit=11).rows("bank")


def test_halves_share_no_image_and_are_the_whole(tmp_path):
    x, c = normal(22, 1, 4, 4).clamp(-1, 1), torch.arange(22) % 2
    file = save_images(tmp_path / "i.zip", x=x, c=c, seed=torch.arange(22), labelled=True)
    first, second = (ImageZip(path=str(file), half=half) for half in ("first", "second"))
    assert [r.bincount().tolist() for r in (first.real("bank")[1], second.real("bank")[1])] == [
        [6, 6],
        [5, 5],
    ]
    both = torch.cat([first.real("bank")[0], second.real("bank")[0]]).flatten(1)
    assert len(both.unique(dim=0)) == 22
    known = set(map(tuple, first.real("bank")[0].flatten(1).tolist()))
    for step in range(6):
        batch = first.batch(Draws(seed=0, step=step, batch_size=6))["y"]
        assert set(map(tuple, batch.flatten(1).tolist())) <= known
    one = ImageZip(path=str(file), half="second", limit=2)
    assert torch.equal(one.real("bank")[0], second.real("bank", 2)[0])
    with pytest.raises(UserError, match="half must be one of 'first', 'second'"):
        checked(ImageZip, {"path": str(file), "half": "third"})


# Studies with variants


@pytest.fixture(scope="module")
def config(mixture) -> dict:
    net = {"name": "MLP", "width": 16, "blocks": 1}
    learner = {"lr": 1e-2, "warmup": 0, "ema_half_life": [500]}
    return {
        "data": mixture,
        "fits": {
            "base": {
                "net": net, "model": {"name": "EDM", "label_dropout": 0.2}, "batch_size": 64,
                "learner": {"name": "Diffusion", **learner}, "trainer": {"max_steps": 60},
            }
        },
        "methods": {
            "cfg": {"models": {"model": "base"}, "guidance": {"name": "classifier_free"}}
        },
        "scales": [1, 2],
        "flows": {"all": [1, 2]},
        "sources": 100,
        "samples": 100,
        "generation": {"sampler": {"name": "heun", "steps": 6}},
        "pairs": {"k": 4, "bank": 100},
        "flow": {
            "net": net, "model": {"name": "Flow"}, "batch_size": 64,
            "learner": {"name": "Refinement", **learner}, "trainer": {"max_steps": 30},
        },
        "refinement": {"rtol": 1e-2, "atol": 1e-2},
        "variants": {
            "one_step": {"refinement": {"method": "euler", "steps": 1}},
            "two_steps": {"refinement": {"method": "euler", "steps": 2}, "scales": [2]},
            "k_8": {"pairs": {"k": 8}},
            "longer": {"flow": {"trainer": {"max_steps": 40}}},
        },
        "published": [
            {"source": "A paper, table 9", "metric": "frechet",
             "rows": {"before": {"1": 12.5, "3": 6.25}, "k_8": {"2": 4.5}}},
        ],
        "evaluation": {"metrics": ["frechet", "recall", "outliers"], "real": 100, "bank": 100},
    }  # fmt: skip


def run(config: dict, root: Path, *overrides: str) -> None:
    (root / "study.yaml").write_text(json.dumps(config))
    study(**load(study, root / "study.yaml", [f"run_dir={root / 'study'}", *overrides]))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("variants")
    run(config, root)
    return root / "study"


def test_variants_share_what_they_do_not_change(done):
    names = [s["name"] for s in json.loads((done / "study.json").read_text())["stages"]]
    assert len(set(names)) == len(names) == 22
    assert [n for n in names if n.startswith("pair")] == ["pair cfg all", "pair cfg k_8"]
    flows = [n for n in names if n.startswith("fit flow")]
    assert flows == ["fit flow cfg all", "fit flow cfg k_8", "fit flow cfg longer"]
    refined = [n for n in names if n.startswith("refine")]
    expected = {f"refine cfg {s} {v}" for s in (1, 2) for v in ("all", "one_step", "k_8", "longer")}
    assert set(refined) == expected | {"refine cfg 2 two_steps"}


def test_the_cost_counts_every_stage_once(config, done, tmp_path, capsys):
    run(config, tmp_path, "plan=true")
    out = capsys.readouterr().out
    assert out.startswith("22 stages: 4 trainings")
    assert "900 refined" in out


def test_flows_in_a_row_and_by_transport(config, tmp_path):
    """The row makes no flow: it follows two others, one step each, and counts both."""
    variants = {
        "row": {"then": ["moved", "all"], "refinement": {"method": "euler", "steps": 1}},
        "moved": {"pairs": {"coupling": "transport", "condition": "scale"}},
        "beyond": {"then": ["all", "moved"]},
    }
    short = {"scales": [1, 1.5, 2], "variants": variants, "published": []}
    run(config | short, tmp_path)
    stages = json.loads((tmp_path / "study/study.json").read_text())["stages"]
    names = [stage["name"] for stage in stages]
    assert [n for n in names if n.startswith("fit flow")] == [
        "fit flow cfg all",
        "fit flow cfg moved",
    ]
    [row] = [s for s in stages if s["name"] == "refine cfg 1.5 row"]
    manifest = read_manifest(tmp_path / "study" / row["directory"])
    assert manifest["evaluations"] == {"flow": 1.0, "flow_2": 1.0}
    with (tmp_path / "study/table.csv").open() as file:
        nfe = {(r["flow"], r["scale"]): float(r["nfe"]) for r in csv.DictReader(file) if r["nfe"]}
    for scale in ("1", "1.5", "2"):
        assert nfe["row", scale] == nfe["", scale] + 2
        assert nfe["beyond", scale] > nfe["all", scale]
    report = (tmp_path / "study/report.md").read_text()
    assert "- row: `refinement.method: euler, refinement.steps: 1, then: moved, all`" in report


def test_a_flow_after_another_ones(config, tmp_path):
    """Its pairs start where the first one's flow ends, and both are followed."""
    moved = {"pairs": {"coupling": "transport", "condition": "scale"}}
    polish = {"after": "moved", "refinement": {"method": "euler", "steps": 1}, "pairs": {"k": 2}}
    short = {"variants": {"polish": polish, "moved": moved}, "published": []}
    run(config | short, tmp_path)
    root = tmp_path / "study"
    stages = json.loads((root / "study.json").read_text())["stages"]
    places = {stage["name"]: root / stage["directory"] for stage in stages}
    pairs = load_tensors(places["pair cfg polish"] / PAIRS, "x", "neighbours")
    ends = [places[f"refine cfg {scale} moved sources"] / SAMPLES for scale in (1, 2)]
    assert torch.equal(pairs["x"], torch.cat([load_tensors(end, "x")["x"] for end in ends]))
    assert pairs["neighbours"].shape[1] == 2
    cost = read_manifest(places["refine cfg 2 polish"])["evaluations"]
    assert cost == {"flow": 1.0, "flow_2": 1.0}


def test_a_flow_of_where_another_one_goes(config, tmp_path):
    """It is trained on the other's own pairs, and a third on what its one step leaves."""
    once = {"method": "euler", "steps": 1}
    variants = {
        "near": {"after": "straight", "refinement": once},
        "straight": {
            "reflow": "moved", "refinement": once,
            "flow": {"model": {"name": "OneStep"}, "trainer": {"max_steps": 5}},
        },
        "moved": {"pairs": {"coupling": "transport", "condition": "scale", "between": True}},
    }  # fmt: skip
    run(config | {"variants": variants, "published": []}, tmp_path)
    root = tmp_path / "study"
    stages = json.loads((root / "study.json").read_text())["stages"]
    places = {stage["name"]: root / stage["directory"] for stage in stages}
    assert sum(name.startswith("pair ") for name in places) == 3  # none of straight's own
    config = OmegaConf.load(places["fit flow cfg straight"] / "config.yaml")
    asked = OmegaConf.to_container(config.data)
    assert asked == {
        "name": "Reflow", "told": 4, "steps": 8, "cache": True,
        "path": str(places["pair cfg moved"]), "flow": str(places["fit flow cfg moved"]),
    }  # fmt: skip
    cost = read_manifest(places["refine cfg 2 near"])["evaluations"]
    assert cost == {"flow": 1.0, "flow_2": 1.0}
    pairs = load_tensors(places["pair cfg near"] / PAIRS, "x")
    ends = [places[f"refine cfg {scale} straight sources"] / SAMPLES for scale in (1, 2)]
    assert torch.equal(pairs["x"], torch.cat([load_tensors(end, "x")["x"] for end in ends]))


@pytest.mark.parametrize(
    ("variants", "told"),
    [
        ({"a": {"then": ["b"]}}, "variants.a.then: b must be one of all"),
        ({"a": {"then": ["all"], "pairs": {"k": 3}}}, "variants.a.pairs says how a flow is made"),
        ({"a": {"then": ["all"]}, "b": {"then": ["a"]}}, "variants.b.then: a must be one of all"),
        ({"a": {"pairs": {"coupling": "transport", "balance": True}}}, "balance=true is for"),
        ({"a": {"after": "b"}}, "variants.a.after: b must be one of all"),
        ({"a": {"after": "all", "then": ["all"]}}, "then makes no flow and after makes one"),
        ({"a": {"reflow": "a"}}, "variants.a.reflow: a must be one of all"),
        ({"a": {"reflow": "all", "after": "all"}}, "reflow one of where another goes"),
        ({"a": {"reflow": "all", "pairs": {"k": 3}}}, "reflow pairs none"),
        ({"a": {"reflow": "all"}, "b": {"then": ["a", "all"]}, "c": {"reflow": "b"}},
         "variants.c.reflow: b must be one of all$"),
        ({"a": {"reflow": "all", "flow": {"model": {"name": "OneStep"}}}}, "known for one step"),
        ({"a": {"pairs": {"between": True}}}, "between=true is for condition=scale"),
        ({"a": {"pairs": {"condition": "scale"}}}, "stage refine cfg 3 a: .* and the flow"),
    ],
)  # fmt: skip
def test_rows_and_couplings_that_cannot_be_are_told_before_the_first_stage(
    config, tmp_path, variants, told
):
    with pytest.raises(UserError, match=told):
        run(config | {"scales": [1, 3], "variants": variants, "published": []}, tmp_path)
    assert not (tmp_path / "study").exists()


def test_the_table_has_a_row_of_every_variant(done):
    with (done / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = Counter((r["flow"], float(r["scale"] or 0)) for r in rows if r["stage"] == "after")
    flows = ("all", "one_step", "k_8", "longer")
    assert kinds == {**{(f, s): 2 for f in flows for s in (1.0, 2.0)}, ("two_steps", 2.0): 2}
    nfe = {(r["flow"], r["scale"]): float(r["nfe"]) for r in rows if r["nfe"]}
    assert nfe["one_step", "2"] == nfe["", "2"] + 1
    assert nfe["two_steps", "2"] == nfe["", "2"] + 2


def test_the_report_has_the_papers_rows_beside_ours(done):
    text = (done / "report.md").read_text()
    lines = text.split("**cfg: `frechet`**")[1].split("**cfg:")[0].splitlines()
    table = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert table[0] == ["samples", "evaluations", "scale 1", "scale 2", "scale 3"]
    by_name = [row[0] for row in table[2:]]
    paper = "· A paper, table 9"
    assert by_name == [
        "before", paper, "after, one for all", "one_step", "two_steps", "k_8", paper, "longer"
    ]  # fmt: skip
    assert table[3][2:] == ["12.5", "", "6.25"]
    assert table[8][2:] == ["", "4.5", ""]
    ours = {row[0]: row for row in table[2:]}
    assert ours["one_step"][1] == "1"
    assert ours["two_steps"][2] == ""  # tried at scale 2 only
    with (done / "table.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["flow"], r["scale"]) == ("k_8", "2")]
    mean = sum(float(r["frechet"]) * int(r["n"]) for r in rows) / sum(int(r["n"]) for r in rows)
    assert float(ours["k_8"][3]) == pytest.approx(mean, rel=0.01)
    assert "- k_8: `pairs.k: 8`" in text
    assert "- two_steps: `refinement.method: euler, refinement.steps: 2, scales: [2.0]`" in text
    best = min(float(row[3].strip("*")) for name, row in ours.items() if row[3] and name != paper)
    assert f"**{best:g}**" in text
    for name in ("variants_cfg", "evaluations_cfg"):
        assert (done / f"figures/{name}.png").stat().st_size > 3000
        assert f"figures/{name}.png" in text


def test_variants_claim_nothing(done):
    claims = (done / "report.md").read_text().split("## What refinement did")[1].split("\n## ")[0]
    assert "one_step" not in claims


@pytest.mark.parametrize(
    "change, words",
    [
        ("variants={a: {pairs: {kk: 3}}}", ["variants.a.pairs.kk", "did you mean"]),
        ("variants={a: {pairs: {k: many}}}", ["variants.a.pairs.k must be int"]),
        ("variants={a: {pair: {k: 3}}}", ["did you mean 'variants.a.pairs'"]),
        ("variants={a: {flow: {learner: {lr: fast}}}}", ["variants.a.flow.learner.lr"]),
        ("variants={a: {flow: {net: {name: MPL}}}}", ["did you mean 'MLP'"]),
        ("variants={all: {pairs: {k: 3}}}", ["variants.all"]),
        ("variants={a b: {pairs: {k: 3}}}", ["letters, digits and _ only"]),
        ("variants={a: {pairs: {k: 3}, scales: [3]}}", ["variants.a has scale 3"]),
        ("flows={dedicated: [2]}", ["they need flows.all"]),
        ("published=[{source: s, metric: frechet, rows: {k_9: {1: 2}}}]", ["rows.k_9"]),
        ("published=[{source: s, metric: frechet, rows: {all: {one: 2}}}]", ["rows.all.one"]),
        (
            "published=[{source: s, metric: frechet, method: cg, rows: {all: {1: 2}}}]",
            ["method=cg must be one of methods (cfg)"],
        ),
        ("published=[{metric: frechet, rows: {}}]", ["source is missing"]),
    ],
)
def test_mistakes_are_one_line(config, change, words, call):
    outcome = call(study, config, change)
    assert outcome.status == 2, outcome.out
    assert len(outcome.err.strip().splitlines()) == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert not Path("runs").exists()


# Methods side by side


@pytest.fixture(scope="module")
def compared(config, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("compared")
    cfg = config["methods"]["cfg"]
    methods = {
        "cfg": cfg,
        "far": {**cfg, "scales": [1, 3, 6]},
        "cheap": {**cfg, "generation": {"sampler": {"steps": 3}}},
    }
    run({**config, "methods": methods, "variants": {}, "published": []}, root)
    return root / "study"


def test_each_method_has_its_own_scales_and_sampler(compared):
    with (compared / "table.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["stage"] == "before"]
    scales = {m: [r["scale"] for r in rows if (r["method"], r["class"]) == (m, "0")]
              for m in ("cfg", "far", "cheap")}  # fmt: skip
    assert scales == {"cfg": ["1", "2"], "far": ["1", "3", "6"], "cheap": ["1", "2"]}
    nfe = {(r["method"], r["scale"]): float(r["nfe"]) for r in rows}
    assert (nfe["cfg", "1"], nfe["cfg", "2"]) == (11, 22)  # Heun: 2 steps - 1, twice where guided
    assert (nfe["cheap", "1"], nfe["cheap", "2"]) == (5, 10)
    text = (compared / "report.md").read_text()
    assert "1, 2 (cfg); 1, 3, 6 (far); 1, 2 (cheap)" in text
    names = [s["name"] for s in json.loads((compared / "study.json").read_text())["stages"]]
    assert "refine far 6 all" in names


def test_methods_are_compared_at_their_best_scale(compared):
    with (compared / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean: dict[tuple, float] = {}
    for row in rows:
        if row["method"] != "real":
            key = (row["method"], row["scale"], row["stage"])
            own = [r for r in rows if (r["method"], r["scale"], r["stage"]) == key]
            n = sum(int(r["n"]) for r in own)
            mean[key] = sum(int(r["n"]) * float(r["frechet"]) for r in own) / n
    text = (compared / "report.md").read_text().split("## Methods compared")[1].split("\n## ")[0]
    for stage, title in (("before", "**Before"), ("after", "**After")):
        lines = text.split(title)[1].split("**\n\n")[1].split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
        assert [row[0] for row in cells] == ["cfg", "far", "cheap", "real"]
        for name, scale, *_ in cells[:3]:
            own = {s: value for (m, s, when), value in mean.items() if (m, when) == (name, stage)}
            assert scale == min(own, key=own.get)
    assert (compared / "figures/fidelity_diversity.png").stat().st_size > 3000


def test_methods_at_matched_distance():
    """The best class errors where a method is no farther from the data, between its scales too."""
    from lightning_cfg.reports.comparison import sections
    from lightning_cfg.reports.rows import Rows

    def row(frechet: float, wrong: float) -> dict:
        return {"frechet": frechet, "wrong_class": wrong, "n": 10}

    averages = {
        ("a", 1.0, "before", ""): row(1.0, 0.4), ("a", 2.0, "before", ""): row(2.0, 0.2),
        ("b", 1.0, "before", ""): row(0.9, 0.5), ("b", 2.0, "before", ""): row(1.5, 0.3),
        ("b", 3.0, "before", ""): row(2.0, 0.1), ("b", 4.0, "before", ""): row(2.1, 0.0),
        ("c", 1.0, "before", ""): row(1.1, 0.3), ("a", 2.0, "after", "all"): row(0.1, 0.0),
    }  # fmt: skip
    config = {"methods": {name: {} for name in "abc"}, "tuning": None}
    text = sections(Rows(averages), config, ["frechet", "wrong_class"])[-1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["method", "≤ 1 (1)", "≤ 2 (2)"]
    # b: from 50 % at .9 to 30 % at 1.5 it has 46.7 % at 1
    assert rows[2:] == [["a", "**40 %**", "20 %"], ["b", "46.7 %", "**10 %**"], ["c", "", "30 %"]]


def test_two_methods_are_not_a_comparison(done):
    assert "## Methods compared" not in (done / "report.md").read_text()


def test_a_methods_generation_is_checked(config, call):
    outcome = call(study, config, "methods.cfg.generation={sampler: {stepz: 3}}")
    assert outcome.status == 2
    assert "methods.cfg.generation.sampler.stepz" in outcome.err


def test_results_say_how_samples_were_refined(done):
    from lightning_cfg.evaluation.sample_sets import read_set

    stages = done / "stages"
    found = {}
    for name in ("all", "one_step", "k_8"):
        (folder,) = stages.glob(f"refine-cfg-2-{name}-*")
        held = read_set(folder)
        found[name] = held.about["sampler"]
        assert held.scale == 2.0
        assert held.about["guidance"] == "classifier_free scale=2.0"
    assert found["all"].endswith("refined by dopri5 rtol=0.01 atol=0.01")
    assert found["one_step"].endswith("refined by euler steps=1")
