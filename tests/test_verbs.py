"""The verbs one after another through files, on a small mixture; and the study that chains them."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.runs import manifest
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.data import Mixture
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine

CFG = {"name": "classifier_free", "scale": 2.0}
HEUN = {"name": "heun", "steps": 8}
NET = {"name": "MLP", "width": 32, "blocks": 1}
CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, training, mixture) -> SimpleNamespace:
    """Every verb once, each reading the files of those before it."""
    root = tmp_path_factory.mktemp("chain")

    def done(name: str, verb: Callable, **settings: object) -> Path:
        return verb(run_dir=str(root / name), **settings)

    base = training(net=NET, batch_size=128, trainer={"max_steps": 150})
    base_run = done("base", fit, **base)
    made = {"models": {"model": str(base_run)}, "guidance": CFG, "sampler": HEUN}
    sources = done("sources", generate, **made, n=300)
    fresh = done("fresh", generate, **made, n=60, seed=1000)
    pairs = done("pairs", pair, sources=[str(sources)], data=mixture, bank=400, k=5)
    flow = done(
        "flow",
        fit,
        **training(
            net=NET,
            data={"name": "Pairs", "path": str(pairs)},
            model={"name": "Flow"},
            learner={"name": "Refinement", "lr": 5e-3, "ema_half_life": [2000]},
            batch_size=128,
            trainer={"max_steps": 300},
        ),
    )
    refined = done("refined", refine, flow=str(flow), samples=str(fresh))
    table = done(
        "table",
        evaluate,
        samples={"before": str(fresh), "after": str(refined)},
        data=mixture,
        real=200,
        bank=400,
        fresh=200,
    )
    return SimpleNamespace(
        root=root, base=base_run, sources=sources, fresh=fresh, pairs=pairs, flow=flow,
        refined=refined, table=table, made=made, training=base,
    )  # fmt: skip


def test_manifests(chain):
    """Each artefact says what made it, of which inputs, and its own hash."""
    read = {
        "base": {},
        "sources": {"models.model": chain.base / LAST},
        "fresh": {"models.model": chain.base / LAST},
        "pairs": {"sources.0": chain.sources / SAMPLES},
        "flow": {"data.path": chain.pairs / PAIRS},
        "refined": {"flow": chain.flow / LAST, "samples": chain.fresh / SAMPLES},
        "table": {
            "samples.before": chain.fresh / SAMPLES,
            "samples.after": chain.refined / SAMPLES,
        },
    }
    for name, files in read.items():
        told = manifest(chain.root / name)
        assert told["inputs"] == {role: sha256(file) for role, file in files.items()}
        assert told["outputs"]
        for file, digest in told["outputs"].items():
            assert sha256(chain.root / name / file) == digest
        assert torch.__version__.startswith(told["packages"]["torch"])
        assert {"python", "lightning", "lightning_cfg"} <= told["packages"].keys()
        assert told["seconds"] >= 0
    told = manifest(chain.fresh)
    assert told["verb"] == "generate"
    assert told["settings"]["guidance"] == CFG
    assert (told["settings"]["seed"], told["settings"]["n"]) == (1000, 60)
    assert told["weights"] == "ema"
    assert manifest(chain.refined)["weights"] == "ema"
    assert manifest(chain.base)["step"] == 150
    assert manifest(chain.pairs)["pairs"] == 300


@pytest.mark.parametrize(
    "name, verb, output",
    [
        ("fresh", generate, SAMPLES),
        ("pairs", pair, PAIRS),
        ("refined", refine, SAMPLES),
        ("table", evaluate, "metrics/metrics.json"),
    ],
)
def test_config_of_a_run_reproduces_it(chain, tmp_path, name, verb, output):
    config = load(verb, chain.root / name / "config.yaml", [f"run_dir={tmp_path / 'again'}"])
    verb(**config)
    assert sha256(tmp_path / "again" / output) == sha256(chain.root / name / output)


def load_all(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / SAMPLES, "x", "c", "seed")


def test_samples_carry_their_seeds(chain):
    held = load_all(chain.fresh)
    assert held["seed"].tolist() == list(range(1000, 1060))
    assert set(held["c"].tolist()) == {0, 1}
    after = load_all(chain.refined)
    assert torch.equal(after["c"], held["c"])
    assert torch.equal(after["seed"], held["seed"])


def test_finished_stages_are_not_redone(chain, mixture, capsys):
    times = {path: path.stat().st_mtime_ns for path in chain.root.rglob("*") if path.is_file()}
    fit(run_dir=str(chain.base), **chain.training)
    generate(run_dir=str(chain.fresh), **chain.made, n=60, seed=1000)
    pair(run_dir=str(chain.pairs), sources=[str(chain.sources)], data=mixture, bank=400, k=5)
    refine(run_dir=str(chain.refined), flow=str(chain.flow), samples=str(chain.fresh))
    samples = {"before": str(chain.fresh), "after": str(chain.refined)}
    evaluate(run_dir=str(chain.table), samples=samples, data=mixture, real=200, bank=400, fresh=200)
    assert capsys.readouterr().out.count("finished already") == 5
    now = {path: path.stat().st_mtime_ns for path in chain.root.rglob("*") if path.is_file()}
    assert now == times


def test_other_settings_are_refused(chain):
    with pytest.raises(UserError, match=r"guidance\.scale: 2\.0 there, 3\.0 here"):
        generate(
            run_dir=str(chain.fresh),
            **{**chain.made, "guidance": {**CFG, "scale": 3.0}},
            n=60,
            seed=1000,
        )


def no_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()


def truncated(run: Path) -> None:
    file = run / SAMPLES
    file.write_bytes(file.read_bytes()[:-40])


def no_output(run: Path) -> None:
    (run / SAMPLES).unlink()


@pytest.mark.parametrize("cut", [no_manifest, truncated, no_output])
def test_cut_off_stage_is_redone(chain, tmp_path, cut):
    run = tmp_path / "run"
    shutil.copytree(chain.fresh, run)
    whole = sha256(run / SAMPLES)
    cut(run)
    generate(run_dir=str(run), **chain.made, n=60, seed=1000)
    assert sha256(run / SAMPLES) == whole
    assert manifest(run)["outputs"] == {SAMPLES: whole}


def test_samples_depend_on_their_seed_only(chain, tmp_path):
    """At any batch size, and in whatever company: exact labels, samples to rounding."""
    runs = [
        generate(run_dir=str(tmp_path / str(size)), **chain.made, n=30, seed=1000, batch_size=size)
        for size in (1, 7, 30)
    ]
    whole = load_all(chain.fresh)
    for run in runs:
        held = load_all(run)
        assert torch.equal(held["seed"], whole["seed"][:30])
        assert torch.equal(held["c"], whole["c"][:30])
        torch.testing.assert_close(held["x"], whole["x"][:30], rtol=0, atol=1e-3)


def test_given_class_keeps_the_noise(chain, tmp_path):
    """The label is drawn even if it is overridden: samples that had it anyway stay the same."""
    run = generate(run_dir=str(tmp_path / "one"), **chain.made, n=30, seed=1000, class_label=1)
    held, whole = load_all(run), load_all(chain.fresh)
    assert held["c"].tolist() == [1] * 30
    own = whole["c"][:30] == 1
    torch.testing.assert_close(held["x"][own], whole["x"][:30][own], rtol=0, atol=1e-3)
    assert (held["x"][~own] - whole["x"][:30][~own]).abs().amax(1).min() > 1e-3


def test_stochastic_sampler_uses_the_samples_own_noise(chain, tmp_path):
    made = {**chain.made, "sampler": {"name": "ddpm", "steps": 40}}
    one = generate(run_dir=str(tmp_path / "one"), **made, n=10, batch_size=10)
    few = generate(run_dir=str(tmp_path / "few"), **made, n=10, batch_size=3)
    torch.testing.assert_close(load_all(one)["x"], load_all(few)["x"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 150])
def test_dopri5_agrees_with_heun(chain, training, tmp_path, steps):
    """Both solve the same equation.

    A network of one step is so smooth that dopri5 takes long steps: none may pass the end of the
    equation, where sigma turns negative and its logarithm NaN.
    """
    base = training(net=NET, batch_size=128, trainer={"max_steps": steps})
    base = chain.base if steps == 150 else fit(run_dir=str(tmp_path / "base"), **base)
    made = {**chain.made, "models": {"model": str(base)}, "n": 20, "seed": 1000}
    heun = {**made, "sampler": {"name": "heun", "steps": 100}}
    dopri5 = {**made, "sampler": {"name": "dopri5"}}
    one = generate(run_dir=str(tmp_path / "heun"), **heun)
    two = generate(run_dir=str(tmp_path / "dopri5"), **dopri5)
    torch.testing.assert_close(load_all(one)["x"], load_all(two)["x"], rtol=0, atol=0.02)


def test_raw_weights_are_not_the_average(chain, tmp_path):
    made = {**chain.made, "n": 30, "seed": 1000}
    raw = generate(run_dir=str(tmp_path / "raw"), **made, weights="raw")
    other = generate(run_dir=str(tmp_path / "other"), **made, weights=1000)
    first = load_all(chain.fresh)["x"][:30]
    assert manifest(raw)["weights"] == "raw"
    assert (load_all(raw)["x"] - first).abs().max() > 1e-3
    assert (load_all(other)["x"] - first).abs().max() > 1e-3
    named = generate(run_dir=str(tmp_path / "named"), **made, weights=100)  # what ema stands for
    torch.testing.assert_close(load_all(named)["x"], first, rtol=0, atol=1e-3)


def test_evaluations_are_counted(chain):
    """Heun takes 2 steps - 1 evaluations, and guidance calls the network twice in each."""
    assert manifest(chain.fresh)["evaluations"] == {"model": 2 * (2 * HEUN["steps"] - 1)}
    assert manifest(chain.refined)["evaluations"]["flow"] >= 7  # a step of dopri5 and its start


def test_pairs_are_the_true_neighbours_of_the_class(chain, mixture):
    held = load_tensors(
        chain.pairs / PAIRS, "x", "c", "neighbours", "targets", "distance", "num_classes"
    )
    source = load_all(chain.sources)
    assert torch.equal(held["x"], source["x"])
    assert torch.equal(held["c"], source["c"])
    assert int(held["num_classes"]) == 2
    keys = {key: value for key, value in mixture.items() if key != "name"}
    y, c = Mixture(**keys).real("bank", 400)
    distance = torch.cdist(held["x"].double(), y.double())
    distance = distance.masked_fill(held["c"][:, None] != c, float("inf"))
    nearest, index = distance.topk(5, largest=False)
    torch.testing.assert_close(held["distance"].double(), nearest, rtol=1e-5, atol=1e-6)
    assert torch.equal(held["targets"][held["neighbours"]], y[index])


def test_sources_share_n_equally(chain, mixture, tmp_path):
    files = []
    for i in range(3):
        x, c, seed = torch.full((20, 2), float(i)), torch.arange(20) % 2, torch.arange(20)
        files.append(str(save_tensors(tmp_path / f"{i}.safetensors", x=x, c=c, seed=seed)))
    run = pair(run_dir=str(tmp_path / "run"), sources=files, data=mixture, n=31, k=2, bank=50)
    x = load_tensors(run / PAIRS, "x")["x"][:, 0]
    assert sorted((x == i).sum().item() for i in range(3)) == [10, 10, 11]
    with pytest.raises(UserError, match=r"holds 20 samples, not the 2\d wanted"):
        pair(run_dir=str(tmp_path / "more"), sources=files, data=mixture, n=70, k=2, bank=50)


def test_refinement_moves_samples_towards_their_class(chain):
    rows = json.loads((chain.table / "metrics/metrics.json").read_text())
    by = {(row["samples"], row["class"]): row for row in rows}
    before, after = (
        sum(by[stage, c]["nearest_real"] for c in (0, 1)) for stage in ("before", "after")
    )
    assert after < before


def test_table_has_a_row_per_set_and_class(chain, mixture):
    rows = json.loads((chain.table / "metrics/metrics.json").read_text())
    labels = [(row["samples"], row["class"]) for row in rows]
    assert labels == [(s, c) for s in ("before", "after", "real") for c in (0, 1)]
    count = load_all(chain.fresh)["c"].bincount().tolist()
    assert [row["n"] for row in rows] == [*count, *count, 200, 200]
    asked = {
        "frechet", "energy_distance", "nll_mean", "nll_median", "outliers", "wrong_class",
        "nearest_real", "recall", "effective_targets",
    }  # fmt: skip
    real = rows[4]
    assert asked <= real.keys(), f"{asked - real.keys()} missing"
    assert real["outliers"] < 0.03  # the threshold is the 0.1 % quantile of real points
    assert real["frechet"] < 0.05
    with (chain.table / "metrics/metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(rows[0])
    assert float(table[4]["recall"]) == pytest.approx(real["recall"], rel=1e-5)


def test_exact_models_stand_for_checkpoints(mixture, tmp_path):
    """Guidance by the exact classifier equals classifier-free guidance by the exact denoiser."""
    made = {"data": mixture, "sampler": {"name": "heun", "steps": 16}, "n": 40}
    gradient = {"name": "classifier_gradient", "scale": 2.0}
    one = generate(
        run_dir=str(tmp_path / "one"),
        models={"model": "exact", "classifier": "exact"},
        guidance=gradient,
        **made,
    )
    two = generate(run_dir=str(tmp_path / "two"), models={"model": "exact"}, guidance=CFG, **made)
    torch.testing.assert_close(load_all(one)["x"], load_all(two)["x"], rtol=0, atol=1e-4)
    assert manifest(one)["settings"]["models"] == {"model": "exact", "classifier": "exact"}


# Trajectories


def trajectories(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / TRAJECTORIES, "path", "sigma", "c", "seed")


@pytest.mark.parametrize(
    "sampler, levels, rounding",
    [
        (HEUN, 9, 1e-5),
        ({"name": "euler", "steps": 5}, 6, 1e-5),
        ({"name": "ddim", "steps": 5}, 6, 1e-5),
        ({"name": "ddpm", "steps": 20}, 21, 1e-5),
        ({"name": "dopri5", "points": 6}, 8, 0.03),  # its steps are shared by the batch
        ({"name": "dopri5"}, 3, 0.01),
    ],
)
def test_trajectories_are_those_of_the_first_seeds(chain, tmp_path, sampler, levels, rounding):
    """In any batches: from the seeds' noise, at falling levels, to the samples themselves."""
    made = {**chain.made, "sampler": sampler, "n": 8, "seed": 1000}
    few, many = (
        generate(run_dir=str(tmp_path / str(size)), **made, batch_size=size, trajectories=5)
        for size in (3, 7)
    )
    held, other = trajectories(few), trajectories(many)
    assert held["path"].shape == (5, levels, 2)
    assert held["path"].dtype == torch.float32
    assert held["seed"].tolist() == list(range(1000, 1005))
    for name in ("sigma", "c", "seed"):
        assert torch.equal(held[name], other[name])
    torch.testing.assert_close(held["path"], other["path"], rtol=rounding, atol=rounding)
    for run in (few, many):
        samples, path = load_all(run), trajectories(run)
        assert torch.equal(path["path"][:, -1], samples["x"][:5])
        assert torch.equal(path["c"], samples["c"][:5])
    assert held["sigma"].dtype == torch.float64
    assert (held["sigma"].diff() < 0).all()
    # the limits of EDM, and those of the DDPM's levels inside them
    assert held["sigma"][0].item() == pytest.approx(80, rel=1e-9)
    assert held["sigma"][-1] == 0
    noise, c, _ = seeded(held["seed"].tolist(), (2,), 2)
    torch.testing.assert_close(held["path"][:, 0], (held["sigma"][0] * noise).float())
    assert torch.equal(held["c"], c)
    plain = generate(run_dir=str(tmp_path / "plain"), **made, batch_size=3)
    assert torch.equal(load_all(plain)["x"], load_all(few)["x"])  # recording changes nothing
    assert not (plain / TRAJECTORIES).exists()


def test_trajectories_fit_their_noise_levels(chain, mixture, tmp_path):
    """Each point is one of a finer run: the levels are those at which the points were."""
    sampler = {"name": "dopri5", "sigma_min": 0.01, "sigma_max": 50.0, "rtol": 1e-8, "atol": 1e-8}
    made = {"models": {"model": "exact"}, "guidance": CFG, "data": mixture, "n": 6}
    one, two = (
        trajectories(
            generate(
                run_dir=str(tmp_path / str(points)),
                **made,
                sampler=sampler | {"points": points},
                trajectories=6,
            )
        )
        for points in (3, 12)
    )
    assert torch.isclose(one["sigma"][:, None], two["sigma"], rtol=1e-9).sum() == 5
    torch.testing.assert_close(one["sigma"][:4], two["sigma"][[0, 4, 8, 12]])
    torch.testing.assert_close(one["path"][:, :4], two["path"][:, [0, 4, 8, 12]])


def test_trajectories_are_an_output_of_the_run(chain, tmp_path, capsys):
    made = {**chain.made, "n": 6, "trajectories": 6}
    run = generate(run_dir=str(tmp_path / "run"), **made)
    told = manifest(run)
    assert told["outputs"] == {name: sha256(run / name) for name in (SAMPLES, TRAJECTORIES)}
    assert told["settings"]["trajectories"] == 6
    assert told["evaluations"] == {"model": 2 * (2 * HEUN["steps"] - 1)}
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    generate(run_dir=str(run), **made)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times
    (run / TRAJECTORIES).unlink()
    generate(run_dir=str(run), **made)
    assert manifest(run)["outputs"] == told["outputs"]
    with pytest.raises(UserError, match="trajectories: 6 there, 5 here"):
        generate(run_dir=str(run), **{**made, "trajectories": 5})


def test_files_are_read_from_their_own_folder(chain, mixture, tmp_path, monkeypatch):
    """A1: a file that is named without a folder has no run above it."""
    shutil.copyfile(chain.fresh / SAMPLES, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    how = {"data": mixture, "bank": 50}
    scored = evaluate(samples={"a": "a.safetensors"}, real=50, **how, run_dir="scored")
    told = json.loads((scored / "metrics/numbers.json").read_text())
    assert {number["source"] for number in told} == {"a.safetensors"}
    paired = pair(sources=["a.safetensors"], k=2, **how, run_dir="paired")
    assert len(load_tensors(paired / PAIRS, "x")["x"]) == 60


# The study

study = pytest.importorskip(
    "lightning_cfg.verbs.study", reason="the study cannot be imported"
).study
SMALL = [
    "fits.base.trainer.max_steps=60",
    "fits.classifier.trainer.max_steps=30",
    "fits.base.net.width=16",
    "fits.base.batch_size=64",
    "fits.classifier.batch_size=64",
    "flow.net.width=16",
    "flow.batch_size=64",
    "flow.trainer.max_steps=40",
    "flow.trainer.accelerator=cpu",
    "scales=[1, 2]",
    "flows={all: [1, 2], dedicated: [2]}",
    "sources=200",
    "samples=200",
    "generation.sampler.steps=8",
    "pairs={k: 5, bank: 200}",
    "evaluation={real: 200, bank: 200}",
    "refinement={rtol: 1e-3, atol: 1e-3}",
]
LEADING = ["method", "scale", "class", "stage", "flow", "nfe", "evaluations", "seconds", "n"]


def run_study(root: Path, mixture: dict, *more: str) -> dict[str, dict]:
    data = "data=" + json.dumps(mixture)
    config = load(
        study, CONF / "studies/fractal_quick.yaml", [data, *SMALL, *more, f"run_dir={root}"]
    )
    study(**config)
    stages = json.loads((root / "study.json").read_text())["stages"]
    assert len({stage["name"] for stage in stages}) == len(stages)
    return {stage["name"]: stage for stage in stages}


@pytest.fixture(scope="module")
def small_study(tmp_path_factory, mixture) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("study") / "small"
    return SimpleNamespace(root=root, stages=run_study(root, mixture))


def test_study_table(small_study):
    with (small_study.root / "table.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames[:9] == LEADING
    assert len(reader.fieldnames) >= 9 + 9
    methods = {"classifier_guidance", "classifier_free"}
    expected = {
        (method, scale, c, stage, flow)
        for method in methods
        for scale in (1.0, 2.0)
        for c in ("0", "1")
        for stage, flow in (("before", ""), ("after", "all"), ("after", "dedicated"))
        if flow != "dedicated" or scale == 2.0
    }
    cells = [
        (r["method"], float(r["scale"]), r["class"], r["stage"], r["flow"])
        for r in rows
        if r["method"] in methods
    ]
    assert set(cells) == expected
    assert len(cells) == len(expected)
    for row in rows:
        if row["method"] == "classifier_free":
            # scale 1 skips the pass that would be multiplied by nothing
            least = 15 * (1 if float(row["scale"]) == 1 else 2)
            more = float(row["nfe"]) - least
            assert more == 0 if row["stage"] == "before" else more >= 7
    for name in ("report.md", "report.html"):
        assert (small_study.root / name).stat().st_size > 1000


def all_counted(out: str, stages: dict) -> bool:
    """Whether the stages were announced as [1/n] ... [n/n]."""
    n = len(stages)
    return re.findall(r"^(\[\d+/\d+\]) ", out, re.M) == [f"[{k}/{n}]" for k in range(1, n + 1)]


def test_second_call_reuses_every_stage(small_study, mixture, capsys):
    assert not any(stage["reused"] for stage in small_study.stages.values())
    again = run_study(small_study.root, mixture)
    out = capsys.readouterr().out
    assert all_counted(out, again)
    assert " left)" not in out  # nothing takes time
    assert all(stage["reused"] for stage in again.values())
    assert {n: s["hash"] for n, s in again.items()} == {
        n: s["hash"] for n, s in small_study.stages.items()
    }


def test_longer_flows_rerun_what_depends_on_them_only(small_study, mixture, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_study.root, root)
    stages = run_study(root, mixture, "flow.trainer.max_steps=50")
    redone = {name for name, stage in stages.items() if not stage["reused"]}
    # every generation is scored beside its refinements, in one table
    expected = {
        name for name in stages
        if name.startswith(("fit flow", "refine", "evaluate")) and name != "evaluate real"
    }  # fmt: skip
    assert redone == expected


def test_new_scale_retrains_nothing(small_study, mixture, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_study.root, root)
    stages = run_study(root, mixture, "scales=[1, 1.5, 2]")
    redone = {name for name, stage in stages.items() if not stage["reused"]}
    assert redone
    assert all(" 1.5" in name for name in redone)


def test_a_study_stage_by_stage_is_the_same_study(small_study, mixture, tmp_path, capsys):
    """As several machines would do it: each call runs one stage, found by the study's own plan."""
    root = tmp_path / "by_stage"

    def call(*overrides: str) -> str:
        data = "data=" + json.dumps(mixture)
        fixed = [data, *SMALL, f"run_dir={root}"]
        capsys.readouterr()
        study(**load(study, CONF / "studies/fractal_quick.yaml", [*fixed, *overrides]))
        return capsys.readouterr().out

    def states() -> dict[str, str]:
        lines = call("plan=true").strip().splitlines()
        assert re.match(r"\d+ stages: \d+ trainings on .* samples of 15 evaluations", lines[0])
        assert re.match(r"in all \S+ FLOP; of one H100 ", next(x for x in lines if "in all" in x))
        told = [line.partition(" (")[0] for line in lines[1:] if not line.startswith("in all")]
        return dict(line.split(": ", 1) for line in told)

    first = states()
    assert set(first) == set(small_study.stages)
    assert {state for name, state in first.items() if name.startswith("fit ") and "flow" not in name
            } == {"ready"}  # fmt: skip
    with pytest.raises(UserError, match="needs these to be done before: fit base"):
        call("stage=generate classifier_free 2 fresh")
    with pytest.raises(UserError, match=r"stage=fit bse is no stage .* 'fit base'"):
        call("stage=fit bse")
    with pytest.raises(UserError, match=r"stage=fit bse is no stage .* 'fit base'"):
        call("stage=fit bse", "plan=true")
    assert not (root / "stages").exists()
    done = 0
    while ready := [name for name, state in states().items() if state == "ready"]:
        for name in ready:
            call(f"stage={name}")
            done += 1
        assert not (root / "report.md").exists()
    assert done == len(small_study.stages)
    assert set(states().values()) == {"done"}
    call()
    stages = json.loads((root / "study.json").read_text())["stages"]
    assert all(stage["reused"] for stage in stages)
    tables = []
    for place in (root, small_study.root):
        with (place / "table.csv").open() as file:  # the clock alone says something else
            rows = list(csv.DictReader(file))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert tables[0] == tables[1]


LINES = {
    "far": {"name": "Mixture", "means": [[-1.0], [1.0]], "stds": [0.2, 0.2], "labels": [0, 1]},
    "close": {"name": "Mixture", "means": [[-0.1], [0.1]], "stds": [0.2, 0.2], "labels": [0, 1]},
}


@pytest.fixture(scope="module")
def gaussians(training) -> Callable[..., dict]:
    """The config of a study of two cases, without refinement."""

    def config(root: Path, **changed: object) -> dict:
        base = training(model={"name": "DDPM", "label_dropout": 0.5})
        net, model = {"name": "Linear"}, {"name": "NoisyClassifier"}
        linear = training(net=net, model=model, learner={"name": "Classification"})
        fits = {"base": base, "linear": linear}
        for section in fits.values():
            section.pop("data")
        models = {"model": "base", "classifier": "linear"}
        return {
            "cases": LINES,
            "fits": fits,
            "methods": {
                "exact_cfg": {"models": {"model": "exact"}, "guidance": CFG},
                "cg": {"models": models, "guidance": {"name": "classifier_gradient"}},
            },
            "scales": [1.0, 2.0],
            "samples": 60,
            "generation": {
                "sampler": {"name": "heun", "steps": 6, "sigma_min": 0.02, "sigma_max": 80.0},
                "trajectories": 20,
            },
            "trace": {"classifiers": {"posterior": "exact"}},
            "evaluation": {"metrics": ["wasserstein", "wrong_class"], "real": 50, "bank": 50},
            "run_dir": str(root),
            **changed,
        }

    return config


def run_cases(config: dict, folder: Path) -> dict[str, dict]:
    """The study as from its file; its stages by name."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    root = study(**load(study, file))
    return {s["name"]: s for s in json.loads((root / "study.json").read_text())["stages"]}


@pytest.fixture(scope="module")
def cases(tmp_path_factory, gaussians) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("cases")
    stages = run_cases(gaussians(folder / "study"), folder)
    return SimpleNamespace(root=folder / "study", stages=stages)


@pytest.fixture
def copied(cases, tmp_path) -> Path:
    return Path(shutil.copytree(cases.root, tmp_path / "study"))


def test_a_study_does_everything_on_each_case(cases):
    per_scale = {
        f"{verb} {method} {scale}{what}"
        for method in ("exact_cfg", "cg")
        for scale in (1, 2)
        for verb, what in (("generate", " fresh"), ("evaluate", ""), ("trace", ""))
    }
    expected = {"fit base", "fit linear", "evaluate real"} | per_scale
    assert cases.stages.keys() == {f"{case} {name}" for case in LINES for name in expected}
    for name, stage in cases.stages.items():
        asked = manifest(cases.root / stage["directory"])
        case = LINES[name.split()[0]]
        data = {**asked["settings"], **asked["free"]}.get("data")
        assert data == {**case, "weights": None, "seed": 0, "limit": None}


def test_a_cases_trajectories_are_traced_against_its_own_classifier_too(cases):
    for case in LINES:
        for method, own in (("exact_cfg", []), ("cg", ["own"])):
            stage = cases.root / cases.stages[f"{case} trace {method} 2"]["directory"]
            rows = json.loads((stage / "metrics/trajectories.json").read_text())
            keys = [(r["samples"], r["classifier"], r["class"]) for r in rows]
            assert keys == [("before", n, c) for n in (*own, "posterior") for c in (0, 1)]
            assert [r["n"] for r in rows[:2]] == [r["n"] for r in rows[-2:]]
            assert sum(r["n"] for r in rows[:2]) == 20
        linear = cases.root / cases.stages[f"{case} fit linear"]["directory"]
        assert manifest(stage)["inputs"]["classifiers.own"] == sha256(linear / LAST)


def test_table_of_cases(cases):
    with (cases.root / "table.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["data", *LEADING, "wasserstein", "wrong_class"]
    of_method = [
        (case, method, str(scale), c, "before")
        for case in LINES
        for method in ("exact_cfg", "cg")
        for scale in (1, 2)
        for c in ("0", "1")
    ]
    keys = [(r["data"], r["method"], r["scale"], r["class"], r["stage"]) for r in rows]
    for case in LINES:  # each case by itself, real last
        own = [key for key in of_method if key[0] == case]
        own += [(case, "real", "", c, "real") for c in ("0", "1")]
        assert [key for key in keys if key[0] == case] == own
    assert len(keys) == 2 * (8 + 2)
    assert [key[0] for key in keys] == sorted((key[0] for key in keys), key=list(LINES).index)
    real = {r["data"]: float(r["wrong_class"]) for r in rows if r["stage"] == "real"}
    assert real["far"] < 0.05 < 0.2 < real["close"]
    for name in ("report.md", "report.html"):
        assert (cases.root / name).stat().st_size > 1000


@pytest.mark.parametrize(
    "name, inside",
    [("trajectories", "metrics/trajectories.csv"), ("curves", "metrics/curves.csv")],
)
def test_tables_of_trajectories_hold_those_of_every_trace(cases, name, inside):
    expected = []
    for stage in cases.stages.values():
        if stage["verb"] == "trace":
            case, _, method, scale = stage["name"].split()
            with (cases.root / stage["directory"] / inside).open() as file:
                for row in csv.DictReader(file):
                    assert row.pop("samples") == "before"
                    expected.append({"data": case, "method": method, "scale": scale, **row})
    with (cases.root / f"{name}.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table == expected
    assert list(table[0])[:5] == ["data", "method", "scale", "class", "classifier"]


def test_a_second_call_of_cases_runs_nothing_again(cases, gaussians, copied, tmp_path, capsys):
    times = {path: path.stat().st_mtime_ns for path in (copied / "stages").rglob("*")}
    capsys.readouterr()
    again = run_cases(gaussians(copied), tmp_path)
    assert all_counted(capsys.readouterr().out, again)
    assert all(stage["reused"] for stage in again.values())
    assert {path: path.stat().st_mtime_ns for path in (copied / "stages").rglob("*")} == times
    hashes = {name: stage["hash"] for name, stage in cases.stages.items()}
    assert {name: stage["hash"] for name, stage in again.items()} == hashes


def test_config_of_a_study_of_cases_reproduces_it(cases, copied):
    root = study(**load(study, cases.root / "config.yaml", [f"run_dir={copied}"]))
    stages = json.loads((root / "study.json").read_text())["stages"]
    assert [stage["name"] for stage in stages if not stage["reused"]] == []
    assert len(stages) == len(cases.stages)


def redone(stages: dict[str, dict]) -> set[str]:
    return {name for name, stage in stages.items() if not stage["reused"]}


def test_a_new_scale_of_cases_runs_its_own_stages(gaussians, copied, tmp_path, capsys):
    stages = run_cases(gaussians(copied, scales=[1.0, 1.5, 2.0]), tmp_path)
    assert all_counted(capsys.readouterr().out, stages)
    expected = {name for name in stages if " 1.5" in name}
    assert len(expected) == 2 * 2 * 3
    assert redone(stages) == expected


def test_another_number_of_trajectories_retrains_nothing(gaussians, copied, tmp_path):
    config = gaussians(copied)
    config["generation"]["trajectories"] = 30
    stages = run_cases(config, tmp_path)
    expected = {name for name in stages if " generate " in name or " trace " in name}
    # tables are made anew, of the same samples
    assert redone(stages) - {name for name in stages if " evaluate " in name} == expected
    held = load_tensors(copied / stages["far generate cg 1 fresh"]["directory"] / TRAJECTORIES, "c")
    assert len(held["c"]) == 30


def test_without_trace_nothing_is_traced(gaussians, copied, tmp_path, capsys):
    stages = run_cases(gaussians(copied, trace=None), tmp_path)
    assert all_counted(capsys.readouterr().out, stages)
    assert not any(" trace " in name for name in stages)
    assert redone(stages) == set()


def test_the_readmes_guidance_method_works(chain, mixture, call, monkeypatch):
    """The README's own code and yaml: at damping 0.5, scale 3 is autoguidance's scale 2."""
    readme = (CONF.parent / "README.md").read_text()
    code = readme.split("```python\n# mine.py\n")[1].split("```")[0]
    section = readme.split("```yaml\nmodels:")[1].split("```")[0]
    Path("mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    guidance = next(line for line in section.splitlines() if line.startswith("guidance:"))
    models = {"model": str(chain.base), "weak": "exact"}  # two networks that differ
    config = {"models": models, "data": mixture, "sampler": HEUN, "n": 20}
    text = yaml.safe_dump(config) + guidance
    outcome = call(generate, text, "run_dir=mine")
    assert outcome.status == 0, outcome.err
    plain = {**config, "guidance": {"name": "autoguidance", "scale": 2.0}}
    assert call(generate, plain, "run_dir=plain").status == 0
    assert torch.allclose(load_all(Path("mine"))["x"], load_all(Path("plain"))["x"])
    refused = call(generate, text, "run_dir=other", "guidance.dampin=0.1")
    assert refused.status == 2
    assert "guidance.damping" in refused.err
