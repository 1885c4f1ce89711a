"""The verbs one after another on a GPU: the fractal, and images."""

import csv
from pathlib import Path

import pytest
import torch
from closeness import assert_within
from helpers.runs import manifest
from helpers.toys import UNET

from lightning_cfg.runs.names import PAIRS, SAMPLES
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.trace import trace

MLP = {"name": "MLP", "width": 32, "blocks": 1}
CFG = {"name": "classifier_free", "scale": 2.0}
FRACTAL, HALVES = {"name": "Fractal"}, {"name": "helpers.toys.Halves"}
HEUN = {"name": "heun", "steps": 8}


def scores(run: Path) -> list[dict]:
    with open(run / "metrics/metrics.csv") as file:
        return list(csv.DictReader(file))


class Chain:
    """The verbs in a folder, on the device of the tests."""

    def __init__(self, folder: Path, training, accelerator: str, device: torch.device):
        self.folder, self.training = folder, training
        self.trainer, self.device = {"accelerator": accelerator}, device.type

    def trained(self, name: str, steps: int, **sections: object) -> str:
        config = self.training(trainer=self.trainer | {"max_steps": steps}, **sections)
        run = fit(**config, run_dir=str(self.folder / name))
        assert manifest(run)["device"].startswith(self.device)
        return str(run)

    def done(self, name: str, verb, **keys: object) -> str:
        return str(verb(run_dir=str(self.folder / name), device=self.device, **keys))


@pytest.fixture
def chain(tmp_path, training, accelerator, device) -> Chain:
    return Chain(tmp_path, training, accelerator, device)


def flow(chain: Chain, pairs: str, **sections: object) -> str:
    return chain.trained(
        "flow", 60, data={"name": "Pairs", "path": pairs}, model={"name": "Flow"},
        learner={"name": "Refinement", "lr": 3e-3, "ema_half_life": [500]}, **sections,
    )  # fmt: skip


def test_the_fractal_from_training_to_scores(chain):
    base = chain.trained("base", 150, data=FRACTAL, net=MLP, batch_size=256)
    kinds = {"model": {"name": "NoisyClassifier"}, "learner": {"name": "Classification"}}
    classifier = chain.trained("classifier", 60, data=FRACTAL, net={"name": "Linear"}, **kinds)
    made = {"models": {"model": base}, "guidance": CFG, "sampler": HEUN}
    sources = chain.done("sources", generate, **made, n=300)
    fresh = chain.done("fresh", generate, **made, n=100, seed=1000, trajectories=10)
    gradient = {"models": {"model": base, "classifier": classifier}, "sampler": HEUN, "n": 100}
    guided = {"name": "classifier_gradient", "scale": 2.0}
    cg = chain.done("cg", generate, **gradient, guidance=guided)
    exact = {"models": {"model": "exact"}, "data": FRACTAL, "guidance": {"name": "unguided"}}
    chain.done("exact", generate, **exact, sampler={"name": "heun", "steps": 32}, n=100)
    pairs = chain.done("pairs", pair, sources=[sources], data=FRACTAL, bank=400, k=5)
    refined = chain.done("refined", refine, flow=flow(chain, pairs, net=MLP), samples=fresh)
    sets = {"before": fresh, "after": refined, "cg": cg, "exact": str(chain.folder / "exact")}
    metrics = ["frechet", "energy_distance", "negative_log_density", "wrong_class", "nearest_real"]
    metrics += ["recall", "effective_targets"]  # all but outliers, seconds of a CPU
    scored = {"samples": sets, "data": FRACTAL, "metrics": metrics, "real": 300, "bank": 400}
    table = chain.done("table", evaluate, **scored, fresh=100)
    rows = scores(Path(table))
    assert len(rows) == 2 * 5
    by_label = {(row["samples"], row["class"]): row for row in rows}
    assert all(float(row["nll_mean"]) == float(row["nll_mean"]) for row in rows)
    for label in "01":  # the closed form, by this device, has its class, and the trained one less
        wrong = [float(by_label[name, label]["wrong_class"]) for name in ("exact", "real")]
        assert wrong[0] <= wrong[1] + 0.02
    traced = trace(
        samples={"fresh": fresh}, classifiers={"learned": classifier, "posterior": "exact"},
        data=FRACTAL, device=chain.device, run_dir=str(chain.folder / "traced"),
    )  # fmt: skip
    assert (traced / "metrics/trajectories.csv").is_file()


def test_pairs_and_samples_are_those_of_the_cpu(chain, training, tmp_path):
    """A model trained here, its samples and their neighbours there: the same, to rounding."""
    base = chain.trained("base", 60, data=FRACTAL, net=MLP, batch_size=256)
    made = {"models": {"model": base}, "guidance": CFG, "sampler": HEUN, "n": 200}
    x, found = [], []
    for place in ("cpu", chain.device):
        run = generate(**made, device=place, run_dir=str(tmp_path / f"made_{place}_{len(x)}"))
        x.append(load_tensors(run / SAMPLES, "x", "c"))
    assert torch.equal(x[0]["c"], x[1]["c"])
    assert_within(1e-3, x[1]["x"], x[0]["x"])
    for place in ("cpu", chain.device):
        keys = {"sources": [str(run)], "data": FRACTAL, "bank": 400, "k": 5, "device": place}
        pairs = pair(**keys, run_dir=str(tmp_path / f"pairs_{place}_{len(found)}"))
        found.append(load_tensors(pairs / PAIRS, "neighbours", "targets"))
    assert torch.equal(found[0]["neighbours"], found[1]["neighbours"])
    assert torch.equal(found[0]["targets"], found[1]["targets"])


def test_images_from_training_to_scores(chain):
    base = chain.trained("base", 30, data=HALVES, net=UNET)
    kinds = {"model": {"name": "NoisyClassifier", "clean": True}}
    kinds |= {"learner": {"name": "Classification", "lr": 3e-3}}
    judge = chain.trained("judge", 30, data=HALVES, net={"name": "ConvNet", "channels": 8}, **kinds)
    made = {"models": {"model": base}, "guidance": CFG, "sampler": HEUN}
    sources = chain.done("sources", generate, **made, n=60)
    fresh = chain.done("fresh", generate, **made, n=60, seed=1000, images="folder")
    space = {"name": "classifier", "path": judge}
    pairs = chain.done("pairs", pair, sources=[sources], data=HALVES, k=3, features=space)
    refined = chain.done("refined", refine, flow=flow(chain, pairs, net=UNET), samples=fresh)
    metrics = [{"name": "frechet_features", "allow_few": True}, "class_accuracy", "confidence"]
    metrics += ["nearest_real", "precision_recall", {"name": "kernel_distance", "size": 20}]
    table = chain.done(
        "table", evaluate, samples={"before": fresh, "after": refined}, data=HALVES,
        classifier=judge, features=space, metrics=metrics, by_class=False,
        generate={"live": {**made, "n": 60, "seed": 2000}},
    )  # fmt: skip
    rows = scores(Path(table))
    assert [row["samples"] for row in rows] == ["before", "after", "live"]
    for row in rows:
        assert float(row["fd_classifier"]) >= 0
        assert 0 <= float(row["class_accuracy"]) <= 1
