"""The effective guidance scale against what it must be, by formula."""

import csv
import json
from pathlib import Path

import pytest
import torch
from test_guidance_methods import FOUR, counts, mixture, networks  # noqa: F401

from lightning_cfg.errors import UserError
from lightning_cfg.guidance.effective_scale import EffectiveScale, mean, of_levels
from lightning_cfg.interfaces import NULL
from lightning_cfg.metrics.over_seeds import OverSeeds
from lightning_cfg.reports import effective
from lightning_cfg.reports.rows import Rows
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.prepared import Counted, ExactClassifier
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import study

F64 = torch.float64
CFG = {"name": "classifier_free", "scale": 2.5}
HEUN = {"name": "heun", "steps": 6}


def sampled(section, networks, sampler=HEUN, n=8):  # noqa: F811
    """Samples, what was measured, and every (x, sigma, c, D) of the guided denoiser."""
    measure, asked = EffectiveScale(networks["model"]), []
    guided = measure.of(guide(section, {**networks, "model": measure.model}))

    def listening(x, sigma, c):
        asked.append((x, sigma, c, guided(x, sigma, c)))
        return asked[-1][-1]

    for name in ("begin_step", "keep_noise", "take_levels", "draw_from"):
        if getattr(guided, name) is not None:
            setattr(listening, name, getattr(guided, name))
    noise, c, draw = seeded(list(range(n)), (2,), FOUR.num_classes)
    *_, (_, x) = sample(sampler, listening, noise, c, draw)
    return x, measure, asked


@pytest.mark.parametrize("sampler", [HEUN, {"name": "euler_ancestral", "steps": 6}])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("n", [3, 8])  # few samples have both passes as one batch
def test_of_cfg_it_is_its_scale_and_costs_nothing(networks, scale, n, sampler):  # noqa: F811
    section = {**CFG, "scale": scale}
    noise, c, draw = seeded(list(range(n)), (2,), FOUR.num_classes)
    *_, (_, plain) = sample(sampler, guide(section, networks), noise, c, draw)
    alone, networks["model"].evaluations = counts(networks), 0
    x, measure, _ = sampled(section, networks, sampler, n)
    rows, further = measure.take()
    assert mean(rows) == pytest.approx(scale, abs=1e-6)  # d is small at low noise
    assert torch.equal(x, plain)
    assert (further, counts(networks)) == (0, alone)
    assert measure.take()[0].shape == (0, 5)  # all is taken


def test_of_none_it_is_1_and_costs_nothing(networks):  # noqa: F811
    _, measure, asked = sampled({"name": "unguided"}, networks)
    assert mean(measure.take()[0]) == 1.0
    assert counts(networks) == {"model": 8 * len(asked)}


def test_of_a_schedule_it_is_the_average_over_the_path(networks):  # noqa: F811
    limits = {"sigma_low": 0.3, "sigma_high": 10.0}
    section = {"name": "classifier_free", "scale": {"name": "step", "scale": 3.0, **limits}}
    _, measure, asked = sampled(section, networks)
    levels = [sigma[0].item() for _, sigma, _, _ in asked]
    w = [3.0 if 0.3 < sigma <= 10.0 else 1.0 for sigma in levels]
    rows, further = measure.take()
    assert mean(rows) == pytest.approx(sum(w) / len(w), abs=1e-12)
    assert dict(of_levels(rows)) == pytest.approx(dict(zip(levels, w, strict=True)))
    assert 1.2 < mean(rows) < 2.8
    assert further == 0


def test_a_limited_interval_costs_nothing_outside(networks):  # noqa: F811
    section = {"name": "interval", "of": CFG, "sigma_low": 0.3, "sigma_high": 10.0}
    _, measure, asked = sampled(section, networks)
    rows, further = measure.take()
    guided = counts(networks)["model"] / 8 - len(asked)  # evaluations with a second pass
    assert mean(rows) == pytest.approx(1 + 1.5 * guided / len(asked), abs=1e-6)
    assert 0 < guided < len(asked)
    assert further == 0


def test_of_apg_it_is_what_the_projection_leaves(networks):  # noqa: F811
    """<(w - 1) (d - (d.D_c) D_c / |D_c|^2), d> = (w - 1) (|d|^2 - (d.D_c)^2 / |D_c|^2)."""
    _, measure, asked = sampled({"name": "apg", "scale": 3.0}, networks)
    sums: dict[float, torch.Tensor] = {}
    for x, sigma, c, _ in asked:
        D = FOUR(x, sigma, c)
        d = D - FOUR(x, sigma, torch.full_like(c, NULL))
        lost = ((d * D).sum(1) ** 2 / (D * D).sum(1)).sum()
        own = torch.stack([lost, (d * d).sum()])
        sums[sigma[0].item()] = sums.get(sigma[0].item(), 0) + own
    expected = {s: 1 + 2 * (1 - lost / of).item() for s, (lost, of) in sums.items()}
    rows, further = measure.take()
    assert dict(of_levels(rows)) == pytest.approx(expected)
    times = [expected[sigma[0].item()] for _, sigma, _, _ in asked]
    assert mean(rows) == pytest.approx(sum(times) / len(times))
    assert 1.1 < mean(rows) < 2.9
    assert further == 0


def test_of_autoguidance_by_a_blend_it_is_the_share_of_the_unconditional(networks):  # noqa: F811
    """D_weak = D_c - k d makes D_w = D_c + (w - 1) k d; what stands across d does not count."""

    def weak(x, sigma, c):
        D = FOUR(x, sigma, c)
        d = D - FOUR(x, sigma, torch.full_like(c, NULL))
        return D - 0.3 * d + 0.2 * torch.stack([-d[:, 1], d[:, 0]], 1)

    networks["weak"] = Counted(weak)
    _, measure, asked = sampled({"name": "autoguidance", "scale": 3.0}, networks)
    rows, further = measure.take()
    assert mean(rows) == pytest.approx(1 + 2 * 0.3, abs=1e-6)
    assert further == 8 * len(asked)  # all unconditional passes
    assert counts(networks)["model"] == 2 * further


def test_passes_of_some_samples_are_found_and_only_the_others_made(networks):  # noqa: F811
    section = {"name": "gfcg", "scale": 3.0, "reference": "unconditional", "tau": 0.2}
    _, measure, asked = sampled({**section, "classifier_input": "noisy"}, networks)
    rows, further = measure.take()
    guided = sum(len(D) for x, s, c, D in asked if not torch.equal(D, FOUR(x, s, c)))
    assert 0 < further < guided
    assert counts(networks)["model"] == 8 * len(asked) + guided
    assert 1.01 < mean(rows) < 3


def test_on_two_classes_gfcg_is_cfg_at_its_scale():
    two = mixture([[-0.5, 0.0], [0.5, 0.2]])
    networks = {"model": Counted(two), "classifier": Counted(ExactClassifier(two))}  # noqa: F811
    section = {"name": "gfcg", "scale": 2.5, "tau": 0.0, "classifier_input": "noisy"}
    measure = EffectiveScale(networks["model"])
    guided = measure.of(guide(section, {**networks, "model": measure.model}))
    noise, c, draw = seeded(list(range(8)), (2,), 2)
    for _ in sample(HEUN, guided, noise, c, draw):
        pass
    assert mean(measure.take()[0]) == pytest.approx(2.5, abs=1e-6)


def test_batches_of_which_some_are_not_guided_count_as_1():
    rows = torch.tensor([[1.0, 10, 10, 3.0, 2.0], [1.0, 30, 0, 0, 0], [0.5, 40, 40, 0, 0]])
    assert of_levels(rows.double()) == [(1.0, 1 + 1.5 * 10 / 40)]  # and of 0.5 nothing is known
    assert mean(rows.double()) == 1.375
    assert mean(rows[2:].double()) is None


def test_a_model_without_unconditional_part_is_refused():
    for known, why in (({"label_dropout": 0.0}, "label dropout"), ({"num_classes": 0}, "classes")):

        def model(x, sigma, c):
            return x

        vars(model).update(known)
        with pytest.raises(UserError, match=f"effective_scale needs a model .*{why}"):
            EffectiveScale(model)


# In the verbs

DATA = {"name": "Mixture", "means": [[-0.5, 0], [0.5, 0.2], [0.1, 0.8]], "labels": [0, 1, 2]}
DATA |= {"stds": [0.4, 0.4, 0.4]}
EXACT = {"models": {"model": "exact", "classifier": "exact"}, "data": DATA, "device": "cpu"}
EXACT |= {"sampler": HEUN, "n": 50}
GFCG = {"name": "gfcg", "scale": 3.0, "classifier_input": "noisy"}


def manifest(run):
    return json.loads((Path(run) / "manifest.json").read_text())


def test_generate_measures_it_and_changes_nothing_else(tmp_path, capsys):
    plain = manifest(generate(**EXACT, guidance=GFCG, run_dir=str(tmp_path / "plain")))
    asked = {**EXACT, "guidance": GFCG, "effective_scale": True}
    run = generate(**asked, run_dir=str(tmp_path / "whole"))
    assert "effective scale" in capsys.readouterr().out
    found = manifest(run)
    assert found["evaluations"] == plain["evaluations"]
    samples = "samples/samples.safetensors"
    assert found["outputs"][samples] == plain["outputs"][samples]
    told = found["effective_scale"]
    assert 1 < told["mean"] < 3
    assert len(told["by_level"]) == HEUN["steps"]
    assert told["evaluations"] == 11  # the unconditional passes, which GFCG does not make
    halves = manifest(generate(**asked, batch_size=25, run_dir=str(tmp_path / "halves")))
    assert halves["effective_scale"]["mean"] == pytest.approx(told["mean"], rel=1e-6)

    evaluate(
        samples={"gfcg": str(run)}, data=DATA, metrics=["frechet"], run_dir=str(tmp_path / "e")
    )
    assert f"effective_scale {told['mean']:.4g}" in (tmp_path / "e/metrics/table.md").read_text()


def test_a_study_shows_what_each_method_gains_over_cfg_at_its_scale(tmp_path):
    methods = {
        "cfg": {"models": {"model": "exact"}, "guidance": {"name": "classifier_free"}},
        "GFCG": {"models": EXACT["models"], "guidance": {**GFCG, "scale": 2.0}, "scales": [2.0]},
    }
    generation = {"sampler": HEUN, "effective_scale": True, "device": "cpu"}
    asked = {"data": DATA, "fits": {}, "methods": methods, "scales": [1.0, 2.0, 3.0]}
    asked |= {"samples": 60, "evaluation": {"metrics": ["wrong_class", "energy_distance"]}}
    study(**asked, generation=generation, run_dir=str(tmp_path / "study"))
    report = (tmp_path / "study/report.md").read_text()
    part = report.split("## Effective guidance scales")[1].split("##")[0]
    rows = [line for line in part.splitlines() if line.startswith("| GFCG")]
    assert len(rows) == 1
    assert "CFG there" in part
    with (tmp_path / "study/table.csv").open() as file:
        own = list(csv.DictReader(file))
    of_cfg = [float(row["effective_scale"]) for row in own if row["method"] == "cfg"]
    assert of_cfg == pytest.approx([1.0] * 3 + [2.0] * 3 + [3.0] * 3)
    found = next(float(row["effective_scale"]) for row in own if row["method"] == "GFCG")
    assert rows[0].split(" | ")[2] == f"{found:.3g}"


def test_the_gain_is_against_cfg_interpolated_at_the_effective_scale():
    def row(method, scale, wrong, own):
        front = {"method": method, "scale": scale, "stage": "before", "flow": "", "n": 10}
        return {**front, "class": 0, "effective_scale": own, "wrong_class": wrong}

    plain = {"guidance": {"name": "classifier_free", "scale": 2.0}, "models": {"model": "a"}}
    other = {"guidance": {"name": "apg"}, "models": {"model": "a"}}
    foreign = {"guidance": {"name": "apg"}, "models": {"model": "b"}}
    methods = {"cfg": plain, "apg": other, "far": other, "foreign": foreign}
    rows = [row("cfg", 1.0, 0.20, 1.0), row("cfg", 2.0, 0.10, 2.0), row("apg", 3.0, 0.11, 1.5)]
    rows += [row("far", 3.0, 0.01, 2.5), row("foreign", 3.0, 0.01, 1.5)]
    (table,) = effective.sections(Rows.averaged(rows), {"methods": methods}, ["wrong_class"])
    assert table.splitlines()[2:] == [
        "| apg | 3 | 1.5 | 11 % | 15 % | **4 %** |",
        "| far | 3 | 2.5 | 1 % |  |  |",
    ]
    over = effective.at(
        [(1.0, OverSeeds({0: 0.2, 1: 0.4})), (2.0, OverSeeds({0: 0.1, 1: 0.2}))], 1.5
    )
    assert over.by_seed == pytest.approx({0: 0.15, 1: 0.3})
