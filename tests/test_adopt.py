"""Networks that others have published, number by number, and whatever else a file may be."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from helpers import adm, nvidia
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lightning_cfg import nets
from lightning_cfg.__main__ import main as lightning_cfg_main
from lightning_cfg.cli import main_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import ADMEncoder, ADMUNet, SongUNet
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import save_images
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.verbs.adopt import adopt
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.generate import generate
from lightning_cfg.weights.catalogue import ASSETS
from lightning_cfg.weights.foreign import read
from lightning_cfg.weights.published import UNSAID

REFERENCE = Path(__file__).parent / "reference"
EDM1 = REFERENCE / "edm2/edm1_snapshot_trap.pkl"
EDM2 = REFERENCE / "edm2/edm2_snapshot_trap.pkl"
SILENT = dict.fromkeys(UNSAID)
GUIDED = {"shape": [3, 8, 8], "schedule": "linear", "attention_order": "legacy"}
GUIDED |= {"head_channels": 16}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Whatever a file executes writes into the working directory: nothing may be there."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.fixture
def adopted(tmp_path):
    """The restored network of a file."""

    def run(file: Path, **keys: object):
        return restore(adopt(file=str(file), run_dir=str(tmp_path / "run"), **keys))

    return run


@pytest.fixture
def cli(tmp_path, capsys):
    """Status, out and err of the command line, in a run directory of its own."""

    def run(*words: object):
        capsys.readouterr()
        try:
            main_of("adopt", [str(word) for word in words])
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def reference(name: str) -> tuple[dict, dict, dict]:
    """(weights, other tensors, settings) of an original network's."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if "weights/" in k}
    return weights, tensors, config


def awake(net: nn.Module) -> dict:
    """Its weights, none of them zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return net.state_dict()


def saved(path: Path, content: object, **how: object) -> Path:
    torch.save(content, path, **how)
    return path


# EDM


def check_edm(model, tensors: dict) -> None:
    one_hot = tensors["in/class_labels"]
    c = torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), NULL)
    with torch.no_grad():
        D = model(tensors["in/x"], tensors["in/sigma"], c)
    torch.testing.assert_close(D, tensors["out/D"], rtol=0, atol=1e-5)


def test_edms_pickle_gives_edms_outputs(adopted):
    """Its own snapshot, of the network of `edm_ddpmpp_small`."""
    model = adopted(EDM1)
    assert (model.shape, model.num_classes, model.augment_dim) == ((3, 16, 16), 10, 9)
    check_edm(model, reference("edm_ddpmpp_small")[1])


def test_edms_other_form_too(adopted, tmp_path):
    """NCSN++, in a pickle of the same layout."""
    weights, tensors, config = reference("edm_ncsnpp_small")
    keywords = {
        key: config[key]
        for key in (
            "model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout",
            "augment_dim", "encoder_type", "embedding_type", "resample_filter",
        )
    }  # fmt: skip
    keywords |= {"channel_mult_noise": 2, "decoder_type": "standard"}
    path = nvidia.edm(tmp_path / "a.pkl", weights, "SongUNet", keywords, (3, 16, 16), 10)
    check_edm(adopted(path), tensors)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_of_any_protocol_and_with_attention_at_no_level(protocol, tmp_path):
    weights, _, _ = reference("edm_ddpmpp_small")
    keywords = {"attn_resolutions": [8, 999]}
    found = told(song(tmp_path / "a.pkl", keywords=keywords, protocol=protocol))
    assert found.net["attention_resolutions"] == [8]
    held = {name.replace("net.", "model.", 1): weight for name, weight in found.weights.items()}
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) for name in weights)


def test_such_a_pickle_is_a_trap_for_others(tmp_path):
    """Else nothing would be proven: its source is not run here, its tensors are read."""
    weights, _, _ = reference("edm_ncsnpp_small")
    path = nvidia.edm(tmp_path / "a.pkl", weights, "SongUNet", {}, (3, 16, 16), 10)
    assert nvidia.TRAP.encode() in path.read_bytes()


def test_edms_network_for_imagenet_is_dhariwal_and_nichols(adopted, tmp_path):
    """`DhariwalUNet`, against its equations written out by its own names."""
    shape, size = (3, 8, 8), {"channels": 128, "mult": [1, 2], "blocks": 1, "attention": [4]}
    weights = nvidia.dhariwal_weights(shape, 5, **size)
    keywords = {"model_channels": 128, "channel_mult": [1, 2], "num_blocks": 1}
    keywords |= {"attn_resolutions": [4], "dropout": 0.1}
    named = {f"model.{name}": weight for name, weight in weights.items()}
    path = nvidia.edm(tmp_path / "a.pkl", named, "DhariwalUNet", keywords, shape, 5, sigma_data=0.6)
    model = adopted(path)
    g = torch.Generator().manual_seed(1)
    x, sigma = torch.randn(3, *shape, generator=g), torch.tensor([0.05, 1.0, 20.0])
    c = torch.tensor([0, 4, 2])
    s = sigma[:, None, None, None]
    F = nvidia.dhariwal(weights, x / (s**2 + 0.36).sqrt(), sigma.log() / 4, torch.eye(5)[c])
    expected = 0.36 / (s**2 + 0.36) * x + 0.6 * s / (s**2 + 0.36).sqrt() * F
    assert F.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(x, sigma, c), expected, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="null_class=false"):
        model(x, sigma, torch.full((3,), NULL))


def test_a_run_of_theirs_is_a_run_of_ours(cli, call, tmp_path):
    """What `generate` and `evaluate` make of it; identity and manifest are those of a run."""
    run = tmp_path / "edm"
    status, out, err = cli(EDM1, f"run_dir={run}")
    assert (status, err) == (0, "")
    assert "edm: EDM, SongUNet, shape [3, 16, 16], 10 classes, 374,995 numbers" in out
    identity = json.loads((run / "identity.json").read_text())
    digest = hashlib.sha256(EDM1.read_bytes()).hexdigest()
    assert identity["inputs"] == {"file": digest}
    held = torch.load(run / LAST, weights_only=True)
    assert held["config"]["adopted"] == {"file": EDM1.name, "sha256": digest, "kind": "edm"}
    assert yaml.safe_load((run / "config.yaml").read_text())["file"] == str(EDM1)
    assert (run / LAST).stat().st_size < 1.2 * EDM1.stat().st_size  # weights once, not twice
    shutil.copy(EDM1, tmp_path / "moved.pkl")
    assert "finished already" in cli(tmp_path / "moved.pkl", f"run_dir={run}")[1]
    assert cli(EDM2, f"run_dir={run}")[0] == 2

    os.chdir(tmp_path)  # the two verbs write where they are called
    sampler = {"name": "heun", "steps": 3}
    keys = {"models": {"model": str(run)}, "guidance": "unguided", "sampler": sampler, "n": 6}
    made = generate(**keys, run_dir=str(tmp_path / "samples"), device="cpu")
    x = load_samples(made / SAMPLES, (3, 16, 16), 10)["x"]
    again = generate(**keys, run_dir=str(tmp_path / "again"), device="cpu", batch_size=2)
    torch.testing.assert_close(x, load_samples(again / SAMPLES)["x"], rtol=0, atol=1e-4)
    drawn = {"x": torch.rand(20, 3, 16, 16) * 2 - 1, "c": torch.arange(20) % 10}
    real = save_images(tmp_path / "real.zip", **drawn, seed=torch.arange(20), labelled=True)
    table = evaluate(
        samples={"a": str(made)}, data={"name": "ImageZip", "path": str(real)},
        run_dir=str(tmp_path / "scores"), by_class=False, reference=["bank"],
        metrics=["energy_distance"],
    )  # fmt: skip
    (row,) = json.loads((table / "metrics/metrics.json").read_text())
    assert row["n"] == 6
    assert row["energy_distance"] > 0


# EDM2


def told(path: Path, **keys: object):
    return read(path, None, **{**SILENT, **keys})


def test_edm2s_settings_are_read_off_its_pickle():
    found = told(EDM2)
    assert (found.kind, found.shape, found.num_classes) == ("edm2", (4, 16, 16), 10)
    assert found.net == {
        "name": "EDM2UNet", "channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [8],
        "dropout": 0.0, "channels_per_head": 16, "noise_channels": 16, "embedding_channels": 32,
        "label_balance": 0.5, "res_balance": 0.3, "attention_balance": 0.3, "concat_balance": 0.5,
        "clip": 256.0, "filter": [1, 1],
    }  # fmt: skip
    model = {"name": "EDM2", "label_dropout": 0.0, "sigma_data": 0.5, "logvar_channels": 24}
    assert found.model == model
    theirs = load_file(REFERENCE / "edm2/edm2_snapshot_expected.safetensors")
    assert {n.replace("unet.", "net.") for n in theirs} == found.weights.keys()
    assert found.weights["net.out_conv.weight"].dtype == torch.float16


def test_edm2s_pickle_gives_edm2s_outputs(adopted):
    path = REFERENCE / "edm2/edm2_conditional.safetensors"
    tensors, model = load_file(path), adopted(EDM2)
    one_hot = tensors["in/class_labels"]
    c = torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), NULL)
    with torch.no_grad():
        D = model(tensors["in/x"], tensors["in/sigma"], c)
    rounded = tensors["out/D_float16_rounded_float32_run"]
    torch.testing.assert_close(D, rounded, rtol=0, atol=1e-5)
    assert (tensors["out/D"] - rounded).abs().max() < 1e-3  # what float16 makes of the weights


# guided-diffusion

OPTIONS = {
    "plain": {},
    "as published": {"scale_shift": True, "residual_resampling": True, "learned_variance": True},
    "three levels": {"scale_shift": True, "channel_mult": (1, 2, 2), "residual_resampling": True},
    "two blocks": {"residual_resampling": True, "blocks": 2},
    "wide time": {"time_channels": 128},
}


def guided(num_classes: int = 5, net=ADMUNet, **options: object) -> dict:
    settings = {"channels": 32, "blocks": 1, "channel_mult": (1, 2), "dropout": 0.0}
    settings |= {"head_channels": 16, "attention_resolutions": (2,), **options}
    if net is ADMUNet:
        settings |= {"null_class": False}
    torch.manual_seed(0)
    return awake(net((3, 8, 8), num_classes, **settings))


@pytest.mark.parametrize("order", ["legacy", "new"])
@pytest.mark.parametrize("name", OPTIONS)
def test_guided_diffusions_weights_give_its_equations(adopted, name, order, tmp_path):
    """As a DDPM of the schedule that is said; the time is not scaled."""
    state = guided(**OPTIONS[name])
    path = saved(tmp_path / "a.pt", state)
    model = adopted(path, **{**GUIDED, "attention_order": order, "schedule": "cosine"})
    assert (type(model).__name__, model.num_classes) == ("DDPM", 5)
    g = torch.Generator().manual_seed(1)
    x, t, c = torch.randn(3, 3, 8, 8, generator=g), torch.tensor([3, 400, 998]), torch.arange(3)
    s = model.sigmas[t].float()[:, None, None, None]
    scaled = x / (1 + s**2).sqrt()
    eps = adm.unet(state, scaled, t.float(), c, head_channels=16, new_order=order == "new")
    with torch.no_grad():
        found = (x - model(x, s.flatten(), c)) / s
    assert eps.std() > 0.1
    torch.testing.assert_close(found, eps[:, :3], rtol=1e-3, atol=2e-3)


def test_an_old_file_of_torch_is_read_too(adopted, tmp_path):
    state = {f"module.{name}": weight for name, weight in guided(0).items()}
    path = saved(tmp_path / "a.pt", state, _use_new_zipfile_serialization=False)
    model = adopted(path, shape=[3, 8, 8], schedule="linear", attention_order="legacy", num_heads=2)
    assert model.num_classes == 0
    held = {name.removeprefix("net."): weight for name, weight in model.state_dict().items()}
    assert all(torch.equal(held[name.removeprefix("module.")], w) for name, w in state.items())


def test_a_classifier_of_theirs_guides(adopted, tmp_path):
    state = guided(5, ADMEncoder, scale_shift=True, residual_resampling=True, blocks=2)
    model = adopted(saved(tmp_path / "a.pt", state), **GUIDED)
    assert model.classifies
    assert (model.num_classes, model.net.residual_resampling) == (5, True)
    held = {name.removeprefix("net."): weight for name, weight in model.state_dict().items()}
    assert held.keys() == state.keys()
    assert all(torch.equal(held[name], state[name]) for name in state)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 5.0])
    assert model(x, sigma).shape == (2, 5)


def test_a_model_and_a_classifier_of_theirs_generate_together(tmp_path):
    files = {"model": saved(tmp_path / "a.pt", guided(learned_variance=True))}
    files["classifier"] = saved(tmp_path / "b.pt", guided(5, ADMEncoder))
    models = {
        role: str(adopt(file=str(file), run_dir=str(tmp_path / role), **GUIDED))
        for role, file in files.items()
    }
    guidance = {"name": "classifier_gradient", "scale": 2.0, "base": "conditional"}
    sampler = {"name": "ddim", "steps": 3}
    run = generate(
        models=models, guidance=guidance, sampler=sampler, n=4, run_dir=str(tmp_path / "run")
    )
    assert load_samples(run / SAMPLES, (3, 8, 8), 5)["x"].isfinite().all()


def test_tong_et_als_average_is_a_flow_of_unscaled_time(adopted, tmp_path):
    """{net_model, ema_model, sched, optim, step}, of a wrapped network; the average is taken."""
    state, other = guided(0), {n: w + 1 for n, w in guided(0).items()}
    held = {"net_model": other, "ema_model": {f"module.{n}": w for n, w in state.items()}}
    held |= {"sched": {"a": 1}, "optim": {"state": {}}, "step": 400_000}
    path = saved(tmp_path / f"otcfm_cifar10_weights_{'step' * 20}.pt", held)
    model = adopted(path, shape=[3, 8, 8], head_channels=16)
    assert (type(model).__name__, model.step, model.net.time_scale) == ("Flow", 400_000, 1.0)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 0.3, 1.0])
    v = adm.unet(state, x, t, None, head_channels=16)
    with torch.no_grad():
        found = model.velocity(x, t, torch.zeros(3).long())
        scaled = adm.unet(state, x, 1000 * t, None, head_channels=16)
    torch.testing.assert_close(found, v, rtol=0, atol=2e-5)
    assert (scaled - v).abs().max() > 0.05


PUBLISHED = {
    "adm-64x64-diffusion": ((64, (1, 2, 3, 4), 3, 192), 1000, 296),
    "adm-128x128-diffusion": ((128, (1, 1, 2, 3, 4), 2, 256), 1000, 422),
    "adm-256x256-diffusion": ((256, (1, 1, 2, 2, 4, 4), 2, 256), 1000, 554),
    "adm-256x256-diffusion-uncond": ((256, (1, 1, 2, 2, 4, 4), 2, 256), 0, 553),
    "adm-512x512-diffusion": ((512, (1, 2, 2, 4, 4, 8, 8), 2, 128), 1000, 559),
    "adm-64x64-classifier": ((64, (1, 2, 3, 4), 4, 128), 1000, 65),
    "adm-256x256-classifier": ((256, (1, 1, 2, 2, 4, 4), 2, 128), 1000, 54),
    "adm-512x512-classifier": ((512, (1, 2, 2, 4, 4, 8, 8), 2, 64), 1000, 54),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_told_from_their_names_and_shapes(name):
    """Weights of the published sizes without memory; what they do not say is in the catalogue."""
    from lightning_cfg.weights import adm as of_adm

    (side, mult, blocks, channels), classes, millions = PUBLISHED[name]
    known = {**SILENT, **ASSETS[name].told}
    heads = {k: known[k] for k in ("num_heads", "head_channels") if known[k]}
    settings = {"channels": channels, "blocks": blocks, "channel_mult": mult, "scale_shift": True}
    settings |= {"residual_resampling": True, **heads}
    settings["attention_resolutions"] = tuple(side // r for r in (32, 16, 8))
    settings["time_channels"] = 2 * channels if side == 512 else None
    encodes = "classifier" in name
    if not encodes:
        settings |= {"learned_variance": True, "null_class": False}
    with torch.device("meta"):
        made = (ADMEncoder if encodes else ADMUNet)((3, side, side), classes, **settings)
        state = made.state_dict()
        found = of_adm.published(state, "guided_diffusion", **known)
        assert round(sum(p.numel() for p in made.parameters()) / 1e6) == millions
        net = {key: value for key, value in found.net.items() if key not in ("name", "dropout")}
        assert net.pop("time_channels") == settings.pop("time_channels")
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in net.items()} == settings
        again = getattr(nets, found.net["name"])((3, side, side), classes, **net)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k.removeprefix("net."): v.shape for k, v in found.weights.items()
        } or side == 512
    assert found.model["schedule"] == ("cosine" if side == 64 else "linear")


# Whatever else a file may be


class Runs:
    def __reduce__(self):
        return os.system, ("echo > executed.txt",)


def song(path: Path, **changes: object) -> Path:
    """EDM's pickle with other keywords, attributes or class."""
    weights, _, config = reference("edm_ddpmpp_small")
    keywords = {key: config[key] for key in ("model_channels", "channel_mult", "num_blocks")}
    keywords |= {"attn_resolutions": config["attn_resolutions"], "augment_dim": 9, "dropout": 0.13}
    keywords |= changes.pop("keywords", {})
    net = changes.pop("net", "SongUNet")
    weights = changes.pop("weights", weights)
    return nvidia.edm(path, weights, net, keywords, (3, 16, 16), 10, **changes)


class Stored:
    """Pickled, it is a tensor whose storage is what torch would load: a call of os.system."""

    class Bytes:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Runs()),)

    def __reduce__(self):
        view = (0, (4,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, (self.Bytes(), *view)


def trapped(path: Path) -> Path:
    state = {"_parameters": {}, "_buffers": {}, "_init_kwargs": {}}
    inner = nvidia.Persistent("SongUNet", {**state, "_modules": {}, "_parameters": {"w": Stored()}})
    data = {"img_resolution": 16, "img_channels": 3, "label_dim": 0, "sigma_data": 0.5}
    outer = nvidia.Persistent("EDMPrecond", {**state, "_modules": {"model": inner}, **data})
    return nvidia.write(path, ema=outer)


def strides(path: Path) -> Path:
    state = guided()
    bomb = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    return saved(path, state | {"time_embed.0.weight": bomb})


def damaged(state: dict, name: str, change) -> dict:
    return {**state, name: change(state[name].clone())}


BAD = {
    "absent": (lambda p: p, {}, "no such file; `python -m lightning_cfg.assets` lists"),
    "text": (lambda p: p.write_text("hello") and p, {}, "is truncated or no pickle"),
    "empty": (lambda p: p.write_bytes(b"") or p, {}, "is truncated or no pickle"),
    "an image": (lambda p: p.write_bytes(b"\x89PNG\r\n") and p, {}, "is a PNG image, and no file"),
    "a zip": (lambda p: p.write_bytes(b"PK\x03\x04xxx") and p, {}, "is a zip, and no file"),
    "half a pickle": (
        lambda p: p.write_bytes(EDM1.read_bytes()[:500_000]) and p, {}, "truncated or no pickle",
    ),
    "half a file of torch": (
        lambda p: p.write_bytes(saved(p, guided()).read_bytes()[:50_000]) and p, GUIDED,
        "is truncated or holds more than tensors",
    ),
    "numbers": (lambda p: p.write_bytes(pickle.dumps([1, 2])) and p, {}, "first names are none"),
    "statistics": (
        lambda p: shutil.copy(REFERENCE / "edm2/edm2_statistics_layout.pkl", p) and p, {},
        "it holds no network that is known here; its first names are num_images, fid, fd_dinov2",
    ),
    "os.system": (
        lambda p: p.write_bytes(pickle.dumps({"ema": Runs()})) and p, {}, "first names are ema",
    ),
    "os.system in a file of torch": (
        lambda p: saved(p, {"a": Runs()}), {}, "holds more than tensors",
    ),
    "os.system in a storage": (trapped, {}, "a storage in it is not as torch writes one"),
    "an unknown class": (
        lambda p: song(p, class_name="Precond3"), {},
        "its network is of the class Precond3; known here are EDMPrecond (EDM) and Precond (EDM2)",
    ),
    "an older form": (lambda p: song(p, class_name="VPPrecond"), {}, "is of the class VPPrecond"),
    "an unknown network": (
        lambda p: song(p, net="ViT"), {},
        "its network is a ViT; those of EDM known here are SongUNet, DhariwalUNet",
    ),
    "an unknown setting": (
        lambda p: song(p, keywords={"rope": True}), {}, "was made with rope=True, which is not",
    ),
    "another decoder": (
        lambda p: song(p, keywords={"decoder_type": "skip"}), {}, "has decoder_type 'skip'; here",
    ),
    "a setting out of its range": (
        lambda p: song(p, keywords={"dropout": 7.0}), {}, "net.dropout must be float from 0 to",
    ),
    "a setting of another kind": (
        lambda p: song(p, keywords={"model_channels": "x"}), {}, "net.channels must be int",
    ),
    "a smaller network": (
        lambda p: song(p, keywords={"num_blocks": 1}), {}, "not fit SongUNet: its weights have",
    ),
    "a larger network": (
        lambda p: song(p, keywords={"num_blocks": 3}), {}, "not fit SongUNet: its weights lack",
    ),
    "a narrower network": (
        lambda p: song(p, keywords={"model_channels": 8}), {}, "has shape",
    ),
    "NaN": (
        lambda p: song(p, weights=damaged(
            reference("edm_ddpmpp_small")[0], "model.map_layer0.bias", lambda w: w.fill_(torch.nan)
        )), {}, "its weights net.map_layer0.bias hold NaN or infinity",
    ),
    "no sigma_data": (lambda p: song(p, sigma_data="x"), {}, "model.sigma_data must be float"),
    "another shape": (lambda p: song(p), {"shape": [3, 32, 32]}, "its network is of [3, 16, 16]"),
    "another kind": (lambda p: song(p), {"kind": "edm2"}, "is of the kind edm, not edm2"),
    "what it says itself": (
        lambda p: song(p), {"schedule": "linear"}, "schedule=linear does not count: a file of the",
    ),
    "other tensors": (
        lambda p: saved(p, {"fc.weight": torch.ones(2)}), {}, "its first names are fc.weight",
    ),
    "ours": (
        lambda p: saved(p, {"config": {}, "ema": {}, "state_dict": {}}), {}, "checkpoint of ours",
    ),
    "nothing said": (
        lambda p: saved(p, guided()), {}, "tell shape=, schedule=, attention_order=, num_heads",
    ),
    "heads twice": (lambda p: saved(p, guided()), {**GUIDED, "num_heads": 2}, "say the same"),
    "other heads": (
        lambda p: saved(p, guided()), {**GUIDED, "head_channels": 24},
        "head_channels 24 does not divide 64 channels",
    ),
    "other channels": (
        lambda p: saved(p, guided()), {**GUIDED, "shape": [1, 8, 8]}, "takes 3 channels, not 1",
    ),
    "no such side": (
        lambda p: saved(p, guided()), {**GUIDED, "shape": [3, 9, 9]}, "H and W divisible by 2",
    ),
    "a flow with a schedule": (
        lambda p: saved(p, guided()), {**GUIDED, "kind": "otcfm"}, "schedule=linear does not count",
    ),
    "a layer that is missing": (
        lambda p: saved(p, {k: v for k, v in guided().items() if k != "out.0.bias"}), GUIDED,
        "does not fit ADMUNet: its weights lack net.out.0.bias",
    ),
    "a block that is missing": (
        lambda p: saved(p, {k: v for k, v in guided().items() if "input_blocks.2." not in k}),
        GUIDED, "its weights lack net.input_blocks.2.0",
    ),
    "a stride of 0": (strides, GUIDED, "exceeds its storage of 1 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_network_is_one_line_and_nothing_is_written(cli, name, tmp_path):
    make, keys, message = BAD[name]
    path = make(tmp_path / "file.bin")
    words = [f"{key}={value}" for key, value in keys.items()]
    status, out, err = cli(path, f"run_dir={tmp_path / 'run'}", *words)
    assert message in err
    assert status == 2
    assert err.startswith("lightning_cfg: error: ")
    assert len(err.splitlines()) == 1
    assert "file.bin" in err
    assert not (tmp_path / "run").exists()
    assert out == ""


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "needs one FILE: python -m lightning_cfg.adopt FILE run_dir=DIR"),
        (["a.pkl", "b.pkl"], "needs one FILE"),
        (["--force"], "needs one FILE"),
        ([EDM1, "kind=edm3"], "command line: kind must be"),
        ([EDM1, "shape=3"], "command line: shape must be"),
        ([EDM1, "head=3"], "did you mean"),
        ([EDM1, "num_heads=0"], "num_heads must be int from 1"),
        (["edm-cifar10-32x32-cond-pv"], "no such file; did you mean 'edm-cifar10-32x32-cond-v"),
        (["edm-cifar10-32x32-cond-vp"], "fetch edm-cifar10-32x32-cond-vp` downloads"),
    ],
)
def test_mistakes_of_the_command_line(cli, words, message, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "assets"))
    status, _, err = cli(*words)
    assert (status, len(err.splitlines())) == (2, 1)
    assert message in err


def test_help_lists_the_keys(cli):
    status, out, _ = cli("--help")
    assert status == 0
    for key in ("file", "run_dir", "kind", *UNSAID):
        assert key in out


def test_a_file_of_the_catalogue_is_adopted_by_its_name(cli, monkeypatch, tmp_path):
    """With what is known of it; what is said goes before."""
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "assets"))
    (tmp_path / "assets").mkdir()
    known = {**GUIDED, "head_channels": 32}
    monkeypatch.setitem(vars(ASSETS["adm-64x64-diffusion"]), "told", known)
    saved(tmp_path / "assets/64x64_diffusion.pt", guided())
    run = tmp_path / "run"
    assert cli("adm-64x64-diffusion", f"run_dir={run}", "head_channels=16")[0] == 0
    net = torch.load(run / LAST, weights_only=True)["config"]["net"]
    assert net["head_channels"] == 16
    assert (restore(run).shape, restore(run).num_classes) == ((3, 8, 8), 5)


def test_both_ways_to_call_it(tmp_path, capsys):
    """`python -m lightning_cfg.adopt` and `python -m lightning_cfg adopt`."""
    command = [sys.executable, "-m", "lightning_cfg.adopt", str(EDM1), f"run_dir={tmp_path / 'a'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with pytest.raises(SystemExit) as ended:
        lightning_cfg_main(["adopt", str(EDM1), f"run_dir={tmp_path / 'b'}"])
    assert not ended.value.code
    for out, run in ((done.stdout, tmp_path / "a"), (capsys.readouterr().out, tmp_path / "b")):
        assert "374,995 numbers" in out
        assert (run / "manifest.json").is_file()


def test_a_large_file_is_adopted_within_twice_its_size(tmp_path):
    """A SongUNet of 300 MB: what the verb adds to the process, beyond what it imports."""
    keywords = {"model_channels": 160, "channel_mult": [2, 2, 2], "augment_dim": 0}
    with torch.device("meta"):
        net = SongUNet((3, 32, 32), 10, channels=160)
    weights = {f"model.{k}": torch.ones(v.shape) for k, v in net.state_dict().items()}
    path = nvidia.edm(tmp_path / "a.pkl", weights, "SongUNet", keywords, (3, 32, 32), 10)
    del weights
    size = path.stat().st_size
    code = f"""
import re
from lightning_cfg.verbs.adopt import adopt
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
adopt(file={str(EDM1)!r}, run_dir={str(tmp_path / "small")!r})  # imports 170 MB of torch
before = peak()
adopt(file={str(path)!r}, run_dir={str(tmp_path / "run")!r})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    used = int(done.stdout.splitlines()[-1]) / size
    path.unlink()
    shutil.rmtree(tmp_path / "run")
    assert size > 300e6
    assert used < 1.3
    print(f"adopt: {used:.2f} of the file")


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_of_torchvisions_judges_images(adopted, tmp_path, depth):
    """Its logits of images that are resized and normalised as its weights expect."""
    from torchvision import models
    from torchvision.transforms.v2 import functional as transforms

    torch.manual_seed(0)
    theirs = models.get_model(f"resnet{depth}", weights=None, num_classes=7)
    for module in theirs.modules():  # as after a training: another mean and deviation each
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = adopted(tmp_path / "resnet.pth", shape=[3, 48, 48])
    assert ours.clean
    assert ours.num_classes == 7
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    pixels = transforms.resize((x + 1) / 2, [224, 224], antialias=True)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = theirs.eval()(transforms.normalize(pixels, mean, std))
    assert torch.allclose(ours(x, torch.zeros(2)), expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(ours.net.head(ours.features(x)), expected, atol=1e-4, rtol=1e-4)


def test_a_resnet_whose_shape_is_not_said(tmp_path):
    from torchvision import models

    torch.save(models.resnet18(weights=None, num_classes=2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"its weights do not tell shape="):
        adopt(file=str(tmp_path / "a.pth"), run_dir=str(tmp_path / "run"))
