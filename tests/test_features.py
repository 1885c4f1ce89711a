"""Feature spaces: what reaches the networks, what comes out of them, and what is refused."""

import hashlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchvision import transforms

from lightning_cfg.data.cifar import CIFAR10, FOLDER
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation import features
from lightning_cfg.evaluation.features import Space
from lightning_cfg.metrics.frechet import Moments, frechet_distance
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.pngs import quantised, save_images, signed
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.weights.catalogue import ASSETS
from lightning_cfg.weights.store import find


def photographs(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Bytes (n, C, H, W) of smooth random images with sharp edges, from 0 to 255."""
    g = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(n, channels, 5, 5, generator=g)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    smooth[:, :, height // 3 : height // 2] = 1 - smooth[:, :, height // 3 : height // 2]
    return (340 * smooth - 40).clamp(0, 255).byte()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        make()
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


class Dangerous:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


# What every space does


def test_a_space_splits_what_is_given_to_it_and_answers_in_float32():
    seen = []

    def extract(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1).double() ** 2

    space = Space(extract, {"extractor": "squares"}, at_once=(3, 5))
    x = torch.randn(7, 2, 2, dtype=torch.float64, requires_grad=True)
    f = space(x)
    assert seen == [3, 3, 1]
    assert torch.equal(f, (x.detach().flatten(1) ** 2).float())
    assert (f.dtype, f.device, f.requires_grad) == (torch.float32, x.device, False)
    assert space.to("cpu") is space
    assert features.as_space(space, "other") is space
    wrapped = features.as_space(lambda x: x.flatten(1) + 1, "mine")
    assert wrapped.about == {"extractor": "mine"}
    assert torch.equal(wrapped(x), (x.detach().flatten(1) + 1).float())


def test_pixels_are_the_samples_themselves():
    x = torch.randn(5, 3, 4, 4)
    space = features.pixels()
    assert torch.equal(space(x), x.flatten(1))
    assert (space.about, space.head) == ({"extractor": "pixels"}, None)


# Inception


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """Weights of the network's shapes: random ones that keep activations of size 1."""
    with pytest.MonkeyPatch.context() as patch:
        network = fidelity.FeatureExtractorInceptionV3
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_, **__: None)
        state = network("inception-v3-compat", ["2048"]).state_dict()
    g = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim >= 2:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=g)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1, generator=g)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def inception(inception_weights) -> SimpleNamespace:
    """Our space, ten photographs y, and what torch-fidelity's own extractor says of them."""
    layers = ["2048", "logits_unbiased"]
    net = fidelity.FeatureExtractorInceptionV3("oracle", layers, str(inception_weights))
    y = photographs(10)
    pooled, logits = net(y)
    space = features.inception(weights=str(inception_weights))
    return SimpleNamespace(space=space, y=y, f=space(signed(y)), pooled=pooled, logits=logits)


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Each to `relative` of itself, or of the mean size where that is larger."""
    floor = relative * expected.abs().mean().item()
    torch.testing.assert_close(found, expected, rtol=relative, atol=floor)


def test_inception_is_torch_fidelitys_own(inception):
    assert_close(inception.f, inception.pooled, 1e-5)
    assert inception.f.dtype == torch.float32
    spread = inception.pooled.std(0).mean() / inception.pooled.mean()
    assert spread > 0.02  # the images are told apart, or anything would be equal to 1e-5


def test_inceptions_head_gives_the_logits_without_a_bias(inception):
    assert_close(inception.space.head(inception.pooled), inception.logits, 1e-5)
    assert_close(inception.space.head(inception.f), inception.logits, 1e-5)


def test_inceptions_features_do_not_depend_on_what_is_beside_them(inception):
    x = signed(inception.y)  # ten of them are split in eight and two
    apart = torch.cat([inception.space(x[6:]), inception.space(x[:6])])
    assert_close(apart.roll(6, 0), inception.f, 1e-6)


def test_inception_sees_samples_as_their_pngs_are(inception, tmp_path):
    g = torch.Generator().manual_seed(5)
    x = signed(inception.y[:2]) + 0.1 * torch.randn(2, 3, 32, 32, generator=g)
    assert (x.abs() > 1).any()
    path = save_images(
        tmp_path / "x.zip", x=x, c=torch.zeros(2), seed=torch.arange(2), labelled=False
    )
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".png"))
        read = [np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names]
    y = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
    assert torch.equal(inception.space(x), inception.space(signed(y)))
    assert torch.equal(quantised(signed(photographs(9))), photographs(9))  # bytes stay as they are


def test_inception_reads_grey_images_as_rgb_ones(inception):
    grey = signed(photographs(2, channels=1))
    assert torch.equal(inception.space(grey), inception.space(grey.repeat(1, 3, 1, 1)))


def test_inception_is_frozen_and_says_what_it_is(inception, inception_weights):
    net = inception.space._net
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    x = signed(inception.y[:1]).requires_grad_()
    assert not inception.space(x).requires_grad
    about = inception.space.about
    assert about["weights"] == sha256(inception_weights)
    assert about["layer"] == "2048"
    assert "Inception" in about["extractor"]
    assert "TF1" in about["resize"]
    space = inception.space
    assert (space.frechet, space.kernel, space.standard) == ("fid", "kid", 50_000)


# DINOv2

HUBCONF = '''
import torch


class Network(torch.nn.Module):
    """Its tokens are the pixels that it is given."""

    def __init__(self, registers):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))
        if registers:
            self.register_tokens = torch.nn.Parameter(torch.zeros(1, 4))
        self.dropout = torch.nn.Dropout(0.5)

    def forward_features(self, y):
        assert y.shape[1:] == (3, 224, 224) and y.dtype == torch.float32
        patches = y.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5)
        return {
            "x_norm_clstoken": self.dropout(self.gain * y.flatten(1)),
            "x_norm_patchtokens": self.gain * patches.reshape(len(y), 256, 588),
            "x_norm_regtokens": None,
            "x_prenorm": None,
        }


def dinov2_vitl14(*, pretrained=True, **kwargs):
    assert not pretrained and not kwargs, "nothing is downloaded"
    return Network(False)


def dinov2_vitl14_reg(*, pretrained=True, **kwargs):
    assert not pretrained and not kwargs, "nothing is downloaded"
    return Network(True)
'''
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> SimpleNamespace:
    """A folder with a hubconf.py, and weights of either network in it: gains of 2 and of 3."""
    root = tmp_path_factory.mktemp("dinov2")
    (root / "code").mkdir()
    (root / "code" / "hubconf.py").write_text(HUBCONF)
    torch.save({"gain": torch.tensor(2.0)}, root / "plain.pth")
    with_registers = {"gain": torch.tensor(3.0), "register_tokens": torch.zeros(1, 4)}
    torch.save(with_registers, root / "registers.pth")
    plain = {"code": str(root / "code"), "weights": str(root / "plain.pth")}
    registers = {**plain, "weights": str(root / "registers.pth"), "registers": True}
    return SimpleNamespace(root=root, plain=plain, registers=registers)


def as_pil_does(y: Tensor) -> Tensor:
    """Each image by itself, as dgm-eval's transform makes it: (B, 3, 224, 224) bytes."""
    size, bicubic = (224, 224), Image.Resampling.BICUBIC
    images = [
        Image.fromarray(pixels).resize(size, bicubic) for pixels in y.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("height, width", [(32, 32), (48, 20), (300, 256), (224, 224)])
def test_dinov2_with_pil_sees_what_dgm_eval_shows_it(checkout, height, width):
    y = photographs(2, height=height, width=width)
    seen = features.dinov2(resize="pil", **checkout.plain)(signed(y)).reshape(2, 3, 224, 224) / 2
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    pixels = (seen.double() * std + mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert torch.equal(pixels.round().byte(), as_pil_does(y))
    chain = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    shown = torch.stack([chain(Image.fromarray(p)) for p in y.permute(0, 2, 3, 1).numpy()])
    torch.testing.assert_close(seen, shown, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("height, width", [(32, 32), (300, 256)])
def test_dinov2_with_torch_sees_what_edm2_shows_it(checkout, height, width):
    y = photographs(2, height=height, width=width)
    seen = features.dinov2(**checkout.plain)(signed(y)).reshape(2, 3, 224, 224) / 2
    bigger = nn.functional.interpolate(y.float(), (224, 224), mode="bicubic", antialias=True)
    shown = transforms.Normalize(MEAN, STD)(bigger / 255)
    torch.testing.assert_close(seen, shown, rtol=1e-6, atol=1e-6)
    assert (bigger < 0).any()  # beyond the bytes, as EDM2 has it
    # PIL's bicubic of float pixels is the same kernel, by other code
    for image, original in zip(bigger, y, strict=True):
        for channel, plane in zip(image, original, strict=True):
            pil = Image.fromarray(plane.numpy().astype(np.float32)).resize(
                (224, 224), Image.BICUBIC
            )
            torch.testing.assert_close(channel, torch.tensor(np.asarray(pil)), rtol=0, atol=2e-3)


def test_the_two_resizes_differ_and_say_so(checkout):
    x = signed(photographs(2))
    by_torch = features.dinov2(resize="torch", **checkout.plain)
    by_pil = features.dinov2(resize="pil", **checkout.plain)
    gap = (by_torch(x) - by_pil(x)).abs()
    assert gap.mean() > 1e-3
    assert by_torch.about["resize"] != by_pil.about["resize"]
    same = ("extractor", "layer", "weights")
    assert all(by_torch.about[key] == by_pil.about[key] for key in same)
    assert torch.equal(features.dinov2(**checkout.plain)(x), by_torch(x))  # the default


@pytest.mark.parametrize("resize", ["torch", "pil"])
def test_dinov2s_tokens(checkout, resize):
    """The CLS token is all pixels, the patches' mean is that of 256 windows of 14 x 14."""
    x = signed(photographs(3))
    cls = features.dinov2(resize=resize, **checkout.plain)(x)
    assert cls.shape == (3, 3 * 224 * 224)
    found = features.dinov2(resize=resize, tokens="patch_mean", **checkout.plain)(x)
    images = cls.reshape(3, 3, 16, 14, 16, 14)
    torch.testing.assert_close(found, images.mean((2, 4)).reshape(3, 588), rtol=1e-5, atol=1e-6)
    registers = features.dinov2(resize=resize, **checkout.registers)(x)
    torch.testing.assert_close(registers, 1.5 * cls)  # the gains of the two files


def test_dinov2_takes_grey_images_and_any_number(checkout):
    grey = signed(photographs(19, channels=1))  # more than go at once
    for resize in ("torch", "pil"):
        space = features.dinov2(resize=resize, tokens="patch_mean", **checkout.plain)
        whole = space(grey)
        assert torch.equal(whole, space(grey.repeat(1, 3, 1, 1)))
        assert_close(torch.cat([space(part) for part in grey.split(7)]), whole, 1e-6)
        assert (whole.dtype, whole.requires_grad) == (torch.float32, False)


def test_dinov2_is_frozen_and_says_what_it_is(checkout):
    plain = features.dinov2(**checkout.plain)
    assert plain.about == {
        "extractor": "dinov2_vitl14",
        "layer": "cls",
        "resize": "torch antialiased bicubic 224",
        "weights": sha256(checkout.root / "plain.pth"),
    }
    registers = features.dinov2(tokens="patch_mean", resize="pil", **checkout.registers)
    assert registers.about == {
        "extractor": "dinov2_vitl14_reg",
        "layer": "patch_mean",
        "resize": "PIL bicubic 224",
        "weights": sha256(checkout.root / "registers.pth"),
    }
    for space in (plain, registers):
        assert not space._net.training
        assert not any(p.requires_grad for p in space._net.parameters())
        assert space.standard == 50_000
    # FD_DINOv2 is that of the CLS tokens of the network without registers
    means = features.dinov2(tokens="patch_mean", **checkout.plain)
    other = features.dinov2(**checkout.registers)
    assert plain.frechet == "fd_dinov2"
    assert [space.frechet for space in (means, registers, other)] == [None] * 3


# A classifier of one's own


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> SimpleNamespace:
    """Real images, scikit-learn's digits of 8 x 8, and a classifier trained on half of them."""
    from sklearn.datasets import load_digits

    root, held = tmp_path_factory.mktemp("digits"), load_digits()
    x, c = torch.tensor(held.images).float()[:, None] / 8 - 1, torch.tensor(held.target)
    zips = {}
    for name, rows in (("path", slice(0, 900)), ("held_out", slice(900, 1797))):
        seed = torch.arange(len(x))[rows]
        zips[name] = root / f"{name}.zip"
        save_images(zips[name], x=x[rows], c=c[rows], seed=seed, labelled=True)
    run = fit(
        data={"name": "ImageZip", **{name: str(path) for name, path in zips.items()}},
        net={"name": "ConvNet", "channels": 16},
        model={"name": "NoisyClassifier", "clean": True},
        learner={"name": "Classification", "lr": 3e-3, "warmup": 5, "ema_half_life": [500]},
        batch_size=64,
        trainer={"max_steps": 400, "accelerator": "cpu", "logger": False},
        run_dir=str(root / "run"),
    )
    return SimpleNamespace(run=run, x=x[:900], y=x[900:], c=c[900:])


def test_a_classifiers_features_and_its_head(digits):
    space, model = features.classifier(path=str(digits.run)), checkpoints.restore(digits.run)
    f = space(digits.y)
    assert f.shape == (897, 64)
    logits = model(digits.y, torch.zeros(897))
    torch.testing.assert_close(space.head(f), logits, rtol=1e-5, atol=1e-5)
    assert (logits.argmax(1) == digits.c).double().mean() > 0.85  # a classifier it is
    assert space.about["weights"] == sha256(Path(digits.run, checkpoints.LAST))
    assert (space.frechet, space.kernel, space.standard) == (None, None, 0)


def test_from_images_to_the_distance_all_is_as_torch_fidelity_has_it(digits):
    space = features.classifier(path=str(digits.run))
    sides = [digits.x, digits.y]
    moments = [Moments().add(space(part)) for part in sides]
    ours = frechet_distance(*moments)
    statistics = [fid_features_to_statistics(space(part)) for part in sides]
    (theirs,) = fid_statistics_to_metric(*statistics, verbose=False).values()
    assert torch.linalg.cond(moments[0].covariance) < 1e8
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours > 0.01


# What is refused


@pytest.mark.parametrize("name", ["inception", "dinov2", "dinov2_registers", "dinov2_code"])
def test_an_absent_file_is_named_with_how_to_get_it(name, tmp_path, monkeypatch, checkout):
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "assets"))
    weights = checkout.plain["weights"]
    make = {
        "inception": lambda **given: features.inception(**given),
        "dinov2": lambda **given: features.dinov2(**given),
        "dinov2_registers": lambda **given: features.dinov2(registers=True, **given),
        "dinov2_code": lambda **given: features.dinov2(weights=weights, **given),
    }[name]
    message = refusal(make)
    asset = ASSETS[name]
    for part in (name, asset.file, str(tmp_path / "assets")):
        assert part in message
    assert f"`python -m lightning_cfg.assets fetch {name}`" in message
    assert not (tmp_path / "assets").exists()
    key = "code" if name == "dinov2_code" else "weights"
    message = refusal(lambda: make(**{key: str(tmp_path / "nowhere")}))
    assert str(tmp_path / "nowhere") in message
    assert name in message


@pytest.fixture(params=["inception", "dinov2"])
def space_of(request, checkout) -> Callable[[Path], Space]:
    """A space by its weight file."""
    if request.param == "inception":
        return lambda weights: features.inception(weights=str(weights))
    return lambda weights: features.dinov2(weights=str(weights), code=checkout.plain["code"])


def test_truncated_weights_are_named(space_of, tmp_path):
    torch.save({"gain": torch.zeros(1000)}, tmp_path / "whole.pth")
    whole, path = (tmp_path / "whole.pth").read_bytes(), tmp_path / "part.pth"
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"<html>Log in</html>"):
        path.write_bytes(content)
        assert refusal(lambda: space_of(path)).startswith(f"{path} is truncated or no file of")


def test_weights_that_would_execute_code_do_not(space_of, tmp_path):
    path, executed = tmp_path / "weights.pth", tmp_path / "executed"
    dangerous = Dangerous(executed)
    pickle.loads(pickle.dumps(dangerous))
    assert executed.exists()  # so it would
    executed.unlink()
    zipped, plain = io.BytesIO(), io.BytesIO()
    torch.save({"gain": dangerous}, zipped)
    torch.save({"gain": dangerous}, plain, _use_new_zipfile_serialization=False)
    for content in (pickle.dumps(dangerous, protocol=2), zipped.getvalue(), plain.getvalue()):
        path.write_bytes(content)
        assert str(path) in refusal(lambda: space_of(path))
        assert not executed.exists()


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)},
        {"gain": torch.zeros(2, 2)},
        {},
        {0: torch.zeros(3)},
    ],
    ids=["names", "shapes", "none", "numbers"],
)
def test_weights_of_another_network_are_named(space_of, tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    assert str(tmp_path / "weights.pth") in refusal(lambda: space_of(tmp_path / "weights.pth"))


def test_a_file_of_more_than_tensors_is_named(space_of, tmp_path):
    path = tmp_path / "weights.pth"
    for content in ({"state_dict": {"gain": torch.zeros(())}, "epoch": 3}, [torch.zeros(3)], 7):
        torch.save(content, path)
        message = refusal(lambda: space_of(path))
        assert message.startswith(f"{path} holds more than named tensors")


def test_the_weights_of_the_two_dinov2_networks_are_told_apart(checkout):
    for wrong in (
        {**checkout.plain, "registers": True},
        {**checkout.registers, "registers": False},
    ):
        message = refusal(lambda given=wrong: features.dinov2(**given))
        assert wrong["weights"] in message
        assert "register_tokens" in message


def test_a_folder_that_is_no_checkout_is_named(checkout, tmp_path):
    code, weights = tmp_path / "code", checkout.plain["weights"]
    code.mkdir()

    def make() -> Space:
        return features.dinov2(code=str(code), weights=weights)

    assert f"{code} is no checkout of DINOv2" in refusal(make)
    for content, reason in (
        ("def another_network(): ...", "dinov2_vitl14"),
        ("dependencies = ['a_package_that_is_not_here']", "a_package_that_is_not_here"),
        ("import a_package_that_is_not_here", "a_package_that_is_not_here"),
    ):
        (code / "hubconf.py").write_text(content)
        message = refusal(make)
        assert str(code) in message
        assert reason in message


@pytest.mark.parametrize("shape", [(5, 2), (5, 4, 8, 8), (5, 2, 8, 8), (5, 8, 8), (5, 3, 8)])
def test_spaces_of_images_refuse_what_are_none(inception, checkout, shape):
    x = torch.zeros(shape)
    for space in (inception.space, features.dinov2(**checkout.plain)):
        message = refusal(lambda space=space: space(x))
        assert "(1 or 3, H, W)" in message
        assert str(shape[1:]) in message


# The published numbers, where there are the published weights and photographs

REAL = Path(os.environ.get("LIGHTNING_CFG_DATA", "data"))


@pytest.fixture
def cifar10() -> Callable[[str], Tensor]:
    """CIFAR-10's bytes of a split, in the order of its files."""
    if not (REAL / FOLDER / "test_batch").is_file():
        pytest.skip(f"no {FOLDER} under {REAL} (set LIGHTNING_CFG_DATA to its folder)")
    return lambda split: CIFAR10(root=str(REAL)).rows(split)[0]


def needed(*names: str) -> None:
    """Skip where these weight files are not here."""
    for name in names:
        try:
            find(name)
        except UserError as error:
            pytest.skip(str(error))


def moments_of(space: Space, y: Tensor) -> Moments:
    moments = Moments()
    for part in y.split(500):
        moments.add(space(signed(part)))
    return moments


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.slow  # 10,000 images: 25 minutes on two cores
def test_fid_of_photographs_is_torch_fidelitys(cifar10):
    """Of CIFAR-10's first 5000 to train on and first 5000 to test with."""
    needed("inception")
    space = features.inception().to(DEVICE)
    sides = [moments_of(space, cifar10(split)[:5000]) for split in ("bank", "held_out")]
    assert frechet_distance(*sides) == pytest.approx(10.3233, abs=0.01)


@pytest.mark.slow  # 60,000 images through a ViT-L: minutes on a GPU
def test_fd_dinov2_of_photographs_is_dgm_evals(cifar10):
    """Of CIFAR-10's 10,000 to test with against the 50,000 to train on."""
    needed("dinov2", "dinov2_code")
    space = features.dinov2(resize="pil").to(DEVICE)
    sides = [moments_of(space, cifar10(split)) for split in ("held_out", "bank")]
    assert frechet_distance(*sides) == pytest.approx(31.07, abs=0.05)


def test_other_weights_of_a_space_are_another_run(checkout, tmp_path):
    """A2: with others at its key, or in its file, an evaluation has not finished already."""
    held = {"x": torch.rand(20, 1, 8, 8) * 2 - 1, "c": torch.zeros(20).long()}
    held["seed"] = torch.arange(20)
    zips = [str(save_images(tmp_path / f"{name}.zip", **held, labelled=True)) for name in "abc"]
    weights = [tmp_path / "w0.pth", tmp_path / "w1.pth"]
    for file, gain in zip(weights, (2.0, 3.0), strict=True):
        torch.save({"gain": torch.tensor(gain)}, file)

    def score(weights: Path, run: str = "run") -> str:
        done = evaluate(
            samples={"a": zips[0]},
            data={"name": "ImageZip", "path": zips[1], "held_out": zips[2]},
            features={"name": "dinov2", "weights": str(weights), "code": checkout.plain["code"]},
            metrics=[{"name": "kernel_distance", "size": 5, "subsets": 2}],
            by_class=False,
            run_dir=str(tmp_path / run),
        )
        return (done / "metrics/metrics.json").read_text()

    first = score(weights[0])
    with pytest.raises(UserError, match=r"inputs\.features\.weights"):
        score(weights[1])
    assert score(weights[1], "other") != first
    moved = weights[0].rename(tmp_path / "moved.pth")
    assert score(moved) == first
    shutil.copyfile(weights[1], moved)
    with pytest.raises(UserError, match=r"inputs\.features\.weights"):
        score(moved)
