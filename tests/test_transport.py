"""Transport of samples to real points, against sorting, linear programs and brute force."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.data import Pairs
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.models import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation import transported
from lightning_cfg.nets import MLP
from lightning_cfg.refinement.condition import ByScale, condition_of
from lightning_cfg.refinement.transport import (
    assigned,
    blocks,
    largest,
    sinkhorn,
    squared_distances,
)
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.manifests import read_manifest
from lightning_cfg.runs.names import PAIRS, SAMPLES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine

F64 = torch.float64
LINE = {"name": "Mixture", "means": [[0.0], [10.0]], "stds": [1.0, 1.0], "labels": [0, 1]}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed("transport test", seed), dtype=F64)


def program(cost: Tensor) -> float:
    """The least cost of uniform marginals, by scipy's linear programming."""
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    sums = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return scipy.optimize.linprog(
        cost.flatten().numpy(), A_eq=np.vstack([rows, columns]), b_eq=sums
    ).fun


# The plans


def test_the_exact_matching_is_the_best_of_all_permutations():
    for seed in range(5):
        cost = squared_distances(normal(6, 3, seed=seed), normal(6, 3, seed=seed + 50))
        best = min(itertools.permutations(range(6)), key=lambda p: sum(cost[range(6), p]).item())
        assert assigned(cost).tolist() == list(best)


def test_on_a_line_the_ranks_are_matched():
    x, y = normal(500, 1), 3 + 2 * normal(500, 1, seed=1)
    column = assigned(squared_distances(x, y))
    assert torch.equal(x[:, 0].argsort().argsort(), y[column][:, 0].argsort().argsort())


def test_squared_distances_are_the_sums_of_squares():
    x, y = normal(40, 700) + 100, normal(30, 700, seed=1) + 100
    expected = ((x[:, None] - y) ** 2).sum(-1)
    torch.testing.assert_close(squared_distances(x, y), expected, rtol=1e-9, atol=1e-9)


def test_sinkhorn_of_two_by_two_is_the_closed_form():
    """By symmetry P = [[p, 1/2 - p], [1/2 - p, p]], with p / (1/2 - p) = exp((b - a) / eps)."""
    a, b, epsilon = 0.3, 1.1, 0.4
    plan = sinkhorn(torch.tensor([[a, b], [b, a]], dtype=F64), epsilon)
    p = 0.5 / (1 + math.exp(-(b - a) / epsilon))
    expected = torch.tensor([[p, 0.5 - p], [0.5 - p, p]], dtype=F64)
    torch.testing.assert_close(plan, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 45), (45, 20)])
def test_sinkhorn_is_even_and_tends_to_the_least_cost(n, m):
    cost = squared_distances(normal(n, 2), normal(m, 2, seed=1) + 1)
    least, costs = program(cost), []
    for share in (1.0, 0.1, 0.01):
        plan = sinkhorn(cost, share * float(cost.median()))
        torch.testing.assert_close(
            plan.sum(0), torch.full((m,), 1 / m, dtype=F64), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(
            plan.sum(1), torch.full((n,), 1 / n, dtype=F64), rtol=1e-3, atol=0
        )
        # log P is a row's number plus a column's minus C / eps: no other matrix of these sums is
        rest = plan.log() + cost / (share * float(cost.median()))
        square = rest[1:, 1:] - rest[:1, 1:] - rest[1:, :1] + rest[0, 0]
        assert square.abs().max() < 1e-6
        costs.append((plan * cost).sum().item())
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(least, rel=0.03)
    assert costs[-1] >= least * (1 - 1e-3)


def test_sinkhorn_that_does_not_settle_says_what_to_do(monkeypatch):
    monkeypatch.setattr("lightning_cfg.refinement.transport.ROUNDS", 20)
    cost = squared_distances(normal(60, 2), normal(60, 2, seed=1) + 5)
    with pytest.raises(UserError, match=r"after 20 rounds .* raise epsilon"):
        sinkhorn(cost, 1e-4)


def test_the_largest_of_a_plan_and_what_is_left_out():
    plan = torch.tensor([[0.1, 0.2, 0.2], [0.4, 0.06, 0.04]], dtype=F64)
    column, weights, left = largest(plan, 2)
    assert sorted(column[0].tolist()) == [1, 2]
    assert column[1].tolist() == [0, 1]
    torch.testing.assert_close(weights[1], torch.tensor([0.4, 0.06], dtype=F64) / 0.46)
    torch.testing.assert_close(left, torch.tensor([0.2, 0.08], dtype=F64))


# The blocks


def test_blocks_hold_every_sample_once_with_points_of_its_label():
    label, part = torch.arange(1000) % 2, torch.arange(1000) // 400
    points = torch.arange(3000) % 3
    cut = blocks(label, part, points, size=64, seed=0, one_to_one=True)
    assert torch.cat([block.samples for block in cut]).sort().values.tolist() == list(range(1000))
    used = torch.cat([block.points for block in cut])
    assert len(used.unique()) == len(used) == 1000  # parts of a label share none either
    for block in cut:
        assert len(block.samples) == len(block.points) <= 64
        assert len(label[block.samples].unique()) == len(part[block.samples].unique()) == 1
        assert (points[block.points] == label[block.samples]).all()
    again = blocks(label, part, points, size=64, seed=0, one_to_one=True)
    other = blocks(label, part, points, size=64, seed=1, one_to_one=True)
    assert all(torch.equal(a.points, b.points) for a, b in zip(cut, again, strict=True))
    assert not torch.equal(cut[0].points, other[0].points)


@pytest.mark.parametrize("points", [7, 50, 99])
def test_few_points_come_up_equally_often_in_every_part(points):
    label, part = torch.zeros(200).long(), torch.arange(200) // 100
    cut = blocks(label, part, torch.zeros(points).long(), size=40, seed=3, one_to_one=True)
    for p in (0, 1):
        used = torch.cat([b.points for b in cut if part[b.samples[0]] == p])
        assert len(used) == 100
        counts = used.bincount(minlength=points)
        assert counts.max() - counts.min() <= 2
    whole = torch.cat([b.points for b in cut]).bincount(minlength=points)
    assert whole.max() - whole.min() <= 1


def test_with_a_plan_every_point_is_used():
    label, part = torch.zeros(90).long(), (torch.arange(90) >= 30).long()
    cut = blocks(label, part, torch.zeros(400).long(), size=25, seed=0, one_to_one=False)
    assert torch.cat([b.points for b in cut]).sort().values.tolist() == list(range(400))
    sizes = {0: 0, 1: 0}
    for b in cut:
        sizes[int(part[b.samples[0]])] += len(b.points)
        assert len(b.samples) <= 25
    assert sizes == {0: 133, 1: 267}  # in proportion to the samples


def test_a_class_without_points_is_told():
    with pytest.raises(UserError, match="no real point of class 1"):
        blocks(
            torch.tensor([0, 1]), torch.zeros(2), torch.tensor([0]), size=5, seed=0, one_to_one=1
        )


# The verbs


def generated(folder: Path, x: Tensor, c: Tensor, scale: float, **guidance: object) -> str:
    """Samples in the files of a run of `generate` at this guidance scale."""
    save_tensors(folder / SAMPLES, x=x.float(), c=c, seed=torch.arange(len(x)))
    told = {"name": "classifier_free", "scale": scale, **guidance}
    settings = {"guidance": told, "sampler": {"name": "heun"}, "weights": "ema"}
    manifest = {"verb": "generate", "settings": settings, "outputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


@pytest.fixture
def sources(tmp_path):
    """Samples on a line, the farther off the larger the scale."""
    c = torch.arange(120) % 2
    return [
        generated(tmp_path / f"s{w}", normal(120, 1, seed=i) / w + 10 * c[:, None] + w, c, w)
        for i, w in enumerate((1.0, 2.0))
    ]


def test_pair_by_transport_matches_ranks_within_class_and_scale(sources, tmp_path):
    """On a line; every real point is a target once, and each scale's are a fair draw."""
    how = {"sources": sources, "data": LINE, "bank": 120, "coupling": "transport"}
    run = pair(**how, condition="scale", run_dir=str(tmp_path / "pairs"))
    held = load_tensors(run / PAIRS, "x", "c", "neighbours", "targets", "source", "bin", "distance")
    assert held["neighbours"].shape == (240, 1)
    y = held["targets"][held["neighbours"][:, 0]]
    for scale in (0, 1):
        for label in (0, 1):
            own = (held["source"] == scale) & (held["c"] == label)
            a, b = held["x"][own, 0], y[own, 0]
            assert torch.equal(a.argsort().argsort(), b.argsort().argsort())
            assert abs(b.mean() - 10 * label) < 0.6
    assert len(held["neighbours"].unique()) == 240  # of 120 a class, two scales of 60
    torch.testing.assert_close(held["distance"][:, 0], (held["x"] - y).abs()[:, 0])
    manifest = read_manifest(run)
    assert manifest["used_once"] == 1
    assert manifest["method"] == "classifier_free scale=1.0"
    again = pair(**how, condition="scale", run_dir=str(tmp_path / "again"))
    assert (again / PAIRS).read_bytes() == (run / PAIRS).read_bytes()


def test_ways_of_cutting_cost_more_the_smaller_the_blocks(sources, tmp_path):
    how = {"sources": sources, "data": LINE, "bank": 120, "coupling": "transport"}
    far = [
        read_manifest(pair(**how, block=block, run_dir=str(tmp_path / f"b{block}")))[
            "mean_distance"
        ]
        for block in (60, 10, 1)
    ]
    assert far == sorted(far)


def test_pair_by_a_plan_with_entropy(sources, tmp_path):
    how = {"sources": sources, "data": LINE, "coupling": "transport", "epsilon": 0.05}
    run = pair(**how, bank=400, k=3, run_dir=str(tmp_path / "pairs"))
    held = load_tensors(run / PAIRS, "x", "c", "neighbours", "weights", "targets")
    assert held["neighbours"].shape == held["weights"].shape == (240, 3)
    torch.testing.assert_close(held["weights"].sum(1), torch.ones(240))
    assert 0 < read_manifest(run)["left_out"] < 1
    y = (held["targets"][held["neighbours"]] * held["weights"][..., None]).sum(1)
    for label in (0, 1):
        assert (y[held["c"] == label].mean() - 10 * label).abs() < 0.3
    assert Pairs(path=str(run)).batch is not None


def test_transport_in_parts_of_sources_that_say_no_scale(tmp_path):
    c = torch.zeros(50).long()
    bare = [
        str(
            save_tensors(
                tmp_path / f"{i}.safetensors",
                x=normal(50, 1).float() + i,
                c=c,
                seed=torch.arange(50),
            )
        )
        for i in (3, 5)
    ]
    how = {"sources": list(map(str, bare)), "data": LINE, "bank": 100, "coupling": "transport"}
    run = pair(**how, run_dir=str(tmp_path / "pairs"))
    held = load_tensors(run / PAIRS, "neighbours", "targets", "source")
    y = held["targets"][held["neighbours"][:, 0], 0]
    for i in (0, 1):  # each by itself goes to all of the data, not the nearer half of it
        assert abs(y[held["source"] == i].mean()) < 0.4
    pooled = pair(**how, within=["class"], run_dir=str(tmp_path / "pooled"))
    held = load_tensors(pooled / PAIRS, "neighbours", "targets", "source")
    y = held["targets"][held["neighbours"][:, 0], 0]
    assert y[held["source"] == 0].mean() < y[held["source"] == 1].mean() - 0.5
    with pytest.raises(UserError, match=r"within=\[scale\]: .*3.safetensors does not say its guid"):
        pair(**how, within=["scale"], run_dir=str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"balance": True}, "balance=true is for coupling=neighbours"),
        ({"keep_close": 0.5}, "keep_close=0.5 is for coupling=neighbours"),
        ({"coupling": "neighbours", "epsilon": 0.1}, "epsilon is for coupling=transport"),
        ({"same_class": False, "within": ["class"]}, "say two things"),
        ({"memory": 1e-6}, "make block smaller"),
        ({"epsilon": 0.0}, "epsilon must be float above 0 or null"),
        ({"block": 0}, "block must be int from 1"),
        ({"within": ["classes"]}, "within"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(sources, tmp_path, keys, told):
    how = {"sources": sources, "data": LINE, "bank": 120, "coupling": "transport"}
    with pytest.raises(UserError, match=told):
        pair(**(how | keys), run_dir=str(tmp_path / "pairs"))
    assert not (tmp_path / "pairs").exists()


def test_samples_that_are_no_numbers_are_told(tmp_path):
    c = torch.zeros(20).long()
    x = torch.full((20, 1), 1e200, dtype=F64).float()
    made = generated(tmp_path / "s", x, c, 1.0)
    how = {"sources": [made], "data": LINE, "bank": 30, "coupling": "transport"}
    with pytest.raises(UserError, match=r"finite|infinite|NaN"):
        pair(**how, run_dir=str(tmp_path / "pairs"))


def test_balance_is_within_the_scale_that_the_flow_is_told(sources, tmp_path):
    """Sinkhorn on each scale's neighbours by itself; over the pool where nothing is told."""
    how = {"sources": sources, "data": LINE, "bank": 30, "k": 10, "balance": True}
    for keys, apart in (({"condition": "scale"}, True), ({"within": ["class", "scale"]}, True),
                        ({}, False)):  # fmt: skip
        run = pair(**how, **keys, run_dir=str(tmp_path / f"p{len(str(keys))}"))
        held = load_tensors(run / PAIRS, "neighbours", "weights", "source")
        parts = [held["source"] == i for i in (0, 1)] if apart else [held["source"] >= 0]
        for part in parts:
            drawn = torch.zeros(len(held["neighbours"].unique()))
            rows, w = held["neighbours"][part], held["weights"][part]
            drawn.index_add_(0, rows.flatten(), w.flatten())
            drawn = drawn[rows.unique()]
            even = torch.full_like(w, 1 / 10)
            plain = torch.zeros(len(held["neighbours"].unique()))
            plain.index_add_(0, rows.flatten(), even.flatten())
            assert drawn.std() < 0.9 * plain[rows.unique()].std()


def test_methods_of_two_kinds_have_no_scale_in_common(sources, tmp_path):
    c = torch.arange(120) % 2
    other = generated(tmp_path / "apg", normal(120, 1), c, 2.0, name="apg")
    how = {"data": LINE, "bank": 120, "coupling": "transport", "condition": "scale"}
    with pytest.raises(UserError, match=r"guided by apg scale=1.0, and .* by classifier_free"):
        pair(**how, sources=[sources[0], other], run_dir=str(tmp_path / "pairs"))


# The flow


@pytest.fixture
def flow(sources, tmp_path, training):
    how = {"sources": sources, "data": LINE, "bank": 120, "coupling": "transport"}
    run = pair(**how, condition="scale", run_dir=str(tmp_path / "for_the_flow"))
    config = training(
        data={"name": "Pairs", "path": str(run)},
        model={"name": "Flow"},
        net={"name": "MLP", "width": 32, "blocks": 1},
        learner={"name": "Refinement", "lr": 1e-2, "warmup": 0, "ema_half_life": [1000]},
        batch_size=128,
        trainer={"max_steps": 30},
    )
    (tmp_path / "flow.yaml").write_text(json.dumps(config))
    return str(fit(**load(fit, tmp_path / "flow.yaml", [f"run_dir={tmp_path / 'flow'}"])))


def test_the_method_travels_with_the_checkpoint(flow, sources, tmp_path):
    model = restore(flow)
    assert condition_of(model.conditioned) == ByScale(2, [1.0, 2.0], "classifier_free scale=1.0")
    c = torch.arange(120) % 2
    other = generated(tmp_path / "apg", normal(120, 1), c, 2.0, name="apg")
    with pytest.raises(UserError, match=r"guided by apg scale=1.0, and the flow knows .* of class"):
        refine(flow=flow, samples=other, run_dir=str(tmp_path / "r"))


def test_between_two_scales_the_class_vectors_are_between(flow):
    model, c = restore(flow), torch.tensor([0, 1])
    condition = condition_of(model.conditioned)
    vectors = model.class_vectors
    assert torch.equal(condition.told(c, c, 1.0, vectors), c)
    assert torch.equal(condition.told(c, c, 2.0, vectors), c + 2)
    told = condition.told(c, c, 1.25, vectors)
    table = model.net.class_embedding.weight
    torch.testing.assert_close(told, 0.75 * table[:2] + 0.25 * table[2:4])
    with pytest.raises(UserError, match=r"no class_vectors, .* scales \[1.0, 2.0\] only"):
        condition.told(c, c, 1.5, None)


def test_told_scales_lie_between_in_proportion_to_how_near_they_are():
    """At each told scale, samples of the two scales beside it come up as (1 - a) : a."""
    condition = ByScale(2, [1.0, 2.0, 4.0])
    at = torch.arange(3).repeat(200_000)
    beside, share = condition.beside(at, torch.rand(len(at), generator=keyed("between")))
    scales = torch.tensor(condition.scales)
    told = torch.lerp(scales[at], scales[beside], share)
    assert (beside - at).abs().max() == 1
    assert (share[beside == at] == 0).all()  # outside of the scales there is none
    for low, high in ((1.2, 1.3), (1.7, 1.8), (2.4, 2.6), (3.4, 3.6)):
        here = (told > low) & (told < high)
        upper = 1 if high < 2 else 2
        a = ((low + high) / 2 - scales[upper - 1]) / (scales[upper] - scales[upper - 1])
        found = (at[here] == upper).double().mean()
        assert found == pytest.approx(a.item(), abs=0.02)
        assert set(at[here].tolist()) == {upper - 1, upper}


def test_a_flow_told_between_learns_there(sources, tmp_path, training):
    """Batches say toward which class and how far; the loss is that at the vectors between."""
    how = {"sources": sources, "data": LINE, "bank": 120, "coupling": "transport"}
    run = pair(**how, condition="scale", between=True, run_dir=str(tmp_path / "between"))
    plain = pair(**how, condition="scale", run_dir=str(tmp_path / "plain"))
    draws = {"seed": 0, "step": 3, "batch_size": 64}
    batch = Pairs(path=str(run)).batch(Draws(**draws))
    assert set(Pairs(path=str(plain)).batch(Draws(**draws))) == {"x0", "y", "c"}
    assert ((batch["toward"] - batch["c"]).abs() % 2 == 0).all()  # the same class
    assert 0 < batch["share"].mean() < 0.4

    net = MLP((1,), 4, width=8, blocks=1)
    torch.nn.init.normal_(net.leave.weight)
    model = Flow(net)
    x0, y, c = batch["x0"], batch["y"], batch["c"]
    found = model.loss(y, c, Draws(**draws), x0=x0, toward=batch["toward"], share=batch["share"])
    t = Draws(**draws).uniform()
    table, s = net.class_embedding.weight, batch["share"][:, None]
    vectors = (1 - s) * table[c] + s * table[batch["toward"]]
    v = net((1 - t[:, None]) * x0 + t[:, None] * y, t, vectors)
    torch.testing.assert_close(found, (v - (y - x0)).square().sum(1))
    dropping = Flow(net, label_dropout=1.0)
    dropped = dropping.loss(y, c, Draws(**draws), x0=x0, toward=batch["toward"], share=s[:, 0])
    again = dropping.loss(y, c, Draws(**draws), x0=x0)
    torch.testing.assert_close(dropped, again)  # NULL is not told between

    config = training(
        data={"name": "Pairs", "path": str(run)}, model={"name": "Flow"},
        net={"name": "MLP", "width": 8, "blocks": 1}, learner={"name": "Refinement"},
        trainer={"max_steps": 3},
    )  # fmt: skip
    (tmp_path / "b.yaml").write_text(json.dumps(config))
    trained = fit(**load(fit, tmp_path / "b.yaml", [f"run_dir={tmp_path / 'b'}"]))
    assert condition_of(restore(str(trained)).conditioned).scales == [1.0, 2.0]


def test_flows_in_a_row_are_one_after_the_other(flow, sources, tmp_path):
    once = {"method": "euler", "steps": 1}
    first = refine(flow=flow, samples=sources[0], **once, run_dir=str(tmp_path / "first"))
    second = refine(flow=flow, samples=str(first), method="heun", steps=2,
                    run_dir=str(tmp_path / "second"))  # fmt: skip
    legs = [flow, {"path": flow, "method": "heun", "steps": 2}]
    row = refine(flow=legs, samples=sources[0], **once, run_dir=str(tmp_path / "row"))
    ends = [load_tensors(run / SAMPLES, "x")["x"] for run in (second, row)]
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)
    assert read_manifest(row)["evaluations"] == {"flow": 1.0, "flow_2": 4.0}
    assert read_manifest(first)["evaluations"] == {"flow": 1.0}
    again = refine(flow=legs, samples=sources[0], **once, run_dir=str(tmp_path / "row"))
    assert again == row
    with pytest.raises(UserError, match="belongs to another run"):
        refine(flow=[flow], samples=sources[0], **once, run_dir=str(tmp_path / "row"))


@pytest.mark.parametrize(
    ("legs", "told"),
    [
        ([], "flow must be"),
        ([{"method": "euler"}], r"flow\[0\].path is missing"),
        ([{"path": "nowhere"}], "nowhere"),
        ([{"path": "x", "step": 1}], "step"),
    ],
)
def test_bad_rows_of_flows(sources, tmp_path, legs, told):
    with pytest.raises(UserError, match=told):
        refine(flow=legs, samples=sources[0], run_dir=str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_at_is_for_flows_that_are_told_the_scale(flow, sources, tmp_path, training):
    plain = pair(sources=sources, data=LINE, bank=120, k=2, run_dir=str(tmp_path / "plain"))
    config = training(
        data={"name": "Pairs", "path": str(plain)}, model={"name": "Flow"},
        net={"name": "MLP", "width": 8, "blocks": 1}, learner={"name": "Refinement"},
        trainer={"max_steps": 2},
    )  # fmt: skip
    (tmp_path / "p.yaml").write_text(json.dumps(config))
    untold = str(fit(**load(fit, tmp_path / "p.yaml", [f"run_dir={tmp_path / 'p'}"])))
    with pytest.raises(UserError, match="at=2: the flow is not conditioned on the guidance scale"):
        refine(flow=untold, samples=sources[1], at=2.0, run_dir=str(tmp_path / "r"))


def test_memory_of_a_block_is_that_of_the_largest():
    label = torch.zeros(100).long()
    cut = blocks(label, label, torch.zeros(300).long(), size=50, seed=0, one_to_one=True)
    transport = transported.Transport(lambda x: x, None, 1)
    assert "2 blocks of up to 50 x 50 matched one to one" in transport.check_memory(cut, 2, 2, 1.0)
