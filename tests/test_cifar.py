"""CIFAR-10: the published files are read as they are, and nothing else is."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_cfg.data.cifar import CIFAR10, FOLDER
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.verbs.fit import fit

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
NAMES = [*TRAIN, "test_batch", "batches.meta"]


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Seven files in the published format, ten images each, taken for the published ones."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    random = np.random.default_rng(0)
    held, md5 = {}, {}
    for name in NAMES:
        y = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        held[name] = y.reshape(10, 3, 32, 32), random.permutation(10)
        content = {"data": y, "labels": held[name][1].tolist(), "label_names": list("abcdefghij")}
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    published = "torchvision.datasets.CIFAR10."
    monkeypatch.setattr(published + "train_list", [[name, md5[name]] for name in TRAIN])
    monkeypatch.setattr(published + "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(published + "meta", meta)
    return CIFAR10(root=str(tmp_path)), held


@pytest.fixture
def offline(monkeypatch):
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


@pytest.mark.parametrize("split, names", [("bank", TRAIN), ("held_out", ["test_batch"])])
def test_real_gives_the_files_images_class_by_class_in_their_order(photographs, split, names):
    data, held = photographs
    y, c = (np.concatenate([held[name][i] for name in names]) for i in (0, 1))
    order = np.argsort(c, kind="stable")
    real_y, real_c = data.real(split)
    assert real_c.tolist() == c[order].tolist()
    np.testing.assert_allclose(real_y, (y[order].astype(np.float64) - 127.5) / 127.5, atol=1e-6)


def test_a_flip_mirrors_the_images_whose_draw_is_below_a_half(photographs):
    plain = photographs[0]
    flipping = CIFAR10(root=plain.root, flip=True)
    mirrored = 0
    for step in range(4):
        draws = Draws(seed=1, step=step, batch_size=25)
        draws.permuted(50)
        chosen = draws.uniform() < 0.5
        y = plain.batch(Draws(seed=1, step=step, batch_size=25))["y"]
        y[chosen] = y[chosen][..., torch.arange(31, -1, -1)]
        batch = flipping.batch(Draws(seed=1, step=step, batch_size=25))
        assert torch.equal(batch["y"], y)
        mirrored += int(chosen.sum())
    assert 30 < mirrored < 70
    assert torch.equal(flipping.real("bank")[0], plain.real("bank")[0])


def test_ranks_share_a_batch_and_its_flips(photographs):
    data = CIFAR10(root=photographs[0].root, flip=True)
    whole = data.batch(Draws(seed=0, step=2, batch_size=8))
    parts = [
        data.batch(Draws(seed=0, step=2, batch_size=8, rows=rows))
        for rows in (slice(0, 3), slice(3, 8))
    ]
    for name, rows in whole.items():
        assert torch.equal(rows, torch.cat([p[name] for p in parts]))


class Dangerous:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_the_published_one_is_named_and_never_unpickled(
    photographs, tmp_path, name
):
    file = tmp_path / FOLDER / name
    for content in (file.read_bytes()[:-1], b"", pickle.dumps(Dangerous(tmp_path / "executed"))):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged or not the published") as error:
            photographs[0].real("held_out")
        assert "\n" not in str(error.value)
        assert file.read_bytes() == content
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("root", ["nowhere", "file", "part"])
def test_absent_and_offline_names_the_folder_and_the_files(tmp_path, offline, root):
    (tmp_path / "file").write_text("")
    (tmp_path / "part" / FOLDER).mkdir(parents=True)
    (tmp_path / "part" / FOLDER / "test_batch").write_bytes(b"one of seven")
    data = CIFAR10(root=str(tmp_path / root))  # cheap: nothing is looked for yet
    assert not (tmp_path / "nowhere").exists()
    assert (data.shape, data.num_classes) == ((3, 32, 32), 10)
    with pytest.raises(UserError, match="downloading failed") as error:
        data.real("bank")
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / root / FOLDER) in message
    assert all(name in message for name in NAMES)


def test_a_download_arrives_whole_or_not_at_all(photographs, tmp_path, monkeypatch):
    source = tmp_path / FOLDER

    def unpack(names):
        def download(url, root, filename, md5):
            Path(root, FOLDER).mkdir()
            for name in names:
                Path(root, FOLDER, name).write_bytes((source / name).read_bytes())
            Path(root, filename).write_bytes(b"packed")
            if len(names) < len(NAMES):
                raise KeyboardInterrupt

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)

    fetched = CIFAR10(root=str(tmp_path / "new"))
    unpack(NAMES[:3])
    with pytest.raises(KeyboardInterrupt):
        fetched.real("bank")
    assert os.listdir(tmp_path / "new" / FOLDER) == []
    unpack(NAMES)
    for split in ("bank", "held_out"):
        assert torch.equal(fetched.real(split)[0], photographs[0].real(split)[0])
    assert sorted(os.listdir(tmp_path / "new" / FOLDER)) == sorted(NAMES)


REAL = Path(os.environ.get("LIGHTNING_CFG_DATA", "data"))
absent = not all((REAL / FOLDER / name).is_file() for name in NAMES)


@pytest.mark.skipif(
    absent, reason=f"no {FOLDER} under {REAL} (set LIGHTNING_CFG_DATA to its folder)"
)
def test_the_published_photographs():
    data = CIFAR10(root=str(REAL))
    y, c = data.real("bank")
    assert torch.bincount(c).tolist() == [5000] * 10
    assert torch.bincount(data.real("held_out")[1]).tolist() == [1000] * 10
    mean = (y.mean((0, 2, 3)) + 1) / 2
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


def test_data_that_cannot_be_had_leave_nothing_behind(tmp_path, offline):
    """An absent set and no network: the run's folder is not claimed, so the next try is free."""
    settings = {
        "net": {"name": "ConvNet", "channels": 4},
        "model": {"name": "NoisyClassifier", "clean": True},
        "learner": {"name": "Classification"},
        "batch_size": 4,
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
        "run_dir": str(tmp_path / "run"),
    }
    with pytest.raises(UserError, match="downloading failed"):
        fit(data={"name": "CIFAR10", "root": str(tmp_path / "data")}, **settings)
    assert not (tmp_path / "run").exists()
