"""Dhariwal & Nichol's UNet: their numbers, the paper's sizes, and what a null class adds."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import adm
from safetensors import safe_open
from torch import nn

from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.diffusion.models import EDM, NoisyClassifier
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets.adm_unet import (
    ADMEncoder,
    ADMUNet,
    AttentionBlock,
    AttentionPool,
    ResBlock,
)

REFERENCE = Path(__file__).parent / "reference" / "adm_unet_small.safetensors"
SMALL = {"channels": 32, "blocks": 1, "channel_mult": (1, 2), "num_heads": 2}


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def awake(net: nn.Module) -> nn.Module:
    """The network in float64 with layers that are no longer zero, in evaluation mode."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return net.double().eval()


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def reference():
    """Weights, inputs and output of the original code, and the settings that they are of."""
    with safe_open(REFERENCE, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if "weights/" in k}
    settings = {
        "channels": config["model_channels"],
        "blocks": config["num_res_blocks"],
        "channel_mult": tuple(config["channel_mult"]),
        "attention_resolutions": tuple(config["attention_resolutions"]),
        "num_heads": config["num_heads"],
        "head_channels": config["num_head_channels"],
        "dropout": config["dropout"],
    }
    shape = (config["in_channels"], config["image_size"], config["image_size"])
    return shape, config["num_classes"], settings, weights, tensors


@pytest.fixture
def inputs():
    """Three images that are not square, their noise levels and classes."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, 4, generator=g, dtype=torch.float64)
    return x, torch.tensor([-1.5, 0.3, 1.0], dtype=torch.float64), torch.tensor([0, 2, NULL])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_original_weights_give_the_original_output(reference, memory_format):
    shape, num_classes, settings, weights, tensors = reference
    net = ADMUNet(shape, num_classes, **settings, null_class=False).eval()
    net.load_state_dict(weights)  # strict: the names are theirs, all of them
    net = net.to(memory_format=memory_format)
    x = tensors["in/x"].to(memory_format=memory_format)
    with torch.no_grad():
        out = net(x, tensors["in/timesteps"] / 1000, tensors["in/y"])
    torch.testing.assert_close(out, tensors["out"], rtol=0, atol=1e-5)
    assert out.is_contiguous(memory_format=memory_format)


def test_a_null_class_leaves_the_answers_for_the_others_as_they_were(reference):
    shape, num_classes, settings, weights, tensors = reference
    net = ADMUNet(shape, num_classes, **settings).eval()
    table = weights["label_emb.weight"]
    net.load_state_dict(weights | {"label_emb.weight": F.pad(table, (0, 0, 0, 1), value=3.0)})
    with torch.no_grad():
        out = net(tensors["in/x"], tensors["in/timesteps"] / 1000, tensors["in/y"])
    torch.testing.assert_close(out, tensors["out"], rtol=0, atol=1e-5)


MNIST = {"channel_mult": (1, 2), "attention_resolutions": (), "num_heads": 1}


@pytest.mark.parametrize(
    "shape, num_classes, settings, parameters",
    [
        ((1, 28, 28), 10, {**MNIST, "null_class": False}, 14_612_993),
        ((1, 28, 28), 10, MNIST, 14_612_993 + 512),
        ((3, 32, 32), 10, {"head_channels": 64, "null_class": False}, 35_751_427),
        ((3, 32, 32), 10, {"blocks": 4, "head_channels": 64, "null_class": False}, 58_692_867),
        ((3, 32, 32), 10, {"head_channels": 64}, 35_751_427 + 512),
        ((3, 32, 32), 0, {"head_channels": 64}, 35_746_307),
    ],
)
def test_the_networks_of_the_paper_have_its_numbers_of_parameters(
    shape, num_classes, settings, parameters
):
    with torch.device("meta"):
        assert count(ADMUNet(shape, num_classes, **settings)) == parameters


def test_a_new_unet_answers_zero_and_its_blocks_change_nothing():
    net = ADMUNet((2, 8, 4), 3, **SMALL)
    x, noise = torch.randn(2, 2, 8, 4), torch.rand(2)
    assert torch.equal(net(x, noise, torch.tensor([1, NULL])), torch.zeros_like(x))
    h = torch.randn(2, 32, 8, 4)
    assert torch.equal(AttentionBlock(32, 2)(h), h)
    assert torch.equal(ResBlock(32, 32, 128, 0.0)(h, torch.randn(2, 128)), h)


def test_null_is_the_last_embedding(inputs):
    x, noise, _ = inputs
    net = awake(ADMUNet((2, 8, 4), 3, **SMALL))
    every = [torch.full((3,), c) for c in (0, 1, 2, NULL)]
    before = [net(x, noise, c) for c in every]
    assert torch.equal(net(x, noise, None), before[3])  # no class given is NULL
    with torch.no_grad():
        net.label_emb.weight[3] += 1
    same = [torch.equal(net(x, noise, c), out) for c, out in zip(every, before, strict=True)]
    assert same == [True, True, True, False]


@pytest.mark.parametrize("c", [None, torch.tensor([0, NULL, 1])])
def test_without_a_null_class_null_is_refused_and_what_needs_it_named(inputs, c):
    x, noise, _ = inputs
    net = awake(ADMUNet((2, 8, 4), 3, **SMALL, null_class=False))
    assert net(x, noise, torch.tensor([0, 2, 1])).isfinite().all()
    with pytest.raises(UserError, match=r"label_dropout.*null_class=true") as error:
        net(x, noise, c)
    assert "\n" not in str(error.value)


def test_label_dropout_without_a_null_class_stops_at_the_first_loss():
    net = ADMUNet((1, 4, 4), 3, **SMALL, null_class=False)
    draws, y = Draws(seed=0, step=0, batch_size=8), torch.zeros(8, 1, 4, 4)
    c = torch.arange(8) % 3
    assert EDM(net, label_dropout=0.0).loss(y, c, draws).isfinite().all()
    with pytest.raises(UserError, match="label_dropout"):
        EDM(net, label_dropout=1.0).loss(y, c, draws)


def test_without_classes_the_class_is_not_heard(inputs):
    x, noise, c = inputs
    net = awake(ADMUNet((2, 8, 4), 0, **SMALL))
    assert torch.equal(net(x, noise, c), net(x, noise, None))
    assert not any("label" in name for name in net.state_dict())


def test_each_image_is_answered_by_itself_from_image_noise_level_and_class(inputs):
    x, noise, c = inputs
    net = awake(ADMUNet((2, 8, 4), 3, **SMALL))
    whole = net(x, noise, c)
    for i in range(3):
        i = slice(i, i + 1)
        torch.testing.assert_close(whole[i], net(x[i], noise[i], c[i]))
    for changed in (net(x + 0.01, noise, c), net(x, noise + 0.01, c), net(x, noise, c - c + 1)):
        assert (changed - whole).flatten(1).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("make", [ADMUNet, ADMEncoder])
def test_every_weight_is_trained(inputs, make):
    net = awake(make((2, 8, 4), 3, **{**SMALL, "channels": 64}))
    net(*inputs).square().sum().backward()
    # rounding alone gives 1e-14 where, as with channels = 32, nothing is heard
    assert [name for name, p in net.named_parameters() if not p.grad.abs().max() > 1e-6] == []


@pytest.mark.parametrize("factors", [(), (1, 4), (2,)])
def test_attention_is_at_the_levels_asked_for_and_in_the_middle(factors):
    settings = {**SMALL, "channel_mult": (1, 2, 2), "attention_resolutions": factors}
    net, heights = ADMUNet((1, 16, 8), 0, **settings), []
    for module in net.modules():
        if isinstance(module, AttentionBlock):
            module.register_forward_hook(lambda module, given, out: heights.append(out.shape[2]))
    net(torch.zeros(1, 1, 16, 8), torch.zeros(1))
    once, twice = 1, 2  # blocks on the way down, on the way up
    expected = [16 // factor for factor in factors] * (once + twice) + [4]
    assert sorted(heights) == sorted(expected)


def test_head_channels_decide_the_number_of_heads(inputs):
    outs, weights = [], None
    for heads in ({"num_heads": 4}, {"head_channels": 8}, {"num_heads": 1}):
        net = awake(ADMUNet((2, 8, 4), 3, **{**SMALL, "channel_mult": (1, 1), **heads}))
        weights = weights or net.state_dict()
        net.load_state_dict(weights)
        outs.append(net(*inputs))
    assert torch.equal(outs[1], outs[0])
    assert not torch.allclose(outs[2], outs[0])


def test_dropout_is_for_training():
    net = ADMUNet((2, 8, 4), 0, **SMALL, dropout=0.5)
    nn.init.normal_(net.out[-1].weight)
    for block in (module for module in net.modules() if isinstance(module, ResBlock)):
        nn.init.normal_(block.out_layers[-1].weight)
    x, noise = torch.randn(1, 2, 8, 4), torch.zeros(1)
    assert not torch.allclose(net(x, noise), net(x, noise))
    net.eval()
    assert torch.equal(net(x, noise), net(x, noise))


def test_the_encoder_is_the_unets_way_down(reference):
    """With the original weights both have the same in the middle, without a class."""
    shape, num_classes, settings, weights, tensors = reference
    x, noise = tensors["in/x"], tensors["in/timesteps"] / 1000
    unet = ADMUNet(shape, 0, **settings).eval()
    unet.load_state_dict({k: v for k, v in weights.items() if "label" not in k})
    encoder = ADMEncoder(shape, num_classes, **settings).eval()
    half = {k: v for k, v in weights.items() if k.split(".")[0] in dict(encoder.named_children())}
    half = {k: v for k, v in half.items() if not k.startswith("out.")}
    missing, _ = encoder.load_state_dict(half, strict=False)
    assert {name.split(".")[0] for name in missing} == {"out"}
    middles = []
    for net in (unet, encoder):
        net.middle_block.register_forward_hook(lambda module, given, out: middles.append(out))
        net(x, noise)
    assert torch.equal(*middles)


def test_the_attention_pool_is_multi_head_attention_of_the_mean():
    pool = awake(AttentionPool(32, 6, 4, 5))
    attention = nn.MultiheadAttention(32, 4, batch_first=True).double()
    x = torch.randn(2, 32, 3, 2, dtype=torch.float64)
    tokens = x.permute(0, 2, 3, 1).reshape(2, 6, 32)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding.T
    with torch.no_grad():
        attention.in_proj_weight.copy_(pool.qkv_proj.weight[..., 0])
        attention.in_proj_bias.copy_(pool.qkv_proj.bias)
        attention.out_proj.weight.copy_(torch.eye(32))
        attention.out_proj.bias.zero_()
        pooled = attention(tokens, tokens, tokens)[0][:, 0]
        torch.testing.assert_close(pool.pool(x), pooled)
        expected = F.linear(pooled, pool.c_proj.weight[..., 0], pool.c_proj.bias)
        torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("pool", ["attention", "adaptive"])
def test_the_features_are_what_the_last_layer_sees_at_noise_zero(inputs, pool):
    x = inputs[0]
    model = NoisyClassifier(awake(ADMEncoder((2, 8, 4), 3, **SMALL, pool=pool)), clean=True)
    features = model.features(x)
    assert features.shape == (3, 64)
    last = model.net.out[2].c_proj if pool == "attention" else model.net.out[3]
    logits = F.linear(features, last.weight.flatten(1), last.bias)
    torch.testing.assert_close(model(x, x.new_zeros(3)), logits)
    assert not torch.allclose(model.net(x, x.new_ones(3)), logits)


def test_the_adaptive_head_starts_undecided_and_hears_no_class(inputs):
    x, noise, c = inputs
    net = ADMEncoder((2, 8, 4), 3, **SMALL, pool="adaptive").double()
    assert torch.equal(net(x, noise), torch.zeros(3, 3, dtype=torch.float64))
    net = awake(net)
    assert torch.equal(net(x, noise, c), net(x, noise))


@pytest.mark.parametrize("make", [ADMUNet, ADMEncoder])
@pytest.mark.parametrize(
    "shape, settings, message",
    [
        ((1, 28, 28), {"channel_mult": (1, 2, 2, 2)}, r"divisible by 8, got \(1, 28, 28\)"),
        ((1, 28, 27), {}, r"divisible by 2, got \(1, 28, 27\)"),
        ((2,), {}, r"images of shape \(C, H, W\)"),
        ((3, 32, 32), {"attention_resolutions": (16,)}, "not pixels, here among 1, 2; .* has 16"),
        ((3, 32, 32), {"channels": 48}, "divisible by 32, .* got 48"),
        ((3, 32, 32), {"num_heads": 3}, "num_heads 3 does not divide 64"),
        ((3, 32, 32), {"head_channels": 24}, "head_channels 24 does not divide 64"),
        (
            (3, 32, 32),
            {"head_channels": 64, "attention_resolutions": (1,)},
            "head_channels 64 does not divide 32",
        ),
        ((3, 32, 32), {"blocks": 0}, "must be positive"),
        ((3, 32, 32), {"channel_mult": ()}, "must be positive"),
        ((3, 32, 32), {"dropout": 1.0}, r"dropout in \[0, 1\)"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(make, shape, settings, message):
    settings = {**SMALL, "attention_resolutions": (), **settings}
    with pytest.raises(UserError, match=f"^{make.__name__}: .*{message}") as error:
        make(shape, 10, **settings)
    assert "\n" not in str(error.value)


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(UserError, match="2 classes or more, got 1"):
        ADMEncoder((1, 8, 8), 1, **SMALL)


@pytest.mark.slow
def test_compiled_it_answers_and_learns_the_same():
    net = awake(ADMUNet((2, 8, 4), 3, **{**SMALL, "channels": 64})).float()
    x, noise, c = torch.randn(3, 2, 8, 4), torch.rand(3), torch.tensor([0, 2, NULL])
    out = net(x, noise, c)
    out.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    compiled = torch.compile(net, fullgraph=True)(x, noise, c)
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, out, rtol=1e-4, atol=1e-4)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() / gradient.norm() < 1e-3


# The options of Dhariwal & Nichol's ImageNet networks, against `helpers.adm`

OPTIONS = {
    "none": {},
    "scale and shift": {"scale_shift": True},
    "residual resampling": {"residual_resampling": True},
    "learned variance": {"learned_variance": True},
    "time": {"time_scale": 1.0, "time_channels": 128},
    "all": {
        "scale_shift": True, "residual_resampling": True, "learned_variance": True,
        "time_channels": 64, "time_scale": 7.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_options_are_what_the_paper_says(name, blocks):
    options = OPTIONS[name]
    settings = {"channels": 32, "blocks": blocks, "channel_mult": (1, 2, 2), "dropout": 0.0}
    net = awake(
        ADMUNet((3, 8, 8), 5, **settings, head_channels=16, null_class=False, **options,
                attention_resolutions=(2,))
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, generator=g, dtype=torch.float64)
    noise, c = torch.rand(4, generator=g, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    t = options.get("time_scale", 1000.0) * noise
    expected = adm.unet(net.state_dict(), x, t, c, head_channels=16)
    assert expected.shape[1] == (6 if options.get("learned_variance") else 3)
    with torch.no_grad():
        out = net(x, noise, c)
    assert out.std() > 0.1
    # the embedding of time is taken in float32
    torch.testing.assert_close(out, expected[:, :3], rtol=0, atol=3e-4 if t.max() > 9 else 1e-5)


def test_the_paper_itself_agrees_with_the_original(reference):
    """`helpers.adm` gives the original's output of the original's weights, without options."""
    _, _, settings, weights, tensors = reference
    heads = settings["head_channels"]
    assert heads > 0
    out = adm.unet(weights, tensors["in/x"], tensors["in/timesteps"].float(), tensors["in/y"],
                   head_channels=heads)  # fmt: skip
    torch.testing.assert_close(out, tensors["out"], rtol=0, atol=1e-5)


IMAGENET = {"scale_shift": True, "residual_resampling": True, "learned_variance": True}


@pytest.mark.parametrize(
    "side, classes, settings, millions",
    [
        (64, 1000, {"channels": 192, "blocks": 3, "channel_mult": (1, 2, 3, 4)}, 296),
        (128, 1000, {"channels": 256, "channel_mult": (1, 1, 2, 3, 4)}, 422),
        (256, 1000, {"channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4)}, 554),
        (
            512, 1000,
            {"channels": 128, "time_channels": 256, "channel_mult": (1, 2, 2, 4, 4, 8, 8)}, 559,
        ),
    ],
)  # fmt: skip
def test_the_networks_for_imagenet_have_the_papers_sizes(side, classes, settings, millions):
    """Dhariwal & Nichol (2021), table 4 and appendix I."""
    factors = tuple(side // r for r in (32, 16, 8))
    with torch.device("meta"):
        net = ADMUNet((3, side, side), classes, head_channels=64, attention_resolutions=factors,
                      null_class=False, **IMAGENET, **settings)  # fmt: skip
    assert round(count(net) / 1e6) == millions


def test_an_encoder_takes_them_too():
    options = {"scale_shift": True, "residual_resampling": True, "time_scale": 3.0}
    net = awake(ADMEncoder((1, 8, 8), 3, **SMALL, attention_resolutions=(2,), **options))
    x, noise = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.2, 0.7]).double()
    assert net(x, noise).shape == (2, 3)
    assert not torch.allclose(net(x, noise), net(x, noise + 0.1))
    same = awake(ADMEncoder((1, 8, 8), 3, **SMALL, attention_resolutions=(2,), **options))
    same.load_state_dict(net.state_dict())
    same.time_scale = 1.0
    torch.testing.assert_close(net(x, noise), same(x, 3 * noise), rtol=0, atol=1e-5)


def test_the_embedding_of_time_has_an_even_width():
    with pytest.raises(UserError, match="time_channels must be even, got 33"):
        ADMUNet((1, 8, 8), 0, **SMALL, time_channels=33)
