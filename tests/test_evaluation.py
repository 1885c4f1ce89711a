"""Scores while a run trains: those of the verbs, on any number of ranks, and no trace in it."""

import csv
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.runs import assert_same, drawn, kept, logged
from helpers.toys import UNET, Halves
from PIL import Image
from torch import Tensor, nn

from lightning_cfg.cli import main
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.metrics.meaning import better
from lightning_cfg.runs.checkpoints import load
from lightning_cfg.runs.names import EVALUATIONS, SAMPLES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.sampling.seeds import seeded
from lightning_cfg.training import evaluate_samples as evaluation
from lightning_cfg.training import learners
from lightning_cfg.training.checkpointing import SaveLast
from lightning_cfg.training.evaluate_samples import EvaluateSamples
from lightning_cfg.training.learners import Diffusion
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.refine import refine

HERE = "test_evaluation"


class Unlabelled(Halves):
    """The same images, of which nobody knows the class."""

    num_classes = 0

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        y, c = super()._load(train=train)
        return y, 0 * c


class Smaller(Halves):
    """Images of another size."""

    shape = (1, 4, 8)


class Thirds(Halves):
    """Images of another number of classes."""

    num_classes = 3

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        y, c = super()._load(train=train)
        return y, torch.arange(len(c)) % 3


def quarters() -> Callable[[Tensor], Tensor]:
    """The mean brightness of the image's quarters, (B, 4)."""
    return lambda x: nn.functional.avg_pool2d(x, 4).flatten(1)


CALLS: dict[str, int] = {"breaks": 0, "refuses": 0}  # of this process


def breaks(denoise: Callable, noise: Tensor, c: Tensor, *, seed: int) -> Iterator:
    """One step from sigma = 1 to the sample; the first time that this seed comes it is NaN."""
    unlucky = (noise == seeded([seed], tuple(noise.shape[1:]), 2)[0]).flatten(1).all(1)
    yield 1.0, noise
    x = denoise(noise, torch.ones(len(noise), dtype=noise.dtype), c)
    if unlucky.any():
        CALLS["breaks"] += 1
        x[unlucky] = torch.nan if CALLS["breaks"] == 1 else x[unlucky]
    yield 0.0, x


@better("higher", "mean of the samples", column="mean")
def refuses(x: Tensor, *, at: int = -1) -> dict[str, float]:
    """A metric that cannot be taken the time numbered `at`, counted from 0."""
    CALLS["refuses"] += 1
    if CALLS["refuses"] - 1 == at:
        raise UserError("of such samples there is none")
    return {"mean": x.double().mean().item()}


METRICS = [
    "frechet_features",
    "class_accuracy",
    {"name": "precision_recall", "k": 3},
    {"name": "kernel_distance", "subsets": 4, "size": 30},
]
QUARTERS = {"quarters": {"name": f"{HERE}.quarters"}}
POINTS = {"every": 5, "n": 60, "sampler": {"steps": 3}, "real": 200, "bank": 150}


@pytest.fixture(autouse=True)
def counted_from_zero(monkeypatch):
    for name in CALLS:
        monkeypatch.setitem(CALLS, name, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory, training) -> SimpleNamespace:
    """A judge of clean images; sources, pairs, and a flow that refines; a base model."""
    root = tmp_path_factory.mktemp("made")

    def trained(name: str, **sections: object) -> str:
        small = {"batch_size": 16, "trainer": {"max_steps": 10}, **sections}
        return str(fit(**training(**small), run_dir=str(root / name)))

    def paired(name: str, shape: tuple[int, ...]) -> str:
        random = keyed(name)
        tensors = {
            "x": torch.randn(80, *shape, generator=random).clamp(-1, 1),
            "c": torch.randint(2, (80,), generator=random),
            "neighbours": torch.randint(50, (80, 3), generator=random),
            "targets": torch.randn(50, *shape, generator=random),
        }
        save_tensors(
            root / f"{name}_sources.safetensors",
            x=tensors["x"],
            c=tensors["c"],
            seed=torch.arange(80),
        )
        return str(
            save_tensors(root / f"{name}.safetensors", **tensors, num_classes=torch.tensor(2))
        )

    images, points = paired("images", (1, 8, 8)), paired("points", (2,))
    flow = {"model": {"name": "Flow"}, "learner": {"name": "Refinement", "lr": 1e-2}}
    data = {"name": f"{HERE}.Halves"}
    return SimpleNamespace(
        root=root,
        images=images,
        images_sources=str(root / "images_sources.safetensors"),
        points=points,
        points_sources=str(root / "points_sources.safetensors"),
        judge=trained(
            "judge",
            data=data,
            net={"name": "ConvNet", "channels": 8},
            model={"name": "NoisyClassifier", "clean": True},
            learner={"name": "Classification", "lr": 1e-2},
            trainer={"max_steps": 15},
        ),
        flow=trained("flow", data={"name": "Pairs", "path": images}, net=UNET, **flow),
        points_flow=trained("points_flow", data={"name": "Pairs", "path": points}, **flow),
        points_judge=trained(
            "points_judge",
            net={"name": "Linear"},
            model={"name": "NoisyClassifier", "clean": True},
            learner={"name": "Classification"},
        ),
        base=trained("base"),
        noise_flow=trained("noise_flow", model={"name": "Flow"}),
    )


@pytest.fixture
def scored(made) -> dict:
    """What scores are taken: the sections that evaluation and `evaluate` share."""
    spaces = {**QUARTERS, "judge": {"name": "classifier", "path": made.judge}}
    return {"metrics": METRICS, "features": spaces, "classifier": made.judge}


@pytest.fixture
def images(training, scored) -> dict:
    """A training on small images, with dropout, which draws from the global generators."""
    return training(
        data={"name": f"{HERE}.Halves"},
        net=UNET,
        batch_size=8,
        evaluation={
            "every": 5, "n": 71, "scales": [1, 2], "sampler": {"steps": 3}, "columns": 2, **scored,
        },
    )  # fmt: skip


@pytest.fixture
def points(training) -> dict:
    """A training on the mixture, scored by the metrics that know its density."""
    return training(evaluation=POINTS)


@pytest.fixture
def refining(training, mixture, made) -> dict:
    """A training of a flow from samples to their neighbours, scored on samples of its own."""
    return training(
        data={"name": "Pairs", "path": made.points},
        model={"name": "Flow"},
        learner={"name": "Refinement", "lr": 1e-2, "ema_half_life": [100]},
        evaluation={
            "every": 5, "n": 60, "sources": {"guided": made.points_sources}, "data": mixture,
            "real": 200, "bank": 150,
        },
    )  # fmt: skip


def curves(run: str) -> dict[int, dict[str, float]]:
    """{step: scores by name} of a run's log."""
    rows = [{k: v for k, v in row.items() if "/" in k or k == "step"} for row in logged(run)]
    return {int(row.pop("step")): row for row in rows if len(row) > 1}


def table(run: str) -> list[dict[str, str]]:
    with open(Path(run, EVALUATIONS), newline="") as file:
        return list(csv.DictReader(file))


def rows_of(run: str) -> list[dict]:
    """What `evaluate` has found."""
    return json.loads(Path(run, "metrics/metrics.json").read_text())


def averaged(rows: list[dict]) -> dict[str, float]:
    """Means over the classes, weighted by n."""
    names = set(rows[0]) - {"samples", "class", "n"}
    total = sum(row["n"] for row in rows)
    return {name: sum(row["n"] * row[name] for row in rows) / total for name in names}


def close(scores: dict, label: str, expected: dict, rel: float = 1e-6) -> bool:
    """Whether the scores of this label are just these numbers."""
    own = {k.removesuffix(f"/{label}"): v for k, v in scores.items() if k.endswith(f"/{label}")}
    assert own == {k: pytest.approx(v, rel=rel, abs=1e-9) for k, v in expected.items()}
    return True


# Training is not touched


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_with_evaluation_equals_uninterrupted_without(call, images, accumulate):
    images["trainer"]["accumulate_grad_batches"] = accumulate
    without = {k: v for k, v in images.items() if k != "evaluation"}
    assert call(fit, without, "run_dir=without").status == 0
    assert call(fit, images, "run_dir=whole").status == 0
    assert call(fit, images, "run_dir=parts", "trainer.max_steps=10").status == 0
    assert [row["step"] for row in table("parts")] == ["5", "5", "10", "10"]
    assert call(fit, images, "run_dir=parts").status == 0
    assert_same("without", "whole")
    assert_same("without", "parts")
    assert Path("parts", EVALUATIONS).read_text() == Path("whole", EVALUATIONS).read_text()
    assert [row["step"] for row in table("whole")] == [
        s for s in ("5", "10", "15", "20") for _ in "12"
    ]
    assert len({row["fd_quarters"] for row in table("whole")}) == 8


def test_evaluation_touches_nothing(call, images, monkeypatch):
    original = EvaluateSamples.evaluate

    def watches(self, trainer, learner):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        weights = {k: v.clone() for k, v in learner.state_dict().items()}
        gradients = [p.grad for p in learner.model.parameters()]
        original(self, trainer, learner)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002
        assert all(torch.equal(v, weights[k]) for k, v in learner.state_dict().items())
        assert all(p.grad is g for p, g in zip(learner.model.parameters(), gradients, strict=True))
        assert all(p.requires_grad for p in learner.model.parameters())
        assert all(module.training for module in learner.model.modules())
        assert torch.is_grad_enabled()
        watched.append(trainer.global_step)

    watched = []
    monkeypatch.setattr(EvaluateSamples, "evaluate", watches)
    assert call(fit, images, "run_dir=run").status == 0
    assert watched == [5, 10, 15, 20]


def test_after_the_last_step_too(call, points):
    assert call(fit, points, "run_dir=run", "evaluation.every=8").status == 0
    assert list(curves("run")) == [8, 16, 20]


MOMENTS = {
    "sampled": (EvaluateSamples, "_sets"),
    "scored": (EvaluateSamples, "evaluate"),
    "saved": (SaveLast, "on_train_batch_end"),
}


def fit_and_die(folder: str, moment: str, step: int) -> None:
    """`fit` of config.yaml in a process that kills itself after this."""
    place, name = MOMENTS[moment]
    original = getattr(place, name)

    def dies(self, trainer, *args):
        found = original(self, trainer, *args)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(place, name, dies)
    torch.set_num_threads(1)
    os.chdir(folder)
    as_called(["run_dir=killed"])


def as_called(overrides: list[str]) -> int:
    """The status of `fit` of config.yaml from the command line."""
    sys.argv = ["fit", "--config", "config.yaml", *overrides]
    try:
        main(fit)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("moment, last", [("sampled", 10), ("scored", 10), ("saved", 15)])
def test_killed_and_resumed_equals_uninterrupted(call, points, processes, tmp_path, moment, last):
    """The table too: no row of a step that is evaluated again stands in it twice."""
    Path("config.yaml").write_text(yaml.safe_dump(points))
    process = processes.Process(target=fit_and_die, args=(str(tmp_path), moment, 15))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert load("killed")["global_step"] == last
    scored = [row["step"] for row in table("killed")]
    assert scored == ["5", "10"] + ["15"] * (moment != "sampled")
    assert call(fit, points, "run_dir=killed").status == 0
    assert call(fit, points, "run_dir=whole").status == 0
    assert_same("whole", "killed")
    assert Path("killed", EVALUATIONS).read_text() == Path("whole", EVALUATIONS).read_text()


def test_evaluation_may_change_on_resume(call, points):
    assert call(fit, points, "run_dir=run", "evaluation=null", "trainer.max_steps=5").status == 0
    assert call(fit, points, "run_dir=run", "trainer.max_steps=10").status == 0
    other = {**points, "evaluation": {**POINTS, "n": 40, "scales": [2], "metrics": ["frechet"]}}
    assert call(fit, other, "run_dir=run").status == 0
    rows = table("run")
    assert [(row["step"], row["samples"], row["n"]) for row in rows] == [
        ("10", "scale_1", "60"),
        ("15", "scale_2", "40"),
        ("20", "scale_2", "40"),
    ]
    assert [bool(row["recall"]) for row in rows] == [True, False, False]
    assert all(row["frechet"] for row in rows)


def test_speed_leaves_the_evaluation_out(call, points, monkeypatch):
    """By a clock on which a step takes a second and an evaluation a thousand."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])

    def takes(place: type, name: str, seconds: float) -> None:
        original = getattr(place, name)

        def slow(self, *args):
            now[0] += seconds
            return original(self, *args)

        monkeypatch.setattr(place, name, slow)

    monkeypatch.setattr(learners, "time", clock)
    monkeypatch.setattr(evaluation, "time", clock)
    takes(learners.Learner, "training_step", 1)
    takes(EvaluateSamples, "evaluate", 1000)
    assert call(fit, points, "run_dir=run", "evaluation.every=3", "log_every=4").status == 0
    speeds = [row["images_per_second"] for row in logged("run") if "images_per_second" in row]
    assert speeds == [32.0] * 5
    assert now[0] == 20 + 7 * 1000


def test_not_training_moves_the_window():
    learner = Diffusion(nn.Linear(1, 1))
    learner._window = 100.0, 5
    learner.not_training(7.5)
    assert learner._window == (107.5, 5)


# The scores are those of the verbs


def samples_of(run: str, name: str, scale: float, **changed: object) -> str:
    settings = {"sampler": {"name": "heun", "steps": 3}, "n": 71, "batch_size": 256, **changed}
    guidance = {"name": "classifier_free", "scale": float(scale)}
    models = {"model": run}
    return str(generate(models=models, guidance=guidance, run_dir=name, device="cpu", **settings))


@pytest.fixture
def judged(scored, tmp_path) -> Callable[..., dict[str, list[dict]]]:
    """Rows of `evaluate` by label, of images or points."""

    def run(samples: dict[str, str], **changed: object) -> dict[str, list[dict]]:
        usual = {**scored, "data": {"name": f"{HERE}.Halves"}, "by_class": False}
        name = str(tmp_path / f"evaluate_{len(list(tmp_path.iterdir()))}")
        evaluate(samples=samples, run_dir=name, device="cpu", **(changed or usual))
        rows = rows_of(name)
        return {label: [row for row in rows if row["samples"] == label] for label in samples}

    return run


def test_scores_are_those_of_generate_refine_and_evaluate(call, images, made, judged, monkeypatch):
    """Of the same seeds and the first average, before and after refinement, at both scales."""
    sheets, sheet = [], evaluation.contact_sheet

    def remembers(groups, *args, **kwargs):
        sheets.append((groups, kwargs))
        return sheet(groups, *args, **kwargs)

    images["evaluation"] |= {"every": 10, "flow": made.flow, "rtol": 1e-4}
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "contact_sheet", remembers)
        assert call(fit, images, "run_dir=run", "trainer.max_steps=10").status == 0
    (scores,) = curves("run").values()
    by_hand = {}
    for scale in (1, 2):
        by_hand[f"scale_{scale}"] = samples_of("run", f"samples_{scale}", scale)
        by_hand[f"scale_{scale}_refined"] = str(
            refine(
                flow=made.flow,
                samples=by_hand[f"scale_{scale}"],
                run_dir=f"refined_{scale}",
                rtol=1e-4,
                batch_size=256,
                device="cpu",
            )
        )
    found = judged(by_hand)
    for label, (row,) in found.items():
        expected = averaged([row])
        assert len(expected) == 11  # class_accuracy, and five columns of each space
        assert close(scores, label, expected)
    assert len({scores[f"fd_quarters/{label}"] for label in by_hand}) == 4
    assert len(scores) == 4 * 11
    # what is shown is what was scored
    ((groups, asked),) = sheets
    assert asked["columns"] == 2
    assert groups.keys() == by_hand.keys()
    for label, (x, c) in groups.items():
        file = load_tensors(Path(by_hand[label], SAMPLES), "x", "c")
        assert torch.equal(c, file["c"])
        torch.testing.assert_close(x, file["x"], rtol=1e-5, atol=1e-5)
    # and it is the average that was scored, not the weights of the step
    raw = judged({"raw": samples_of("run", "raw", 1, weights="raw")})
    assert raw["raw"][0]["fd_quarters"] != pytest.approx(scores["fd_quarters/scale_1"], rel=1e-3)


def test_points_are_scored_class_by_class_and_averaged(call, points, mixture, judged):
    """Each column the mean over classes, weighted by n; with other seeds, noise and batches."""
    section = {"n": 61, "seed": 1000, "scales": [1, 0], "batch_size": 16}
    section |= {"sampler": {"name": "ddpm", "steps": 5}, "every": 20}
    points["evaluation"] = {**POINTS, **section}
    points["model"] = {"name": "EDM", "label_dropout": 0.2, "sigma_max": 20.0}
    assert call(fit, points, "run_dir=run").status == 0
    (scores,) = curves("run").values()
    same = {"sampler": {"name": "ddpm", "steps": 5}, "n": 61, "seed": 1000, "batch_size": 16}
    by_hand = {f"scale_{s}": samples_of("run", f"samples_{s}", s, **same) for s in (1, 0)}
    for label, rows in judged(by_hand, data=mixture, real=200, bank=150).items():
        sizes = [row["n"] for row in rows]
        assert sum(sizes) == 61
        assert sizes[0] != sizes[1]
        assert {"frechet", "energy_distance", "nll_mean", "wrong_class"} < rows[0].keys()
        assert rows[0]["frechet"] != pytest.approx(rows[1]["frechet"], rel=0.01)
        assert close(scores, label, averaged(rows))
    assert [(row["samples"], row["n"]) for row in table("run")] == [
        ("scale_1", "61"),
        ("scale_0", "61"),
    ]
    for row in table("run"):  # the same numbers as in the log, to six digits
        assert float(row["frechet"]) == pytest.approx(scores[f"frechet/{row['samples']}"], rel=1e-5)
    assert not Path("run/figures").exists()


def test_other_data_of_the_same_shape(call, images, judged):
    """Compared with images that have no classes; labels are drawn among those of the training."""
    images["evaluation"]["data"] = {"name": f"{HERE}.Unlabelled"}
    images["evaluation"]["reference"] = ["bank", "held_out"]
    images["evaluation"]["metrics"] = ["frechet_features"]
    images["evaluation"].pop("classifier")
    assert call(fit, images, "run_dir=run", "trainer.max_steps=5").status == 0
    (scores,) = curves("run").values()
    found = judged(
        {"scale_2": samples_of("run", "samples", 2)},
        data={"name": f"{HERE}.Halves"},
        features=images["evaluation"]["features"],
        metrics=["frechet_features"],
        reference=["bank", "held_out"],
        by_class=False,
    )
    expected = averaged(found["scale_2"])
    assert expected.keys() == {
        f"fd_{space}{versus}" for space in ("quarters", "judge") for versus in ("", "_vs_held_out")
    }
    assert close(scores, "scale_2", expected)


def test_statistics_stand_for_the_reference(call, images):
    """Those of the bank, from a file, give the distance to the bank."""
    y, about = Halves().real("bank")[0], {"space": {"extractor": f"{HERE}.quarters"}}
    file = Moments().add(quarters()(y)).save("bank.npz", about)
    images["evaluation"] |= {"features": QUARTERS, "metrics": ["frechet_features"]}
    found = {}
    for name, key in (("statistics", f"{{quarters: {file}}}"), ("reference", "bank")):
        args = f"run_dir={name}", f"evaluation.{name}={key}", "trainer.max_steps=5"
        assert call(fit, images, *args).status == 0
        (found[name],) = curves(name).values()
    assert found["statistics"] == pytest.approx(found["reference"], rel=1e-9)
    assert call(fit, images, "run_dir=held_out", "trainer.max_steps=5").status == 0
    assert curves("held_out")[5] != pytest.approx(found["reference"], rel=1e-3)


def test_images_without_classes(call, images, judged):
    images["data"] = {"name": f"{HERE}.Unlabelled"}
    images["evaluation"] |= {"features": QUARTERS, "metrics": METRICS[:1] + METRICS[2:]}
    images["evaluation"] |= {"scales": [1], "classifier": None, "every": 20}
    assert call(fit, images, "run_dir=run").status == 0
    found = judged(
        {"scale_1": samples_of("run", "samples", 1)},
        **{k: images["evaluation"][k] for k in ("features", "metrics")},
        data=images["data"],
        by_class=False,
    )
    assert close(curves("run")[20], "scale_1", averaged(found["scale_1"]))
    assert drawn("run") == ["samples_000020.png"]


# A refinement is scored on samples that it is given


def test_a_refinement_before_and_after(call, refining, made, mixture, judged, tmp_path):
    """Before it is the same at every step, and is what `evaluate` finds in the file."""
    assert call(fit, refining, "run_dir=run").status == 0
    held = {k: v[:60] for k, v in load_tensors(made.points_sources, "x", "c", "seed").items()}
    file = str(save_tensors(tmp_path / "first/60.safetensors", **held))
    last = refine(flow="run", samples=file, run_dir="after", batch_size=256, device="cpu")
    rows = judged({"guided": file, "after": str(last)}, data=mixture, real=200, bank=150)
    steps = curves("run")
    assert list(steps) == [5, 10, 15, 20]
    for scores in steps.values():
        assert close(scores, "guided", averaged(rows["guided"]))
    assert close(steps[20], "guided_refined", averaged(rows["after"]))
    assert len({scores["frechet/guided_refined"] for scores in steps.values()}) == 4
    assert {row["samples"] for row in table("run")} == {"guided", "guided_refined"}


def test_a_refinement_of_images_is_shown(call, refining, made, scored):
    refining["data"] = {"name": "Pairs", "path": made.images}
    refining["evaluation"] = {
        "every": 10, "n": 70, "data": {"name": f"{HERE}.Halves"}, "columns": 3,
        "sources": {"a": made.images_sources, "b": made.images_sources}, **scored,
    }  # fmt: skip
    assert call(fit, refining, "run_dir=run").status == 0
    assert drawn("run") == ["samples_000010.png", "samples_000020.png"]
    scores = curves("run")[20]
    assert {name.partition("/")[2] for name in scores} == {"a", "b", "a_refined", "b_refined"}
    assert scores["fd_judge/a"] == scores["fd_judge/b"] != scores["fd_judge/a_refined"]


def test_a_refinement_compared_with_its_targets(call, refining, made, judged):
    """Of which no class is known: a classifier judges the samples all the same."""
    targets = {"name": "Pairs", "path": made.points}
    asked = {"data": targets, "classifier": made.points_judge, "metrics": ["confidence", "recall"]}
    refining["evaluation"] = {**asked, "every": 20, "n": 80, "sources": {"a": made.points_sources}}
    assert call(fit, refining, "run_dir=run").status == 0
    rows = judged({"a": made.points_sources}, **asked, by_class=False)
    assert close(curves("run")[20], "a", averaged(rows["a"]))


def test_a_flow_that_cannot_be_followed_leaves_an_evaluation_out(call, refining):
    config = {**refining, "evaluation": {**refining["evaluation"], "rtol": 1e-14, "atol": 1e-14}}
    run = call(fit, config, "run_dir=run", "evaluation.every=20")
    assert (run.status, run.err) == (0, "")
    (line,) = [line for line in run.out.splitlines() if "evaluation" in line]
    assert line.startswith("evaluation at step 20 was left out: dopri5 ")
    assert curves("run") == {}
    assert load("run")["global_step"] == 20


# Several processes


def fit_as_rank(rank: int, folder: str, port: int, runs: dict[str, dict]) -> None:
    """What each of two processes does: one run after the other, and what they print in files."""
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    for name, config in runs.items():
        own = Path(folder, f"{name}_{rank}")
        own.mkdir()
        os.chdir(own)
        Path("config.yaml").write_text(yaml.safe_dump(config))
        CALLS["breaks"] = 0
        with open("out", "w") as out, open("err", "w") as err:
            with redirect_stdout(out), redirect_stderr(err):
                if name == "images":  # which is stopped and goes on
                    as_called([f"run_dir={folder}/{name}", "trainer.max_steps=10"])
                status = as_called([f"run_dir={folder}/{name}"])
        Path("status").write_text(str(status))


TWO = {"devices": 2, "strategy": "ddp"}
DIVERGES = {"name": f"{HERE}.breaks", "seed": 7}  # of the second of two ranks


@pytest.fixture(scope="module")
def two_ranks(processes, tmp_path_factory, training, mixture, made) -> Path:
    """Trainings on two processes over gloo."""
    folder, common = tmp_path_factory.mktemp("two"), {"columns": 2, "sampler": {"steps": 3}}
    spaces = {**QUARTERS, "judge": {"name": "classifier", "path": made.judge}}
    score = {"metrics": METRICS, "features": spaces, "classifier": made.judge}
    runs = {
        "images": training(
            data={"name": f"{HERE}.Halves"}, net=UNET, batch_size=8, trainer=TWO, keep=1,
            keep_by="fd_quarters/scale_2", log_every=20,
            evaluation={"every": 10, "n": 71, "scales": [1, 2], **common, **score},
        ),
        "points": training(
            trainer=TWO, evaluation={**POINTS, "n": 61, "flow": made.points_flow, "every": 20,
                                     "rtol": 1e-9, "atol": 1e-9},
        ),
        "refining": training(
            trainer=TWO, data={"name": "Pairs", "path": made.points}, model={"name": "Flow"},
            learner={"name": "Refinement", "lr": 1e-2, "ema_half_life": [100]},
            evaluation={
                "every": 20, "n": 61, "sources": {"guided": made.points_sources}, "data": mixture,
                "real": 200, "bank": 150, "rtol": 1e-9, "atol": 1e-9,
            },
        ),
        "diverges": training(trainer=TWO, evaluation={**POINTS, "sampler": DIVERGES}),
        "few": training(
            trainer=TWO, evaluation={**POINTS, "n": 1, "metrics": ["nearest_real"]}
        ),
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        processes.Process(target=fit_as_rank, args=(rank, str(folder), port, runs))
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 120
    for worker in workers:
        worker.join(deadline - time.monotonic())
        if worker.is_alive():  # it waits for the other
            worker.kill()
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    return folder


def said_by(folder: Path, run: str, what: str) -> list[str]:
    return [(folder / f"{run}_{rank}" / what).read_text() for rank in (0, 1)]


@pytest.mark.parametrize("name", ["images", "points", "refining"])
def test_two_processes_score_as_one_does(call, two_ranks, name):
    config = yaml.safe_load((two_ranks / "runs.yaml").read_text())[name]
    assert said_by(two_ranks, name, "status") == ["0", "0"]
    one = {**config, "trainer": {"max_steps": 20, "accelerator": "cpu"}}
    one["trainer"]["accumulate_grad_batches"] = 2  # the same rows in the same order
    assert call(fit, one, "run_dir=one").status == 0
    assert_same("one", two_ranks / name)
    alone, shared = curves("one"), curves(str(two_ranks / name))
    assert alone.keys() == shared.keys()
    for step, scores in alone.items():
        assert scores.keys() == shared[step].keys()
        for column, value in scores.items():
            # rounding in batches of another size may put a pixel on the other side of a byte
            assert shared[step][column] == pytest.approx(value, rel=1e-4, abs=1e-7), column
    rows, others = table("one"), table(str(two_ranks / name))
    assert [(row["samples"], row["n"]) for row in rows] == [(r["samples"], r["n"]) for r in others]
    assert kept("one") == kept(str(two_ranks / name))
    if name == "images":
        assert drawn("one") == drawn(str(two_ranks / name)) != []


def test_samples_that_diverge_on_one_rank(two_ranks):
    """That evaluation is left out, of which one line tells, and the others are not."""
    assert said_by(two_ranks, "diverges", "status") == ["0", "0"]
    first, second = said_by(two_ranks, "diverges", "out")
    assert "evaluation" not in first
    (line,) = [line for line in second.splitlines() if "evaluation" in line]
    assert line.startswith("evaluation at step 5 was left out: the samples of seeds ")
    assert "not finite" in line
    assert load(two_ranks / "diverges")["global_step"] == 20
    assert list(curves(str(two_ranks / "diverges"))) == [10, 15, 20]


def test_fewer_samples_than_ranks(two_ranks):
    for status, err in zip(*(said_by(two_ranks, "few", w) for w in ("status", "err")), strict=True):
        assert status == "2"
        assert "evaluation.n=1 is less than the 2 ranks" in err
        assert len(err.strip().splitlines()) == 1


# What cannot be scored this time


def test_samples_that_diverge_leave_an_evaluation_out(call, points):
    config = {**points, "evaluation": {**POINTS, "sampler": {**DIVERGES, "seed": 3}}}
    run = call(fit, config, "run_dir=run")
    assert run.status == 0
    (line,) = [line for line in run.out.splitlines() if "evaluation" in line]
    assert line.startswith("evaluation at step 5 was left out: the samples of seeds 0 ... 59 ")
    assert list(curves("run")) == [10, 15, 20]
    without = {k: v for k, v in points.items() if k != "evaluation"}
    assert call(fit, without, "run_dir=without").status == 0
    assert_same("run", "without")


def test_a_set_that_cannot_be_scored_is_left_out(call, images):
    """The other one is scored, and the best of the scores that there are are kept: the highest."""
    # call 0 is of the points in place of samples, 1 and 2 are the two scales at step 5, and so on
    metrics = ["class_accuracy", {"name": f"{HERE}.refuses", "at": 4}]
    images["evaluation"] |= {"metrics": metrics}
    run = call(fit, {**images, "keep": 2, "keep_by": "mean_at4/scale_2"}, "run_dir=run")
    assert (run.status, run.err) == (0, "")
    (line,) = [line for line in run.out.splitlines() if "evaluation" in line]
    assert line == "evaluation of scale_2 at step 10 was left out: of such samples there is none"
    assert [(row["step"], row["samples"]) for row in table("run")] == [
        (step, scale)
        for step in ("5", "10", "15", "20")
        for scale in ("scale_1", "scale_2")
        if (step, scale) != ("10", "scale_2")
    ]
    assert curves("run")[10].keys() == {"class_accuracy/scale_1", "mean_at4/scale_1"}
    means = {step: row["mean_at4/scale_2"] for step, row in curves("run").items() if step != 10}
    assert list(means) == [5, 15, 20]
    worst = min(means, key=means.__getitem__)
    assert worst != max(means, key=means.__getitem__)
    assert kept("run") == [step for step in means if step != worst]
    assert drawn("run")[1] == "samples_000010.png"


def spread(x: Tensor) -> dict[str, float]:
    """A metric that does not say which way it is better."""
    return {"spread": x.double().std().item()}


def test_nothing_is_kept_by_a_metric_that_does_not_say_which_way_is_better(call, images):
    images["evaluation"] |= {"metrics": [f"{HERE}.spread"]}
    refused(
        call,
        {**images, "keep": 2, "keep_by": "spread/scale_2"},
        "keep_by=spread/scale_2: nothing says which way is better: put @better(",
    )


# The checkpoint that is kept by a score


@pytest.fixture
def keeping(images) -> dict:
    """Written every 2 steps, scored every 4."""
    images["evaluation"] |= {"every": 4, "columns": 0, "metrics": METRICS[:2]}
    return {**images, "checkpoint_every": 2, "keep": 2}


@pytest.mark.parametrize("by, sign", [("fd_quarters/scale_2", 1), ("class_accuracy/scale_1", -1)])
def test_the_best_by_a_score_are_kept(call, keeping, by, sign):
    """Of the steps with a score; by a run that was stopped and went on too."""

    def best(scores: dict[int, float]) -> list[int]:
        return sorted(sorted(scores, key=lambda step: sign * scores[step])[:2])

    assert call(fit, keeping, "run_dir=whole", f"keep_by={by}").status == 0
    scores = {step: row[by] for step, row in curves("whole").items()}
    assert list(scores) == [4, 8, 12, 16, 20]
    assert len(set(scores.values())) > 2
    assert best(scores) != best({step: -value for step, value in scores.items()})
    assert kept("whole") == best(scores)
    for steps in (8, 12, 20):
        args = f"keep_by={by}", f"trainer.max_steps={steps}"
        assert call(fit, keeping, "run_dir=parts", *args).status == 0
        assert kept("parts") == best({k: v for k, v in scores.items() if k <= steps})
    for step in kept("whole"):
        assert_same(*(f"{run}/checkpoints/best_{step:06d}.ckpt" for run in ("whole", "parts")))


def test_kept_by_something_else_from_now_on(call, keeping):
    """A distance is no loss: what was kept by the one is not compared with the other."""
    args = "keep_by=fd_quarters/scale_1", "trainer.max_steps=8"
    assert call(fit, keeping, "run_dir=run", "log_every=2", *args).status == 0
    assert kept("run") == [4, 8]
    distances = load("run")["callbacks"]["SaveLast"]["best"].values()
    assert call(fit, keeping, "run_dir=run", "log_every=2").status == 0
    losses = {int(row["step"]): row["loss"] for row in logged("run") if "loss" in row}
    later = {step: loss for step, loss in losses.items() if step > 8}
    assert max(distances) < min(later.values())  # or this could not fail
    best = sorted(sorted(later, key=later.get)[:2])
    assert kept("run") == best
    saved = load("run")["callbacks"]["SaveLast"]["best"]
    assert saved == {step: pytest.approx(losses[step]) for step in best}


# Curves and pictures


def test_the_log_has_the_scores_beside_the_loss(call, images):
    assert call(fit, images, "run_dir=run").status == 0
    with open("run/logs/version_0/metrics.csv") as file:
        head = next(csv.reader(file))
    spaces = ("fd", "precision_k3", "recall_k3", "kd", "kd_std")
    names = [f"{column}_{space}" for column in spaces for space in ("quarters", "judge")]
    names = [name.replace("kd_std_quarters", "kd_quarters_std") for name in names]
    names = [name.replace("kd_std_judge", "kd_judge_std") for name in names]
    names = [f"{n}_subsets4_size30" if n.startswith("kd") else n for n in names]
    wanted = {f"{name}/scale_{s}" for name in ["class_accuracy", *names] for s in (1, 2)}
    assert {name for name in head if "/" in name} == wanted
    assert {"step", "loss", "lr"} < set(head)
    for row in curves("run").values():
        assert row.keys() == wanted
    assert table("run")[0].keys() == {"step", "samples", "n", "class_accuracy", *names}
    for row in table("run"):
        scores = curves("run")[int(row["step"])]
        for name in names:
            expected = scores[f"{name}/{row['samples']}"]
            assert float(row[name]) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert drawn("run") == [f"samples_{step:06d}.png" for step in (5, 10, 15, 20)]


def test_no_pictures(call, images):
    assert call(fit, images, "run_dir=run", "evaluation.columns=0").status == 0
    assert not Path("run/figures").exists()
    assert len(curves("run")) == 4


def test_tensorboard_gets_the_scores(call, images):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(fit, {**images, "logger": "tensorboard"}, "run_dir=run").status == 0
    events = EventAccumulator(str(next(Path("run/logs").glob("version_*")))).Reload()
    scalars = events.Scalars("fd_quarters/scale_2")
    assert [scalar.step for scalar in scalars] == [5, 10, 15, 20]
    rows = [float(row["fd_quarters"]) for row in table("run") if row["samples"] == "scale_2"]
    assert [scalar.value for scalar in scalars] == pytest.approx(rows, rel=1e-5)
    assert [image.step for image in events.Images("evaluated")] == [5, 10, 15, 20]


def test_wandb_gets_the_scores(call, images, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert (
        call(fit, {**images, "logger": "wandb"}, "run_dir=run", "evaluation.every=20").status == 0
    )
    import wandb

    wandb.teardown()  # its process writes the last of the files
    (folder,) = Path("run/wandb").glob("offline-run-*")
    (copy,) = folder.glob("files/media/images/evaluated*.png")
    (own,) = Path("run/figures").iterdir()
    assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(own)))
    sent = next(folder.glob("*.wandb")).read_bytes()
    for row in table("run"):
        assert f"fd_quarters/{row['samples']}".encode() in sent
        assert row["fd_quarters"][:5].encode() in sent


# What is refused, before anything is trained or written


def refused(call: Callable, config: dict, *words: str) -> None:
    answer = call(fit, config, "run_dir=run")
    assert answer.status == 2
    assert len(answer.err.strip().splitlines()) == 1
    for word in words:
        assert word in answer.err, answer.err
    assert not Path("run").exists()


def filled(value: object, made: SimpleNamespace) -> object:
    """The value with the places of what was made in it."""
    if isinstance(value, dict):
        return {k: filled(v, made) for k, v in value.items()}
    return value.format(**vars(made)) if isinstance(value, str) else value


CLASSIFIES = {
    "net": {"name": "Linear"},
    "model": {"name": "NoisyClassifier"},
    "learner": {"name": "Classification"},
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"evry": 5}, ["unknown key 'evaluation.evry'; did you mean 'evaluation.every'?"]),
        ({"sampler": {"stepz": 3}}, ["did you mean 'evaluation.sampler.steps'?"]),
        ({"metrics": ["clas_accuracy"]}, ["did you mean 'class_accuracy'?"]),
        ({"metrics": [{"name": "precision_recall", "kk": 3}]}, ["'evaluation.metrics[0].kk'"]),
        ({"features": {"name": "pixel"}}, ["did you mean 'pixels'?"]),
        ({"data": {"name": f"{HERE}.Halvs"}}, ["Halvs"]),
        ({"every": 0}, ["evaluation.every must be int of at least 1, not 0"]),
        ({"n": 0}, ["evaluation.n must be int from 1 to 100_000_000, not 0"]),
        ({"batch_size": 0}, ["evaluation.batch_size must be int of at least 1, not 0"]),
        ({"columns": -1}, ["evaluation.columns must be int from 0 to 1000, not -1"]),
        ({"scales": []}, ["evaluation.scales must be list of float that is not empty"]),
        ({"scales": ["strong"]}, ["evaluation.scales[0]"]),
        ({"scales": [2, 1, 2]}, ["two sets of samples would be called scale_2"]),
        ({"sampler": {"steps": 1}}, ["sampler.steps must be at least 2"]),
        ({"sampler": {"sigma_max": 900.0}}, ["sampler.sigma_max=900"]),
        ({"n": 64}, ["64 dimensions needs more than 64 samples a side, got 64"]),
        ({"n": 4, "features": QUARTERS}, ["4 dimensions needs more than 4 samples a side, got 4"]),
        ({"n": 20, "features": QUARTERS}, ["size=30", "got 20"]),
        ({"real": 10}, ["64 dimensions needs more than 64 samples a side, got 20"]),
        ({"real": 51}, ["per_class must be between 1 and 50", "held_out"]),
        ({"bank": 51}, ["per_class must be between 1 and 50", "bank"]),
        ({"classifier": "absent"}, ["absent: no such file"]),
        ({"classifier": "{points_judge}"}, ["has shape (2,), but the data have (1, 8, 8)"]),
        ({"classifier": None}, ["class_accuracy needs logits", "name a `classifier`"]),
        ({"features": None}, ["frechet_features needs moments_x", "name `features`"]),
        ({"features": {"name": "classifier", "path": "absent"}}, ["absent: no such file"]),
        ({"metrics": ["outliers"]}, ["outliers needs truth"]),
        ({"reference": "test"}, ["reference=test is none of the splits held_out, bank"]),
        ({"statistics": {"quarter": "{images}"}}, ["features has no quarter"]),
        ({"statistics": {"quarters": "q.npz"}}, ["q.npz: no such file"]),
        (
            {"data": {"name": f"{HERE}.Smaller"}},
            ["evaluation.data has shape (1, 4, 8), the training data (1, 8, 8)"],
        ),
        (
            {"data": {"name": f"{HERE}.Thirds"}},
            ["evaluation.data has 3 classes, the training data 2"],
        ),
        ({"flow": "absent"}, ["absent: no such file"]),
        ({"flow": "{judge}"}, ["judge is no flow that refines samples"]),
        ({"flow": "{base}"}, ["base is no flow that refines samples"]),
        ({"flow": "{noise_flow}"}, ["noise_flow is no flow that refines samples"]),
        (
            {"flow": "{points_flow}"},
            ["evaluation.flow has shape (2,), but the data have (1, 8, 8)"],
        ),
        ({"sources": {"a": "{images_sources}"}}, ["Diffusion starts from noise, not sources"]),
    ],
)
def test_what_cannot_be_scored(call, images, made, change, words):
    images["evaluation"] |= filled(change, made)
    refused(call, images, *words)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": {"name": "EDM", "label_dropout": 0.0}}, ["label_dropout"]),
        (CLASSIFIES, ["evaluation needs a learner whose model makes samples, not Classification"]),
        ({"keep": 0, "keep_by": "fd_quarters/scale_1"}, ["needs keep"]),
        ({"keep_by": "fd_quarters/scale_1", "evaluation": None}, ["needs an evaluation"]),
        ({"keep_by": "fd_quarter/scale_1"}, ["did you mean 'fd_quarters/scale_1'?"]),
        ({"keep_by": "fd_quarters/scale_3"}, ["did you mean 'fd_quarters/scale_"]),
        ({"keep_by": "gain"}, ["no score 'gain'; it has fd_judge/scale_1, fd_quarters/scale_1, "]),
        (
            {"keep_by": "fd_quarters/scale_1", "checkpoint_every": 4},
            ["evaluation.every=5 is no multiple of checkpoint_every=4"],
        ),
    ],
)
def test_what_cannot_be_kept_or_has_no_samples(call, images, change, words):
    refused(call, {**images, "keep": 1, **change}, *words)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sources": {}}, ["learner Refinement needs evaluation.sources"]),
        ({"data": None}, ["evaluation.data has to say"]),
        ({"flow": "{points_flow}"}, ["learner Refinement is the flow itself"]),
        ({"n": 81}, ["points_sources.safetensors holds 80 samples, not the 81 wanted"]),
        ({"sources": {"a": "absent"}}, ["absent: no such file"]),
        (
            {"sources": {"a": "{images_sources}"}},
            ["images_sources.safetensors holds samples of shape (1, 8, 8), not (2,)"],
        ),
        (
            {"sources": {"a": "{points_sources}", "a_refined": "{points_sources}"}},
            ["two sets of samples would be called a_refined"],
        ),
        ({"data": {"name": f"{HERE}.Halves"}}, ["evaluation.data has shape (1, 8, 8)"]),
    ],
)
def test_what_cannot_be_refined(call, refining, made, change, words):
    refining["evaluation"] |= filled(change, made)
    refused(call, refining, *words)


@pytest.mark.parametrize("metric", ["nll_mean", "wrong_class", "nearest_real"])
def test_no_end_of_the_score_is_the_best(call, points, metric):
    config = {**points, "keep": 1, "keep_by": f"{metric}/scale_1"}
    refused(call, config, f"keep_by={metric}/scale_1: the best is what real data have")


def test_scales_of_a_model_without_label_dropout(call, images):
    """Unguided samples it can be scored on."""
    images["model"] = {"name": "EDM", "label_dropout": 0.0}
    assert call(fit, images, "run_dir=run", "evaluation.scales=[1]").status == 0
    assert len(curves("run")) == 4
