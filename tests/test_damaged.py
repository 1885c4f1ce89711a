"""Files that runs have written and something has damaged since: told, and never certified."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.build import real_side
from lightning_cfg.evaluation.features import Space
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import METRICS, PAIRS, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.tensors import load_samples, save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study
from lightning_cfg.verbs.sweep import results
from lightning_cfg.verbs.trace import trace

HERE = "test_damaged"
HEUN = {"name": "heun", "steps": 2}
FLIPS = [i / 12 for i in range(12)]  # where in a file, as a share of it


def flip(file: Path, at: float = 0.5) -> None:
    """One bit of the file, at this share of its length."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 4
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, training, mixture) -> SimpleNamespace:
    """Every verb once, each on what the one before it has made."""
    root = tmp_path_factory.mktemp("finished")
    base = training(trainer={"max_steps": 1, "logger": False})
    on_pairs = training(
        data={"name": "Pairs", "path": str(root / "pairs")},
        model={"name": "Flow"},
        learner={"name": "Refinement"},
        trainer={"max_steps": 1, "logger": False},
    )
    made = {
        "models": {"model": str(root / "base")}, "guidance": "unguided", "sampler": HEUN,
        "n": 20, "trajectories": 4,
    }  # fmt: skip
    asked = {
        "base": (fit, base),
        "samples": (generate, made),
        "pairs": (
            pair, {"sources": [str(root / "samples")], "data": mixture, "bank": 20, "k": 2},
        ),
        "flow": (fit, on_pairs),
        "refined": (refine, {"flow": str(root / "flow"), "samples": str(root / "samples")}),
        "table": (
            evaluate,
            {
                "samples": {"a": str(root / "samples")}, "data": mixture, "real": 20, "bank": 20,
                "metrics": ["negative_log_density"],
            },
        ),
        "traced": (
            trace,
            {
                "samples": {"a": str(root / "samples")}, "classifiers": {"b": "exact"},
                "data": mixture,
            },
        ),
    }  # fmt: skip
    for name, (verb, config) in asked.items():
        verb(**config, run_dir=str(root / name))
    return SimpleNamespace(root=root, asked=asked)


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A copy of them that a test may damage; what reads another one of them reads the copy's."""
    return Path(shutil.copytree(finished.root, tmp_path / "copy"))


@pytest.fixture
def again(finished, runs, call) -> Callable[..., SimpleNamespace]:
    """Call the verb of a run again, in the copy."""

    def run(name: str, *overrides: str, into: Path | None = None) -> SimpleNamespace:
        verb, config = finished.asked[name]
        text = yaml.safe_dump(config).replace(str(finished.root), str(runs))
        return call(verb, text, f"run_dir={into or runs / name}", *overrides)

    return run


READ = [  # (whose output, which, who reads it)
    ("base", LAST, "samples"),
    ("samples", SAMPLES, "pairs"),
    ("samples", SAMPLES, "refined"),
    ("samples", SAMPLES, "table"),
    ("samples", TRAJECTORIES, "traced"),
    ("pairs", PAIRS, "flow"),
    ("flow", LAST, "refined"),
]


@pytest.mark.parametrize("run, file, reader", READ)
def test_a_damaged_file_is_not_read(run, file, reader, runs, again, tmp_path):
    fresh = tmp_path / "fresh"
    for at in FLIPS if file == LAST else FLIPS[1::5]:
        whole = (runs / run / file).read_bytes()
        flip(runs / run / file, at)
        done = again(reader, into=fresh)
        assert (done.status, len(done.err.strip().splitlines())) == (2, 1), done
        assert f"{file} is damaged, or was changed" in done.err
        assert not fresh.exists()
        (runs / run / file).write_bytes(whole)
    assert again(reader, into=fresh).status == 0


def test_every_way_to_read_a_file_of_a_run_compares_it(runs):
    ways = {
        LAST: lambda: restore(runs / "base"),
        SAMPLES: lambda: load_samples(runs / "samples" / SAMPLES, (2,), 2),
        PAIRS: lambda: Pairs(path=str(runs / "pairs")).shape,
        METRICS: lambda: results(runs / "table"),
    }
    places = {LAST: "base", SAMPLES: "samples", PAIRS: "pairs", METRICS: "table"}
    for file, way in ways.items():
        way()
        flip(runs / places[file] / file)
        with pytest.raises(UserError, match="is damaged, or was changed"):
            way()


@pytest.mark.parametrize("at", FLIPS)
def test_a_damaged_checkpoint_is_not_certified(at, runs, again):
    manifest, file = runs / "base/manifest.json", runs / "base" / LAST
    told, whole = manifest.read_bytes(), file.read_bytes()
    flip(file, at)
    for more in ((), ("trainer.max_steps=2",)):
        done = again("base", *more)
        assert done.status == 2
        assert f"{LAST} is damaged" in done.err
        assert "force=true" in done.err
    assert manifest.read_bytes() == told
    if at == FLIPS[-1]:
        assert again("base", "force=true").status == 0
        assert restore(runs / "base").step == 1
        flip(file, at)
    file.write_bytes(whole)


@pytest.mark.parametrize(
    "run, file", [("samples", SAMPLES), ("samples", TRAJECTORIES), ("pairs", PAIRS),
                  ("pairs", "metrics/pairs.csv"), ("refined", SAMPLES), ("table", METRICS),
                  ("traced", "metrics/curves.csv")]
)  # fmt: skip
def test_a_finished_run_with_a_damaged_file_says_so_and_makes_it_again(run, file, runs, again):
    whole = sha256(runs / run / file)
    flip(runs / run / file)
    done = again(run)
    assert done.status == 0
    assert f"{file} is damaged, or was changed" in done.out
    assert "made again" in done.out
    assert sha256(runs / run / file) == whole
    assert "finished already" in again(run).out
    (runs / run / file).unlink()
    assert f"{file} is missing; it is made again" in again(run).out
    assert sha256(runs / run / file) == whole


def test_a_lost_checkpoint_is_told_and_trained_again(runs, again):
    (runs / "base" / LAST).unlink()
    done = again("base")
    assert done.status == 0
    assert f"{LAST} is missing; it is made again" in done.out
    assert restore(runs / "base").step == 1


def test_an_unfinished_training_goes_on_from_no_damaged_checkpoint(runs, again):
    """Which no manifest names: the sums that torch keeps inside know."""
    (runs / "base/manifest.json").unlink()
    file = runs / "base" / LAST
    refused, whole = 0, file.read_bytes()
    state = torch.load(file, weights_only=True)
    numbers = next(iter(state["state_dict"].values())).numpy().tobytes()
    at = whole.index(numbers) / len(whole)
    for share in (at, *FLIPS):
        flip(file, share + 1e-9)
        done = again("base", "trainer.max_steps=2")
        refused += done.status == 2
        assert done.status == 0 or "last.ckpt is truncated or not a checkpoint" in done.err
        assert share != at or done.status == 2
        shutil.rmtree(runs / "base/checkpoints")
        file.parent.mkdir()
        file.write_bytes(whole)
        (runs / "base/manifest.json").unlink(missing_ok=True)
    assert refused > 6  # otherwise it was padding


def test_somebody_elses_manifest_is_none_of_ours(runs):
    (runs / "alone/samples").mkdir(parents=True)
    file = shutil.copy(runs / "samples" / SAMPLES, runs / "alone" / SAMPLES)
    for text in ('{"name": "a web page"}', "[]", "no json"):
        (runs / "alone/manifest.json").write_text(text)
        assert len(load_samples(file, (2,), 2)["x"]) == 20


# A study


def test_a_study_with_damaged_weights_refuses(tmp_path, call):
    file = Path(__file__).parent.parent / "conf/studies/fractal_quick.yaml"
    config = load(study, file, [f"run_dir={tmp_path / 'study'}"])
    training = {"trainer": {**config["fits"]["base"]["trainer"], "max_steps": 2}}
    fits = {name: {**section, **training} for name, section in config["fits"].items()}
    config |= {"fits": fits, "stage": "fit base"}
    study(**config)
    (run,) = (tmp_path / "study/stages").glob("fit-base-*")
    manifest = (run / "manifest.json").read_bytes()
    flip(run / LAST)
    for stage in ("fit base", "generate classifier_free 2 fresh", None):
        with pytest.raises(UserError, match=r"last\.ckpt is damaged, or was changed"):
            study(**{**config, "stage": stage})
    assert (run / "manifest.json").read_bytes() == manifest
    assert [place.name for place in (tmp_path / "study/stages").iterdir()] == [run.name]


# The cache of real features

SEEN: list[int] = []


def means() -> Space:
    """Features of images with weights that are known, so that they are cached."""

    def extract(x: Tensor) -> Tensor:
        SEEN.append(len(x))
        return x.flatten(1)[:, :6].contiguous()

    return Space(extract, {"extractor": "means", "weights": "1"})


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("how", ["flip", "hash lost", "other numbers"])
def test_damaged_features_are_computed_again(kind, how, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images.safetensors"
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    save_tensors(images, x=x, c=torch.arange(40) % 2, seed=torch.arange(40))
    config = {
        "samples": {"a": str(images)},
        "data": {"name": "helpers.toys.Halves"},
        "features": {"name": f"{HERE}.means"},
        "metrics": ["frechet_features", {"name": "precision_recall", "k": 3}],
        "by_class": False,
    }

    def scored(run: str) -> tuple[dict, str]:
        real_side.cache_clear()  # as another process
        SEEN.clear()
        done = call(evaluate, config, f"run_dir={run}")
        assert done.status == 0, done.err
        return json.loads(Path(run, METRICS).read_text())[0], done.err

    first, said = scored("first")
    assert said == ""
    assert scored("second") == (first, "")
    assert sum(SEEN) == 40  # the real side is kept
    (file,) = (tmp_path / "cache").glob(f"*.{kind}")
    if how == "flip":
        flip(file)
    elif how == "hash lost":
        file.write_bytes(file.read_bytes()[:-32])
    elif kind == "npy":
        np.save(file, np.load(file) * 0)
    else:
        with np.load(file) as held:
            np.savez(file, **{**held, "mu": held["mu"] * 0})
    found, said = scored("third")
    assert found == first
    assert said.count("\n") == 1
    assert "computed again" in said
    assert file.name in said
    assert sum(SEEN) > 40
    assert scored("fourth") == (first, "")
