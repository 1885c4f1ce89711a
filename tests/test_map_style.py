"""Anyone's map-style Datasets by dotted path: the same points as of files; refused by item."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import map_style
from helpers.map_style import LABELS, PIXELS
from PIL import Image

from lightning_cfg.config import Data, checked
from lightning_cfg.data import ImageFolder, MapStyle
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.verbs.evaluate import evaluate

OF = "helpers.map_style."


def folder(path: Path) -> str:
    for i, pixels in enumerate(PIXELS):
        place = path / f"{'abc'[LABELS[i]]}/{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return str(path)


def data_of(section: dict):
    """As a verb makes it of a config."""
    return build_data(checked(fit_like, {"data": section})["data"])


def fit_like(*, data: Data): ...


def real(data) -> tuple[np.ndarray, list[int]]:
    y, c = data.real("bank")
    return ((y + 1) * 127.5).round().numpy(), c.tolist()


ORDER = np.argsort(LABELS, kind="stable")
EXPECTED = PIXELS[ORDER].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("memory", [0, 1])
@pytest.mark.parametrize(
    "kind, floats",
    [("pil", None), ("array", None), ("tensor", None), ("unit", [0, 1]), ("signed", [-1, 1])],
)
def test_images_of_every_kind_are_the_same_bytes(kind, floats, memory):
    of = {"name": f"{OF}Pairs", "kind": kind, "label": "tensor"}
    data = data_of({"name": "MapStyle", "of": of, "floats": floats, "memory": memory})
    assert (data.shape, data.num_classes, data.class_names) == ((3, 8, 8), 3, None)
    y, c = real(data)
    np.testing.assert_array_equal(y, EXPECTED)
    assert c == sorted(LABELS)


@pytest.mark.parametrize("kind", ["grey", "one", "one_array"])
def test_grey_images_have_one_channel(kind):
    data = data_of({"name": f"{OF}Pairs", "kind": kind})
    assert data.shape == (1, 8, 8)
    np.testing.assert_array_equal(real(data)[0], EXPECTED[:, :1])


def test_torchvisions_folder_by_its_own_keys_is_ours(tmp_path):
    path = folder(tmp_path / "pictures")
    theirs = data_of({"name": "torchvision.datasets.ImageFolder", "root": path})
    ours = ImageFolder(path=path)
    assert theirs.class_names == ours.class_names == ["a", "b", "c"]
    for step in range(3):
        a, b = (d.batch(Draws(seed=1, step=step, batch_size=5)) for d in (theirs, ours))
        assert torch.equal(a["y"], b["y"])
        assert torch.equal(a["c"], b["c"])


def test_torchvisions_cifar_of_a_file_at_hand(tmp_path, monkeypatch):
    """An own CIFAR10 in its published form: of two images a batch."""
    from torchvision.datasets import CIFAR10

    place = tmp_path / CIFAR10.base_folder
    place.mkdir()
    y = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        content = {"data": y.reshape(2, -1), "labels": [3, 9]}
        (place / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"kind {k}" for k in range(10)]}
    (place / "batches.meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    section = {"name": "torchvision.datasets.CIFAR10", "root": str(tmp_path), "train": False}
    data = data_of(section)
    assert (data.num_classes, data.class_names[3]) == (10, "kind 3")
    np.testing.assert_array_equal(real(data)[0], y)
    assert real(data)[1] == [3, 9]


def test_rows_as_hugging_faces_and_their_splits():
    data = data_of({"name": f"{OF}rows", "path": "somebody/pictures", "split": "train"})
    assert (data.num_classes, data.class_names) == (3, ["ant", "bee", "cat"])
    np.testing.assert_array_equal(real(data)[0], EXPECTED)
    with pytest.raises(UserError, match="has the splits train, test: say which one, split=train"):
        MapStyle(of={"name": f"{OF}rows", "path": "somebody/pictures"})


def test_hugging_faces_own_datasets(tmp_path, monkeypatch):
    """Where `datasets` is installed: its reader of folders, by its own keys."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    path = folder(tmp_path / "pictures")
    section = {"name": "datasets.load_dataset", "path": "imagefolder", "data_dir": path}
    section |= {"cache_dir": str(tmp_path / "cache")}
    data = data_of({**section, "split": "train"})
    assert (data.shape, data.num_classes, data.class_names) == ((3, 8, 8), 3, ["a", "b", "c"])
    np.testing.assert_array_equal(real(data)[0], EXPECTED)
    with pytest.raises(UserError, match="has the splits train: say which one, split=train"):
        data_of({"name": "MapStyle", "of": section})


def test_labels_together_are_taken_and_names_count_classes_without_an_image():
    made = map_style.Targets()
    data = MapStyle(of=made, memory=0)
    assert (data.num_classes, data.class_names) == (4, ["ant", "bee", "cat", "dog"])
    assert data._training.c.tolist() == LABELS
    assert made.asked <= 2  # the first and the last, not all of them
    other = MapStyle(of=map_style.Targets(shift=1))  # as a target_transform would do
    assert other._training.c.tolist() == LABELS


def test_the_number_of_classes_can_be_given():
    of = {"name": f"{OF}Pairs"}
    assert MapStyle(of=of, num_classes=7).num_classes == 7
    none = MapStyle(of=of, num_classes=0)
    assert (none.num_classes, none.batch(Draws(seed=0, step=0, batch_size=2))["c"].tolist()) == (
        0,
        [0, 0],
    )
    with pytest.raises(UserError, match=r"has label 2, and only 0 \.\.\. 1 are known"):
        MapStyle(of=of, num_classes=2).num_classes  # noqa: B018
    assert data_of({"name": f"{OF}images_alone"}).num_classes == 0


def test_held_out_and_the_keys_of_images():
    of = {"name": f"{OF}Pairs", "n": 6}
    data = MapStyle(of=of, held_out={**of, "first": 6}, size=4, channels=1, flip=True)
    assert data.shape == (1, 4, 4)
    y, _ = data.real("held_out")
    order = 6 + np.argsort(LABELS[6:], kind="stable")
    grey = [Image.fromarray(PIXELS[i]).convert("L") for i in order]
    small = [np.asarray(one.resize((4, 4), Image.Resampling.LANCZOS)) for one in grey]
    np.testing.assert_array_equal(((y + 1) * 127.5).round()[:, 0].numpy(), small)


@pytest.mark.parametrize(
    "wrong, keys, words",
    [
        ("text", {}, "item 3 is a str, neither a PIL image nor a tensor"),
        ("last", {}, "item 3 has shape (8, 8, 3), and is no tensor of shape (1 or 3, H, W)"),
        ("first", {}, "item 3 has shape (3, 8, 8), and is no array of shape (H, W, 1 or 3)"),
        ("long", {}, "item 3 holds int64, neither bytes 0 ... 255 (uint8) nor floats"),
        ("small", {}, "item 3 is 8 x 5 RGB, but item 0 is 8 x 8 RGB; all images must be alike"),
        ("small", {"size": 8}, "item 3 is 8 x 5 RGB, which size=8 would stretch"),
        ("mode", {}, "data.channels=3 makes them so"),
        ("float", {}, "item 3 holds floats, "),
        ("float", {}, "say what is black and white, such as floats=[0,1] of data MapStyle"),
        ("beyond", {"floats": (0, 1)}, "beyond data.floats=[0, 1]"),
        ("nan", {"floats": (0, 1)}, "beyond data.floats=[0, 1]"),
    ],
)
def test_an_item_that_is_no_image_is_named(wrong, keys, words):
    data = MapStyle(of={"name": f"{OF}Pairs", "wrong": wrong}, **keys)
    with pytest.raises(UserError) as error:
        data.real("bank")
    assert words in str(error.value)
    assert f"data {OF}Pairs: item 3" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_dataset_of_images_and_classes_is_refused():
    texts = MapStyle(of={"name": f"{OF}Pairs", "label": "str"})
    with pytest.raises(UserError, match="item 0 has the label '0', not a whole number from 0"):
        texts.num_classes  # noqa: B018
    with pytest.raises(UserError, match="makes a int, which is no map-style Dataset"):
        MapStyle(of={"name": f"{OF}nothing"})
    with pytest.raises(UserError, match="is empty"):
        MapStyle(of={"name": f"{OF}Pairs", "n": 0})
    with pytest.raises(UserError, match="say which one is the image"):
        MapStyle(of={"name": f"{OF}Rows"}, image="picture").shape  # noqa: B018
    with pytest.raises(UserError, match="say which one is the label"):
        MapStyle(of={"name": f"{OF}Rows"}, label="kind").num_classes  # noqa: B018
    with pytest.raises(UserError, match="has one number for black and white"):
        MapStyle(of={"name": f"{OF}Rows"}, floats=(1, 1))
    with pytest.raises(UserError, match=r"unknown key 'data\.kinds'; did you mean 'data\.kind'"):
        data_of({"name": f"{OF}Pairs", "kinds": "pil"})
    with pytest.raises(UserError, match="item 12 cannot be read: IndexError"):
        MapStyle(of={"name": f"{OF}Pairs"})._training._opened(12)


def scores(tmp_path: Path, name: str, **keys) -> list[dict]:
    """What `evaluate` finds in a space of which features are kept."""
    of = {"name": f"{OF}Pairs", **keys.pop("of", {})}
    made = evaluate(
        run_dir=str(tmp_path / name),
        samples={"mine": folder(tmp_path / "pictures")},
        data={"name": "MapStyle", "of": of, "held_out": of, **keys},
        metrics=["energy_distance", {"name": "kernel_distance", "size": 4}],
        features={"name": f"{OF}brightness"},
        by_class=False,
        device="cpu",
    )
    return json.loads((made / "metrics/metrics.json").read_text())


def test_features_of_items_in_memory_are_kept_and_told_apart(tmp_path, monkeypatch):
    """Of one that is too large for memory nothing is kept; its numbers are equal."""
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    large = scores(tmp_path, "large", memory=0)
    assert not (tmp_path / "cache").exists()
    first = scores(tmp_path, "first")
    kept = {file.name for file in (tmp_path / "cache").rglob("*.np?")}
    assert first == large
    assert kept
    other = scores(tmp_path, "other", of={"n": 6, "path": str(tmp_path / "pictures")})
    assert other != first
    assert kept < {file.name for file in (tmp_path / "cache").rglob("*.np?")}
