"""A flow made straight by where another one goes, against scipy's integration of that one."""

import json
import sys

import numpy as np
import pytest
import scipy.integrate
import torch

from lightning_cfg.config import load
from lightning_cfg.data import Pairs, Reflow
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.models import FewSteps, Flow, OneStep
from lightning_cfg.errors import UserError
from lightning_cfg.nets import MLP
from lightning_cfg.refinement.condition import condition_of
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.manifests import read_manifest
from lightning_cfg.runs.names import PAIRS, SAMPLES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.refine import refine

DRAWS = {"seed": 0, "step": 3, "batch_size": 64}
LEARNER = {"name": "Refinement", "lr": 1e-2, "warmup": 0, "ema_half_life": [2000]}


def write(path, name: str = "pairs", *, scales: list[float] | None = None, d: int = 1) -> str:
    """Pairs of N(0, 1) with two points at random, between which a flow has to part."""
    n = 400
    x = torch.randn(n, d, generator=keyed("reflow", 0))
    targets = torch.tensor([[-3.0] * d, [3.0] * d])
    told = {}
    if scales is not None:
        told = {"scales": torch.tensor(scales, dtype=torch.float64), "between": torch.ones(1)}
        told["bin"] = torch.arange(n) % len(scales)
    save_tensors(
        path / name / PAIRS, x=x, c=torch.arange(n) // 2 % 2, targets=targets,
        neighbours=torch.randint(2, (n, 1), generator=keyed("reflow", 1)),
        num_classes=torch.tensor(2), **told,
    )  # fmt: skip
    return str(path / name / PAIRS)


@pytest.fixture
def trained(tmp_path, training):
    def of(name: str, data: dict, model: str | dict = "Flow", steps: int = 300) -> str:
        model = {"name": model} if isinstance(model, str) else model
        config = training(
            data=data, model=model, net={"name": "MLP", "width": 32, "blocks": 1},
            learner=LEARNER, batch_size=256, trainer={"max_steps": steps},
        )  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
        return str(fit(**load(fit, tmp_path / f"{name}.yaml", [f"run_dir={tmp_path / name}"])))

    return of


def test_ends_are_those_of_the_flow(tmp_path, trained, monkeypatch):
    """Of every source of a batch scipy finds the same end, told what the batch is told."""
    monkeypatch.setattr("lightning_cfg.data.reflow.ROWS", 300)  # several blocks, the last cut
    path = write(tmp_path, scales=[1.0, 2.0, 3.0])
    flow = trained("flow", {"name": "Pairs", "path": path}, steps=60)
    batch = Reflow(path=path, flow=flow, steps=256).batch(Draws(**DRAWS))
    same = Pairs(path=path).batch(Draws(**DRAWS))
    assert set(batch) == set(same) == {"x0", "y", "c", "toward", "share"}
    assert torch.equal(batch["x0"], same["x0"])
    assert torch.equal(batch["c"], same["c"])
    assert set(((batch["toward"] - batch["c"]) // 2).tolist()) == {-1, 0, 1}  # scales beside
    assert 0.15 < batch["share"].mean() < 0.35  # 1/3 by density 2 (1 - s), 0 outside the scales
    model = restore(flow)
    table, s = model.net.class_embedding.weight, batch["share"][:, None]
    vectors = (1 - s) * table[batch["c"]] + s * table[batch["toward"]]

    def field(t: float, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            x_t = torch.from_numpy(x).float()[:, None]
            return model.net(x_t, torch.full((len(x_t),), t), vectors)[:, 0].numpy()

    ends = scipy.integrate.solve_ivp(field, (0, 1), batch["x0"][:, 0].numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch["y"][:, 0].numpy(), ends.y[:, -1], atol=0.02)
    assert (batch["y"] - same["y"]).abs().mean() > 0.1  # not the pairs' own targets


def test_ends_do_not_depend_on_what_was_asked_before(tmp_path, trained, monkeypatch):
    """To the last bit; and one row asks for its own block only, as before a training begins."""
    monkeypatch.setattr("lightning_cfg.data.reflow.ROWS", 64)
    path = write(tmp_path, scales=[1.0, 2.0, 3.0])
    flow = trained("flow", {"name": "Pairs", "path": path}, steps=20)
    first, second = (Reflow(path=path, flow=flow, cache=False) for _ in range(2))
    velocity, moved = Flow.velocity, []

    def counted(self: Flow, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        moved.append(len(x))
        return velocity(self, x, t, c)

    monkeypatch.setattr(Flow, "velocity", counted)
    first.batch(Draws(seed=0, step=0, batch_size=1))
    assert sum(moved) == 64 * 16  # 8 steps of Heun
    for step in range(40):
        first.batch(Draws(seed=0, step=step, batch_size=100))
    assert sum(moved) == 400 * 4 * 16  # each once
    late = {"seed": 0, "step": 40, "batch_size": 100}
    theirs = second.batch(Draws(**late))
    for name, value in first.batch(Draws(**late)).items():
        assert torch.equal(value, theirs[name])


def test_that_ends_are_being_found_is_told(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr("lightning_cfg.data.reflow.ROWS", 64)
    monkeypatch.setattr("lightning_cfg.runs.progress.EVERY", 0.0)
    path = write(tmp_path)
    flow = trained("flow", {"name": "Pairs", "path": path}, steps=3)
    data = Reflow(path=path, flow=flow, cache=False)
    capsys.readouterr()
    data.batch(Draws(seed=0, step=0, batch_size=400))
    lines = capsys.readouterr().err.splitlines()
    assert "64 of 448 ends of the flow, 14%" in lines[0]
    assert "448 of 448 ends of the flow, 100%" in lines[-1]
    data.batch(Draws(seed=0, step=1, batch_size=400))
    assert not capsys.readouterr().err


def test_ends_are_kept_for_the_run_that_goes_on(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lightning_cfg.data.reflow.ROWS", 64)
    path = write(tmp_path)
    flow, other = (trained(f"flow{n}", {"name": "Pairs", "path": path}, steps=n) for n in (3, 4))
    moved = []

    def batch(flow: str = flow, size: int = 400, **how: object) -> torch.Tensor:
        data = Reflow(path=path, flow=flow, **how)
        return data.batch(Draws(seed=0, step=0, batch_size=size))["y"]

    def counted(*args: object) -> torch.Tensor:
        moved.append(len(args[2]))
        return integrate(*args)

    integrate = sys.modules[Reflow.__module__]._moved
    monkeypatch.setattr("lightning_cfg.data.reflow._moved", counted)
    batch(size=1)
    assert sum(moved) == 64
    assert not (tmp_path / "cache").exists()  # nothing before all are known
    ends = batch()
    moved.clear()
    assert torch.equal(batch(), ends)  # of another process' `Reflow` as well
    assert not moved
    for how in ({"flow": other}, {"steps": 4}, {"cache": False}):  # which are other ends
        batch(**how)
        assert sum(moved) == 400
        moved.clear()
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert torch.equal(batch(), ends)
    assert sum(moved) == 400
    assert "found again" in capsys.readouterr().err
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "no_folder"))
    assert torch.equal(batch(), ends)
    assert "ends of the flow are not kept" in capsys.readouterr().err


def test_the_loss_of_one_step_by_hand():
    net = MLP((2,), 3, width=8, blocks=1)
    torch.nn.init.normal_(net.leave.weight)
    model, draws = OneStep(net), Draws(**DRAWS)
    x0, y = (torch.randn(64, 2, generator=keyed("hand", i)) for i in range(2))
    c, toward, share = torch.arange(64) % 3, (torch.arange(64) + 1) % 3, torch.rand(64)
    moved = x0 + net(x0, torch.zeros(64), c)
    torch.testing.assert_close(model.loss(y, c, draws, x0=x0), (y - moved).square().sum(1))
    table, s = net.class_embedding.weight, share[:, None]
    moved = x0 + net(x0, torch.zeros(64), table[c] + s * (table[toward] - table[c]))
    found = model.loss(y, c, draws, x0=x0, toward=toward, share=share)
    torch.testing.assert_close(found, (y - moved).square().sum(1))
    with pytest.raises(UserError, match="OneStep goes from samples"):
        model.loss(y, c, draws)


def test_the_loss_of_two_steps_by_hand():
    """Against the two steps written out, and the gradient of both of them."""
    net = MLP((2,), 3, width=8, blocks=1)
    torch.nn.init.normal_(net.leave.weight)
    model, draws = FewSteps(net, steps=2), Draws(**DRAWS)
    x0, y = (torch.randn(64, 2, generator=keyed("hand", i)) for i in range(2))
    c, weights = torch.arange(64) % 3, list(net.parameters())
    half = x0 + net(x0, torch.zeros(64), c) / 2
    by_hand = (half + net(half, torch.full((64,), 0.5), c) / 2 - y).square().sum(1)
    found = model.loss(y, c, draws, x0=x0)
    torch.testing.assert_close(found, by_hand)
    slopes = (torch.autograd.grad(one.sum(), weights) for one in (found, by_hand))
    torch.testing.assert_close(*slopes)
    with pytest.raises(UserError, match="FewSteps goes from samples"):
        model.loss(y, c, draws)


def test_one_step_ends_where_the_flow_does_and_not_in_the_mean(tmp_path, trained):
    """Targets are -3 or 3 at random: one step of the flow ends near 0, one of OneStep at both."""
    path = write(tmp_path)
    flow = trained("flow", {"name": "Pairs", "path": path}, steps=600)
    data = {"name": "Reflow", "path": path, "flow": flow}
    step = trained("step", data, "OneStep", steps=600)
    x = torch.randn(300, 1, generator=keyed("reflow", 2))
    file = tmp_path / "samples/samples.safetensors"
    save_tensors(file, x=x, c=torch.arange(300) % 2, seed=torch.arange(300))
    ends = {}
    for name, run, how in (
        ("many", flow, {}),
        ("mean", flow, {"method": "euler", "steps": 1}),
        ("one", step, {"method": "euler", "steps": 1}),
    ):
        made = refine(flow=run, samples=str(file), **how, run_dir=str(tmp_path / name))
        ends[name] = load_tensors(made / SAMPLES, "x")["x"]
    assert read_manifest(tmp_path / "one")["evaluations"] == {"flow": 1.0}
    assert ends["many"].square().mean().sqrt() > 2.5
    assert ends["mean"].square().mean().sqrt() < 1
    off = (ends["one"] - ends["many"]).abs()
    assert off.median() < 0.3
    assert ends["one"].square().mean().sqrt() > 2.4


def test_one_step_is_refined_in_one_step(tmp_path, trained):
    path = write(tmp_path, scales=[1.0, 2.0])
    step = trained("step", {"name": "Pairs", "path": path}, "OneStep", steps=3)
    assert condition_of(restore(step).conditioned).scales == [1.0, 2.0]
    file, c = tmp_path / "samples/samples.safetensors", torch.zeros(4, dtype=torch.long)
    save_tensors(file, x=torch.zeros(4, 1), c=c, seed=torch.arange(4))
    how = {"flow": step, "samples": str(file), "at": 1.0}
    for wrong in ({}, {"method": "euler", "steps": 2}, {"method": "heun", "steps": 1}):
        with pytest.raises(UserError, match="known for one step: method=euler steps=1"):
            refine(**how, **wrong, run_dir=str(tmp_path / "wrong"))
    assert not (tmp_path / "wrong").exists()
    refine(**how, method="euler", steps=1, run_dir=str(tmp_path / "right"))
    refine(**how, method="euler", steps=1, strength=0.25, run_dir=str(tmp_path / "part"))
    whole, part = (
        load_tensors(tmp_path / f"{name}/{SAMPLES}", "x")["x"] for name in ("right", "part")
    )
    assert (whole != 0).all()
    torch.testing.assert_close(part, whole / 4)  # on the straight line from 0
    three = {"name": "FewSteps", "steps": 3}
    how["flow"] = trained("three", {"name": "Pairs", "path": path}, three, steps=3)
    for wrong in ({}, {"method": "euler", "steps": 1}, {"method": "heun", "steps": 3},
                  {"method": "euler", "steps": 3, "strength": 0.5}):  # fmt: skip
        with pytest.raises(UserError, match="FewSteps, which is known for 3 steps, the whole way"):
            refine(**how, **wrong, run_dir=str(tmp_path / "wrong"))
    refine(**how, method="euler", steps=3, run_dir=str(tmp_path / "three_steps"))
    assert read_manifest(tmp_path / "three_steps")["evaluations"] == {"flow": 3.0}


def test_a_flow_of_other_samples_is_refused(tmp_path, trained, training):
    plain, told, wide = (
        write(tmp_path, name, **how)
        for name, how in (("a", {}), ("b", {"scales": [1.0, 2.0]}), ("c", {"d": 2}))
    )
    flow = trained("flow", {"name": "Pairs", "path": plain}, steps=2)
    for path, words in ((told, r"told the scales \[1.0, 2.0\]"), (wide, r"shape \(2,\)")):
        with pytest.raises(UserError, match=f"data.flow: .* is a flow of samples of .*{words}"):
            Reflow(path=path, flow=flow).batch(Draws(**DRAWS))
    step = trained("step", {"name": "Pairs", "path": plain}, "OneStep", steps=2)
    with pytest.raises(UserError, match=f"data.flow: {step} is of one step"):
        Reflow(path=plain, flow=step).batch(Draws(**DRAWS))
    step = trained("two", {"name": "Pairs", "path": plain}, {"name": "FewSteps"}, steps=2)
    with pytest.raises(UserError, match=r"is of 2 steps \(model FewSteps\), with no way to go"):
        Reflow(path=plain, flow=step).batch(Draws(**DRAWS))
    base = {**training(trainer={"max_steps": 2})}
    (tmp_path / "base.yaml").write_text(json.dumps(base))
    base = str(fit(**load(fit, tmp_path / "base.yaml", [f"run_dir={tmp_path / 'base'}"])))
    with pytest.raises(UserError, match=f"data.flow: {base} is no refinement flow"):
        trained("wrong", {"name": "Reflow", "path": plain, "flow": base}, "OneStep", steps=2)
    assert not (tmp_path / "wrong").exists()
