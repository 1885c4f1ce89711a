"""EDM2's network, preconditioning and loss against the numbers of the original (reference/edm2)."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same
from safetensors import safe_open

from lightning_cfg.diffusion import magnitude
from lightning_cfg.diffusion.models import EDM2
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL
from lightning_cfg.nets import EDM2UNet
from lightning_cfg.nets.edm2_unet import from_edm2, resampled
from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.verbs.fit import fit

REFERENCE = Path(__file__).parent / "reference/edm2"
NETWORKS = ["edm2_conditional", "edm2_unconditional_odd", "edm2_options"]
NAMES = {  # EDM2's settings under our names
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "num_blocks": "blocks",
    "attn_resolutions": "attention",
    "dropout": "dropout",
    "channels_per_head": "channels_per_head",
    "label_balance": "label_balance",
    "res_balance": "res_balance",
    "attn_balance": "attention_balance",
    "concat_balance": "concat_balance",
    "clip_act": "clip",
    "resample_filter": "filter",
}

SMALL = dict(channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), channels_per_head=8)


def read(name):
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def under(values, folder):
    return {k.removeprefix(folder): v for k, v in values.items() if k.startswith(folder)}


def model_of(config, weights, **changed):
    """The original's network of this config with these weights, as a model of ours."""
    settings = {NAMES[key]: value for key, value in config.items() if key in NAMES}
    for ours, theirs in (
        ("noise_channels", "channel_mult_noise"),
        ("embedding_channels", "channel_mult_emb"),
    ):
        if theirs in config:
            settings[ours] = config["model_channels"] * config[theirs]
    shape = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    net = EDM2UNet(shape, config["label_dim"], **{**settings, **changed})
    model = EDM2(
        net,
        sigma_data=config.get("sigma_data", 0.5),
        logvar_channels=config["logvar_channels"],
    )
    model.load_state_dict(from_edm2(weights))
    return model


def original(name, **changed):
    values, about = read(name)
    config = json.loads(about["config"])
    model = model_of(config, under(values, "weights/"), **changed)
    one_hot = values.get("in/class_labels")
    if one_hot is None:
        return model, values, torch.full((len(values["in/x"]),), NULL)
    return model, values, torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), NULL)


def close(ours, theirs, atol=2e-6):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_edm2s_weights_give_edm2s_denoiser(name):
    model, values, c = original(name)
    model.eval()
    x, sigma = values["in/x"], values["in/sigma"]
    assert values["out/D"].std() > 0.1
    close(model(x, sigma, c), values["out/D"])
    close(model.uncertainty(sigma), values["out/logvar"])
    if "out/D_none" in values:
        assert c[-1] == NULL
        assert (c[:-1] != NULL).all()
        close(model(x, sigma, torch.full_like(c, NULL)), values["out/D_none"])
        close(model(x, sigma, model.class_vectors(c)), values["out/D"])
        assert (values["out/D"] - values["out/D_none"])[:-1].abs().amax((1, 2, 3)).min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_training_normalises_the_weights_first(name):
    model, values, c = original(name, dropout=0.0)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    close(model.train()(values["in/x"], values["in/sigma"], c), values["out/D_train"])
    model.uncertainty(values["in/sigma"])
    changed = {name for name, w in model.state_dict().items() if not torch.equal(w, before[name])}
    assert changed == {name for name in before if name.endswith("weight")}
    for name in changed:
        rms = model.state_dict()[name].flatten(1).square().mean(1).sqrt()
        close(rms, torch.ones_like(rms), atol=1e-3)


def test_weights_after_forced_normalisation_are_the_originals():
    model, values, c = original("edm2_conditional")
    model.train()(values["in/x"], values["in/sigma"], c)
    normalised = from_edm2(under(values, "normalised/"))
    model.uncertainty(values["in/sigma"])
    assert normalised
    for name, weight in normalised.items():
        close(model.state_dict()[name], weight)


@torch.no_grad()
def test_float16_parameters_of_a_published_file():
    model, values, c = original("edm2_conditional")
    model.half().float()  # the Fourier features too
    D = model.eval()(values["in/x"], values["in/sigma"], c)
    close(D, values["out/D_float16_rounded_float32_run"])
    close(D, values["out/D_float16_parameters"], atol=1e-4)


def test_pieces():
    v, _ = read("edm2_pieces")
    a, b, a2 = v["a"], v["b"], v["a2"]
    close(magnitude.normalised_rows(a), v["normalize_default"])
    close(magnitude.normalised(a, (1,)), v["normalize_dim1"])
    close(magnitude.mp_silu(a), v["mp_silu"])
    close(magnitude.mp_sum(a, a2, 0.3), v["mp_sum_0.3"])
    for t in ("0.5", "0.7"):
        close(magnitude.mp_cat(a, b, float(t)), v[f"mp_cat_{t}"])
    for name, taps in (("1_1", [1.0, 1]), ("1_3_3_1", [1.0, 3, 3, 1])):
        f = torch.tensor(taps)
        for way in ("down", "up"):
            close(resampled(a, f / f.sum(), way), v[f"{way}_{name}"])


def test_pieces_keep_the_magnitude():
    """Of independent normal inputs, by B. 1: what the constants are for."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, n, 32, 32, generator=g) for n in (6, 2))

    def rms(x):
        return x.square().mean().sqrt().item()

    assert rms(magnitude.mp_silu(a)) == pytest.approx(1, abs=5e-3)
    assert rms(magnitude.mp_sum(a, a.flip(0), 0.3)) == pytest.approx(1, abs=5e-3)
    both = magnitude.mp_cat(a, b, 0.3)
    assert rms(both) == pytest.approx(1, abs=5e-3)
    # either side has its share of the whole, however many channels it has
    ratio = both[:, 6:].square().sum() / both[:, :6].square().sum()
    assert ratio.item() == pytest.approx((0.3 / 0.7) ** 2, rel=0.02)


def test_fourier_features_are_drawn_as_the_paper_has_them():
    torch.manual_seed(0)
    made = magnitude.MPFourier(20_000)
    assert made.freqs.std().item() == pytest.approx(2 * math.pi, rel=0.03)
    assert made.phases.min() >= 0
    assert made.phases.max() == pytest.approx(2 * math.pi, rel=1e-3)
    assert made(torch.tensor([0.7])).square().mean().item() == pytest.approx(1, rel=0.03)
    assert list(made.parameters()) == []


class Given:
    """Draws that are given: ln sigma's normals, then the noise."""

    level = None

    def __init__(self, *normals):
        self.normals = list(normals)

    def normal(self, *shape):
        found = self.normals.pop(0)
        assert found.shape[1:] == shape
        return found

    def uniform(self):
        raise AssertionError("no label is dropped")


def classes(values):
    return values["in/class_labels"].argmax(1)


def test_the_loss_is_the_originals():
    values, about = read("edm2_loss")
    model, _, _ = original("edm2_conditional")
    assert (model.P_mean, model.P_std) == (float(about["P_mean"]), float(about["P_std"]))
    model.eval()
    for P_mean, P_std, name in ((-0.4, 1.0, "loss_eval"), (-0.8, 1.6, "loss_eval_img64_levels")):
        model.P_mean, model.P_std = P_mean, P_std
        draws = Given(values["in/normal_of_sigma"], values["in/noise"])
        loss = model.loss(values["in/images"], classes(values), draws)
        expected = values[f"out/{name}"].flatten(1).sum(1)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)
        if P_mean == -0.4:
            torch.testing.assert_close(draws.level[1], values["out/sigma"])
            close(model.uncertainty(draws.level[1]), values["out/logvar"])


def test_three_steps_of_training_are_the_originals():
    values, about = read("edm2_loss")
    model, _, _ = original("edm2_conditional")
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), eps=1e-8)
    for step, lr in enumerate(map(float, about["lr"].split(",")), 1):
        draws = Given(values[f"in/step{step}/normal_of_sigma"], values[f"in/step{step}/noise"])
        loss = model.loss(values["in/images"], classes(values), draws)
        expected = 1024 * values[f"losses/{step}"]  # which are means over 4 x 16 x 16
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)
        optimiser.zero_grad()
        loss.mean().backward()
        if step == 1:
            gradients = from_edm2(under(values, "step1/gradients/"))
            assert gradients.keys() == dict(model.named_parameters()).keys()
            for name, p in model.named_parameters():
                scale = gradients[name].abs().max().item()
                torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
    for name, weight in from_edm2(under(values, "after3/weights/")).items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-4, atol=1e-4)


SIZES = [  # channels, parameters with and without 1000 classes
    (64, 31_309_029, 31_053_029),
    (128, 124_713_253, 124_201_253),
    (192, 280_212_837, 279_444_837),
    (256, 497_807_781, 496_783_781),
    (320, 777_498_085, 776_218_085),
    (384, 1_119_283_749, 1_117_747_749),
    (448, 1_523_164_773, 1_521_372_773),
]


@pytest.mark.parametrize("channels, conditional, unconditional", SIZES)
def test_the_sizes_have_their_numbers_of_parameters(channels, conditional, unconditional):
    for classes, expected in ((1000, conditional), (0, unconditional)):
        with torch.device("meta"):
            model = EDM2(EDM2UNet((4, 64, 64), classes, channels=channels))
        assert sum(p.numel() for p in model.parameters()) == expected


def test_the_defaults_are_edm2_s():
    with torch.device("meta"):
        model = EDM2(EDM2UNet((4, 64, 64), 1000))
    assert sum(p.numel() for p in model.parameters()) == 280_212_837
    assert model.label_dropout == 0
    assert not model.net.null_class
    assert model.sigma_data == 0.5


@torch.no_grad()
def test_a_new_network_denoises_as_the_skip_connection_alone():
    """Weights are N(0, 1), and the gains of the branches' embedding and of the network 0."""
    torch.manual_seed(0)
    model = EDM2(EDM2UNet((1, 8, 8), 3, **SMALL)).eval()
    for name, p in model.named_parameters():
        if name.endswith("gain"):
            assert p == 0, name
        elif p.numel() > 500:
            assert p.std().item() == pytest.approx(1, abs=0.1), name
            assert p.mean().item() == pytest.approx(0, abs=0.2), name
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.01, 0.3, 3.0, 60.0])
    c_skip = 0.25 / (sigma**2 + 0.25)
    close(model(x, sigma, torch.zeros(4).long()), c_skip[:, None, None, None] * x)


# Classes


def awake(classes=3, **settings):
    """A network of which every part says something: as built, the gains are 0."""
    torch.manual_seed(0)
    net = EDM2UNet((1, 8, 8), classes, **{**SMALL, **settings})
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return net.eval()


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=g), torch.linspace(-1.5, 1.1, 4)


@torch.no_grad()
def test_class_vectors_are_columns_of_the_normalised_label_weight():
    net = awake()
    w = net.emb_label.weight
    u = w / (1e-4 + w.square().mean(1, keepdim=True).sqrt())
    of = torch.tensor([2, NULL, 0])
    close(net.class_vectors(of), torch.stack([u[:, 2], 0 * u[:, 0], u[:, 0]]))


@torch.no_grad()
def test_each_sample_is_answered_by_itself(inputs):
    net, c = awake(), torch.tensor([0, 2, NULL, 1])
    x, noise = inputs
    whole = net(x, noise, c)
    for i in range(4):
        alone = net(x[i : i + 1], noise[i : i + 1], c[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_every_parameter_is_used_whatever_is_known(inputs):
    """Otherwise DDP stops where a batch has no class."""
    net = awake()
    net(*inputs).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_without_classes_a_class_is_not_asked_for(inputs):
    net = awake(0)
    with pytest.raises(UserError, match="without classes"):
        net.class_vectors(torch.arange(4))
    assert torch.equal(net(*inputs, torch.arange(4)), net(*inputs))
    assert not any("label" in name for name in net.state_dict())


@torch.no_grad()
def test_dropout_is_for_training_only(inputs):
    net = awake(dropout=0.5)
    assert torch.equal(net(*inputs), net(*inputs))
    net.train()
    assert not torch.isclose(net(*inputs), net(*inputs)).any()


@torch.no_grad()
def test_clip_null_clips_nothing(inputs):
    assert torch.equal(awake(clip=None)(*inputs), awake(clip=1e6)(*inputs))
    assert not torch.equal(awake(clip=None)(*inputs), awake(clip=0.5)(*inputs))


def test_label_dropout_asks_for_a_null_class():
    with pytest.raises(UserError, match="null_class=true"):
        EDM2(EDM2UNet((1, 8, 8), 3, **SMALL), label_dropout=0.1)
    assert EDM2(EDM2UNet((1, 8, 8), 3, **SMALL, null_class=True), label_dropout=0.1)


@pytest.mark.parametrize(
    "shape, settings, named",
    [
        ((2,), {}, r"\(2,\)"),
        ((3, 32, 16), {}, r"\(3, 32, 16\)"),
        ((3, 36, 36), {}, "divisible by 8"),
        ((3, 64, 64), {"attention": (7,)}, r"among the levels' \[64, 32, 16, 8\], got \[7\]"),
        ((3, 64, 64), {"channels": 12}, "attention at 16x16 has 36 .*makes 0 heads"),
        ((3, 64, 64), {"channels": 15, "attention": ()}, "attention at 8x8 has 60 .*0 heads"),
        ((3, 64, 64), {"channels_per_head": 80}, "16x16 has 576 .*7 heads: they must divide"),
        ((3, 64, 64), {"filter": (1, 2, 1)}, "even length"),
        ((3, 64, 64), {"filter": (1, -1)}, "positive sum"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(shape, settings, named):
    with torch.device("meta"), pytest.raises(UserError, match=named) as error:
        EDM2UNet(shape, 10, **settings)
    assert "\n" not in str(error.value)


def test_attention_is_where_it_is_asked_for_and_in_the_middle():
    with torch.device("meta"):
        nowhere = EDM2UNet((4, 64, 64), 10, attention=())
        net = EDM2UNet((4, 64, 64), 10, blocks=1, attention=(32,))
    names = {name.removesuffix(".attn_qkv.weight") for name in net.state_dict() if "qkv" in name}
    assert names == {"dec.8x8_in0", "enc.32x32_block0", "dec.32x32_block0", "dec.32x32_block1"}
    assert [n for n in nowhere.state_dict() if "qkv" in n] == ["dec.8x8_in0.attn_qkv.weight"]


@pytest.mark.parametrize(
    "state, named", [({"model.a": torch.zeros(1)}, "'model.a'"), ({}, "no weights")]
)
def test_from_edm2_wants_edm2s_names(state, named):
    with pytest.raises(UserError, match=named):
        from_edm2(state)


# In a training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted(call, training, accumulate):
    """Weights are normalised in place by the next forward, which a checkpoint comes before."""
    config = training(
        data={"name": "helpers.toys.Dots"},
        net={"name": "EDM2UNet", **SMALL, "dropout": 0.2},
        model={"name": "EDM2"},
        batch_size=4,
        trainer={"max_steps": 6, "accumulate_grad_batches": accumulate},
    )
    assert call(fit, config, "run_dir=whole").status == 0
    assert call(fit, config, "run_dir=parts", "trainer.max_steps=3").status == 0
    assert call(fit, config, "run_dir=parts").status == 0
    assert_same("whole", "parts")
    held = load("whole")
    raw = held["state_dict"]["model.net.enc.8x8_conv.weight"].flatten(1).square().mean(1).sqrt()
    assert (raw - 1).abs().max() > 1e-3  # not normalised yet, as EDM2's averages read them
    model = restore("whole")
    assert model.label_dropout == 0
    assert not model.net.null_class
    assert held["state_dict"]["model.net.emb_fourier.freqs"].std() > 1
