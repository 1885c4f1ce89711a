"""Methods with tuned parameters: what is tried, what is chosen, and that a matrix is fair by it."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lightning_cfg.config import checked, load
from lightning_cfg.errors import UserError
from lightning_cfg.reports.case import Case
from lightning_cfg.reports.finding import finding
from lightning_cfg.runs.manifests import read_manifest
from lightning_cfg.runs.names import TRIED, TUNED
from lightning_cfg.studies.ranges import parameters, tried
from lightning_cfg.verbs.study import _whole, study
from lightning_cfg.verbs.tune import _chosen, tune

FOUR = {  # four classes of two Gaussians each, which overlap
    "name": "Mixture", "seed": 7, "stds": [0.3] * 8, "labels": [0, 1, 2, 3, 2, 3, 0, 1],
    "means": [[x, y] for y in (-0.4, 0.4) for x in (-1.2, -0.4, 0.4, 1.2)],
}  # fmt: skip
BAD = {"sigma_low": 5.0, "sigma_high": 10.0}  # where nothing of the class is decided
INTERVAL = {"name": "interval", "of": "classifier_free", **BAD}
RANGES = {"sigma_low": {"min": 0.01, "max": 1.0, "log": True}, "sigma_high": [0.5, 2.0, 8.0]}
EXACT = {"model": "exact"}
NONE = {"weaken": None, "decode": None}
CONFIG = {
    "data": FOUR,
    "fits": {},
    "tuning": {"settings": 6, "samples": 300, "seed": 100, "evaluations": 30, "at": [1.5, 2.0]},
    "methods": {
        "cfg": {"models": EXACT, "guidance": "classifier_free"},
        "tuned": {"models": EXACT, "guidance": INTERVAL, "ranges": RANGES},
        "left": {
            "models": EXACT,
            "guidance": INTERVAL,
            "ranges": {key: [value] for key, value in BAD.items()},
        },
    },
    "scales": [1.0, 1.5, 2.0, 3.0],
    "samples": 400,
    "generation": {
        "sampler": {"name": "heun", "steps": 3, "sigma_max": 10.0},
        "effective_scale": True,
    },
    "evaluation": {"metrics": ["energy_distance", "wrong_class"], "real": 200, "bank": 20},
}  # fmt: skip


def loaded(root: Path, *overrides: str, config: dict = CONFIG) -> dict:
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yaml").write_text(json.dumps(config))
    return load(study, root / "study.yaml", [f"run_dir={root / 'study'}", *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return study(**loaded(tmp_path_factory.mktemp("tuned"), "seeds=[0,1]"))


def stage_of(done: Path, name: str) -> Path:
    stages = json.loads((done / "study.json").read_text())["stages"]
    return next(done / one["directory"] for one in stages if one["name"] == name)


def column(table: str, method: str) -> list[float]:
    """The numbers of a method's row, in per cent, without the ± of theirs."""
    row = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return [float(cell) for cell in re.findall(r"([\d.]+)(?: ± [\d.]+)? %", row)]


def test_a_worse_parameter_is_not_ranked_below_what_tuning_finds(done):
    """The same method with the same bad interval, one with ranges and one left as it is."""
    report = (done / "report.md").read_text()
    matched, settings = report.split("**Settings**")[0], report.split("**Settings**")[1]
    tuned, left, cfg = (column(matched, name) for name in ("tuned", "left", "cfg"))
    assert len(tuned) == 2
    assert all(a < b for a, b in zip(tuned, left, strict=True))
    assert matched.index("| tuned |") < matched.index("| left |")
    assert column(settings, "left") > column(settings, "tuned")
    assert "| left | as written | 1 |" in settings
    chosen = json.loads((stage_of(done, "tuning tune tuned") / TUNED).read_text())
    assert chosen["setting"] > 0
    with (done / "table.csv").open() as file:
        told = {row["method"]: row["setting"] for row in csv.DictReader(file)}
    assert told["left"] == "as written"
    assert re.fullmatch(r"sigma_low [\d.]+, sigma_high [\d.]+", told["tuned"])
    assert told["tuned"] in settings
    assert cfg == sorted(cfg, reverse=True)  # at a larger distance fewer of its errors


def test_the_page_says_who_is_best_by_the_fair_table(done):
    """Per scale of `tuning.at`, with the number that stands in the table; no other scales."""
    matched = (done / "report.md").read_text().split("**Settings**")[0]
    found = re.findall(
        r"<li>Wrong class[^<]*at scale ([\d.]+) [^<]*: ([^,<]+?) (?:is best|does)",
        (done / "report.html").read_text("utf-8"),
    )
    assert [scale for scale, _ in found] == ["1.5", "2"]
    best = min(("tuned", "left", "cfg"), key=lambda name: column(matched, name)[0])
    assert found[0][1] == {"cfg": "no method", "tuned": "tuned", "left": "left"}[best]


def test_what_cannot_be_told_from_the_best_is_named_beside_it():
    wrong = {"cfg": [0.2, 0.22, 0.24], "first": [0.1, 0.12, 0.14], "near": [0.11, 0.11, 0.16],
             "far": [0.3, 0.32, 0.34]}  # fmt: skip
    rows = [
        {"seed": seed, "method": method, "scale": scale, "class": 0, "stage": "before", "flow": "",
         "nfe": 9.0, "evaluations": "model 9", "seconds": 0.1, "n": 100,
         "energy_distance": scale, "wrong_class": values[seed] * (3 - scale)}
        for method, values in wrong.items() for seed in range(3) for scale in (1.0, 2.0)
    ]  # fmt: skip
    measured = {"distance": "energy_distance", "error": "wrong_class"}
    case = Case("", None, rows, seeds=[0, 1, 2], tuned=dict.fromkeys(wrong, measured))
    section = {"models": {"model": "base"}, "guidance": {"name": "apg"}}
    config = {"methods": dict.fromkeys(wrong, section), "published": [], "flows": {}}
    (found,) = finding(case, {**config, "tuning": {"reference": None, "at": [2.0]}})
    # first - near is -0.01, 0.01, -0.02 by seed; first - cfg and first - far are the same for all
    assert "first is best of what was tried, 12 ± 5 % (not to be told from it: near);" in found


def test_effective_scales_are_measured_of_what_is_scored_alone(done):
    """CFG's is its scale; what is tried is made without measuring."""
    assert "## Effective guidance scales" in (done / "report.md").read_text()
    with (done / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "cfg"]
    assert len(rows) > 4
    assert all(float(r["effective_scale"]) == pytest.approx(float(r["scale"])) for r in rows)
    config = (stage_of(done, "tuning tune cfg") / "config.yaml").read_text()
    assert "effective_scale: false" in config


def test_the_chosen_one_is_the_best_by_hand(done):
    """From tried.csv: limits of CFG's own distances, straight lines, the smallest mean error."""
    run, cfg = (stage_of(done, f"tuning tune {name}") for name in ("tuned", "cfg"))
    rows, own = (json.loads((place / TRIED).read_text()) for place in (run, cfg))
    limits = [row["energy_distance"] for s in (1.5, 2.0) for row in own if row["scale"] == s]
    found = []
    for k in range(6):
        curve = [row for row in rows if row["setting"] == k]
        assert [row["scale"] for row in curve] == [1.0, 1.5, 2.0, 3.0]
        fine = np.linspace(0, 3, 30001)  # along the curve, far finer than its points
        d, e = (
            np.interp(fine, range(4), [row[name] for row in curve])
            for name in ("energy_distance", "wrong_class")
        )
        reached = [e[d <= limit].min() if (d <= limit).any() else None for limit in limits]
        known = [value for value in reached if value is not None]
        found.append((2 - len(known), np.mean(known) if known else 0, k))
    chosen = json.loads((run / TUNED).read_text())
    assert chosen["setting"] == min(found)[2]
    assert chosen["loss"][1] == pytest.approx(min(found)[1], abs=1e-4)
    assert len({row[1] for row in found}) > 1


def test_of_settings_that_come_within_no_limit_the_nearest_is_chosen():
    nearest = {0: 0.6, 1: 0.03, 2: 0.2}
    rows = [
        {"setting": k, "scale": scale, "steps": 4, "nfe": 60.0, "wrong_class": 0.1 / scale,
         "energy_distance": distance * scale}
        for k, distance in nearest.items() for scale in (1.0, 2.0)
    ]  # fmt: skip
    chosen = _chosen(rows, [0.01, 0.02], "energy_distance", "wrong_class", 62)
    assert chosen["setting"] == 1
    assert [value for _, value in chosen["reached"]] == [None, None]
    within = _chosen(rows, [0.01, 0.7], "energy_distance", "wrong_class", 62)
    assert within["setting"] == 1  # 1 and 2 have 0.05 within 0.7, 0 has 0.1 and a little less


def test_all_take_the_evaluations_that_are_asked_for(done):
    """Three steps are written, which are 10; CFG takes 2 a step of Heun, so 8 steps and 30."""
    for name, scale in (("cfg", 2), ("cfg", 3), ("tuned", 2)):
        manifest = read_manifest(stage_of(done, f"seed 1 generate {name} {scale} fresh"))
        assert sum(manifest["evaluations"].values()) == pytest.approx(30, abs=2)
    chosen = json.loads((stage_of(done, "tuning tune tuned") / TUNED).read_text())
    settings = read_manifest(stage_of(done, "seed 0 generate tuned 2 fresh"))["settings"]
    assert settings["sampler"]["steps"] == chosen["steps"]
    cfg = read_manifest(stage_of(done, "seed 0 generate cfg 2 fresh"))
    assert cfg["settings"]["sampler"]["steps"] == 8
    assert cfg["evaluations"] == {"model": 30}


def test_what_is_tuned_on_is_never_scored(done):
    """Neither its samples' seeds nor its real points."""
    tuned = read_manifest(stage_of(done, "tuning tune tuned"))["settings"]
    assert (tuned["seed"], tuned["n"]) == (100 * 2_000_000, 300)
    for seed in (0, 1):
        scored = read_manifest(stage_of(done, f"seed {seed} generate tuned 2 fresh"))["settings"]
        assert scored["seed"] == seed * 2_000_000 + 1_000_000
        real = read_manifest(stage_of(done, f"seed {seed} evaluate tuned 2"))["settings"]["data"]
        assert (real["seed"], tuned["data"]["seed"]) == (7 + seed, 107)


def test_the_plan_counts_what_is_tuned(tmp_path, capsys):
    """CFG and the one that is left have one setting, at four scales of 300 samples each."""
    study(**loaded(tmp_path, "plan=true"))
    told = capsys.readouterr().out
    assert "8 settings tuned on 9,600 samples, 4,800 samples of about 30 evaluations, all" in told
    assert "tuning tune cfg: ready" in told
    assert "tuning tune tuned: waits for tuning tune cfg" in told
    assert "generate tuned 2 fresh: waits for tuning tune tuned" in told
    assert not (tmp_path / "study").exists()


def test_interrupted_it_goes_on_and_ends_alike(done, tmp_path, monkeypatch):
    from lightning_cfg.verbs import tune as function
    from lightning_cfg.verbs.tune import Parts

    run = stage_of(done, "tuning tune cfg")
    asked = {**read_manifest(run)["settings"], "run_dir": str(tmp_path / "cut")}
    kept = Parts.keep

    def stopped(self, name, *args, **facts):
        if len(self._facts) == 2:
            raise KeyboardInterrupt("SIGINT")
        kept(self, name, *args, **facts)

    monkeypatch.setattr(Parts, "keep", stopped)
    with pytest.raises(Exception, match=r"with 2 of 4 points kept; started again it goes on"):
        function(**asked)
    made = []

    def counted(self, name, *args, **facts):
        made.append(name)
        kept(self, name, *args, **facts)

    monkeypatch.setattr(Parts, "keep", counted)
    function(**asked)
    assert len(made) == 2
    for name in (TRIED, TUNED):
        assert (tmp_path / "cut" / name).read_bytes() == (run / name).read_bytes()


def of(section: dict) -> dict:
    """A method as a study has it, with its defaults."""
    config = {**CONFIG, "methods": {"one": section}}
    asked = checked(study, {**config, "run_dir": ""})
    return _whole(asked["methods"], asked["scales"], asked["generation"])["one"]


def test_settings_are_drawn_by_a_seed_and_within_their_ranges():
    section = of({"models": EXACT, "guidance": INTERVAL, "ranges": RANGES})
    settings = tried("one", section, 40, 3)
    assert settings == tried("one", section, 40, 3)
    assert settings[:10] == tried("one", section, 10, 3)
    assert settings != tried("one", section, 40, 4)
    assert settings[0].guidance == section["guidance"]
    drawn = [setting.guidance for setting in settings[1:]]
    low, high = ([one[key] for one in drawn] for key in ("sigma_low", "sigma_high"))
    assert all(a < b for a, b in zip(low, high, strict=True))
    assert set(high) == {0.5, 2.0, 8.0}
    assert 0.01 <= min(low) < 0.03
    assert 0.3 < max(low) <= 1.0
    assert 0.25 < np.mean([value < 0.1 for value in low]) < 0.75  # half of its logarithm
    assert all(float(f"{value:.3g}") == value for value in low)
    assert str(settings[1]) == f"sigma_low {low[0]:.3g}, sigma_high {high[0]:.3g}"


def test_a_small_grid_is_tried_whole():
    models = {"model": "base", "weak": "weak"}
    weak = ["weak", {"path": "base", "weights": "raw"}, {"path": "base", "weaken": "skip"}]
    section = of({"models": models, "guidance": "autoguidance", "ranges": {"models.weak": weak}})
    settings = tried("one", section, 24, 0)
    assert [setting.models["weak"] for setting in settings][:2] == ["weak", {**weak[1], **NONE}]
    assert len(settings) == 3
    assert str(settings[0]) == ""
    assert str(settings[1]) == "models.weak base (weights raw)"
    drop = {"path": "base", "weaken": {"name": "drop", "rate": 0.2}}
    section = of({"models": models, "guidance": "autoguidance", "ranges": {"models.weak": [drop]}})
    assert str(tried("one", section, 24, 0)[1]) == "models.weak base (weakened by drop 0.2)"


def test_only_what_is_other_than_written_is_told():
    ranges = {"sigma_low": [BAD["sigma_low"]], "sigma_high": [BAD["sigma_high"], 8.0]}
    section = of({"models": EXACT, "guidance": INTERVAL, "ranges": ranges})
    assert [str(setting) for setting in tried("one", section, 24, 0)] == ["", "sigma_high 8"]


def test_every_number_of_a_method_is_one_of_its_parameters():
    """But for the scale that a study sets: the first one on the way."""
    for guidance, keys in (
        ("classifier_free", []),
        ({"name": "apg"}, ["eta", "norm", "momentum"]),
        (
            {"name": "classifier_free", "scale": {"name": "linear"}},
            ["scale.sigma_low", "scale.sigma_high"],
        ),
        ({"name": "rescale", "of": {"name": "apg"}}, ["phi", "of.eta", "of.norm", "of.momentum"]),
        ({"name": "momentum", "of": "classifier_free"}, ["beta", "from_t", "to_t", "of.scale"]),
        (
            {"name": "gfcg", "combine": "mixed"},
            ["cfg_scale", "tau"],
        ),
    ):
        section = of({"models": EXACT, "guidance": guidance})
        assert sorted(parameters(section)) == sorted(keys), guidance
    section = of({"models": {"model": "base", "weak": "weak"}, "guidance": "autoguidance"})
    assert list(parameters(section)) == ["models.weak"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"methods.tuned.ranges": {"sigma_low": [1.0]}}, "methods.tuned.ranges has no sigma_high"),
        ({"methods.tuned.ranges.sigma_low": []}, "ranges.sigma_low is an empty list"),
        ({"methods.tuned.ranges.sigma_low": [-1.0]}, "sigma_low must be float of at least 0"),
        ({"methods.tuned.ranges.sigma_low": {"min": 2.0, "max": 1.0}}, "must be below max"),
        (
            {"methods.tuned.ranges.sigma_low": {"min": 0.0, "max": 1.0, "log": True}},
            "min=0 has no logarithm",
        ),
        ({"methods.tuned.ranges.sigma_lo": [1.0]}, "sigma_lo is no key of the method's guidance"),
        (
            {"methods.tuned.ranges.sigma_low": {"min": 8.5, "max": 9.0}},
            "methods.tuned.ranges: 100 draws in a row are refused",
        ),
        ({"tuning.seed": 0}, "tuning.seed=0 is scored too"),
        ({"tuning.seed": 10**6}, "tuning.seed=1000000 must be from 0 to"),
        ({"tuning.reference": "cgf"}, "tuning.reference=cgf is none of methods (cfg, tuned, left)"),
        ({"tuning.at": [1.25]}, "tuning.at has scale 1.25, which cfg has not"),
        ({"tuning.evaluations": 0}, "tuning.evaluations must be int of at least 1"),
        ({"tuning.error": "wrong_clas"}, "did you mean 'wrong_class'"),
        (
            {"generation.sampler": {"name": "dopri5"}},
            "evaluations=30: sampler dopri5 has no number of steps",
        ),
        (
            {"tuning.error": "class_accuracy"},
            "metric class_accuracy needs logits",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(change, words, tmp_path):
    config = json.loads(json.dumps(CONFIG))
    for key, value in change.items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    if "dopri5" in words:
        config["methods"] = {"cfg": config["methods"]["cfg"]}
    with pytest.raises(UserError) as refused:
        study(**loaded(tmp_path, config=config))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "study").exists()


def test_no_setting_within_the_evaluations_is_said(tmp_path):
    """Four candidates of one step are 8 at least."""
    guidance = {"name": "rejection", "of": "classifier_free", "candidates": 4}
    models = {"model": "exact", "classifier": "exact"}
    keys = {key: CONFIG[key] for key in ("scales", "data", "generation", "evaluation")}
    asked = {**keys, "settings": [{"models": models, "guidance": guidance}], "n": 40}
    asked |= {"evaluations": 5, "at": [1.5], "run_dir": str(tmp_path / "tune")}
    with pytest.raises(UserError, match=r"evaluations=5: no setting comes down to it, the least"):
        tune(**asked)
