import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lightning_cfg.diffusion.models import EDM
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets.song_unet import Fourier, SongUNet, from_edm

REFERENCE = Path(__file__).parent / "reference"
SMALL = dict(channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,))
NCSNPP = dict(encoder="residual", embedding="fourier", resample_filter=(1, 3, 3, 1))


def reference(name):
    """EDM's weights, inputs and outputs, and its settings under our names."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    weights = {k.removeprefix("weights/"): v for k, v in values.items() if k.startswith("weights/")}
    settings = dict(
        channels=config["model_channels"],
        channel_mult=config["channel_mult"],
        blocks=config["num_blocks"],
        attention_resolutions=config["attn_resolutions"],
        dropout=config["dropout"],
        augment_dim=config["augment_dim"],
        encoder=config["encoder_type"],
        embedding=config["embedding_type"],
        resample_filter=config["resample_filter"],
    )
    return weights, settings, values


@pytest.mark.parametrize("name", ["edm_ddpmpp_small", "edm_ncsnpp_small"])
def test_edms_weights_give_edms_denoiser(name):
    weights, settings, values = reference(name)
    net = SongUNet((3, 16, 16), 10, **settings).eval()
    net.load_state_dict(from_edm(weights))
    x, sigma, one_hot = values["in/x"], values["in/sigma"], values["in/class_labels"]
    c = torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), NULL)
    assert c[-1] == NULL

    with torch.no_grad():
        torch.testing.assert_close(EDM(net)(x, sigma, c), values["out/D"], rtol=0, atol=1e-5)
        s = sigma[:, None, None, None]
        F = net(x / (s**2 + 0.25).sqrt(), sigma.log() / 4, c, values["in/augment_labels"])
        D = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * F
    torch.testing.assert_close(D, values["out/D_augment"], rtol=0, atol=1e-5)
    assert (values["out/D_augment"] - values["out/D"]).abs().max() > 1e-2  # the labels say a lot


def test_edms_network_for_cifar10_has_its_number_of_parameters():
    with torch.device("meta"):
        net = SongUNet((3, 32, 32), 10, augment_dim=9)
        explicit = SongUNet(
            (3, 32, 32), 10, channels=128, channel_mult=[2, 2, 2], dropout=0.13, augment_dim=9
        )
        plain = SongUNet((3, 32, 32), 0)
    assert sum(p.numel() for p in net.parameters()) == 55_735_299
    assert sum(p.numel() for p in explicit.parameters()) == 55_735_299
    # ten columns and a bias of the class layer, nine columns of the augmentation layer
    assert sum(p.numel() for p in plain.parameters()) == 55_735_299 - 128 * (10 + 1 + 9)


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=g), torch.linspace(-1.5, 1.5, 4)


def awake(**settings):
    """A network of which every part says something: as built, the last convolutions are mute."""
    torch.manual_seed(0)
    net = SongUNet((1, 8, 8), 3, **SMALL, **settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return net


@torch.no_grad()
def test_no_class_is_the_row_of_zeros(inputs):
    net, null = awake(), torch.full((4,), NULL)
    out = net(*inputs, null)
    assert torch.equal(net(*inputs), out)
    of_two = net(*inputs, torch.full((4,), 2))
    assert not torch.isclose(of_two, out).all()
    net.map_label.weight[:, :2] += 1  # of classes 0 and 1
    assert torch.equal(net(*inputs, null), out)
    assert torch.equal(net(*inputs, torch.full((4,), 2)), of_two)
    net.map_label.weight[:, 2] += 1
    assert torch.equal(net(*inputs, null), out)
    assert not torch.isclose(net(*inputs, torch.full((4,), 2)), of_two).all()


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_each_sample_is_answered_by_itself(inputs, variant):
    net, c = awake(augment_dim=9, **variant), torch.tensor([0, 2, NULL, 1])
    x, noise = inputs
    augment = torch.randn(4, 9)
    whole = net(x, noise, c, augment)
    for i in range(4):
        alone = net(x[i : i + 1], noise[i : i + 1], c[i : i + 1], augment[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_labels_of_zero_are_no_augmentation(inputs):
    net = awake(augment_dim=9)
    out = net(*inputs)
    assert torch.equal(net(*inputs, None, torch.zeros(4, 9)), out)
    for label in range(9):
        told = net(*inputs, None, torch.eye(9)[label].expand(4, 9))
        assert (told - out).abs().flatten(1).max(1).values.min() > 1e-3


def test_every_parameter_is_used_whatever_is_known(inputs):
    """Otherwise DDP stops where a batch has no class or no augmentation."""
    net = awake(augment_dim=9)
    net(*inputs).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_dropout_is_for_training_only(inputs):
    net = awake(dropout=0.5)
    assert torch.equal(net(*inputs), net(*inputs))
    net.train()
    assert not torch.isclose(net(*inputs), net(*inputs)).any()


def test_weights_begin_as_edms_do():
    """Uniform of Glorot's variance; the last convolutions at 1e-5, attention's q, k, v at 0.2."""
    torch.manual_seed(0)
    net = SongUNet((3, 16, 16), 10, channels=32, channel_mult=(1, 2), blocks=1, augment_dim=9)
    kinds = set()
    for name, p in net.named_parameters():
        layer = name.split(".")[-2]
        if name.endswith("bias") or "norm" in layer:
            assert torch.equal(p, torch.full_like(p, name.endswith("weight"))), name
            continue
        fans = p[0].numel() + p[:, 0].numel()
        gain = 1.0
        if layer in ("conv1", "proj") or layer.endswith("aux_conv"):
            gain = 1e-5
        elif layer == "qkv":
            gain = math.sqrt(0.2)
        bound = gain * math.sqrt(6 / fans)
        assert 0.95 * bound < p.abs().max() <= bound * (1 + 1e-6), name
        assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), name
        kinds.add(gain)
    assert len(kinds) == 3


def test_fourier_frequencies_are_edms_and_stay_as_drawn():
    torch.manual_seed(0)
    embedding = Fourier(4000)
    assert embedding.freqs.std().item() == pytest.approx(16, rel=4 / math.sqrt(2 * 2000))
    assert list(embedding.state_dict()) == ["freqs"]
    assert list(embedding.parameters()) == []


@torch.no_grad()
def test_a_new_network_denoises_as_the_skip_connection_alone(inputs):
    net = SongUNet((1, 8, 8), 3, **SMALL)
    x, sigma = inputs[0], torch.tensor([0.01, 0.3, 3.0, 60.0])
    D = EDM(net)(x, sigma, torch.zeros(4).long())
    c_skip = 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(D, c_skip[:, None, None, None] * x, rtol=0, atol=1e-3)


def test_attention_is_where_it_is_asked_for_and_in_the_middle():
    with torch.device("meta"):
        net = SongUNet((3, 32, 32), 10, blocks=2)
        nowhere = SongUNet((3, 32, 32), 10, blocks=2, attention_resolutions=())
    names = {name.removesuffix(".qkv.weight") for name in net.state_dict() if "qkv.w" in name}
    middle = {"dec.8x8_in0"}
    assert names == middle | {"enc.16x16_block0", "enc.16x16_block1", "dec.16x16_block2"}
    assert {name for name in nowhere.state_dict() if "qkv.w" in name} == {"dec.8x8_in0.qkv.weight"}


def test_weights_of_another_variant_are_refused():
    weights, settings, _ = reference("edm_ncsnpp_small")
    settings["encoder"] = "standard"
    with pytest.raises(RuntimeError, match="8x8_aux_residual"):
        SongUNet((3, 16, 16), 10, **settings).load_state_dict(from_edm(weights))


@pytest.mark.parametrize(
    "state, named", [({"enc.a.weight": torch.zeros(1)}, "'enc.a.weight'"), ({}, "no weights")]
)
def test_from_edm_wants_edms_names(state, named):
    with pytest.raises(UserError, match=named):
        from_edm(state)


@pytest.mark.parametrize(
    "shape, settings, named",
    [
        ((2,), {}, r"\(2,\)"),
        ((3, 32, 16), {}, r"\(3, 32, 16\)"),
        ((3, 30, 30), {}, "divisible by 4"),
        ((3, 32, 32), {"channels": 0}, "positive"),
        ((3, 32, 32), {"channels": 18}, "multiple of 4"),
        ((3, 32, 32), {"channels": 132}, "132 channels"),
        ((3, 32, 32), {"channel_mult": ()}, "positive"),
        ((3, 32, 32), {"channel_mult": (1, 0)}, "positive"),
        ((3, 32, 32), {"blocks": 0}, "positive"),
        ((3, 32, 32), {"augment_dim": -1}, "negative"),
        ((1, 28, 28), {}, r"among the levels' \[28, 14, 7\], got \[16\]"),
        ((3, 32, 32), {"dropout": 1.0}, "dropout"),
        ((3, 32, 32), {"resample_filter": (1, 2, 1)}, "even length"),
        ((3, 32, 32), {"resample_filter": (1, -1)}, "positive sum"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(shape, settings, named):
    with torch.device("meta"), pytest.raises(UserError, match=named) as error:
        SongUNet(shape, 10, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("augment_dim, labels", [(0, (4, 9)), (9, (4, 6)), (9, (3, 9))])
def test_labels_without_a_place_are_refused(inputs, augment_dim, labels):
    net = awake(augment_dim=augment_dim)
    with pytest.raises(UserError, match=f"augment_dim {augment_dim}"):
        net(*inputs, None, torch.zeros(labels))
