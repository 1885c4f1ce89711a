"""A study of several seeds: whose stages are whose, and what the report says over them."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_cfg.config import load
from lightning_cfg.runs.names import METRICS
from lightning_cfg.studies.built import judging
from lightning_cfg.verbs.study import study

MIX = {
    "name": "Mixture", "means": [[-1.0, 0.0], [1.0, 0.0]], "stds": [0.3, 0.3], "labels": [0, 1],
    "seed": 7,
}  # fmt: skip


def fit(steps: int, **sections: object) -> dict:
    net = {"name": "MLP", "width": 8, "blocks": 1, "fourier": 4, "fourier_std": 1.0}
    learner = {"lr": 1e-2, "warmup": 0, "ema_half_life": [100]}
    learner |= {"name": "Diffusion", **sections.pop("learner", {})}
    trainer = {"max_steps": steps, "accelerator": "cpu"}
    return {"net": net, "learner": learner, "batch_size": 32, "trainer": trainer, **sections}


LINEAR = {"net": {"name": "Linear"}, "learner": {"name": "Classification"}}
CONFIG = {
    "data": MIX,
    "fits": {
        "base": fit(20, model={"name": "EDM", "label_dropout": 0.2}),
        "judge": fit(10, **LINEAR, model={"name": "NoisyClassifier", "clean": True}),
    },
    "methods": {"cfg": {"models": {"model": "base"}, "guidance": "classifier_free"}},
    "scales": [1.0, 2.0],
    "samples": 60,
    "flows": {"all": [1.0, 2.0]},
    "flow": fit(10, model={"name": "Flow"}, learner={"name": "Refinement"}),
    "sources": 60,
    "generation": {"sampler": {"name": "heun", "steps": 3}, "trajectories": 4},
    "pairs": {"k": 3, "bank": 40},
    "refinement": {"method": "euler", "steps": 1},
    "variants": {"two": {"refinement": {"steps": 2}}},
    "trace": {"classifiers": {"posterior": "exact"}},
    "evaluation": {"metrics": ["frechet", "outliers", "class_accuracy"], "real": 40, "bank": 40,
                   "classifier": "judge"},
}  # fmt: skip


def run(root: Path, *overrides: str, config: dict = CONFIG) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yaml").write_text(json.dumps(config))
    return study(**load(study, root / "study.yaml", [f"run_dir={root / 'study'}", *overrides]))


def stages(done: Path) -> list[dict]:
    return json.loads((done / "study.json").read_text())["stages"]


def folders(done: Path) -> set[str]:
    return {folder.name for folder in (done / "stages").iterdir()}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("both"), "seeds=[0,1]")


def test_a_study_of_one_seed_grows_into_one_of_two(tmp_path):
    """What seed 0 has done is taken over whole, and lies where it lay."""
    before = folders(run(tmp_path, "seed=0"))
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "study/stages").rglob("*") if p.is_file()}
    grown = run(tmp_path, "seeds=[0,1]")
    assert before < folders(grown)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    told = {stage["name"]: stage for stage in stages(grown)}
    first = {name for name in told if name.startswith("seed 0 ")}
    assert {name for name in told if told[name]["reused"]} == first
    assert {told[name]["directory"] for name in first} == {f"stages/{name}" for name in before}


def test_stages_of_another_seed_are_those_of_its_own_study(both, tmp_path):
    """All but what looks at the judge, which is the first seed's in both."""
    shutil.copytree(both, tmp_path / "study")
    alone = {s["name"]: s["reused"] for s in stages(run(tmp_path, "seed=1"))}
    assert {name for name, reused in alone.items() if not reused} == {
        "fit judge", "evaluate cfg 1", "evaluate cfg 2", "evaluate real"
    }  # fmt: skip
    assert {"fit base", "pair cfg all", "fit flow cfg all", "refine cfg 2 two"} < set(alone)


def test_every_seed_has_its_own_base_bank_and_real_points(both):
    for name in ("fit-base", "pair-cfg-all", "generate-cfg-2-fresh", "evaluate-real"):
        settings = [
            json.loads(file.read_text())["settings"]
            for file in (both / "stages").glob(f"{name}-*/identity.json")
        ]
        assert sorted(s["data"]["seed"] for s in settings) == [7, 8], name
        assert len({s["seed"] for s in settings}) == 2
    assert {s["name"] for s in stages(both) if "judge" in s["name"]} == {"seed 0 fit judge"}


def test_a_fit_that_only_measures_is_fitted_once(tmp_path, capsys):
    run(tmp_path, "seeds=[0,1]", "plan=json")
    plan = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)}
    assert [name for name in plan if "judge" in name] == ["seed 0 fit judge"]
    assert plan["seed 1 evaluate cfg 2"]["needs"] == [
        "seed 0 fit judge",
        "seed 1 generate cfg 2 fresh", "seed 1 refine cfg 2 all", "seed 1 refine cfg 2 two",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change, judges",
    [
        ("title=a", ["judge"]),
        ("trace.classifiers.posterior=judge", ["judge"]),
        ("pairs.features={name: classifier, path: judge}", []),  # what is paired in makes
        ("variants.two.pairs.features={name: classifier, path: judge}", []),
        ("methods.cfg.models.weak=judge", []),
        ("evaluation.classifier=null", []),  # nobody names it
    ],
)
def test_what_only_measures(tmp_path, change, judges):
    (tmp_path / "study.yaml").write_text(json.dumps(CONFIG))
    asked = load(study, tmp_path / "study.yaml", ["run_dir=x", change])
    recipes = {name: {"pairs": part["pairs"]} for name, part in asked["variants"].items()}
    assert judging(asked, {"all": {"pairs": asked["pairs"]}, **recipes}) == judges


def test_plan_cost_and_stage_know_all_seeds(both, tmp_path, capsys):
    run(tmp_path, "seed=3", "plan=true")
    one = capsys.readouterr().out
    run(tmp_path, "seeds=[3]", "plan=true")
    assert capsys.readouterr().out == one  # one seed is one seed
    run(tmp_path, "seeds=[3,4]", "plan=true")
    two = capsys.readouterr().out
    count = int(one.split()[0])
    assert two.startswith(f"{2 * count - 1} stages: 5 trainings")
    assert "240 refined" in one
    assert "480 refined" in two  # 2 seeds, 2 scales, 2 flows of 60
    assert f"{2 * int(one.split(' samples')[0].split()[-1])} samples" in two
    shutil.copytree(both, tmp_path / "study")
    run(tmp_path, "seeds=[0,1]", "stage=seed 1 generate cfg 1 fresh")
    out = capsys.readouterr().out
    assert re.search(r"\] seed 1 generate cfg 1 fresh\n.*-1-fresh-\w+: finished already", out)


def test_tables_have_every_seeds_rows_and_their_means(both):
    """table.csv from the stages' own tables; differences and the report from table.csv."""
    with (both / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["seed", "method", "scale"]
    places = {s["name"]: both / s["directory"] for s in stages(both)}

    def values(metric: str, scale: str, stage: str, flow: str = "") -> np.ndarray:
        means = []
        for seed in ("0", "1"):
            what = (seed, scale, stage, flow)
            own = [r for r in rows if (r["seed"], r["scale"], r["stage"], r["flow"]) == what]
            assert len(own) == 2  # classes
            n = [int(r["n"]) for r in own]
            means.append(np.average([float(r[metric]) for r in own], weights=n))
        return np.array(means)

    for seed in (0, 1):
        table = json.loads((places[f"seed {seed} evaluate cfg 2"] / METRICS).read_text())
        label = [r["frechet"] for r in table if r["samples"] == "after two"]
        ours = [r for r in rows if (r["seed"], r["scale"], r["flow"]) == (str(seed), "2", "two")]
        assert [float(r["frechet"]) for r in ours] == pytest.approx(label, rel=1e-5)
    before, after = values("frechet", "2", "before"), values("frechet", "2", "after", "two")
    with (both / "differences.csv").open() as file:
        (found,) = [
            r
            for r in csv.DictReader(file)
            if (r["scale"], r["flow"], r["against"], r["metric"])
            == ("2", "two", "before", "frechet")
        ]
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert float(found["mean"]) == pytest.approx((after - before).mean(), rel=1e-4)
    assert float(found["half_width"]) == pytest.approx((high - low) / 2, rel=1e-4)
    report = (both / "report.md").read_text()
    text = report.split("## Table")[1].split("## Figures")[0]
    (line,) = [line for line in text.splitlines() if line.startswith("| cfg | 2 | two |")]
    half = 12.706 * before.std(ddof=1) / 2**0.5
    assert f"{after.mean():.3g} ± " in line
    (line,) = [line for line in text.splitlines() if line.startswith("| cfg | 2 | before |")]
    shown = [cell.strip() for cell in line.split("|")]
    _, error = next(cell for cell in shown if cell.startswith(f"{before.mean():.3g} ")).split(" ± ")
    assert float(error) == pytest.approx(half, rel=0.06)
    (line,) = [line for line in text.splitlines() if "| one draw |" in line]
    assert f" {values('frechet', '', 'real').std(ddof=1):.3g} |" in line
    text = report.split("## Every class")[1]
    own = [r for r in rows if (r["scale"], r["stage"], r["class"]) == ("2", "before", "1")]
    assert [r["seed"] for r in own] == ["0", "1"]
    (line,) = [line for line in text.splitlines() if line.startswith("| cfg | 2 | 1 | before |")]
    assert f" {np.mean([float(r['frechet']) for r in own]):.3g} ± " in line
    assert "means over the seeds 0, 1 ±" in report
    assert "Seeds 0, 1; every setting" in report
    assert "are those of seed 0" in report
    for name in ("trajectories.csv", "curves.csv"):
        assert {line.split(",")[0] for line in (both / name).read_text().splitlines()} == {
            "seed", "0", "1"
        }  # fmt: skip
    page = (both / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert len(data["cases"][0]["rows"]) == len(rows)


def test_cases_have_their_own_seeds_rows(tmp_path):
    exact = {"cfg": {"models": {"model": "exact"}, "guidance": "classifier_free"}}
    cases = {name: {**MIX, "stds": [std, std]} for name, std in (("wide", 0.5), ("thin", 0.1))}
    config = {**CONFIG, "data": None, "cases": cases, "fits": {}, "flows": {}, "methods": exact}
    config |= {"variants": {}, "trace": None}
    config["evaluation"] = {"metrics": ["frechet"], "real": 40, "bank": 40}
    done = run(tmp_path, "seeds=[4,0,9]", config=config)
    with (done / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["data", "seed", "method"]
    found = {(r["data"], r["seed"], r["method"], r["scale"]) for r in rows}
    assert found == {
        (case, seed, *what)
        for case in cases
        for seed in ("4", "0", "9")
        for what in (("cfg", "1"), ("cfg", "2"), ("real", ""))
    }
    with (done / "differences.csv").open() as file:
        assert {(r["data"], r["seeds"]) for r in csv.DictReader(file)} == {
            ("wide", "3"),
            ("thin", "3"),
        }
    names = [stage["name"] for stage in stages(done)]
    assert names[:2] == ["seed 4 wide generate cfg 1 fresh", "seed 4 wide evaluate cfg 1"]


def test_a_study_of_one_seed_says_so_and_has_no_column(tmp_path):
    done = run(tmp_path, "seeds=[3]", "trace=null")
    assert (done / "table.csv").read_text().startswith("method,scale,class")
    assert not (done / "differences.csv").exists()
    report = (done / "report.md").read_text()
    assert "Seed 3; every setting" in report
    assert "Decided by the numbers of one seed" in report
    assert "±" not in report


@pytest.mark.parametrize(
    "change, words",
    [
        ("seeds=[0,1] seed=0", "seed=0 and seeds=[0, 1] are both given"),
        ("seeds=[0,1,0]", "seeds=[0, 1, 0] has 0 twice"),
        ("seeds=[0,-1]", "seed=-1 must be from 0 to 2146"),
        ("seeds=[2147]", "seed=2147 must be from 0 to 2146"),
        ("seeds=[one]", "seeds[0] must be int"),
    ],
)
def test_mistakes_are_one_line(change, words, call):
    outcome = call(study, CONFIG, "run_dir=study", *change.split())
    assert outcome.status == 2, outcome.out
    assert len(outcome.err.strip().splitlines()) == 1
    assert words in outcome.err
    assert not Path("study").exists()
