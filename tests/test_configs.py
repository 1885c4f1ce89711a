"""Every file in conf/ loads with its verb, and everything that trains in it takes two steps."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.digits import write
from helpers.latents import latent_zip
from PIL import Image

from lightning_cfg.config import load, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import load as load_checkpoint
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.study import study

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


def verb_of(file: Path) -> str:
    """The verb of a file: studies by folder, others by a first line `# lightning_cfg.VERB`."""
    first = file.read_text().splitlines()[0]
    if first.startswith("# lightning_cfg."):
        return first.removeprefix("# lightning_cfg.").split(":")[0].split()[0]
    assert file.parent.name == "studies", f"{file}: the first line names no verb"
    return "study"


def read(file: Path) -> dict:
    """The config; what a file takes from a sweep's ${...} or a run is left as it stands."""
    verb = verb_of(file)
    return load(resolve("", f"lightning_cfg.verbs.{verb}.{verb}"), file)


def trainings(file: Path) -> dict[str, dict]:
    """The `fit` sections of a file: itself, or a study's fits and flow, on its first case."""
    config = read(file)
    if verb_of(file) == "fit":
        return {"fit": config}
    if verb_of(file) != "study":
        return {}
    data = config["data"] or next(iter(config["cases"].values()))
    fits = {name: {**section, "data": data} for name, section in config["fits"].items()}
    pairs = {"name": "Pairs", "path": "pairs", "of": data}
    flows = {"flow": {**config["flow"], "data": pairs}} if config["flow"] else {}
    return fits | flows


def small_data(section: dict, tmp_path: Path) -> dict:
    """Data that are there: random pairs, random images, and closed forms as they are."""
    if section["name"] == "Pairs":
        of = section.get("of", {}).get("name", "") + section["path"]
        images = {"mnist": (1, 28, 28), "cifar": (3, 32, 32)}
        shape = next((shape for name, shape in images.items() if name in of.lower()), (2,))
        classes = 10 if len(shape) == 3 else 2
        path = save_tensors(
            tmp_path / "pairs.safetensors",
            x=torch.randn(8, *shape),
            c=torch.arange(8) % classes,
            neighbours=torch.zeros(8, 1, dtype=torch.long),
            targets=torch.randn(1, *shape),
            num_classes=torch.tensor(classes),
        )
        return {"name": "Pairs", "path": str(path)}
    if section["name"] == "RealOrGenerated":
        path = save_tensors(tmp_path / "samples.safetensors", x=torch.randn(8, 2))
        return {**section, "path": str(path)}
    if section["name"] == "LatentZip":
        raw = torch.rand(10, 8, 64, 64)
        path = latent_zip(tmp_path / "latents.zip", raw, [i % 10 for i in range(10)])
        return {**section, "path": str(path)}
    if section["name"] == "ImageFolder":
        for kind in ("cat", "dog"):
            (tmp_path / "pictures" / kind).mkdir(parents=True)
            for i in range(4):
                noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / "pictures" / kind / f"{i}.png")
        return {**section, "path": str(tmp_path / "pictures")}
    if section["name"] == "Captions":
        write(tmp_path, labels={"train": np.arange(20) % 10, "t10k": np.arange(20) % 10})
        return {**section, "root": str(tmp_path)}
    if "root" not in section:
        return section
    sizes = {"MNIST": ("L", 28), "CIFAR10": ("RGB", 32)}
    images = random_images(tmp_path / "images.zip", *sizes[section["name"]])
    others = {key: section[key] for key in section if key not in ("name", "root")}
    return {**others, "name": "ImageZip", "path": str(images)}


def random_images(path: Path, mode: str, size: int) -> Path:
    """A zip of an image for each of ten classes."""
    depth = (3,) if mode == "RGB" else ()
    labels = [[f"{k}.png", k] for k in range(10)]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("dataset.json", json.dumps({"labels": labels}))
        for name, k in labels:
            pixels = np.random.default_rng(k).integers(0, 256, (size, size, *depth), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels, mode).save(data, "PNG")
            file.writestr(name, data.getvalue())
    return path


def test_there_are_configs():
    names = {file.name for file in FILES}
    assert {f"{w}{k}.yaml" for w in ("fractal", "gaussians") for k in ("", "_quick")} <= names
    assert {f"cifar_{w}.yaml" for w in ("edm", "edm_small", "flow", "weak", "classifier")} <= names
    assert {f"mnist{w}.yaml" for w in ("", "_small", "_classifier", "_judge")} <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_config_loads(file):
    config = read(file)
    assert config["run_dir"].startswith("runs/")
    json.dumps(config)  # plain data


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_unknown_key_is_refused(file):
    verb = verb_of(file)
    function = resolve("", f"lightning_cfg.verbs.{verb}.{verb}")
    with pytest.raises(UserError, match="no_such_key"):
        load(function, file, ["no_such_key=1"])


STUDIES = [file for file in FILES if verb_of(file) == "study"]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_is_planned_to_its_end(file, call, tmp_path, monkeypatch):
    """Every stage of every study, of one of its seeds; what may be lacking are downloads."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(file.read_text())
    write(tmp_path / "data", labels={part: np.arange(10_000) % 10 for part in ("train", "t10k")})
    if config.get("data", {}).get("name") not in (None, "MNIST"):
        config["data"] = small_data(config["data"], tmp_path)
    if "seeds" in config:
        config["seeds"] = config["seeds"][:1]
    planned = call(study, config, "run_dir=run", "plan=true")
    assert planned.status == 0, planned.err
    assert re.search(r"^\d+ stages: .* samples", planned.out, re.M)


COPIES = {  # sections of studies that say of themselves which config they are: "conf/FILE.yaml"
    (study, name): CONF / alone
    for study in FILES
    for name, alone in re.findall(r"^ *(\w+): +# .*\bconf/(\S+\.yaml)$", study.read_text(), re.M)
}


@pytest.mark.parametrize(
    "study, name", COPIES, ids=[f"{study.stem}:{name}" for study, name in COPIES]
)
def test_a_section_is_that_of_the_config_that_it_names(study, name):
    """Both are written out, so that each can be read alone; here they are held equal."""
    section, config = trainings(study)[name], trainings(COPIES[study, name])["fit"]
    for key in ("net", "model", "learner", "batch_size", "trainer"):
        assert section[key] == config[key], key


def test_the_large_studies_are_copies():
    names = {(study.stem, name) for study, name in COPIES}
    assert {(f"cifar_{k}", name) for k in ("edm", "flow") for name in ("base", "flow")} <= names


# A copy is not trained again: its networks are the same, and some of them are large.
TRAININGS = [(f, name) for f in FILES for name in trainings(f) if (f, name) not in COPIES]


@pytest.mark.parametrize(
    "file, name", TRAININGS, ids=[f"{file.relative_to(CONF)}:{name}" for file, name in TRAININGS]
)
def test_two_steps(file, name, tmp_path):
    section = trainings(file)[name]
    data = small_data(section["data"], tmp_path)
    trainer = {**section["trainer"], "max_steps": 2, "accelerator": "cpu"}
    trainer.pop("precision", None)  # two-step tests run where the precision may not exist
    changes = {"data": data, "batch_size": 2, "trainer": trainer, "logger": "csv"}
    changes["compile"] = False  # which takes longer than the steps
    if "of" in section["model"]:  # a model that is learned on another one
        other = {"model": {"name": "EDM"}, "net": {"name": "MLP", "width": 8, "blocks": 1}}
        base = fit(**{**section, **changes, **other, "run_dir": str(tmp_path / "base")})
        section["model"]["of"] = str(base)
    run = fit(**{**section, **changes, "run_dir": str(tmp_path / "run")})
    checkpoint = load_checkpoint(run)
    assert checkpoint["global_step"] == 2
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    first = next(iter(checkpoint["ema"].values()))
    raw = checkpoint["state_dict"]
    assert any(not torch.equal(raw[f"model.{name}"], average) for name, average in first.items())
