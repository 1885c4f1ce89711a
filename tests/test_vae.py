"""VAEs of diffusers: to the numbers of EDM2's own code, in its convention and in diffusers'."""

import json
import shutil

import pytest
import torch
from helpers.latents import OnlyDecodes, Toy, reference, vae_folder
from safetensors.torch import load_file, save_file

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import complete
from lightning_cfg.latents import decoder as decoders
from lightning_cfg.latents.decoder import (
    Decoder,
    build_decoder,
    decoded_bytes,
    decoded_shape,
    encoded,
)
from lightning_cfg.latents.vae import EDM2_BIAS, EDM2_SCALE
from lightning_cfg.runs.pngs import quantised, signed

needs_diffusers = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("diffusers"), reason="diffusers is not installed"
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vae_folder(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def edm2(folder):
    return build_decoder({"name": "EDM2VAE", "path": str(folder)})


@needs_diffusers
def test_latents_are_those_of_the_original(edm2):
    held, _ = reference()
    raw = encoded(edm2, held["in/pixels"])
    assert torch.allclose(raw, held["out/raw_latents"], atol=1e-5)
    mean, std = raw.chunk(2, 1)
    final = (mean + std * held["in/noise"]) * edm2.scale + edm2.bias
    assert torch.allclose(final, held["out/final_latents"], atol=1e-5)


@needs_diffusers
def test_pixels_are_those_of_the_original(edm2):
    """To the byte; rounded ones would be others."""
    held, _ = reference()
    z = held["out/final_latents"]
    assert torch.allclose((edm2.decode(z) + 1) / 2, held["out/decoded_before_clamp"], atol=1e-5)
    y = decoded_bytes(edm2, z)
    assert torch.equal(y, held["out/pixels"])
    assert torch.equal(quantised(signed(y)), y)  # what is scored is what is saved
    rounded = quantised(edm2.decode(z))
    assert (rounded != y).float().mean() > 0.05


@needs_diffusers
def test_the_numbers_are_the_published_ones():
    held, _ = reference()
    assert torch.allclose(torch.tensor(EDM2_SCALE), held["scale"].flatten(), atol=1e-6)
    assert torch.allclose(torch.tensor(EDM2_BIAS), held["bias"].flatten(), atol=1e-6)


@needs_diffusers
def test_the_other_convention_is_the_pipelines(folder):
    """As diffusers' pipelines and their VaeImageProcessor do it."""
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    held, _ = reference()
    ours = build_decoder({"name": "DiffusersVAE", "path": str(folder), "factor": 0.7, "shift": 0.1})
    theirs, processor = AutoencoderKL.from_pretrained(folder), VaeImageProcessor()
    z = held["in/noise"]
    with torch.no_grad():
        image = theirs.decode(z / 0.7 + 0.1).sample
        pixels = processor.postprocess(image, output_type="np")
        posterior = theirs.encode(held["in/pixels"].float() / 127.5 - 1).latent_dist
    assert torch.allclose(ours.decode(z), image, atol=1e-6)
    there = torch.from_numpy((pixels * 255).round()).permute(0, 3, 1, 2)
    assert (decoded_bytes(ours, z).float() - there).abs().max() <= 1  # a half may go either way
    assert (decoded_bytes(ours, z).float() != there).float().mean() < 0.01
    found = encoded(ours, held["in/pixels"])
    assert torch.allclose(found, torch.cat([posterior.mean, posterior.std], 1), atol=1e-5)


@needs_diffusers
def test_the_factor_is_that_of_the_config(tmp_path):
    from_config = vae_folder(tmp_path / "vae", scaling_factor=0.13025)
    made = build_decoder({"name": "DiffusersVAE", "path": str(from_config)})
    assert made.scale.item() == pytest.approx(0.13025)
    assert made.bias.item() == 0


@needs_diffusers
def test_old_names_of_attention(folder, tmp_path, edm2):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(old / WEIGHTS).items():
        for new, before in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        weights[name] = value
    assert any(".query." in name for name in weights)
    save_file(weights, old / WEIGHTS, {"format": "pt"})
    z = torch.randn(2, 4, 4, 4)
    again = build_decoder({"name": "EDM2VAE", "path": str(old)})
    assert torch.equal(again.decode(z), edm2.decode(z))


@needs_diffusers
def test_a_tiny_autoencoder(tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    small |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    tiny = AutoencoderTiny(**small)
    tiny.save_pretrained(tmp_path / "tiny")
    made = build_decoder({"name": "EDM2VAE", "path": str(tmp_path / "tiny"), "scale": [0.5]})
    z = torch.randn(2, 4, 4, 4)
    shape = decoded_shape(made, (4, 4, 4))
    assert made.decode(z).shape == (2, *shape)
    raw = (z - torch.tensor(EDM2_BIAS).reshape(4, 1, 1)) / 0.5
    assert torch.allclose((made.decode(z) + 1) / 2, tiny.decode(raw).sample, atol=1e-6)


@needs_diffusers
def test_gradients_flow_through(edm2):
    z = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    image = edm2.decode(z)
    assert image.dtype == torch.float64
    (found,) = torch.autograd.grad(image.sum(), z)
    step = torch.zeros_like(z)
    step[0, 1, 2, 3] = 0.1
    with torch.no_grad():
        slope = (edm2.decode(z + step) - edm2.decode(z - step)).sum() / 0.2
    assert found[0, 1, 2, 3].item() == pytest.approx(slope.item(), rel=0.05, abs=1e-3)


def damaged(folder, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def _drop(copy):
    weights = load_file(copy / WEIGHTS)
    weights.pop("post_quant_conv.bias")
    save_file(weights, copy / WEIGHTS, {"format": "pt"})


def _nan(copy):
    weights = load_file(copy / WEIGHTS)
    weights["post_quant_conv.bias"][0] = torch.nan
    save_file(weights, copy / WEIGHTS, {"format": "pt"})


def _kind(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))


def _huge(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 160_000]}))


def _odd(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "norm_num_groups": 3}))


@needs_diffusers
@pytest.mark.parametrize(
    "change, message",
    [
        (_huge, "too few for the"),
        (_odd, "its config.json makes no network"),
        (lambda copy: (copy / WEIGHTS).unlink(), "holds no diffusion_pytorch_model.safetensors"),
        (lambda copy: (copy / "config.json").unlink(), "holds no config.json"),
        (lambda copy: (copy / "config.json").write_text("{"), "is damaged or no json"),
        (lambda copy: (copy / WEIGHTS).write_bytes(b"x" * 10**6), "holds no VAE that diffusers"),
        (_kind, "is of UNet2DModel, not of AutoencoderKL or AutoencoderTiny"),
        (_drop, "does not fit its config.json: missing post_quant_conv.bias"),
        (_nan, "its weights hold NaN or infinity"),
    ],
)
def test_folders_that_are_refused(folder, tmp_path, change, message):
    copy = damaged(folder, tmp_path, change)
    with pytest.raises(UserError) as error:
        build_decoder({"name": "EDM2VAE", "path": str(copy)})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@needs_diffusers
def test_numbers_that_are_refused(folder, edm2):
    with pytest.raises(UserError, match=r"decode.scale has 3 numbers, and the latents 4 channels"):
        build_decoder({"name": "EDM2VAE", "path": str(folder), "scale": [1.0, 1.0, 1.0]})
    with pytest.raises(UserError, match=r"takes latents \(4, h, w\), not samples of shape \(3, 8"):
        decoded_shape(edm2, (3, 8, 8))


def test_a_folder_that_is_absent():
    with pytest.raises(UserError, match=r"absent: no such folder; `hf download .* makes it"):
        build_decoder({"name": "EDM2VAE", "path": "absent"})


def test_diffusers_that_is_absent(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'lightning_cfg\[diffusers\]'"):
        build_decoder({"name": "EDM2VAE", "path": str(folder)})


# One of one's own


def test_what_one_of_ones_own_leaves_out():
    made = complete(OnlyDecodes(), Decoder, "decode", "decode")
    z = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4).expand(2, 5, 4, 4)
    assert decoded_shape(made, (5, 4, 4)) == (3, 4, 4)
    assert torch.equal(decoded_bytes(made, z), quantised(z[:, :1].expand(-1, 3, -1, -1)))
    with pytest.raises(UserError, match="lacks encode"):
        encoded(made, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"takes latents, not samples of shape \(3, 4, 4\)"):
        decoded_shape(made, (3, 4, 4))


def test_only_so_many_are_decoded_at_once(monkeypatch):
    monkeypatch.setattr(decoders, "AT_ONCE", 3 * 8 * 8)
    toy = complete(Toy(), Decoder, "decode", "decode")
    z = torch.randn(8, 4, 4, 4)
    y = decoded_bytes(toy, z)
    assert toy.most == 3
    assert torch.equal(y, quantised(toy.decode(z)))


def test_a_decoder_that_is_none():
    with pytest.raises(UserError, match="lacks decode"):
        build_decoder({"name": "torch.nn.Identity"})
    with pytest.raises(UserError, match=r"makes a Fraction, which is no torch.nn.Module"):
        build_decoder({"name": "fractions.Fraction"})
