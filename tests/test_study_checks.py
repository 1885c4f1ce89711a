"""A study tells its mistakes before its first stage, and leaves a finished one alone."""

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.tables import in_markdown
from lightning_cfg.runs.lock import Lock
from lightning_cfg.verbs.study import study

HEUN = {"name": "heun", "steps": 3}
LINEAR = {"net": {"name": "Linear"}, "learner": {"name": "Classification"}}
NOISY, CLEAN = ({"name": "NoisyClassifier", "clean": clean} for clean in (False, True))


@pytest.fixture
def small(training, mixture) -> dict:
    """A study that has a stage of every verb."""

    def fit(**sections: object) -> dict:
        config = training(trainer={"max_steps": 2, "accelerator": "cpu"}, **sections)
        return {key: value for key, value in config.items() if key != "data"}

    return {
        "data": mixture,
        "fits": {
            "base": fit(),
            "noisy": fit(**LINEAR, model=NOISY),
            "judge": fit(**LINEAR, model=CLEAN),
        },
        "methods": {
            "cfg": {"models": {"model": "base"}, "guidance": "classifier_free"},
            "cg": {
                "models": {"model": "base", "classifier": "noisy"},
                "guidance": "classifier_gradient",
            },
        },
        "discriminators": {"real": {"of": "base", "n": 8, "fit": fit(**LINEAR, model=NOISY)}},
        "scales": [1.0, 2.0],
        "samples": 8,
        "flows": {"all": [1.0, 2.0], "dedicated": [2.0]},
        "flow": fit(model={"name": "Flow"}, learner={"name": "Refinement"}),
        "sources": 8,
        "generation": {"sampler": HEUN, "trajectories": 4},
        "pairs": {"k": 3, "bank": 10},
        "trace": {"classifiers": {"noisy": "noisy"}},
        "evaluation": {"metrics": ["frechet"], "real": 20, "bank": 20, "classifier": "judge"},
    }


def laid_over(config: dict, change: dict) -> dict:
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config = {**config, key: laid_over(config[key], value) if both else value}
    return config


@pytest.fixture
def asked(call, small, tmp_path) -> Callable:
    def run(change: dict, *words: str):
        return call(study, laid_over(small, change), "run_dir=study", *words)

    return run


def test_a_study_with_a_stage_of_every_verb_is_tried_without_writing(asked):
    planned = asked({}, "plan=json")
    assert planned.status == 0, planned.err
    verbs = {stage["verb"] for stage in json.loads(planned.out)}
    assert verbs == {"fit", "generate", "pair", "refine", "evaluate", "trace"}
    assert not Path("study").exists()


MISTAKES = {
    "a misspelt judge": ({"evaluation": {"classifier": "juge"}}, "juge: no such file"),
    "another split": ({"evaluation": {"reference": "x"}}, "reference=x is none of the splits"),
    "draws that do not divide": ({"evaluation": {"draws": 3}}, "cannot be cut in 3 draws"),
    "a metric without its classifier": (
        {"evaluation": {"metrics": ["class_accuracy"], "classifier": None}},
        "metric class_accuracy needs logits",
    ),
    "a metric without its space": (
        {"evaluation": {"metrics": ["frechet_features"]}},
        "metric frechet_features needs",
    ),
    "statistics of no space": ({"evaluation": {"statistics": {"a": "b"}}}, "b: no such file"),
    "missing weights of a space": (
        {"evaluation": {"features": {"name": "inception", "weights": "absent.pth"}}},
        "absent.pth",
    ),
    "missing weights of the pairs' space": (
        {"pairs": {"features": {"name": "inception", "weights": "absent.pth"}}},
        "absent.pth",
    ),
    "farther than the end": (
        {"refinement": {"strength": 5.0}},
        "refinement.strength must be float from 0 to 1, not 5",
    ),
    "no step": (
        {"refinement": {"method": "euler", "steps": 0}},
        "refinement.steps must be int from 1",
    ),
    "guidance in a flow without dropout": (
        {"refinement": {"scale": 2.0}, "flow": {"model": {"label_dropout": 0.0}}},
        "scale=2 inside the flow",
    ),
    "an average that is not kept": ({"refinement": {"weights": 7}}, "no average of half-life 7"),
    "an average of another's": ({"generation": {"weights": 7}}, "no average of half-life 7"),
    "no neighbour": ({"pairs": {"k": 0}}, "pairs.k must be int of at least 1"),
    "more neighbours than points": ({"pairs": {"k": 11}}, "fewer than the k = 11 neighbours"),
    "no memory": ({"pairs": {"memory": 1e-9}}, "more than memory="),
    "all its own": (
        {"pairs": {"keep_close": 1.0}},
        "pairs.keep_close must be float from 0 to below 1",
    ),
    "a batch that does not divide": (
        {"flow": {"trainer": {"accumulate_grad_batches": 3}}},
        "batch_size=32 does not divide",
    ),
    "a flow without a length": ({"flow": {"trainer": {"max_steps": -1}}}, "trainer.max_steps"),
    "a key that fit sets": ({"flow": {"trainer": {"max_epochs": 3}}}, "trainer.max_epochs"),
    "a flow that is none": ({"flow": {"model": {"name": "EDM"}}}, "needs model Flow"),
    "a flow from noise": ({"flow": {"learner": {"name": "Diffusion"}}}, "sources of the pairs"),
    "kept by no score": ({"flow": {"keep": 1, "keep_by": "fid"}}, "keep_by"),
    "a denoiser as classifier": (
        {"methods": {"cg": {"models": {"classifier": "base"}}}},
        "models.classifier is no classifier",
    ),
    "a clean classifier in a trace": (
        {"trace": {"classifiers": {"judge": "judge"}}},
        "reads finished samples only",
    ),
    "a classifier as model": (
        {"methods": {"cfg": {"models": {"model": "noisy"}}}},
        "models.model is a classifier",
    ),
    "guidance without the null class": (
        {"fits": {"base": {"model": {"label_dropout": 0.0}}}},
        "label_dropout",
    ),
    "pictures of points": ({"generation": {"images": "zip"}}, "needs samples that are grey or RGB"),
    "a device that is not there": ({"pairs": {"device": "tpu9"}}, "device=tpu9"),
    "no batch": ({"generation": {"batch_size": 0}}, "generation.batch_size must be int of"),
}


@pytest.mark.parametrize("change, words", MISTAKES.values(), ids=MISTAKES)
def test_every_mistake_is_told_before_the_first_stage(asked, change, words):
    refused = asked(change)
    assert refused.status == 2, refused
    assert len(refused.err.strip().splitlines()) == 1
    assert words in refused.err
    assert "[1/" not in refused.out
    assert not Path("study").exists()


LEAN = {
    "scales": [1.0],
    "samples": 8,
    "generation": {"sampler": HEUN},
    "methods": {"cfg": {"models": {"model": "exact"}, "guidance": "classifier_free"}},
    "fits": {},
    "evaluation": {"metrics": ["frechet"], "real": 20, "bank": 20},
}


def test_a_finished_study_is_left_alone_by_what_is_refused_or_only_looks(call, mixture):
    def run(*words: str):
        return call(study, {**LEAN, "data": mixture}, "run_dir=study", *words)

    assert run("title=first").status == 0
    names = ("config.yaml", "study.json", "report.md")
    before = {name: Path("study", name).read_bytes() for name in names}
    for status, *words in (
        (0, "plan=true", "samples=4"),
        (0, "plan=json", "samples=4"),
        (2, "stage=generate cgf 1 fresh", "samples=4"),
        (2, "evaluation.reference=x"),
        (2, "scales=[strong]"),
        (2, "evaluation.draws=3"),
        (0, "stage=generate cfg 1 fresh", "samples=4"),  # of the next study, which has no report
    ):
        outcome = run(*words)
        assert outcome.status == status, (words, outcome.err)
        assert {name: Path("study", name).read_bytes() for name in names} == before, words
    assert run("title=second").status == 0
    assert "title: second" in Path("study/config.yaml").read_text()


def test_a_study_that_another_process_runs_is_refused(call, mixture):
    lock = Lock(Path("study"))
    lock.take()
    refused = call(study, {**LEAN, "data": mixture}, "run_dir=study")
    assert (refused.status, "study is being written by process" in refused.err) == (2, True)
    lock.release()
    assert call(study, {**LEAN, "data": mixture}, "run_dir=study").status == 0


def test_a_study_that_was_killed_at_once_can_be_started_again(call, mixture):
    Path("study").mkdir()
    Path("study/.study.json.1.tmp.json").write_text("{")
    assert call(study, {**LEAN, "data": mixture}, "run_dir=study").status == 0
    assert not Path("study/.study.json.1.tmp.json").exists()


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/etc/x", "a](b", "$x$", "a b", "<b>", "_a", "", "x" * 5000, "a.b"]
)
@pytest.mark.parametrize("where", ["fits", "methods", "cases", "variants", "discriminators"])
def test_names_that_are_no_names_of_files(small, tmp_path, monkeypatch, where, name):
    monkeypatch.chdir(tmp_path)
    asked = dict(small)
    of = {"fits": "base", "methods": "cfg", "discriminators": "real"}
    if where == "cases":
        asked |= {"data": None, "cases": {name: small["data"]}}
    elif where == "variants":
        asked |= {"variants": {name: {"pairs": {"k": 2}}}}
    else:
        asked[where] = {**small[where], name: small[where][of[where]]}
    with pytest.raises(UserError, match="letters, digits and _ only") as refused:
        study(**asked, run_dir="study")
    assert len(str(refused.value)) < 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names, told",
    [
        ({"cgf": "CFG"}, "names.cgf is no method and no variant of the study; did you mean 'cg'?"),
        ({"cfg": "a\nb"}, "names.cfg must be one line of 1 to 64 letters, not 'a\\nb'"),
        ({"cfg": " "}, "names.cfg must be one line of 1 to 64 letters, not ' '"),
        ({"cfg": "x" * 65}, "names.cfg must be one line of 1 to 64 letters"),
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(small, names, told, tmp_path):
    with pytest.raises(UserError) as refused:
        study(**small, names=names, run_dir="study")
    assert str(refused.value).startswith(told)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_a_title_is_shown_and_not_done(call, mixture, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"of another")
    title = f"a\n\n![x]({secret})\n\n<script>x</script> [l](javascript:y) $\\frac$ _b_ `c` **d**"
    config = {**LEAN, "data": mixture, "title": title}
    assert call(study, config, "run_dir=study").status == 0
    page, text = (Path("study", name).read_text() for name in ("report.html", "report.md"))
    assert base64.b64encode(b"of another").decode() not in page
    assert page.count("<script") == 2  # the page's own data and script
    assert "<script>x" not in page
    assert "javascript:y" not in re.findall(r'href="([^"]*)"', page)
    shown = html.unescape(re.search(r"<h1>(.*)</h1>", page)[1])
    assert shown == " ".join(title.split())
    assert f"<title>{html.escape(shown)}</title>" in page
    assert text.splitlines()[0] == "# " + in_markdown(title)
    assert text.splitlines()[1] == ""


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_stage_that_has_lost_its_output_is_done_again(call, mixture, training, harm):
    """It is tried as one that is still to come, and not by what is left of it."""
    base = {k: v for k, v in training(trainer={"max_steps": 2}).items() if k != "data"}
    asked = {**LEAN, "data": mixture, "fits": {"base": base}}
    asked["methods"] = {"cfg": {"models": {"model": "base"}, "guidance": "classifier_free"}}
    assert call(study, asked, "run_dir=study").status == 0
    (file,) = Path("study").glob("stages/fit-base-*/checkpoints/last.ckpt")
    whole = file.read_bytes()
    file.unlink() if harm == "lost" else file.write_bytes(whole[:100])
    plan = {s["name"]: s["state"] for s in json.loads(call(study, asked, "plan=json").out)}
    assert plan["fit base"] == "ready"  # of another directory
    planned = call(study, asked, "run_dir=study", "plan=json")
    assert planned.status == 0, planned.err
    plan = {s["name"]: s["state"] for s in json.loads(planned.out)}
    assert plan.pop("fit base") == "damaged"
    assert set(plan.values()) <= {"waits", "done"}
    assert "waits" in plan.values()
    told = call(study, asked, "run_dir=study", "plan=true").out
    assert "fit base: damaged: checkpoints/last.ckpt is " in told
    again = call(study, asked, "run_dir=study")
    assert again.status == (0 if harm == "lost" else 2), again.err
    if harm == "damaged":  # fit itself says so, and names the file
        assert "checkpoints/last.ckpt is damaged" in again.err
