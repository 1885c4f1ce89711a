"""Latents through every verb: data, a classifier of images, pictures, scores of the decoded."""

import csv
import importlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.latents import TOY, Toy, latent_zip
from helpers.runs import assert_same
from PIL import Image
from safetensors.torch import load_file
from test_configs import random_images, verb_of

from lightning_cfg.config import load, resolve
from lightning_cfg.data import ImageFolder, LatentZip
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.latents import decoder as decoders
from lightning_cfg.latents.decoder import build_decoder, decoded_shape
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.names import LATENTS, SAMPLES
from lightning_cfg.runs.pngs import quantised
from lightning_cfg.sampling.prepared import prepare
from lightning_cfg.verbs.encode import encode
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine

HEUN = {"name": "heun", "steps": 2}
SCALE, BIAS = [0.5, 0.25, 1.0, 2.0], [0.1, -0.2, 0.3, 0.0]
KEYS = {"scale": SCALE, "bias": BIAS}
UNET = {"name": "UnshuffleUNet", "channels": 4, "channel_mult": [1]}
TRAINED = {
    "net": UNET, "model": {"name": "EDM2", "logvar_channels": 4},
    "learner": {"name": "Diffusion", "ema_half_life": [100]}, "batch_size": 4,
    "trainer": {"max_steps": 4, "accelerator": "cpu"}, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip
JUDGE = {
    "net": {"name": "ConvNet", "channels": 4}, "model": {"name": "NoisyClassifier", "clean": True},
    "learner": {"name": "Classification", "ema_half_life": [100]},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images of 16 x 16 and latents of 8 x 8, two classes; runs on both."""
    root = tmp_path_factory.mktemp("latents")
    for label in ("a", "b"):
        (root / "images" / label).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng([i, label == "b"]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(root / "images" / label / f"{i}.png")
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(12, 8, 8, 8, generator=generator)
    raw[:, 4:] = raw[:, 4:].abs()
    latent_zip(root / "bank.zip", raw, [i % 2 for i in range(12)])
    latent_zip(root / "held.zip", raw[:8].flip(0) / 2, [i % 2 for i in range(8)])
    data = {"name": "LatentZip", "path": str(root / "bank.zip"), **KEYS}
    data["held_out"] = str(root / "held.zip")
    images = {"name": "ImageFolder", "path": str(root / "images")}
    images["held_out"] = images["path"]
    fit(**TRAINED, data=data, run_dir=str(root / "base"))
    fit(**{**TRAINED, **JUDGE}, data=images, run_dir=str(root / "judge"))
    generate(
        **MODEL(root), guidance="unguided", sampler=HEUN, n=6, run_dir=str(root / "samples"),
        decode=TOY, images="zip",
    )  # fmt: skip
    return {"root": root, "raw": raw, "data": data, "images": images}


def MODEL(root):
    return {"models": {"model": str(root / "base")}}


# Data


def test_latents_are_mean_and_deviation_scaled(made):
    data = LatentZip(path=made["data"]["path"], **KEYS)
    assert data.shape == (4, 8, 8)
    assert data.num_classes == 2
    batch = data.batch(Draws(seed=3, step=5, batch_size=6))
    draws = Draws(seed=3, step=5, batch_size=6)
    rows, n = draws.permuted(12), draws.normal(4, 8, 8)
    mean, std = made["raw"][rows][:, :4], made["raw"][rows][:, 4:]
    for channel in range(4):
        z = (mean[:, channel] + std[:, channel] * n[:, channel]) * SCALE[channel] + BIAS[channel]
        assert torch.allclose(batch["y"][:, channel], z, atol=1e-6)
    assert torch.equal(batch["c"], rows % 2)


def test_training_draws_afresh_and_evaluation_does_not(made):
    data = LatentZip(path=made["data"]["path"], **KEYS)
    one, two = (data.batch(Draws(seed=0, step=step, batch_size=12)) for step in (0, 1))
    order = [Draws(seed=0, step=step, batch_size=12).permuted(12).argsort() for step in (0, 1)]
    assert not torch.allclose(one["y"][order[0]], two["y"][order[1]])
    again = LatentZip(path=made["data"]["path"], **KEYS)
    assert torch.equal(data.real("bank")[0], again.real("bank")[0])
    y, c = data.real("bank", 2)
    assert c.tolist() == [0, 0, 1, 1]
    assert torch.equal(y[0], data.real("bank")[0][0])  # the same n, however many are asked for


def test_the_draw_has_the_posteriors_deviation(tmp_path):
    raw = torch.cat([torch.full((400, 1, 8, 8), 3.0), torch.full((400, 1, 8, 8), 0.5)], 1)
    path = latent_zip(tmp_path / "a.zip", raw, None)
    y, _ = LatentZip(path=str(path), scale=[1.0], bias=[0.0]).real("bank")
    assert y.mean().item() == pytest.approx(3, abs=0.02)
    assert y.std().item() == pytest.approx(0.5, abs=0.01)
    assert y.std(0).mean().item() == pytest.approx(0.5, abs=0.02)  # each has its own


def test_a_large_zip_is_read_batch_by_batch(made):
    whole = LatentZip(path=made["data"]["path"], **KEYS)
    streamed = LatentZip(path=made["data"]["path"], **KEYS, memory=0.0)
    draws = {"seed": 1, "step": 2, "batch_size": 5}
    assert torch.equal(whole.batch(Draws(**draws))["y"], streamed.batch(Draws(**draws))["y"])
    assert torch.equal(whole.real("bank")[0], streamed.real("bank")[0])


def test_halves_share_no_latent(made):
    path = made["data"]["path"]
    halves = [LatentZip(path=path, half=half, **KEYS) for half in ("first", "second")]
    rows = [set(data.rows("bank")[1].tolist()) for data in halves]
    assert rows[0] | rows[1] == set(range(12))
    assert not rows[0] & rows[1]


def test_a_killed_training_goes_on_bit_for_bit(made, tmp_path):
    part = {**TRAINED, "trainer": {"max_steps": 2, "accelerator": "cpu"}}
    fit(**part, data=made["data"], run_dir=str(tmp_path / "run"))
    fit(**TRAINED, data=made["data"], run_dir=str(tmp_path / "run"))
    assert_same(tmp_path / "run" / LAST, made["root"] / "base" / LAST)


def zipped(tmp_path, files):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return {"path": str(tmp_path / "a.zip"), **KEYS}


def array(shape=(8, 8, 8), dtype=np.float32, value=1.0):
    content = io.BytesIO()
    np.save(content, np.full(shape, value, dtype))
    return content.getvalue()


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.npy": array()}, "has no dataset.json at the top, which latents need"),
        ({"dataset.json": b'{"labels": null}'}, "holds no array of latents (.npy)"),
        ({"a.npy": array((7, 8, 8))}, "a.npy has shape (7, 8, 8), not (2 c, h, w)"),
        ({"a.npy": array((8, 8))}, "a.npy has shape (8, 8), not (2 c, h, w)"),
        ({"a.npy": array(), "b.npy": array((8, 4, 4))}, "b.npy has shape (8, 4, 4), but a.npy has"),
        ({"a.npy": array(dtype=np.float64)}, "it is float64, not float32"),
        ({"a.npy": array(dtype=object)}, "a.npy is damaged or cannot be read"),
        ({"a.npy": array()[:-8]}, "a.npy is damaged or cannot be read"),
        ({"a.npy": array().replace(b"(8, 8, 8)", b"(8, 8,99)")}, "a.npy is damaged or cannot be"),
        ({"a.npy": b"no array"}, "a.npy is damaged or cannot be read"),
        ({"a.npy": array(value=np.nan)}, "a.npy holds NaN, infinity or a deviation below 0"),
        ({"a.npy": array(value=-1.0)}, "a.npy holds NaN, infinity or a deviation below 0"),
        ({"a.npy": array((6, 8, 8))}, "data.scale has 4 numbers, and the latents 3 channels"),
    ],
)
def test_zips_that_are_refused(tmp_path, files, message):
    unlabelled = {} if "no dataset.json" in message else {"dataset.json": b'{"labels": null}'}
    keys = zipped(tmp_path, unlabelled | files)
    with pytest.raises(UserError) as error:
        LatentZip(**keys).real("bank")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Encoding


def test_images_become_a_zip_of_latents(made, tmp_path):
    run = encode(data=made["images"], decode=TOY, run_dir=str(tmp_path / "run"), device="cpu")
    with zipfile.ZipFile(run / LATENTS) as file:
        names = file.namelist()
        assert names[0] == "00000/img-mean-std-00000000.npy"
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        labels = json.loads(file.read("dataset.json"))["labels"]
    assert [label for _, label in labels] == [0] * 6 + [1] * 6
    y, _ = ImageFolder(path=made["images"]["path"]).real("bank")
    raw = Toy().encode(quantised(y))
    facts = json.loads((run / "manifest.json").read_text())
    data = LatentZip(path=str(run), scale=facts["scale"], bias=facts["bias"])
    assert torch.allclose(data._bank[0], raw, atol=1e-6)
    assert (data.class_names, data.doubts) == (["a", "b"], ())
    many = torch.cat([data.final(raw, torch.randn(12, 4, 8, 8)) for _ in range(200)])
    assert many.mean((0, 2, 3)).abs().max() < 0.01
    assert (many.std((0, 2, 3)) - 0.5).abs().max() < 0.01


def test_encoding_in_parts_is_the_same(made, tmp_path, monkeypatch):
    one = encode(data=made["images"], decode=TOY, run_dir=str(tmp_path / "one"), device="cpu")
    monkeypatch.setattr(decoders, "AT_ONCE", 1)
    keys = {"data": made["images"], "decode": TOY, "batch_size": 5, "device": "cpu"}
    other = encode(**keys, run_dir=str(tmp_path / "other"))
    assert (one / LATENTS).read_bytes() == (other / LATENTS).read_bytes()


def test_a_cut_off_encoding_leaves_no_zip(made, tmp_path, monkeypatch):
    def fails(self, y):
        if len(y) == 1:  # the first image is tried before anything is written
            return encodes(self, y)
        raise RuntimeError("out of memory")

    encodes = Toy.encode
    monkeypatch.setattr(Toy, "encode", fails)
    run = tmp_path / "run"
    keys = {"data": made["images"], "decode": TOY, "run_dir": str(run), "device": "cpu"}
    with pytest.raises(RuntimeError):
        encode(**keys)
    assert not list(run.rglob("*.zip*"))
    monkeypatch.setattr(Toy, "encode", encodes)
    assert (encode(**keys) / LATENTS).is_file()


def test_what_cannot_be_encoded(made, tmp_path):
    with pytest.raises(UserError, match=r"encode needs RGB images, \(3, H, W\), and data have"):
        encode(data=made["data"], decode=TOY, run_dir=str(tmp_path / "run"), device="cpu")
    only = {"name": "helpers.latents.OnlyDecodes"}
    with pytest.raises(UserError, match="decode OnlyDecodes lacks encode: it only decodes"):
        encode(data=made["images"], decode=only, run_dir=str(tmp_path / "run"), device="cpu")
    assert not (tmp_path / "run").exists()


# A classifier of images beside a model of latents


def guided(made, decode=TOY, guidance="gfcg", **other):
    models = {**MODEL(made["root"])["models"]}
    models["classifier"] = {"path": str(made["root"] / "judge"), "decode": decode}
    return {"models": models, "guidance": guidance, "sampler": HEUN, "device": "cpu", **other}


def test_a_classifier_of_images_reads_decoded_latents(made, monkeypatch):
    monkeypatch.setattr(decoders, "AT_ONCE", 2 * 16 * 16)
    ready = prepare(**guided(made, guidance={"name": "gfcg"}))
    classifier = ready.networks["classifier"]
    z = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    logits = classifier(z, torch.full((5,), 3.0))
    judge = classifier.net.classifier
    assert torch.allclose(logits, judge(Toy().decode(z), torch.zeros(5)), atol=1e-6)
    assert classifier.shape == (4, 8, 8)
    assert classifier.clean
    assert classifier.net.decoder.most <= 2


def test_a_gradient_through_the_decoder(made):
    """Of classifier guidance: D_c + sigma^2 grad log p, the gradient by hand."""
    section = {"name": "classifier_gradient", "base": "conditional", "scale": 2.0}
    ready = prepare(**guided(made, guidance=section))
    z, c = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1])
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    D = ready.networks["model"].net(z, sigma, c)
    leaf = z.clone().requires_grad_()
    log_p = ready.networks["classifier"].net.classifier(Toy().decode(leaf), sigma * 0)
    (slope,) = torch.autograd.grad(log_p.log_softmax(1).gather(1, c[:, None]).sum(), leaf)
    assert slope[:, 3].abs().max() == 0  # the toy does not show that channel
    assert slope[:, :3].abs().max() > 0
    assert torch.allclose(ready.denoise(z, sigma, c), D + 4 * slope, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "models.classifier has shape (3, 16, 16), but models.model has (4, 8, 8)"),
        (
            {"decode": {"name": "helpers.latents.OnlyDecodes"}},
            "models.classifier reads shape (3, 16, 16), but its decode makes (3, 8, 8) of the "
            "latents (4, 8, 8) of models.model",
        ),
        ({"decode": {"name": "torch.nn.Identity"}}, "decode torch.nn.Identity lacks decode"),
        ({"decode": {"name": "EDM2VAE", "path": "absent"}}, "absent: no such folder"),
        ({"decode": "NoSuch"}, "no 'NoSuch' in lightning_cfg.latents"),
    ],
)
def test_decoders_that_do_not_fit(made, call, change, message):
    config = guided(made, n=2)
    config["models"]["classifier"] = {"path": str(made["root"] / "judge"), **change}
    refused = call(generate, config, "run_dir=run")
    assert refused.status == 2
    assert message in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_only_a_classifier_has_a_decoder(made):
    models = {"model": {"path": str(made["root"] / "base"), "decode": TOY}}
    with pytest.raises(UserError, match=r"models.model.decode: only a classifier reads images"):
        prepare(models=models, guidance={"name": "unguided"}, sampler=HEUN)


def test_noisy_latents_are_not_decoded(made):
    section = {"name": "gfcg", "classifier_input": "noisy"}
    with pytest.raises(UserError, match="needs a noisy classifier"):
        prepare(**guided(made, guidance=section))


# Pictures


def test_samples_stay_latents_and_leave_as_images(made):
    run = made["root"] / "samples"
    x = load_file(run / SAMPLES)["x"]
    assert x.shape == (6, 4, 8, 8)
    expected = quantised(Toy().decode(x))
    with zipfile.ZipFile(run / "samples/images.zip") as file:
        for i in range(6):
            with file.open(f"000000/{i:06d}.png") as png:
                pixels = torch.from_numpy(np.array(Image.open(png)))
            assert torch.equal(pixels.permute(2, 0, 1), expected[i])
    assert (run / "figures/samples.png").is_file()


def test_a_finished_run_makes_images_and_makes_them_again(made, tmp_path):
    run = tmp_path / "samples"
    shutil.copytree(made["root"] / "samples", run)
    before = (run / "samples/images.zip").read_bytes()
    keys = {**MODEL(made["root"]), "guidance": "unguided", "sampler": HEUN, "n": 6}
    keys |= {"run_dir": str(run), "images": "zip"}
    generate(**keys, decode=TOY)
    assert (run / "samples/images.zip").read_bytes() == before
    generate(**keys, decode={**TOY, "gain": -1.0})
    assert (run / "samples/images.zip").read_bytes() != before
    with pytest.raises(UserError, match="of latents `decode` makes images"):
        generate(**keys)


def test_images_of_latents_need_a_decoder(made, call):
    config = {**MODEL(made["root"]), "guidance": "unguided", "sampler": HEUN, "n": 2}
    refused = call(generate, config, "run_dir=run", "images=zip")
    assert refused.status == 2
    assert "not (4, 8, 8): of latents `decode` makes images" in refused.err


def test_refined_latents_leave_as_images(made, tmp_path):
    root = made["root"]
    pair(
        sources=[str(root / "samples")], data=made["data"], k=2, run_dir=str(tmp_path / "pairs"),
        features="pixels",
    )  # fmt: skip
    flow = {"model": {"name": "Flow"}, "learner": {"name": "Refinement", "ema_half_life": [100]}}
    data = {"name": "Pairs", "path": str(tmp_path / "pairs")}
    fit(**{**TRAINED, **flow}, data=data, run_dir=str(tmp_path / "flow"))
    run = refine(
        flow=str(tmp_path / "flow"), samples=str(root / "samples"), method="euler", steps=1,
        images="folder", decode=TOY, run_dir=str(tmp_path / "refined"), device="cpu",
    )  # fmt: skip
    x = load_file(run / SAMPLES)["x"]
    pixels = np.array(Image.open(run / "samples/images/000000/000003.png"))
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), quantised(Toy().decode(x))[3])


def test_grids_and_scores_of_a_training(made, tmp_path):
    grids = {"every": 4, "columns": 2, "scales": [1.0], "sampler": HEUN, "decode": TOY}
    scores = {"every": 4, "n": 6, "sampler": HEUN, "metrics": ["class_accuracy"], "columns": 2}
    scores |= {"classifier": str(made["root"] / "judge"), "decode": TOY}
    run = fit(
        **TRAINED, data=made["data"], grids=grids, evaluation=scores, run_dir=str(tmp_path / "run")
    )
    with Image.open(run / "figures/grid_000004.png") as grid:
        assert grid.size[0] > 100
    assert (run / "figures/samples_000004.png").is_file()
    rows = list(csv.DictReader((run / "metrics/evaluations.csv").open()))
    assert rows[0]["samples"] == "scale_1"
    assert 0 <= float(rows[0]["class_accuracy"]) <= 1
    assert_same(run / LAST, made["root"] / "base" / LAST)  # training is not touched


def test_grids_of_latents_need_a_decoder(made, tmp_path):
    with pytest.raises(UserError, match=r"not \(4, 8, 8\): of latents grids.decode makes images"):
        fit(**TRAINED, data=made["data"], grids={"every": 1}, run_dir=str(tmp_path / "run"))


# Scores


def frechet(a, b):
    """Of flattened images: the root's trace is the nuclear norm of the centred ones' product."""
    a, b = (x.flatten(1).double() for x in (a, b))
    mean = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    return float(mean + a.square().sum() + b.square().sum() - 2 * (a @ b.T).svd().S.sum())


def scored(made, tmp_path, data, **change):
    keys = {"samples": {"a": str(made["root"] / "samples")}, "data": data, "by_class": False}
    keys |= {"metrics": [{"name": "frechet_features", "allow_few": True}, "class_accuracy"]}
    keys |= {"features": "pixels", "classifier": str(made["root"] / "judge"), "decode": TOY}
    run = evaluate(**{**keys, "device": "cpu", **change}, run_dir=str(tmp_path / "table"))
    rows = json.loads((run / "metrics/metrics.json").read_text())
    return rows, json.loads((run / "metrics/numbers.json").read_text())


def test_both_sides_are_scored_as_images(made, tmp_path):
    """Real latents with the n that `real` gives them, and bytes on both sides."""
    rows, numbers = scored(made, tmp_path, made["data"])
    x = quantised(Toy().decode(load_file(made["root"] / "samples" / SAMPLES)["x"]))
    data = LatentZip(**{k: v for k, v in made["data"].items() if k != "name"})
    y = quantised(Toy().decode(data.real("held_out")[0]))
    expected = frechet(x / 127.5 - 1, y / 127.5 - 1)
    (column,) = (key for key in rows[0] if key.startswith("fd_"))
    assert rows[0][column] == pytest.approx(expected, rel=1e-5)
    assert all(number["decode"].startswith("helpers.latents.Toy ") for number in numbers)


def test_latents_beside_images_of_their_kind(made, tmp_path):
    """Real images as they are; the zip of the decoded samples scores as the latents do."""
    rows, _ = scored(
        made, tmp_path, made["images"],
        samples={"a": str(made["root"] / "samples"),
                 "b": str(made["root"] / "samples/samples/images.zip")},
    )  # fmt: skip
    assert rows[0]["n"] == rows[1]["n"] == 6
    for key in rows[0]:
        if key not in ("samples", "class"):
            assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-9), key


def test_samples_made_while_they_are_scored(made, tmp_path):
    """As those of the run with the same seeds."""
    made_now = {**MODEL(made["root"]), "guidance": "unguided", "sampler": HEUN, "n": 6}
    rows, _ = scored(made, tmp_path, made["data"], generate={"b": made_now})
    one, two = ({k: v for k, v in row.items() if k not in ("samples", "class")} for row in rows)
    assert one == pytest.approx(two, rel=1e-6)


def test_latents_without_a_decoder_are_no_images(made, tmp_path):
    with pytest.raises(UserError, match=r"holds samples of shape \(4, 8, 8\), not \(3, 16, 16\)"):
        scored(made, tmp_path, made["images"], decode=None)


def test_a_scale_that_is_not_the_decoders(made, tmp_path, monkeypatch):
    class Scaled(Toy):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(SCALE).reshape(4, 1, 1) * 2)

    monkeypatch.setattr("helpers.latents.Scaled", Scaled, raising=False)
    with pytest.raises(UserError, match=r"data.scale and that of decode are not the same"):
        scored(made, tmp_path, made["data"], decode={"name": "helpers.latents.Scaled"})


def test_what_is_known_of_real_images_is_by_decoder_and_scale(made):
    from lightning_cfg.evaluation.build import real_side
    from lightning_cfg.evaluation.decoded import decoding_of
    from lightning_cfg.runs.run import content_of

    def digest(data, decode):
        content = content_of(data)[1]
        side = real_side(json.dumps(data), content, None, None, False, decoding_of(decode, "cpu"))
        return side.digest("held_out")

    other = {**made["data"], "scale": [1.0]}
    sections = [(data, decode) for data in (made["data"], other) for decode in (None, TOY)]
    sections += [(made["data"], {**TOY, "gain": 2.0}), ({**made["data"], "half": "first"}, TOY)]
    found = [digest(*section) for section in sections]
    assert len(set(found)) == len(found)
    assert digest(*sections[1]) == found[1]
    assert digest(made["images"], TOY) == digest(made["images"], None)  # nothing is decoded
    halves = {"name": "helpers.toys.Halves"}  # known by its bytes alone
    assert digest(halves, TOY) == digest(halves, None) != found[0]


# The example on real pictures

EXAMPLE = Path(__file__).parents[1] / "docs/results/latents"


@pytest.mark.parametrize("file", sorted(EXAMPLE.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_of_the_example_load(file, monkeypatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    monkeypatch.syspath_prepend(EXAMPLE)
    verb = verb_of(file)
    config = load(resolve("", f"lightning_cfg.verbs.{verb}.{verb}"), file)
    assert config["run_dir"].startswith("runs/latents/")


def test_the_example_makes_a_vae_that_decodes(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    monkeypatch.syspath_prepend(EXAMPLE)
    example = importlib.import_module("vae")
    images = random_images(tmp_path / "images.zip", "RGB", 32)
    config = load(fit, EXAMPLE / "vae.yaml")
    config |= {"data": {"name": "ImageZip", "path": str(images)}, "batch_size": 4}
    config["trainer"] = {"max_steps": 2, "accelerator": "cpu"}
    run = fit(**{**config, "run_dir": str(tmp_path / "run")})
    example.export(str(run), str(tmp_path / "folder"))
    decoder = build_decoder({"name": "EDM2VAE", "path": str(tmp_path / "folder")})
    assert decoded_shape(decoder, (4, 8, 8)) == (3, 32, 32)
    keys = {"data": config["data"], "decode": {"name": "EDM2VAE", "path": str(tmp_path / "folder")}}
    encoded = encode(**keys, run_dir=str(tmp_path / "latents"), device="cpu")
    example.draw(str(encoded), str(tmp_path / "drawn.safetensors"), 1)
    drawn = load_file(tmp_path / "drawn.safetensors")
    assert drawn["x"].shape == (10, 4, 8, 8)
    assert drawn["c"].tolist() == list(range(10))
