"""Every guidance method through the verbs: what it costs is said, and a study can name it."""

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import manifest

from lightning_cfg import guidance
from lightning_cfg.config import load
from lightning_cfg.data import Mixture, RealOrGenerated
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.samplers import euler
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import read_set
from lightning_cfg.guidance import autoguidance
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.names import SAMPLES, TRAJECTORIES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study

DOCS = Path(__file__).parent.parent / "docs"
CONF = DOCS.parent / "conf"
STEPS = 5
EULER = {"name": "euler", "steps": STEPS, "sigma_min": 0.02, "sigma_max": 80.0}
FOUR = {
    "name": "Mixture",
    "means": [[-0.6, 0.1], [0.5, -0.3], [0.2, 0.6], [-0.3, -0.5]],
    "stds": [0.35, 0.35, 0.35, 0.35],
    "labels": [0, 1, 2, 3],
}
CFG = {"name": "classifier_free", "scale": 2.0}


def x_of(run: Path) -> torch.Tensor:
    return load_tensors(run / SAMPLES, "x", "c", "seed")["x"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, training) -> str:
    """A run whose two averages differ."""
    folder = tmp_path_factory.mktemp("base")
    learner = {"name": "Diffusion", "lr": 1e-2, "ema_half_life": [100, 1000], "ema_ramp": 0.0}
    return str(fit(**training(data=FOUR, learner=learner), run_dir=str(folder / "run")))


# Networks by their weights


def test_an_average_of_the_same_run_is_the_weak_model(base, tmp_path):
    made = {"guidance": {"name": "autoguidance", "scale": 3.0}, "sampler": EULER, "n": 8}
    weak = {"path": base, "weights": 1000}
    run = generate(run_dir=str(tmp_path / "a"), models={"model": base, "weak": weak}, **made)
    told = manifest(run)
    assert told["evaluations"] == {"model": STEPS, "weak": STEPS}
    assert told["settings"]["models"] == {"weak": {"weights": 1000}}

    main, other = (checkpoints.restore(base, weights=w) for w in ("ema", 1000))
    noise, c, draw = seeded(list(range(8)), (2,), 4)
    *_, (_, x) = sample(EULER, autoguidance(main, other, scale=3.0), noise, c, draw)
    torch.testing.assert_close(x_of(run), x.float())
    same = {"model": base, "weak": base}
    plain = generate(run_dir=str(tmp_path / "b"), models=same, **made)
    assert (x_of(plain) - x_of(run)).abs().max() > 1e-3
    other = {"model": base, "weak": {"path": base, "weights": 100}}
    with pytest.raises(UserError, match=r"models\.weak\.weights: 1000 there, 100 here"):
        generate(run_dir=str(run), models=other, **made)
    assert read_set(run).about["model_weights"] == "ema, weak 1000"


@pytest.mark.parametrize(
    "models, words",
    [
        ("weak: {path: P, weight: 3}", "did you mean 'models.weak.weights'"),
        ("weak: {weights: 3}", "models.weak.path is missing"),
        ("weak: {path: P, weights: [3]}", "models.weak.weights must be"),
        ("weak: 3", "models.weak must be str, a name in lightning_cfg.diffusers or a section"),
    ],
)
def test_a_mistake_in_a_network_is_named(tmp_path, models, words):
    file = tmp_path / "config.yaml"
    head = "guidance: autoguidance\nsampler: euler\nn: 4\nmodels:\n  model: P\n  "
    file.write_text(head + models)
    with pytest.raises(UserError) as error:
        load(generate, file)
    assert words in str(error.value)


def test_an_override_gives_a_network_its_weights(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("guidance: autoguidance\nsampler: euler\nn: 4\nmodels: {model: P, weak: P}\n")
    config = load(generate, file, ["models.weak.weights=raw"])
    weak = {"path": "P", "weights": "raw", "weaken": None, "decode": None}
    assert config["models"] == {"model": "P", "weak": weak}
    assert load(generate, file)["models"] == {"model": "P", "weak": "P"}


def test_a_half_life_that_the_run_has_not_is_named(base, tmp_path):
    models = {"model": base, "weak": {"path": base, "weights": 7}}
    made = {"guidance": {"name": "autoguidance", "scale": 3.0}, "sampler": EULER, "n": 8}
    with pytest.raises(UserError, match="no average of half-life 7; it has 100, 1000, or raw"):
        generate(run_dir=str(tmp_path / "a"), models=models, **made)


# What it costs


def test_cost_stands_in_manifests_and_tables(base, tmp_path, training):
    made = {"models": {"model": base}, "guidance": CFG, "sampler": EULER, "n": 12}
    run = generate(run_dir=str(tmp_path / "a"), batch_size=5, **made)
    told = manifest(run)
    assert told["evaluations"] == {"model": 2 * STEPS}
    assert 0 < told["seconds_per_sample"] * 12 <= told["seconds"] + 0.1

    pairs = save_tensors(
        tmp_path / "pairs.safetensors",
        x=torch.randn(8, 2),
        c=torch.arange(8) % 4,
        neighbours=torch.zeros(8, 1, dtype=torch.long),
        targets=torch.randn(1, 2),
        num_classes=torch.tensor(4),
    )
    flow = fit(
        **training(
            data={"name": "Pairs", "path": str(pairs)},
            model={"name": "Flow"},
            learner={"name": "Refinement"},
            batch_size=8,
        ),
        run_dir=str(tmp_path / "flow"),
    )
    refined = refine(
        run_dir=str(tmp_path / "b"), flow=str(flow), samples=str(run), method="heun", steps=3
    )
    own = manifest(refined)
    assert own["evaluations"] == {"flow": 6}
    table = evaluate(
        run_dir=str(tmp_path / "table"),
        samples={"before": str(run), "after": str(refined)},
        generate={"now": {**made, "seed": 3, "batch_size": 5, "weights": "ema"}},
        data=FOUR,
        metrics=[{"name": "wrong_class"}],
        real=20,
        bank=20,
    )
    numbers = {n["samples"]: n for n in json.loads((table / "metrics/numbers.json").read_text())}
    assert numbers["before"]["evaluations"] == numbers["now"]["evaluations"] == "model 10"
    assert numbers["after"]["evaluations"] == "model 10, flow 6"
    both = told["seconds_per_sample"] + own["seconds_per_sample"]
    assert float(numbers["after"]["seconds_per_sample"]) == pytest.approx(both, rel=0.01)
    assert float(numbers["now"]["seconds_per_sample"]) > 0
    assert (
        "evaluations model 10, flow 6, seconds_per_sample"
        in (table / "metrics/table.md").read_text()
    )


# A study of all methods

METHODS = {
    "cfg": (CFG, []),
    "cfg_cosine": ({**CFG, "scale": {"name": "cosine", "scale": 2.0}}, []),
    "cg": ({"name": "classifier_gradient", "base": "conditional"}, ["classifier"]),
    "atg": ({"name": "autoguidance"}, ["weak"]),
    "gfcg": ({"name": "gfcg", "classifier_input": "noisy"}, ["classifier"]),
    "gfcg_cfg": ({"name": "gfcg", "combine": "mixed"}, ["classifier"]),
    "gfcg_atg": ({"name": "gfcg_autoguidance"}, ["weak", "classifier"]),
    "apg": ({"name": "apg", "momentum": -0.5}, []),
    "cfgpp": ({"name": "cfg_plus_plus", "base": "conditional"}, []),
    "zero": ({"name": "cfg_zero_star"}, []),
    "cfg_rescaled": ({"name": "rescale", "of": CFG, "phi": 0.0}, []),  # of points nothing else
    "cfg_interval": ({"name": "interval", "of": CFG, "sigma_low": 0.05, "sigma_high": 5.0}, []),
    "gfcg_interval": (
        {"name": "interval", "of": {"name": "gfcg"}, "sigma_low": 0.05, "sigma_high": 5.0},
        ["classifier"],
    ),
    "cfg_rejection": ({"name": "rejection", "of": CFG, "candidates": 2}, ["classifier"]),
}


def test_a_study_can_name_every_method(base, tmp_path):
    weak = {"path": base, "weights": 1000}
    methods = {
        name: {
            "models": {"model": "exact"} | {r: weak if r == "weak" else "exact" for r in roles},
            "guidance": section,
        }
        for name, (section, roles) in METHODS.items()
    }
    methods["cads"] = {
        "models": {"model": base},
        "guidance": {"name": "cads", "of": CFG, "tau_1": 0.2},
    }
    config = {
        "data": FOUR,
        "fits": {},
        "methods": methods,
        "scales": [1.0, 2.0],
        "samples": 40,
        "generation": {"sampler": EULER, "batch_size": 40, "trajectories": 4},
        "trace": {"classifiers": {"posterior": "exact"}},
        "evaluation": {"metrics": ["wrong_class"], "real": 20, "bank": 20},
        "run_dir": str(tmp_path / "study"),
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    root = study(**load(study, file))
    with (root / "table.csv").open() as table:
        rows = {(r["method"], r["scale"], r["class"]): r for r in csv.DictReader(table)}
    assert len(rows) == 4 * (2 * len(methods) + 1)
    plain = {c: rows["cfg", "1", str(c)]["wrong_class"] for c in range(4)}
    for name in methods:
        one, two = rows[name, "1", "0"], rows[name, "2", "0"]
        assert float(two["seconds"]) > 0
        if name in ("cads", "cfg_rejection"):
            continue
        assert float(one["nfe"]) == STEPS, name  # no pass beside the model's own
        assert one["evaluations"].startswith(f"model {STEPS}"), name
        assert {c: rows[name, "1", str(c)]["wrong_class"] for c in range(4)} == plain, name
    spent = {name: rows[name, "2", "0"]["evaluations"] for name in methods}
    assert spent["cfg"] == spent["apg"] == spent["cfg_rescaled"] == f"model {2 * STEPS}"
    assert spent["zero"] == f"model {2 * STEPS - 2}"
    assert spent["atg"] == f"model {STEPS}, weak {STEPS}"
    assert spent["gfcg_atg"] == f"model {STEPS}, weak {STEPS}, classifier {STEPS}"
    assert STEPS < float(spent["cfg_interval"].split()[1]) < 2 * STEPS
    assert STEPS < float(spent["gfcg"].split()[1].rstrip(",")) <= 2 * STEPS
    assert spent["cfg_rejection"] == f"model {4 * STEPS}, classifier 2"
    report = (root / "report.md").read_text()
    assert "cfg_interval, guidance `interval of classifier_free`" in report
    assert f"weak {base} (weights 1000)" in report


def test_a_study_refuses_a_method_without_a_scale(tmp_path):
    config = {
        "data": FOUR,
        "fits": {},
        "methods": {"none": {"models": {"model": "exact"}, "guidance": "unguided"}},
        "scales": [1.0],
        "samples": 4,
        "generation": {"sampler": EULER},
        "run_dir": str(tmp_path / "study"),
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config))
    config = load(study, file)
    with pytest.raises(UserError, match=r"methods\.none: guidance unguided has no scale"):
        study(**config)


@pytest.mark.parametrize(
    "guidance, sampler, words",
    [
        ({"name": "interval", "of": CFG, "sigma_low": 0.1, "sigma_high": 1.0}, "dopri5",
         "methods.one: interval must know the sampler's steps, and dopri5"),
        ({"name": "cads", "of": CFG}, "dopri5", "methods.one: cads must know the sampler's steps"),
        ({"name": "cfg_plus_plus"}, "heun", "methods.one: cfg_plus_plus is for steps of the form"),
        ({"name": "rescale", "of": "cfg_plus_plus"}, "euler", "methods.one: rescale cannot take"),
    ],
)  # fmt: skip
def test_a_study_refuses_what_does_not_go_together_before_it_trains(
    training, tmp_path, guidance, sampler, words
):
    base = training()
    base.pop("data")
    config = {
        "data": FOUR,
        "fits": {"base": base},
        "methods": {"one": {"models": {"model": "base"}, "guidance": guidance}},
        "scales": [2.0],
        "samples": 4,
        "generation": {"sampler": sampler},
        "run_dir": str(tmp_path / "study"),
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config))
    config = load(study, file)
    with pytest.raises(UserError) as error:
        study(**config)
    assert words in str(error.value)
    assert not (tmp_path / "study").exists()


def test_the_trajectories_of_rejection_end_in_its_samples(tmp_path):
    made = {"models": {"model": "exact", "classifier": "exact"}, "data": FOUR, "sampler": EULER}
    guidance = {"name": "rejection", "candidates": 3}
    run = generate(
        run_dir=str(tmp_path / "a"), guidance=guidance, n=12, batch_size=5, trajectories=7, **made
    )
    path = load_tensors(run / TRAJECTORIES, "path", "sigma", "c", "seed")["path"]
    assert path.shape == (7, STEPS + 1, 2)
    assert torch.equal(path[:, -1], x_of(run)[:7])
    again = generate(run_dir=str(tmp_path / "b"), guidance=guidance, n=12, **made)
    torch.testing.assert_close(x_of(again), x_of(run))


# A discriminator


def test_real_or_generated_has_half_of_each(tmp_path):
    x = torch.arange(100.0)[:, None].expand(100, 2) + 1000
    path = save_tensors(tmp_path / "samples.safetensors", x=x)
    data = RealOrGenerated(real=FOUR, path=str(path))
    assert (data.shape, data.num_classes) == ((2,), 2)
    batches = [data.batch(Draws(seed=0, step=s, batch_size=500)) for s in range(4)]
    y, c = (torch.cat([batch[name] for batch in batches]) for name in ("y", "c"))
    assert torch.equal(y[:, 0] >= 1000, c == 0)  # what is generated is class 0
    assert len(y[c == 0, 0].unique()) == 100
    assert abs((c == 1).double().mean() - 0.5) < 0.05
    part = data.batch(Draws(seed=0, step=0, batch_size=500, rows=slice(100, 200)))
    assert torch.equal(part["y"], batches[0]["y"][100:200])
    other = save_tensors(tmp_path / "other.safetensors", x=torch.zeros(5, 3))
    with pytest.raises(UserError, match=r"shape \(3,\), not \(2,\)"):
        RealOrGenerated(real=FOUR, path=str(other)).batch(Draws(seed=0, step=0, batch_size=1))


def test_a_discriminator_that_fit_has_trained_guides(base, tmp_path, training):
    """A model of one Gaussian, data of another: guidance moves the samples towards the data."""
    one = {"name": "Mixture", "means": [[-0.5, 0.0]], "stds": [0.3], "labels": [0]}
    two = {**one, "means": [[0.5, 0.0]]}
    made = {"models": {"model": "exact"}, "sampler": EULER, "data": one}
    plain = generate(run_dir=str(tmp_path / "plain"), guidance={"name": "unguided"}, n=500, **made)
    judge = fit(
        **training(
            data={"name": "RealOrGenerated", "real": two, "path": str(plain)},
            net={"name": "MLP", "width": 32, "blocks": 1, "embed_class": False, "outputs": 2},
            model={"name": "NoisyClassifier"},
            learner={"name": "Classification", "lr": 5e-3, "ema_half_life": [2000]},
            batch_size=256,
            trainer={"max_steps": 200},
        ),
        run_dir=str(tmp_path / "judge"),
    )
    made["models"] = {"model": "exact", "discriminator": str(judge)}
    guidance = {"name": "discriminator_gradient", "scale": 2.0}
    run = generate(run_dir=str(tmp_path / "guided"), guidance=guidance, n=500, **made)
    assert manifest(run)["evaluations"] == {"model": STEPS, "discriminator": STEPS}
    before, after = x_of(plain)[:, 0].mean(), x_of(run)[:, 0].mean()
    assert before == pytest.approx(-0.5, abs=0.1)
    assert after == pytest.approx(0.5, abs=0.3)
    made["models"] = {"model": "exact", "discriminator": base}
    with pytest.raises(UserError, match=r"models\.discriminator is no classifier"):
        generate(run_dir=str(tmp_path / "wrong"), guidance=guidance, n=5, **made)


def test_a_classifier_of_other_classes_is_no_discriminator(tmp_path):
    made = {"models": {"model": "exact", "discriminator": "exact"}, "sampler": EULER, "data": FOUR}
    guidance = {"name": "discriminator_gradient"}
    with pytest.raises(UserError, match="discriminator has 4 classes, not the two of generated"):
        generate(run_dir=str(tmp_path / "wrong"), guidance=guidance, n=5, **made)


# docs/guidance.md

TEXT = (DOCS / "guidance.md").read_text()
LINES = re.findall(r"```yaml\nguidance: (.*)\n(?:sampler: (.*)\n)?```\nCost: (.*)", TEXT)


def costs(text: str) -> dict[str, tuple[int, int]]:
    """ "model 1 to 2, weak 1. ..." as {role: (least, most)}."""
    found = {}
    for role in ("model", "weak", "classifier", "discriminator", "strength"):
        if number := re.search(rf"\b{role} (\d)(?: to (\d))?", text.split(".")[0]):
            found[role] = int(number[1]), int(number[2] or number[1])
    return found


def test_the_guide_has_every_method():
    said = " ".join(line for line, *_ in LINES)
    assert [
        name for name in guidance.__all__ if f"name: {name}," not in said.replace("}", ",")
    ] == []


@pytest.mark.parametrize("line, sampler, cost", LINES, ids=[line[7:40] for line, *_ in LINES])
def test_the_guides_lines_work_and_cost_what_it_says(base, tmp_path, line, sampler, cost):
    networks = {"model": base if "cads" in line else "exact", "weak": base, "classifier": "exact"}
    expected = costs(cost)
    section = yaml.safe_load(line)
    if "discriminator" in expected:
        samples = save_tensors(tmp_path / "samples.safetensors", x=torch.randn(50, 2))
        settings = yaml.safe_load((CONF / "fractal_discriminator.yaml").read_text())
        settings["data"] = {"name": "RealOrGenerated", "real": FOUR, "path": str(samples)}
        settings |= {"batch_size": 16, "trainer": {"max_steps": 2, "accelerator": "cpu"}}
        networks["discriminator"] = str(fit(**settings, run_dir=str(tmp_path / "judge")))
    if "strength" in expected:
        settings = yaml.safe_load((CONF / "fractal_strength.yaml").read_text())
        settings["model"]["of"] = networks["model"] = base
        settings |= {"data": FOUR, "batch_size": 16}
        settings["trainer"] = {"max_steps": 2, "accelerator": "cpu"}
        networks["strength"] = str(fit(**settings, run_dir=str(tmp_path / "strength")))
    data = FOUR
    if "guidance_free" in line:
        settings = yaml.safe_load((CONF / "fractal_base.yaml").read_text()) | {"batch_size": 4}
        settings |= {"data": FOUR, "model": {"name": "GuidanceFree"}}
        settings["trainer"] = {"max_steps": 2, "accelerator": "cpu"}
        networks["model"] = str(fit(**settings, run_dir=str(tmp_path / "free")))
    if "frequency" in line or "rescale" in line:  # of points they mean nothing
        images = {"name": "helpers.toys.Halves"}
        net = {"name": "UnshuffleUNet", "channels": 4, "channel_mult": [1]}
        settings = yaml.safe_load((CONF / "fractal_base.yaml").read_text()) | {"batch_size": 4}
        settings |= {"data": images, "net": net, "trainer": {"max_steps": 2, "accelerator": "cpu"}}
        networks["model"] = str(fit(**settings, run_dir=str(tmp_path / "pictures")))
        data = images
    models = {role: networks[role] for role in expected}
    if "rejection" in line:
        models["classifier"] = "exact"
    file = tmp_path / "config.yaml"
    config = {"models": models, "guidance": section, "data": data, "n": 40}
    config["sampler"] = yaml.safe_load(sampler) if sampler else EULER
    file.write_text(yaml.safe_dump({**config, "run_dir": str(tmp_path / "run")}))
    run = generate(**load(generate, file))
    found = manifest(run)["evaluations"]
    for role, (least, most) in expected.items():
        assert least * STEPS <= found[role] <= most * STEPS, role
        assert least == most or least * STEPS < found[role] < most * STEPS, role


def test_the_guides_own_method_works(tmp_path, monkeypatch):
    code = TEXT.split("```python\n# away.py\n")[1].split("```")[0]
    line = TEXT.split(code)[1].split("```yaml\nguidance: ")[1].split("\n")[0]
    (tmp_path / "away.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "config.yaml"
    config = {"models": {"model": "exact"}, "sampler": EULER, "data": FOUR, "n": 30}
    text = yaml.safe_dump({**config, "run_dir": str(tmp_path / "run")})
    file.write_text(text + "guidance: " + line)
    run = generate(**load(generate, file))

    truth = Mixture(**{k: v for k, v in FOUR.items() if k != "name"}).truth
    noise, c, _ = seeded(list(range(30)), (2,), 4)
    levels = [sigma for sigma, _ in euler(truth, noise, c, **options(EULER))]
    x = noise * levels[0]
    for s, t in pairwise(levels):
        sigma = torch.full((30,), s, dtype=torch.float64)
        D = truth(x, sigma, c)
        other = truth(x, sigma, torch.ones_like(c))
        D = D + 2 * (D - other) * ((c != 1)[:, None] & (0.1 < s <= 5.0))
        x = x + (t - s) * (x - D) / s
    torch.testing.assert_close(x_of(run), x.float())
    with pytest.raises(UserError, match=r"did you mean 'guidance\.of\.label'"):
        load(generate, file, ["guidance.of.lable=2"])


def options(section: dict) -> dict:
    return {k: v for k, v in section.items() if k != "name"}
