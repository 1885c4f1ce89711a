"""Digits and the two small networks on images: read as published, and refused where damaged."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.digits import write

from lightning_cfg.data.mnist import FILES, MNIST
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.nets.convnet import ConvNet
from lightning_cfg.nets.unshuffle_unet import UnshuffleUNet


@pytest.fixture
def digits(tmp_path):
    """50 + 30 random images, with classes in an order of their own, and their bytes."""
    labels = {
        "train": np.random.default_rng(1).permutation(np.arange(50) % 10),
        "t10k": np.random.default_rng(2).permutation(np.arange(30) % 10),
    }
    return MNIST(root=str(tmp_path)), labels, write(tmp_path, labels=labels)


@pytest.fixture
def offline(monkeypatch):
    """A machine on which every download fails as it does without a network."""
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.mark.parametrize("split, name", [("bank", "train"), ("held_out", "t10k")])
def test_real_gives_the_files_images_class_by_class_in_their_order(digits, split, name):
    data, labels, images = digits
    for per_class in (None, 2):
        y, c = data.real(split, per_class)
        rows = np.concatenate([np.flatnonzero(labels[name] == k)[:per_class] for k in range(10)])
        assert c.tolist() == labels[name][rows].tolist()
        expected = (images[name][rows, None].astype(np.float64) - 127.5) / 127.5
        assert y.dtype == torch.float32
        np.testing.assert_allclose(y, expected, atol=1e-6)


def test_black_is_minus_one_and_white_one(digits):
    y, _ = digits[0].real("bank")
    assert (y.min(), y.max()) == (-1, 1)  # 50 * 784 random bytes hold both 0 and 255


def test_an_epoch_of_batches_is_the_training_split_once(digits):
    data, labels, images = digits
    batches = [data.batch(Draws(seed=3, step=k, batch_size=10)) for k in range(5)]
    seen = torch.cat([b["y"] for b in batches]).flatten(1)
    order = [int(i) for k in range(5) for i in Draws(seed=3, step=k, batch_size=10).permuted(50)]
    assert sorted(order) == list(range(50))
    assert torch.cat([b["c"] for b in batches]).tolist() == labels["train"][order].tolist()
    pixels = torch.from_numpy(images["train"][order]).flatten(1)
    assert torch.equal(((seen + 1) * 127.5).round().to(torch.uint8), pixels)


def test_ranks_share_a_batch(digits):
    whole = digits[0].batch(Draws(seed=0, step=2, batch_size=8))
    parts = [
        digits[0].batch(Draws(seed=0, step=2, batch_size=8, rows=rows))
        for rows in (slice(0, 3), slice(3, 8))
    ]
    for name, rows in whole.items():
        assert torch.equal(rows, torch.cat([p[name] for p in parts]))


def test_more_images_than_there_are_is_refused_with_the_numbers(digits):
    with pytest.raises(UserError, match=r"between 1 and 3.*class 0 in split held_out, got 4"):
        digits[0].real("held_out", 4)
    with pytest.raises(UserError, match="bank and held_out, got 'test'"):
        digits[0].real("test")


def damage_cut(file: Path):
    file.write_bytes(file.read_bytes()[:-1])


def damage_empty(file: Path):
    file.write_bytes(b"")


def damage_text(file: Path):
    file.write_bytes(b"<html>404</html>" * 100)


def damage_packed(file: Path):
    file.write_bytes(gzip.compress(file.read_bytes()))


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_text, damage_packed])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_left_alone(digits, name, damage):
    data = digits[0]
    file = Path(data.root, "MNIST", "raw", name)
    damage(file)
    left = file.read_bytes()
    split = "bank" if name.startswith("train") else "held_out"
    with pytest.raises(UserError, match=f"{name}.* damaged") as error:
        data.real(split)
    assert "\n" not in str(error.value)
    assert file.read_bytes() == left


def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path, digits):
    raw = Path(digits[0].root, "MNIST", "raw")
    os.replace(raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte")
    write(tmp_path / "other", labels={"t10k": np.arange(30) % 10})
    os.replace(tmp_path / "other/MNIST/raw/t10k-labels-idx1-ubyte", raw / "t10k-labels-idx1-ubyte")
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is damaged"):
        digits[0].real("bank")


def test_absent_and_offline_names_the_folder_and_the_files(tmp_path, offline):
    data = MNIST(root=str(tmp_path / "nowhere"))  # cheap: nothing is looked for yet
    assert not (tmp_path / "nowhere").exists()
    assert (data.shape, data.num_classes) == ((1, 28, 28), 10)
    with pytest.raises(UserError) as error:
        data.real("bank")
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "nowhere" / "MNIST" / "raw") in message
    assert all(name in message for name in FILES)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="downloading failed"):
        MNIST(root=str(tmp_path / "file")).real("bank")


def test_a_download_arrives_whole(tmp_path, digits, monkeypatch):
    """What torchvision unpacks into its folder ends up in root/MNIST/raw, and nothing else does."""
    source = Path(digits[0].root, "MNIST", "raw")

    def unpack(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        Path(download_root, name).write_bytes((source / name).read_bytes())
        Path(download_root, filename).write_bytes(b"packed")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unpack)
    fetched = MNIST(root=str(tmp_path / "new"))
    for split in ("bank", "held_out"):
        assert torch.equal(fetched.real(split)[0], digits[0].real(split)[0])
    assert sorted(os.listdir(tmp_path / "new/MNIST/raw")) == sorted(FILES)


@pytest.fixture
def unet():
    """A network whose zero-initialised layers are no longer zero."""
    torch.manual_seed(0)
    net = UnshuffleUNet((1, 8, 12), 3, channels=8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.double()


def test_the_unet_starts_at_zero():
    net = UnshuffleUNet((1, 28, 28), 10)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(net(x, torch.rand(2), torch.tensor([3, -1])), torch.zeros_like(x))
    assert 0.2e6 < sum(p.numel() for p in net.parameters()) < 0.32e6


def test_the_unet_treats_each_sample_on_its_own(unet):
    x, noise = torch.randn(4, 1, 8, 12).double(), torch.linspace(-2, 2, 4).double()
    c = torch.tensor([0, 2, -1, 1])
    whole = unet(x, noise, c)
    for i in range(4):
        i = slice(i, i + 1)
        torch.testing.assert_close(whole[i], unet(x[i], noise[i], c[i]))


def test_the_unet_hears_image_noise_level_and_class(unet):
    x, noise = torch.randn(1, 1, 8, 12).double(), torch.zeros(1).double()
    base = unet(x, noise, torch.tensor([0]))
    changed = [
        unet(x + 0.1, noise, torch.tensor([0])),
        unet(x, noise + 0.1, torch.tensor([0])),
        unet(x, noise, torch.tensor([1])),
        unet(x, noise, torch.tensor([-1])),
    ]
    assert all((out - base).abs().max() > 1e-4 for out in changed)
    assert torch.equal(changed[3], unet(x, noise, None))  # no class given is NULL


def test_null_has_the_last_embedding_of_its_own(unet):
    x, noise = torch.randn(1, 1, 8, 12).double(), torch.zeros(1).double()
    before = [unet(x, noise, torch.tensor([k])) for k in (0, 1, 2, -1)]
    with torch.no_grad():
        unet.classes.weight[3] += 1
    after = [unet(x, noise, torch.tensor([k])) for k in (0, 1, 2, -1)]
    same = [torch.equal(b, a) for b, a in zip(before, after, strict=True)]
    assert same == [True, True, True, False]


def test_without_classes_the_class_is_not_heard():
    net = UnshuffleUNet((1, 8, 8), 0, channels=8)
    torch.nn.init.normal_(net.leave.weight)
    x, noise = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert torch.equal(net(x, noise, torch.tensor([-1])), net(x, noise, None))
    assert not any("classes" in name for name, _ in net.named_parameters())


def test_the_unet_reaches_across_the_picture(unet):
    """A pixel in one corner moves the opposite corner: the levels are joined."""
    x, noise = torch.randn(1, 1, 8, 12).double(), torch.zeros(1).double()
    moved = x.clone()
    moved[..., 0, 0] += 1
    difference = unet(moved, noise, None) - unet(x, noise, None)
    assert difference[..., -1, -1].abs().item() > 1e-9


def test_every_weight_of_the_unet_is_trained(unet):
    x = torch.randn(8, 1, 8, 12).double()
    c = torch.arange(8) % 4 - 1
    unet(x, torch.linspace(-2, 2, 8).double(), c).square().sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize(
    "shape, mult", [((1, 28, 28), (1, 2, 2)), ((1, 27, 28), (1,)), ((2,), (1, 2))]
)
def test_the_unet_refuses_images_that_it_cannot_halve(shape, mult):
    with pytest.raises(UserError, match=f"divisible by {2 ** len(mult)}"):
        UnshuffleUNet(shape, 10, channel_mult=mult)


def test_the_convnet_reads_its_own_features_only():
    torch.manual_seed(0)
    net = ConvNet((1, 28, 28), 10)
    x = torch.randn(5, 1, 28, 28)
    features = net.features(x)
    assert features.shape == (5, 64)
    assert torch.equal(net.head(features), net(x))
    assert torch.equal(net(x), net(x, torch.rand(5), torch.arange(5)))  # noise and class: ignored


def test_the_convnet_refuses_what_it_cannot_judge():
    with pytest.raises(UserError, match=r"even H and W"):
        ConvNet((1, 27, 28), 10)
    with pytest.raises(UserError, match=r"2 classes or more, got 0"):
        ConvNet((1, 28, 28), 0)


def test_the_convnet_learns_bars():
    """Horizontal against vertical bars at random places: known labels, from a few steps."""
    torch.manual_seed(0)
    net = ConvNet((1, 12, 12), 2, channels=8)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)

    def bars(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        c, place = torch.randint(2, (n,)), torch.randint(12, (n,))
        rows = torch.nn.functional.one_hot(place, 12).float()[:, None, :, None]
        x = (rows * torch.ones(12)).where(c[:, None, None, None] == 0, rows.mT * torch.ones(12, 1))
        return 2 * x - 1 + 0.3 * torch.randn_like(x), c

    for _ in range(60):
        x, c = bars(64)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), c).backward()
        optimiser.step()
    x, c = bars(500)
    assert (net(x).argmax(1) == c).float().mean() > 0.95


REAL = Path(os.environ.get("LIGHTNING_CFG_DATA", "data"))
absent = not all((REAL / "MNIST" / "raw" / name).is_file() for name in FILES)


@pytest.mark.skipif(
    absent, reason=f"no MNIST files under {REAL} (set LIGHTNING_CFG_DATA to their folder)"
)
def test_the_published_digits():
    data = MNIST(root=str(REAL))
    y, c = data.real("bank")
    assert torch.bincount(c).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert y.mean().item() == pytest.approx(2 * 0.1306604762738429 - 1, abs=1e-5)
    assert data.real("held_out")[0].shape == (10000, 1, 28, 28)
    with pytest.raises(UserError, match="between 1 and 5421, the images of class 5"):
        data.real("bank", 5422)
