"""Images in .npz and .npy: as numpy has them, in training and in `evaluate`; refused by name."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cfg.data import ImageArray, ImageFolder
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.sample_sets import read_set, real_set
from lightning_cfg.interfaces import NULL
from lightning_cfg.verbs.evaluate import evaluate

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
C = np.arange(12) % 3
SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def as_folder(path: Path, y: np.ndarray, c: np.ndarray) -> str:
    path.mkdir()
    for i, one in enumerate(y):
        Image.fromarray(one).save(path / f"{i:04}.png")
    labels = [[f"{i:04}.png", int(k)] for i, k in enumerate(c)]
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return str(path)


@SAVES
@pytest.mark.parametrize("memory", [0, 1])
def test_batches_are_those_of_the_same_images_in_a_folder(tmp_path, save, memory):
    save(tmp_path / "y.npz", Y, C)
    array = ImageArray(path=str(tmp_path / "y.npz"), flip=True, memory=memory)
    files = ImageFolder(path=as_folder(tmp_path / "y", Y, C), flip=True)
    assert (array.shape, array.num_classes) == ((3, 6, 8), 3)
    for step in range(3):
        a, b = (d.batch(Draws(seed=2, step=step, batch_size=7)) for d in (array, files))
        assert torch.equal(a["y"], b["y"])
        assert torch.equal(a["c"], b["c"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_and_grey_images_have_no_classes(tmp_path, order):
    np.save(tmp_path / "y.npy", np.asarray(Y[..., 0], order=order))
    for memory in (0, 1):
        data = ImageArray(path=str(tmp_path / "y.npy"), memory=memory)
        assert (data.shape, data.num_classes) == ((1, 6, 8), 0)
        y, _ = data.real("bank")
        np.testing.assert_allclose(y, Y[:, None, :, :, 0] / 127.5 - 1, atol=1e-6)


def test_what_is_not_compressed_is_read_where_it_lies(tmp_path):
    """Beside a file of another length of name and a header of the second kind."""
    np.savez(tmp_path / "y.npz", something=np.arange(3), arr_0=Y, arr_1=C)
    data = ImageArray(path=str(tmp_path / "y.npz"), memory=0)
    assert isinstance(data._training._images, np.memmap)
    np.testing.assert_array_equal(data._training._images, Y)
    with (
        zipfile.ZipFile(tmp_path / "other.npz", "w") as file,
        file.open("arr_0.npy", "w") as inside,
    ):
        np.lib.format.write_array(inside, Y, version=(2, 0))
    data = ImageArray(path=str(tmp_path / "other.npz"), memory=0)
    np.testing.assert_array_equal(data._training._images, Y)


def test_size_crop_and_channels_do_the_same_as_to_files(tmp_path):
    np.savez(tmp_path / "y.npz", Y, C)
    keys = {"size": 4, "crop": "center", "channels": 1}
    array = ImageArray(path=str(tmp_path / "y.npz"), **keys)
    files = ImageFolder(path=as_folder(tmp_path / "y", Y, C), **keys)
    assert array.shape == (1, 4, 4)
    assert torch.equal(array.real("bank")[0], files.real("bank")[0])
    array = ImageArray(path=str(tmp_path / "y.npz"), crop="center")
    assert array.shape == (3, 6, 6)


def test_further_arrays_are_named_once(tmp_path, capsys):
    np.savez(tmp_path / "reference.npz", Y, C, mu=np.zeros(3), sigma=np.eye(3))
    for _ in range(2):
        ImageArray(path=str(tmp_path / "reference.npz")).real("bank")
    err = capsys.readouterr().err
    assert err.count("arrays that are not arr_0 or arr_1 were left out: mu, sigma") == 1


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"arr_0": Y.astype(np.float32)}, "arr_0 is float32 (12, 6, 8, 3), not bytes 0 ... 255"),
        ({"arr_0": Y.transpose(0, 3, 1, 2)}, "arr_0 is uint8 (12, 3, 6, 8), not bytes"),
        ({"arr_0": Y[0, 0]}, "arr_0 is uint8 (8, 3), not bytes"),
        ({"arr_0": Y[:0]}, "which holds no image"),
        ({"arr_0": Y, "arr_1": C[:-1]}, "arr_1 is int64 (11,), not a whole number for each of"),
        ({"arr_0": Y, "arr_1": C / 2}, "arr_1 is float64 (12,), not a whole number"),
        ({"arr_0": Y, "arr_1": C - 1}, "arr_1 has class -1, which is below 0"),
        ({"arr_0": Y, "arr_1": 2 * C}, "class 1 of the classes 0 ... 4 has no image"),
        ({"images": Y, "mu": C}, "has no arr_0, the images, only images, mu"),
        ({"arr_0": np.array([{}, {}])}, "damaged or cannot be read"),
    ],
)
@SAVES
def test_an_array_of_something_else_is_refused(tmp_path, save, arrays, words):
    save(tmp_path / "y.npz", **arrays)
    data = ImageArray(path=str(tmp_path / "y.npz"))
    with pytest.raises(UserError) as error:
        data.num_classes, data.shape, data.batch(Draws(seed=0, step=0, batch_size=2))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_cut_off_is_not_there_or_no_array_is_refused(tmp_path):
    np.savez(tmp_path / "y.npz", Y, C)
    whole = (tmp_path / "y.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "y.npy").read_bytes()[:300])
    (tmp_path / "y.txt").write_text("")
    for name, words in {
        "cut.npz": "truncated or not an .npz",
        "cut.npy": "damaged or cannot be read",
        "y.txt": "ends neither in .npz nor in .npy",
        "gone.npz": "no such file",
        "": "is a folder: data.name=ImageFolder reads it",
    }.items():
        with pytest.raises(UserError, match=words):
            ImageArray(path=str(tmp_path / name)).shape  # noqa: B018


def test_a_set_of_samples_is_the_same_from_an_npz_as_from_a_folder(tmp_path):
    np.savez(tmp_path / "y.npz", Y, C)
    np.save(tmp_path / "y.npy", Y)
    real = ImageFolder(path=as_folder(tmp_path / "real", Y[::-1], C))
    held = read_set(tmp_path / "y.npz", real)
    assert (held.shape, held.c.tolist(), held.labelled) == ((3, 6, 8), C.tolist(), True)
    x = torch.cat([x for x, _ in held.batches(5)])
    np.testing.assert_allclose(x, Y.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    assert (read_set(tmp_path / "y.npy", real).c == NULL).all()
    two = ImageFolder(path=as_folder(tmp_path / "two", Y[:2], np.arange(2)))
    with pytest.raises(UserError, match="holds class 2, only 0"):
        read_set(tmp_path / "y.npz", two)
    other = ImageArray(path=str(tmp_path / "y.npz"), crop="center")
    with pytest.raises(UserError, match=r"holds images of shape \(3, 6, 8\), not \(3, 6, 6\)"):
        read_set(tmp_path / "y.npz", other)


def test_evaluate_scores_arrays_against_arrays_as_files_against_files(tmp_path):
    fake = RNG.integers(0, 256, Y.shape, dtype=np.uint8)
    np.savez(tmp_path / "fake.npz", fake, C)
    np.savez(tmp_path / "real.npz", Y, C)
    files = as_folder(tmp_path / "fake", fake, C), as_folder(tmp_path / "real", Y, C)
    rows = []
    for kind, (samples, real) in {
        "ImageArray": (str(tmp_path / "fake.npz"), str(tmp_path / "real.npz")),
        "ImageFolder": files,
    }.items():
        made = evaluate(
            run_dir=str(tmp_path / kind),
            samples={"mine": samples},
            data={"name": kind, "path": real, "held_out": real},
            metrics=["energy_distance"],
            device="cpu",
        )
        rows.append(json.loads((made / "metrics/metrics.json").read_text()))
    assert rows[0] == rows[1]
    assert [row["n"] for row in rows[0]] == [4, 4, 4]


def test_real_points_of_an_array_come_class_by_class(tmp_path):
    np.savez(tmp_path / "y.npz", Y, C)
    data = ImageArray(path=str(tmp_path / "y.npz"), memory=0)
    held = real_set(data, "bank", None)
    order = np.argsort(C, kind="stable")
    assert held.c.tolist() == C[order].tolist()
    x = torch.cat([x for x, _ in held.batches(5)])
    np.testing.assert_allclose(x, Y[order].transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
