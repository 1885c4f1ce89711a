"""A study as a list of typed stages: names, order, what each needs, and what it will take."""

import json
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from lightning_cfg.config import load
from lightning_cfg.errors import UserError
from lightning_cfg.studies.built import graph_of
from lightning_cfg.studies.cost import cost
from lightning_cfg.studies.graph import Output, Stage
from lightning_cfg.studies.left import Taken
from lightning_cfg.studies.stages import in_order
from lightning_cfg.verbs.study import _check, study

QUICK = ROOT / "conf/studies/fractal_quick.yaml"


def asked_of(*overrides: str, file: Path = QUICK) -> dict:
    config = load(study, file, list(overrides))
    for section in config["methods"].values():
        section["scales"] = section["scales"] or config["scales"]
        section["generation"] = config["generation"]
    return config


def graph(*overrides: str, file: Path = QUICK) -> dict[str, Stage]:
    asked = asked_of(*overrides, file=file)
    made = graph_of(asked, _check(asked), case="", data=asked["data"], classes=2)
    return made.stages


def test_names_of_fits_stand_for_their_checkpoints_and_for_nothing_else(tmp_path):
    """A5: a fit that is called like another word of the study leaves that word as it is."""
    config = yaml.safe_load(QUICK.read_text())
    config["fits"] = {"bank": config["fits"]["base"], "cpu": config["fits"]["classifier"]}
    for method in config["methods"].values():
        names = {"base": "bank", "classifier": "cpu"}
        method["models"] = {role: names[name] for role, name in method["models"].items()}
    config["evaluation"] = {"features": {"name": "classifier", "path": "cpu"}, "device": "cpu"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    stages = graph("pairs.device=cpu", file=tmp_path / "study.yaml")
    pair = stages["pair classifier_free all"]
    assert (pair.settings["split"], pair.settings["device"]) == ("bank", "cpu")
    assert stages["generate classifier_guidance 2 fresh"].settings["models"] == {
        "model": Output("fit bank"),
        "classifier": Output("fit cpu"),
    }
    scored = stages["evaluate classifier_free 2"]
    assert scored.settings["device"] == "cpu"
    assert scored.settings["features"]["path"] == Output("fit cpu")
    assert "fit cpu" in scored.needs


def test_a_fit_cannot_be_called_exact(tmp_path):
    config = yaml.safe_load(QUICK.read_text())
    config["fits"]["exact"] = config["fits"]["base"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"fits\.exact"):
        graph(file=tmp_path / "study.yaml")


def test_every_stage_comes_after_those_that_it_needs_and_otherwise_as_given():
    stages = graph()
    names = list(stages)
    assert [stage.name for stage in in_order(stages)] == names
    for i, name in enumerate(names):
        assert set(stages[name].needs) <= set(names[:i])
    shuffled = {name: stages[name] for name in reversed(names)}
    order = [stage.name for stage in in_order(shuffled)]
    assert sorted(order) == sorted(names)
    for name in order:
        assert all(order.index(need) < order.index(name) for need in stages[name].needs)


def test_what_two_variants_would_make_alike_is_made_once():
    plain = graph()
    once = graph("variants={fewer: {refinement: {method: euler, steps: 2}}}")
    new = set(once) - set(plain)
    assert new == {
        f"refine {method} {scale} fewer"
        for method in ("classifier_guidance", "classifier_free")
        for scale in (1, 2, 3)
    }
    other = graph("variants={near: {pairs: {k: 3}}}")
    assert {name.split()[0] for name in set(other) - set(plain)} == {"pair", "fit", "refine"}


def test_cost_counts_the_stages_themselves():
    """By hand: 2 methods, scales 1 2 3, a flow for all of them and one for 2 each."""
    asked = asked_of("samples=500", "sources=900", "flows={all: [1, 2, 3], dedicated: [2]}")
    stages = graph("samples=500", "sources=900", "flows={all: [1, 2, 3], dedicated: [2]}")
    text = cost(stages, asked["generation"]["sampler"], (2,))
    steps = 1024 * 5000 + 1024 * 1000  # fits
    flow = asked["flow"]
    steps += 4 * flow["batch_size"] * flow["trainer"]["max_steps"]
    made = 2 * (300 + 900 + 300) + 2 * 3 * 500  # sources at 1, 2 (its own), 3; fresh
    refined = 2 * (3 + 1) * 500
    on_disk = 4 * 2 * (made + 2 * 4 * 900 + refined)
    assert text.startswith(f"{len(stages)} stages: 6 trainings on {steps / 1e6:.3g} M images, ")
    assert f"{made:,} samples" in text
    assert f"{refined:,} refined, about {on_disk / 2**30:.2g} GiB" in text


def test_the_plan_for_programs_is_the_same_list(tmp_path, capsys):
    config = load(study, QUICK, [f"run_dir={tmp_path / 'study'}", "plan=json"])
    study(**config)
    plan = json.loads(capsys.readouterr().out)
    stages = graph()
    assert [stage["name"] for stage in plan] == list(stages)
    for told in plan:
        assert told["needs"] == stages[told["name"]].needs
        assert told["verb"] == stages[told["name"]].verb
        assert told["state"] == ("waits" if told["needs"] else "ready")


def test_a_fit_may_have_data_of_its_own():
    plain, own = graph(), graph("fit_data={classifier: {limit: 500}}")
    assert own["fit classifier"].settings["data"] == {"name": "Fractal", "seed": 0, "limit": 500}
    assert own["fit base"] == plain["fit base"]
    with pytest.raises(UserError, match=r"fit_data.judge is none of fits \(base, classifier\)"):
        graph("fit_data={judge: {limit: 500}}")
    with pytest.raises(UserError, match=r"fit_data.base.limits"):
        graph("fit_data={base: {limits: 500}}")


def test_what_is_left_is_told_by_what_was_measured():
    """By images, evaluations and samples: with the rates of the stages that are done."""
    fit = {"batch_size": 10, "trainer": {"max_steps": 100}}
    more = {"batch_size": 20, "trainer": {"max_steps": 300}}
    heun = {"name": "heun", "steps": 3}  # 5 evaluations
    made = {"models": {"model": "a"}, "sampler": heun, "n": 100}
    both = {"models": {"model": "a", "weak": "b"}, "sampler": heun, "n": 30}
    stages = {
        "fit a": Stage("fit a", "fit", fit),
        "fit b": Stage("fit b", "fit", more),
        "one": Stage("one", "generate", made),
        "two": Stage("two", "generate", both),
        "refine": Stage("refine", "refine", {"samples": Output("two")}),
        "refine one": Stage("refine one", "refine", {"samples": Output("one")}),
    }
    taken = Taken(stages)
    assert taken.left(stages.values()) == ""
    taken.add(stages["fit a"], 50.0)
    taken.add(stages["one"], 10.0)
    # of "fit b" 6000 images at 20 a second; of "two" 300 evaluations at 50 a second
    assert taken.left([stages["fit b"], stages["two"]]) == "about 0:05:06"
    assert taken.left([stages["two"], stages["refine"]]) == "at least 0:00:06"
    taken.add(stages["refine"], 3.0)
    assert taken.left([stages["refine one"]]) == "about 0:00:10"
    assert taken.left([]) == ""
