"""The presets of ImageNet-512: what they say and cost, and that they run on tiny networks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import nvidia
from helpers.latents import latent_zip, vae_folder
from safetensors import safe_open
from test_configs import CONF, verb_of

from lightning_cfg.config import load
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space
from lightning_cfg.latents.decoder import build_decoder, decoded_bytes
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.sampling.network import path_and_weights
from lightning_cfg.studies.flops import PEAK, cost_of, decoding, evaluations, forecast
from lightning_cfg.studies.graph import Stage
from lightning_cfg.verbs.adopt import adopt
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.study import study
from lightning_cfg.weights.catalogue import ASSETS

PRESETS = sorted(f for f in (CONF / "imagenet512").glob("*.yaml") if verb_of(f) == "generate")
STUDY = CONF / "studies/imagenet512.yaml"
REFERENCE = Path(__file__).parent / "reference/edm2"
TRAP = REFERENCE / "edm2_snapshot_trap.pkl"
EDM2 = "runs/edm2/edm2-img512-"
needs_diffusers = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("diffusers"), reason="diffusers is not installed"
)


def named(file: Path) -> list[str]:
    """The runs that a preset reads."""
    return [path_and_weights(n)[0] for n in load(generate, file)["models"].values()]


def test_the_presets_are_all_there():
    kinds = ["", "_cfg", "_interval", "_interval_dino", "_autoguided", "_gfcg", "_gfcg_decoded"]
    assert {f.stem for f in PRESETS} == {f"{size}{kind}" for size in ("s", "xxl") for kind in kinds}


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_names_published_networks_and_its_number(file):
    for path in named(file):
        name = Path(path).name
        assert (name in ASSETS and ASSETS[name].is_network) or path == "runs/imagenet512/classifier"
    text = file.read_text()
    assert "published" in text.split("models:")[0]
    config = load(generate, file)
    assert config["n"] == 50_000
    assert config["sampler"]["steps"] == 32


PUBLISHED = {  # EDM2's own table of presets, and the interval paper's: net, by, scale
    "s": ("s-2147483-0.130", None, 1),
    "xxl": ("xxl-0939524-0.070", None, 1),
    "s_cfg": ("s-2147483-0.085", "xs-uncond-2147483-0.085", 1.9),
    "xxl_cfg": ("xxl-0939524-0.015", "xs-uncond-2147483-0.015", 1.7),
    "xxl_interval": ("xxl-0939524-0.015", "xs-uncond-2147483-0.015", 2.0),
    "xxl_interval_dino": ("xxl-0939524-0.015", "xs-uncond-2147483-0.015", 2.9),
    "s_autoguided": ("s-2147483-0.120", "xs-0134217-0.165", 2.45),
    "xxl_autoguided": ("xxl-0939524-0.130", "m-0268435-0.205", 2.3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_one(name):
    config = load(generate, CONF / f"imagenet512/{name}.yaml")
    net, by, scale = PUBLISHED[name]
    assert config["models"]["model"] == EDM2 + net
    assert config["models"].get("weak") == (None if by is None else EDM2 + by)
    inner = config["guidance"].get("of", config["guidance"])
    assert inner.get("scale", 1) == scale


@pytest.mark.parametrize("name, steps", [("interval", (17, 22)), ("interval_dino", (13, 19))])
def test_the_intervals_are_the_published_steps(name, steps):
    """By Karras' levels, of which the paper counts these."""
    guidance = load(generate, CONF / f"imagenet512/xxl_{name}.yaml")["guidance"]
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    levels = [(high + i / 31 * (low - high)) ** 7 for i in range(32)]
    below, above = guidance["sigma_low"], guidance["sigma_high"]
    inside = [i for i, s in enumerate(levels) if below < s <= above]
    assert (inside[0], inside[-1]) == steps
    spent = evaluations(guidance, {"name": "heun", "steps": 32}, ["model", "weak"])
    assert spent["model"] == 63
    assert spent["weak"] == 2 * (steps[1] - steps[0] + 1)


# Cost


@pytest.mark.parametrize(
    "name, gmac, numbers",
    [
        ("xs-2147483-0.135", 44.95, 124_713_253 - 128),
        ("s-2147483-0.130", 100.8, 280_212_837 - 128),
        ("m-0268435-0.205", 179.0, 497_807_781 - 128),
        ("xxl-0939524-0.130", 546.9, 1_523_164_773 - 128),
        ("xs-uncond-2147483-0.015", 44.95, 124_201_253 - 128),
    ],
)
def test_what_an_evaluation_takes(name, gmac, numbers):
    """Without the uncertainty head, which sampling does not ask."""
    cost = cost_of(EDM2 + name)
    assert cost.macs / 1e9 == pytest.approx(gmac, rel=1e-3)
    # two Fourier features of the noise level lie in buffers
    assert cost.numbers == pytest.approx(numbers, rel=1e-6)


@needs_diffusers
@pytest.mark.parametrize("folder, gmac", [("sd-vae-ft-mse", 1257), ("taesd", 71)])
def test_what_decoding_takes(folder, gmac):
    section = {"name": "EDM2VAE", "path": f"weights/{folder}"}
    assert decoding(section, (4, 64, 64)) / 1e9 == pytest.approx(gmac, rel=0.01)
    assert decoding({"name": "EDM2VAE", "path": "weights/other"}, (4, 64, 64)) is None


TABLE = [  # of the specification: preset, FLOP of 50,000, hours on eight H100 at 35 and 15 %
    ("s", 7.6e17, 0.08, 0.18),
    ("s_cfg", 1.0e18, 0.10, 0.24),
    ("xxl_cfg", 3.9e18, 0.39, 0.90),
    ("xxl_autoguided", 4.7e18, 0.47, 1.10),
    ("xxl_gfcg_decoded", 5.2e18, 0.52, 1.21),
]


@needs_diffusers
@pytest.mark.parametrize("name, flop, at_35, at_15", TABLE)
def test_the_plan_has_the_hours_of_the_specification(name, flop, at_35, at_15):
    config = load(generate, CONF / f"imagenet512/{name}.yaml")
    lines = forecast({"a": Stage("a", "generate", config)}, (4, 64, 64))
    total, hours = re.search(r"in all (\S+) FLOP: hours of one H100, (.+?) of", lines[-1]).groups()
    assert float(total) == pytest.approx(flop, rel=0.05)
    one, other = re.findall(r"(\S+) at (?:35|15)%", hours)
    assert float(one) / 8 == pytest.approx(at_35, rel=0.06)
    assert float(other) / 8 == pytest.approx(at_15, rel=0.06)
    assert float(one) == pytest.approx(flop / (0.35 * PEAK) / 3600, rel=0.05)


def test_what_is_unknown_is_not_counted_and_said():
    models = {"model": EDM2 + "xxl-0939524-0.130", "classifier": "runs/mine"}
    stage = Stage("a", "generate", {"models": models, "n": 10, "decode": {"name": "own.Decoder"},
                                    "guidance": {"name": "gfcg"},
                                    "sampler": {"name": "heun", "steps": 2}})  # fmt: skip
    assert forecast({"a": stage}, (4, 64, 64))[-1] == (
        "not counted, as not known: own.Decoder of samples, runs/mine"
    )
    fitted = Stage("b", "generate", {"models": {"model": "exact"}, "n": 10})
    assert forecast({"b": fitted}, (2,)) == []  # of what a study trains nothing new is told


@needs_diffusers
def test_a_plan_names_what_is_not_here(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "assets"))
    planned = call(study, json.loads(json.dumps(_study())), "run_dir=run", "plan=true")
    assert planned.status == 0
    lines = planned.out.splitlines()
    name = "edm2-img512-xxl-0939524-0.130"
    fetch = f"python -m lightning_cfg.assets fetch {name}"
    assert f"  {EDM2}xxl-0939524-0.130: {fetch} && python -m lightning_cfg.adopt {name} " in (
        planned.out
    )
    folder, fetched = "weights/sd-vae-ft-mse", "hf download stabilityai/sd-vae-ft-mse"
    assert f"  {folder}: {fetched} --local-dir {folder}" in lines
    assert "  edm2_img512: python -m lightning_cfg.assets fetch edm2_img512" in lines
    judge = "resnet152-imagenet"
    fetched = (
        f"python -m lightning_cfg.assets fetch {judge} && python -m lightning_cfg.adopt {judge}"
    )
    assert f"  runs/torchvision/{judge}: {fetched} run_dir=runs/torchvision/{judge}" in lines
    assert "hours of one H100" in planned.out
    assert "about 0.85 GiB of samples" in planned.out
    refused = call(study, _study(), "run_dir=run")
    assert refused.status == 2
    assert "is not here: python -m lightning_cfg.assets fetch" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert not Path("run").exists()


def _study() -> dict:
    config = load(study, STUDY)
    return {k: v for k, v in config.items() if k != "run_dir"}


def test_generate_names_what_makes_its_network(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = {
        k: v for k, v in load(generate, CONF / "imagenet512/s.yaml").items() if k != "run_dir"
    }
    refused = call(generate, config, "run_dir=run")
    assert refused.status == 2
    name = "edm2-img512-s-2147483-0.130"
    told = f"`python -m lightning_cfg.adopt {name} run_dir=runs/edm2/{name}` makes it"
    assert told in refused.err
    assert len(refused.err.strip().splitlines()) == 1


# Tiny networks of the same kind in the places of the published ones


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder in which all paths of the presets are there: latents (4, 16, 16), ten classes."""
    from torchvision import models

    root = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LIGHTNING_CFG_ASSETS", str(root / "assets"))
        without = without_classes(root / "uncond.pkl")
        for path in sorted({path for file in PRESETS for path in named(file)} | of_the_study()):
            if EDM2 in path:
                adopt(file=str(without if "uncond" in path else TRAP), run_dir=path)
        torch.manual_seed(0)
        torch.save(models.resnet18(weights=None, num_classes=10).state_dict(), "resnet.pth")
        for depth in (50, 152):
            place = f"runs/torchvision/resnet{depth}-imagenet"
            adopt(file="resnet.pth", shape=[3, 32, 32], run_dir=place)
        for folder in ("sd-vae-ft-mse", "taesd"):
            Path("weights").mkdir(exist_ok=True)
            vae_folder(Path("weights") / folder)
        raw = torch.rand(20, 8, 16, 16)
        latent_zip(root / "latents.zip", raw, [i % 10 for i in range(20)])
        section = load(fit, CONF / "imagenet512/classifier.yaml")
        section["net"] |= {"channels": 32, "channel_mult": [1], "attention_resolutions": []}
        section |= {"data": {"name": "LatentZip", "path": "latents.zip"}, "batch_size": 4}
        section["trainer"] = {"max_steps": 1, "accelerator": "cpu"}
        fit(**section)
        yield root


def without_classes(path: Path) -> Path:
    """EDM2's own tiny network without classes, as it publishes one."""
    with safe_open(REFERENCE / "edm2_sampling.safetensors", "pt") as file:
        inside = "weights_unconditional/"
        names = [name for name in file.keys() if name.startswith(inside)]
        weights = {name.removeprefix(inside): file.get_tensor(name) for name in names}
        made_with = json.loads(file.metadata()["unconditional"])
    inner = {key: value for key, value in made_with.items() if key != "logvar_channels"}
    unet = {"unet": ("UNet", inner)}
    network = nvidia.module(weights, "Precond", made_with, unet, **made_with, sigma_data=0.5)
    return nvidia.write(path, ema=network)


def of_the_study() -> set[str]:
    methods = load(study, STUDY)["methods"].values()
    return {path_and_weights(n)[0] for m in methods for n in m["models"].values()}


@needs_diffusers
@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_runs(places, monkeypatch, tmp_path, file):
    monkeypatch.chdir(places)
    config = load(generate, file, ["n=2", "images=zip", "device=cpu"])
    config["sampler"]["steps"] = 6
    run = generate(**{**config, "run_dir": str(tmp_path / "run")})
    x = load_samples(run / SAMPLES, (4, 16, 16), 10)["x"]
    assert x.isfinite().all()
    assert (run / "samples/images.zip").is_file()
    spent = json.loads((run / "manifest.json").read_text())["evaluations"]
    assert spent["model"] == 11
    most = evaluations(config["guidance"], config["sampler"], list(config["models"]))
    assert all(spent[role] <= most[role] for role in spent)
    if "gfcg" not in file.stem:
        assert spent == {role: most[role] for role in spent}


@needs_diffusers
def test_the_study_runs(places, monkeypatch, tmp_path, capsys):
    """Scored by a classifier, as statistics are of networks that are not here."""
    monkeypatch.chdir(places)
    config = load(study, STUDY)
    config |= {"data": {"name": "Described", "shape": [4, 16, 16], "num_classes": 10}}
    config |= {"samples": 10, "run_dir": str(tmp_path / "run")}
    config["generation"] |= {"sampler": {"name": "heun", "steps": 3}, "device": "cpu"}
    kept = {key: config["evaluation"][key] for key in ("decode", "by_class", "classifier")}
    config["evaluation"] = {**kept, "metrics": ["class_accuracy"]}
    study(**config)
    assert "hours of one H100" in capsys.readouterr().out
    report = (tmp_path / "run/report.md").read_text()
    table = (tmp_path / "run/table.csv").read_text()
    assert {"cfg", "interval", "autoguided", "gfcg_latents", "gfcg_decoded"} == {
        line.split(",")[0] for line in table.splitlines()[1:]
    }
    assert "class_accuracy" in report
    assert (tmp_path / "run/figures/images_autoguided_2.3.png").is_file()


def greys() -> Space:
    """The pixels' brightness, 1024 features as DINOv2 has."""
    return Space(lambda x: x.mean(1).flatten(1), {"extractor": "greys"}, frechet="fd_dinov2")


@needs_diffusers
def test_the_evaluation_runs(places, monkeypatch, tmp_path):
    """Of what samples decode to, against statistics alone, and by a judge that guides nothing."""
    monkeypatch.chdir(places)
    config = load(generate, CONF / "imagenet512/s.yaml", ["n=6", "device=cpu"])
    config["sampler"]["steps"] = 3
    run = generate(**{**config, "run_dir": str(tmp_path / "samples")})
    config = load(evaluate, CONF / "imagenet512/evaluate.yaml")
    assert config["classifier"] not in {path for file in PRESETS for path in named(file)}
    np.savez(tmp_path / "known.npz", mu=np.zeros(1024), sigma=np.eye(1024))
    config |= {"samples": {"s": str(run)}, "device": "cpu", "run_dir": str(tmp_path / "run")}
    config["data"] |= {"shape": [4, 16, 16], "num_classes": 10}
    config |= {"features": {"dinov2": {"name": "test_imagenet512.greys"}}}
    config |= {"statistics": {"dinov2": str(tmp_path / "known.npz")}}
    config["metrics"][0]["allow_few"] = True
    table = evaluate(**config)
    (row,) = json.loads((table / "metrics/metrics.json").read_text())
    held = load_samples(run / SAMPLES, (4, 16, 16), 10)  # and the judge by hand
    images = decoded_bytes(build_decoder(config["decode"]), held["x"]) / 127.5 - 1
    with torch.no_grad():
        right = restore(config["classifier"])(images, torch.zeros(6)).argmax(1) == held["c"]
    assert row["class_accuracy"] == pytest.approx(right.float().mean().item())
    assert row["fd_dinov2"] > 0


def test_described_data_have_no_points(tmp_path):
    from lightning_cfg.data.build import build_data

    data = build_data({"name": "Described", "shape": [4, 64, 64], "num_classes": 1000})
    assert (data.shape, data.num_classes, data.has_points) == ((4, 64, 64), 1000, False)
    with pytest.raises(UserError, match="data Described lacks real: it has no points"):
        data.real("bank")
