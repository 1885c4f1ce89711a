"""Pairing within a memory, and the ways to follow a refinement: known answers."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.ode import integrate_in_steps
from lightning_cfg.errors import UserError
from lightning_cfg.refinement.neighbours import nearest, nearest_in_class, nearest_in_shards
from lightning_cfg.refinement.solver import Solver, refined
from lightning_cfg.refinement.targets import effective, used_once
from lightning_cfg.runs.names import PAIRS, SAMPLES
from lightning_cfg.runs.pngs import quantised, save_images, signed
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.pair import Size, pair
from lightning_cfg.verbs.refine import refine


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Neighbours of a bank in parts


@pytest.mark.parametrize("parts", [[300], [1, 299], [100, 0, 150, 50], [7] * 42 + [6]])
@pytest.mark.parametrize("by_class", [True, False])
def test_a_bank_in_parts_gives_the_same_neighbours(parts, by_class):
    """On a grid, where many points are at one distance: ties go to the smaller index."""
    g = torch.Generator().manual_seed(0)
    bank = torch.randint(0, 4, (300, 2), generator=g).float()
    queries = torch.randint(0, 4, (50, 2), generator=g).float()
    c, bank_c = torch.arange(50) % 3, torch.randint(0, 3, (300,), generator=g)
    shards = zip(bank.split(parts), bank_c.split(parts), strict=True)
    found = nearest_in_shards(queries, shards, k=9, c=c if by_class else None)
    if by_class:
        expected = nearest_in_class(queries, c, bank, bank_c, k=9)
    else:
        expected = nearest(queries, bank, k=9)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    if by_class:
        assert torch.equal(bank_c[found[1]], c[:, None].expand(-1, 9))


def test_a_bank_that_holds_too_few_says_so():
    bank, c = normal(20, 2), torch.arange(20) % 2
    shards = [(bank[:10], c[:10]), (bank[10:], c[10:])]
    with pytest.raises(UserError, match="10 points of class 0, fewer than the k = 11"):
        nearest_in_shards(normal(3, 2), shards, k=11, c=torch.zeros(3).long())
    with pytest.raises(UserError, match="the bank has 20 points, fewer than the k = 21"):
        nearest_in_shards(normal(3, 2), shards, k=21)


# Pairing


@pytest.fixture
def samples(tmp_path) -> str:
    tensors = {"x": normal(60, 2), "c": torch.arange(60) % 2, "seed": torch.arange(60)}
    return str(save_tensors(tmp_path / "samples.safetensors", **tensors))


def test_pairs_do_not_depend_on_the_memory(samples, mixture, tmp_path, monkeypatch, capsys):
    whole = pair(sources=[samples], data=mixture, bank=600, k=5, run_dir=str(tmp_path / "whole"))
    assert "in 2 dimensions" in capsys.readouterr().out
    monkeypatch.setattr(Size, "shard", lambda self, memory: 37)
    parts = pair(sources=[samples], data=mixture, bank=600, k=5, run_dir=str(tmp_path / "parts"))
    assert "in 33 parts" in capsys.readouterr().out
    assert (whole / PAIRS).read_bytes() == (parts / PAIRS).read_bytes()


def test_what_cannot_fit_is_refused_before_it_starts():
    size = Size(n=50_000, m=1_281_167, point=3 * 512 * 512, d=1024, k=20, groups=1000, shared=False)
    with pytest.raises(UserError, match=r"needs 1.* GiB at least, more than memory=4"):
        size.shard(4.0)
    latents = Size(n=50_000, m=1_281_167, point=4096, d=1024, k=20, groups=1000, shared=False)
    rows = latents.shard(4.0)
    assert 1000 < rows < 1_281_167
    assert latents.fixed + rows * latents.row <= 4 * 2**30
    assert " parts" in latents.told(rows)
    cifar = Size(n=50_000, m=50_000, point=3072, d=3072, k=20, groups=1, shared=True)
    assert cifar.shard(3.0) == 50_000
    assert "15.4 TFLOP" in cifar.told(50_000)


def test_memory_too_small_is_one_line(samples, mixture, call):
    config = {"sources": [samples], "data": mixture, "bank": 600, "k": 5, "memory": 0.01}
    outcome = call(pair, config)
    assert outcome.status == 2
    assert "more than memory=0.01" in outcome.err
    assert not Path("runs").exists()


def test_a_sample_among_the_data_is_its_own_target(mixture, tmp_path):
    """keep_close: real points as near to each other as these stay, what lies outside does not."""
    from lightning_cfg.data import Mixture

    data = Mixture(**{k: v for k, v in mixture.items() if k != "name"})
    bank, c = data.real("bank", 500)
    x = torch.cat([bank[::50] + 1e-4, bank[::50] + 9.0])
    c = torch.cat([c[::50], c[::50]])
    file = save_tensors(tmp_path / "s.safetensors", x=x, c=c, seed=torch.arange(len(x)))
    run = pair(
        sources=[str(file)], data=mixture, bank=500, k=3, keep_close=0.5,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    held = load_tensors(run / PAIRS, "x", "neighbours", "targets")
    n = len(x) // 2
    targets = held["targets"][held["neighbours"]]  # (N, k, 2)
    assert torch.equal(targets[:n], x[:n, None].expand(-1, 3, -1))
    assert not (targets[n:] == x[n:, None]).any()
    assert json.loads((run / "manifest.json").read_text())["kept_close"] == pytest.approx(0.5)
    plain = pair(sources=[str(file)], data=mixture, bank=500, k=3, run_dir=str(tmp_path / "plain"))
    held = load_tensors(plain / PAIRS, "x", "neighbours", "targets")
    assert not (held["targets"][held["neighbours"]] == x[:, None]).all(-1).any()


def test_pairs_say_how_far_from_the_data_their_targets_are(mixture, tmp_path, capsys):
    """Fréchet distances of samples and of drawn targets, against scipy's root."""
    import numpy as np
    from scipy.linalg import sqrtm

    from lightning_cfg.data import Mixture

    data = Mixture(**{k: v for k, v in mixture.items() if k != "name"})
    bank, _ = data.real("bank", 400)
    x, c = normal(300, 2) * 0.3, torch.arange(300) % 2
    file = save_tensors(tmp_path / "s.safetensors", x=x, c=c, seed=torch.arange(300))
    told = {}
    for balance in (False, True):
        run = pair(
            sources=[str(file)], data=mixture, bank=400, k=150, balance=balance,
            run_dir=str(tmp_path / str(balance)),
        )  # fmt: skip
        told[balance] = json.loads((run / "manifest.json").read_text())
    a, b = (points.double().numpy() for points in (x, bank))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert told[False]["frechet_sources"] == pytest.approx(expected, rel=1e-6)
    # with most of a class as neighbours, even draws are nearly the data
    assert told[True]["frechet_targets"] < 0.3 * told[False]["frechet_targets"]
    assert "squared Fréchet distance to the real points" in capsys.readouterr().out
    far = save_tensors(
        tmp_path / "f.safetensors", x=bank, c=torch.arange(800) // 400, seed=c.new_ones(800)
    )
    pair(sources=[str(far)], data=mixture, bank=400, k=150, run_dir=str(tmp_path / "worse"))
    assert (
        "farther from the data" in capsys.readouterr().out
    )  # real points themselves are no better


def test_how_many_targets_there_are():
    index = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4]])
    assert used_once(index) == pytest.approx(4 / 5)
    expected = math.exp(0.5 * math.log(2) + 4 * 0.125 * math.log(8))
    assert effective(index) == pytest.approx(expected)
    assert effective(torch.arange(20)[:, None]) == pytest.approx(20)


def test_diagnostics_by_source_and_class(samples, mixture, tmp_path):
    far = load_tensors(samples, "x", "c", "seed")
    far = save_tensors(tmp_path / "far.safetensors", **{**far, "x": far["x"] + 50})
    run = pair(
        sources=[samples, str(far)],
        data=mixture,
        n=80,
        bank=100,
        k=4,
        run_dir=str(tmp_path / "run"),
    )
    rows = list(csv.DictReader((run / "metrics/pairs.csv").open()))
    assert [(r["source"], r["class"]) for r in rows] == [
        (samples, "0"), (samples, "1"), (str(far), "0"), (str(far), "1"), ("all", "all")
    ]  # fmt: skip
    assert [int(r["n"]) for r in rows] == [20, 20, 20, 20, 80]
    held = load_tensors(run / PAIRS, "distance", "c", "source")
    own = (held["source"] == 1) & (held["c"] == 0)
    assert float(rows[2]["nearest"]) == pytest.approx(held["distance"][own, 0].mean().item(), 1e-4)
    assert float(rows[2]["mean_distance"]) == pytest.approx(
        held["distance"][own].mean().item(), 1e-4
    )
    assert float(rows[2]["nearest"]) > 40 > 5 > float(rows[0]["nearest"])


def grey(n: int, first: int) -> tuple[Tensor, Tensor]:
    return signed(quantised(normal(n, 1, 6, 6, seed=first) * 0.4)), torch.arange(n) % 2


@pytest.fixture
def images(tmp_path) -> dict:
    x, c = grey(40, 5)
    bank = save_images(tmp_path / "bank.zip", x=x, c=c, seed=torch.arange(40), labelled=True)
    return {"name": "ImageZip", "path": str(bank)}


def test_sources_may_be_anyones_images(images, tmp_path):
    x, c = grey(24, 1)
    tensors = {"x": x, "c": c, "seed": torch.arange(24)}
    sources = {
        "file": save_tensors(tmp_path / "s.safetensors", **tensors),
        "zip": save_images(tmp_path / "s.zip", **tensors, labelled=True),
        "folder": save_images(tmp_path / "s", **tensors, labelled=True),
    }
    found = []
    for name, path in sources.items():
        run = pair(sources=[str(path)], data=images, k=3, run_dir=str(tmp_path / f"run_{name}"))
        assert (run / "figures/pairs.png").stat().st_size > 0
        found.append(load_tensors(run / PAIRS, "x", "c", "neighbours", "targets"))
    for other in found[1:]:
        assert all(torch.equal(other[name], found[0][name]) for name in other)
    bare = save_images(tmp_path / "bare.zip", **tensors, labelled=False)
    with pytest.raises(UserError, match=r"bare.zip says no classes"):
        pair(sources=[str(bare)], data=images, k=3, run_dir=str(tmp_path / "run"))


def test_pairs_that_lead_the_other_way_are_refused(samples, mixture, tmp_path, training, call):
    run = pair(sources=[samples], data=mixture, bank=50, k=2, run_dir=str(tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["direction"] == "generated to real"
    assert Pairs(path=str(run)).num_classes == 2
    (run / "manifest.json").write_text(json.dumps({**manifest, "direction": "real to generated"}))
    config = training(
        data={"name": "Pairs", "path": str(run)}, model={"name": "Flow"},
        learner={"name": "Refinement"},
    )  # fmt: skip
    outcome = call(fit, config)
    assert outcome.status == 2
    assert "lead from real to generated, not from generated to real" in outcome.err


def test_settings_of_pair(samples, mixture, call):
    config = {"sources": [samples], "data": mixture, "bank": 50, "k": 2}
    for change, words in {
        "keep_close=1": ["keep_close must be float from 0 to below 1, not 1"],
        "split=train": ["split must be one of 'bank', 'held_out'"],
        "features.name=pixel": ["did you mean 'pixels'"],
        "sources=[]": ["sources must be list of str that is not empty"],
    }.items():
        outcome = call(pair, config, change)
        assert outcome.status == 2, change
        assert len(outcome.err.strip().splitlines()) == 1
        assert all(word in outcome.err for word in words), outcome.err


# Refining


def test_fixed_steps_converge_at_their_order():
    """dx/dt = t x from 1: x(1) = e^(1/2)."""
    x, c = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1).long()
    exact = math.exp(0.5)

    def field(x, t, c):
        return t[:, None] * x

    for order in (1, 2):
        error = [
            abs(integrate_in_steps(field, x, c, 0, 1, steps=n, order=order).item() - exact)
            for n in (20, 40)
        ]
        assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method, each", [("euler", 1), ("heun", 2)])
def test_a_step_costs_what_it_says(method, each):
    calls = []

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def average(self, x, t, r, c):
            calls.append(t[0].item())
            return torch.full_like(x, 2.0) + c[:, None]

    x, c = normal(10, 3), torch.arange(10) % 2
    for steps, strength in ((1, 1.0), (4, 1.0), (4, 0.25)):
        calls.clear()
        y, evaluations = refined(Shift(), x, c, Solver(method, steps, strength=strength))
        assert evaluations == 10 * each * steps
        assert len(calls) == each * steps
        assert max(calls) <= strength
        torch.testing.assert_close(y, x + strength * (2 + c[:, None]))
    y, evaluations = refined(Shift(), x, c, Solver(method, 4, strength=0.0))
    assert torch.equal(y, x)
    assert evaluations == 0


@pytest.fixture(scope="module")
def flows(tmp_path_factory, training) -> dict[str, str]:
    """A flow with a null class and one without, of a few steps, on pairs a constant apart."""
    root = tmp_path_factory.mktemp("flows")
    tensors = {
        "x": normal(64, 2),
        "c": torch.arange(64) % 2,
        "neighbours": torch.arange(64)[:, None],
        "targets": normal(64, 2) + torch.tensor([3.0, 0.0]),
        "num_classes": torch.tensor(2),
    }
    data = {"name": "Pairs", "path": str(save_tensors(root / "pairs.safetensors", **tensors))}
    runs = {}
    for name, dropout in (("null", 0.2), ("plain", 0.0)):
        sections = {"model": {"name": "Flow", "label_dropout": dropout}, "data": data}
        config = training(**sections, learner={"name": "Refinement", "lr": 1e-2})
        path = root / f"{name}.yaml"
        path.write_text(json.dumps(config))
        runs[name] = str(fit(**load(fit, path, [f"run_dir={root / name}"])))
    return runs


def test_every_solver_of_the_verb_agrees_where_steps_are_many(flows, samples, tmp_path):
    def end(**how: object) -> Tensor:
        run = refine(
            flow=flows["null"], samples=samples, run_dir=str(tmp_path / json.dumps(how)), **how
        )
        told = json.loads((run / "manifest.json").read_text())
        if how.get("method", "dopri5") != "dopri5":
            each = {"euler": 1, "heun": 2}[how["method"]] * how["steps"]
            assert told["evaluations"] == {"flow": each}
        return load_tensors(run / SAMPLES, "x")["x"]

    exact = end(rtol=1e-8, atol=1e-8)
    start = load_tensors(samples, "x")["x"]
    assert (exact - start).norm(dim=1).mean() > 0.1  # it goes somewhere
    torch.testing.assert_close(end(method="heun", steps=100), exact, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(end(method="euler", steps=2000), exact, atol=2e-3, rtol=2e-3)
    one = end(method="euler", steps=1)
    assert 1e-4 < (one - exact).abs().max() < 5
    half = end(strength=0.5, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(half, exact)
    assert torch.equal(end(strength=0.0), start)


def test_guidance_inside_the_flow(flows, samples, tmp_path, call):
    from lightning_cfg.runs.checkpoints import restore

    model = restore(flows["null"])
    x, c = load_tensors(samples, "x", "c").values()
    run = refine(
        flow=flows["null"], samples=samples, scale=1.5, method="euler", steps=1,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    t = torch.zeros(len(x)).double()
    with torch.no_grad():
        v = model.velocity(x.double(), t, c)
        v_u = model.velocity(x.double(), t, torch.full_like(c, -1))
    expected = x.double() + v_u + 1.5 * (v - v_u)
    torch.testing.assert_close(load_tensors(run / SAMPLES, "x")["x"], expected.float())
    assert json.loads((run / "manifest.json").read_text())["evaluations"] == {"flow": 2}
    outcome = call(refine, {"flow": flows["plain"], "samples": samples, "scale": 1.5})
    assert outcome.status == 2
    assert "scale=1.5 inside the flow needs a model trained with label dropout" in outcome.err


def test_settings_of_refine(flows, samples, call):
    config = {"flow": flows["null"], "samples": samples}
    for change, words in {
        "steps=0": ["steps must be int from 1 to 100_000, not 0"],
        "strength=1.2": ["strength must be float from 0 to 1, not 1.2"],
        "method=rk4": ["method must be one of 'dopri5', 'euler', 'heun'"],
        "images=zip": ["images=zip needs samples that are grey or RGB"],
    }.items():
        outcome = call(refine, config, change)
        assert outcome.status == 2, change
        assert all(word in outcome.err for word in words), outcome.err


def test_a_run_with_other_steps_is_another_run(flows, samples, call):
    config = {"flow": flows["null"], "samples": samples, "method": "euler", "run_dir": "run"}
    assert call(refine, config, "steps=2").status == 0
    assert "finished already" in call(refine, config, "steps=2").out
    outcome = call(refine, config, "steps=3")
    assert outcome.status == 2
    assert "steps: 2 there, 3 here" in outcome.err
