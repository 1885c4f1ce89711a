"""What `fit` says of its data before it trains, and classes by name from there to tables."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cfg.config.schema import choices, keys_of
from lightning_cfg.data import ImageFolder
from lightning_cfg.data.map_style import MapStyle
from lightning_cfg.errors import UserError
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.tensors import load_tensors
from lightning_cfg.sampling.prepared import class_of
from lightning_cfg.training import told
from lightning_cfg.training.told import TellTime, duration
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

RNG = np.random.default_rng(0)


def folder(path: Path, *names: str) -> str:
    """A small picture of each of these names; a name that ends in / is an empty folder."""
    for name in names:
        place = path / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place)
    return str(path)


PETS = ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png")


@pytest.fixture
def images(training, tmp_path):
    """A `fit` of a tiny network on pets."""
    path = folder(tmp_path / "pets", *PETS)
    net = {"name": "UnshuffleUNet", "channels": 8, "blocks": 1, "channel_mult": [1]}
    data = {"name": "ImageFolder", "path": path}
    return training(data=data, net=net, batch_size=4, trainer={"max_steps": 3})


def test_fit_says_what_it_has_read_and_what_it_trains(images, tmp_path, capsys):
    run = fit(run_dir=str(tmp_path / "run"), **images)
    numbers = sum(p.numel() for p in restore(run).parameters())
    lines = capsys.readouterr().out.splitlines()[:3]
    assert lines == [
        f"data: ImageFolder {tmp_path}/pets: 5 images of 3 x 8 x 8, 2 classes: cat 3, dog 2",
        f"network: UnshuffleUNet, {numbers:,} parameters, EDM; on cpu, 32-true",
        "training: 3 steps of batch 4, each image 2.4 times",
    ]
    fit(run_dir=str(tmp_path / "run"), **images)  # finished already
    assert "data:" not in capsys.readouterr().out


def test_points_and_many_classes_take_a_line(mixture, tmp_path):
    from lightning_cfg.data.build import build_data

    assert told.in_words(build_data(mixture)) == (None, "Mixture: points of 2, 2 classes")
    names = [f"{k:02}/{i}.png" for k in range(13) for i in range(1 + k % 3)]
    many = ImageFolder(path=folder(tmp_path / "many", *names))
    assert told.in_words(many)[1].endswith("images of 3 x 8 x 8, 13 classes of 1 to 3")
    bare = ImageFolder(path=folder(tmp_path / "bare", "0.png", "1.png"))
    assert told.in_words(bare)[1].endswith("2 images of 3 x 8 x 8, without classes")
    some = ImageFolder(path=folder(tmp_path / "pets", *PETS), limit=1)
    assert told.in_words(some) == (2, told.in_words(some)[1])


@pytest.mark.parametrize(
    "names, train, other",
    [
        (("train/cat/0.png", "test/cat/0.png"), "train", "test"),
        (("a/Train/0.png", "a/val/0.png", "a/test/1.png"), "a/Train", "a/test"),
    ],
)
def test_folders_that_are_splits_are_refused(tmp_path, names, train, other):
    data = ImageFolder(path=folder(tmp_path / "pets", *names))
    with pytest.raises(UserError, match="are splits and no classes") as error:
        data.num_classes  # noqa: B018
    place = tmp_path / "pets"
    keys = f"give data.path={place}/{train} and data.held_out={place}/{other}"
    assert str(error.value).endswith(keys)


@pytest.mark.parametrize(
    "names, doubts",
    [
        (PETS, []),
        ((*PETS, "fish/"), ["fish holds no image, and is no class"]),
        (tuple(f"pets/{name}" for name in (*PETS, "fish/")), ["fish holds no image"]),
        (
            ("pets/cat/0.png", "pets/dog/0.png", "cars/bus/0.png"),
            ["such as cars/bus, are not"],
        ),
        (("cat/old/0.png", "dog/new/0.png"), []),
        (("train/cat/0.png", "train/dog/0.png"), []),
    ],
)
def test_odd_folders_are_told(tmp_path, names, doubts):
    data = ImageFolder(path=folder(tmp_path / "data", *names))
    assert len(data.doubts) == len(doubts)
    assert all(words in told for words, told in zip(doubts, data.doubts, strict=True))


def test_a_class_of_a_dataset_without_an_image_is_told():
    from helpers import map_style

    (doubt,) = MapStyle(of=map_style.Targets()).doubts
    assert doubt == "data Targets: 1 of 4 classes have no image: dog"
    assert MapStyle(of=map_style.Rows()).doubts == ()


def test_names_go_from_folders_to_samples_tables_and_figures(images, tmp_path, capsys):
    base = fit(run_dir=str(tmp_path / "base"), **images)
    assert json.loads((base / "manifest.json").read_text())["class_names"] == ["cat", "dog"]
    assert torch.load(base / LAST, weights_only=True)["class_names"] == ["cat", "dog"]
    how = {"models": {"model": str(base)}, "guidance": "classifier_free", "n": 6, "device": "cpu"}
    how["sampler"] = {"name": "heun", "steps": 2}
    dogs = generate(run_dir=str(tmp_path / "dogs"), **how, class_label="dog")
    same = generate(run_dir=str(tmp_path / "same"), **how, class_label=1)
    a, b = (load_tensors(run / "samples/samples.safetensors", "x", "c") for run in (dogs, same))
    assert torch.equal(a["x"], b["x"])
    assert a["c"].tolist() == [1] * 6
    both = generate(run_dir=str(tmp_path / "both"), **how)
    assert json.loads((both / "manifest.json").read_text())["class_names"] == ["cat", "dog"]
    data = {**images["data"], "held_out": images["data"]["path"]}
    made = {"samples": {"mine": str(both)}, "data": data, "metrics": ["energy_distance"]}
    scored = evaluate(run_dir=str(tmp_path / "scored"), **made, device="cpu")
    with open(scored / "metrics/metrics.csv") as file:
        assert [row["class_name"] for row in csv.DictReader(file)] == ["cat", "dog"]
    assert "| class_name | cat | dog |" in (scored / "metrics/table.md").read_text()
    rows = json.loads((scored / "metrics/metrics.json").read_text())
    assert [row["class"] for row in rows] == [0, 1]
    assert "class_name" not in rows[0]


def test_a_checkpoint_without_names_is_read_and_knows_numbers(images, tmp_path):
    base = fit(run_dir=str(tmp_path / "base"), **images)
    checkpoint = torch.load(base / LAST, weights_only=True)
    del checkpoint["class_names"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    assert restore(tmp_path / "older.ckpt").class_names is None
    for names in (["cat"], ["cat", 1], "cd", {"cat": 0, "dog": 1}):
        torch.save({**checkpoint, "class_names": names}, tmp_path / "odd.ckpt")
        with pytest.raises(UserError, match="its class_names must be a text for each class"):
            restore(tmp_path / "odd.ckpt")


def test_names_that_are_not_one_a_class_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFolder, "class_names", ["cat"])
    with pytest.raises(UserError, match="data has 1 class_names, but 2 classes"):
        fit(run_dir=str(tmp_path / "base"), **images)


def test_a_class_by_name_or_number():
    names = ["cat", "dog", "7"]
    assert [class_of(label, 3, names) for label in ("dog", "7", 2, None)] == [1, 2, 2, None]
    for label, known, words in (
        ("dgo", names, r"class_label=dgo is no class; did you mean 'dog'\?"),
        ("zebra", names, "class_label=zebra is no class; the classes are cat, dog, 7$"),
        ("dog", None, r"does not know its classes' names, only 0 \.\.\. 2"),
        (3, names, r"class_label=3 is outside 0 \.\.\. 2"),
    ):
        with pytest.raises(UserError, match=words):
            class_of(label, 3, known)


def test_rows_of_a_sheet_bear_names_and_long_ones_are_cut():
    x, c = torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])
    named = contact_sheet({"a": (x, c)}, 2, columns=2, names=["cat", "a very long name of a class"])
    assert [text.get_text() for text in named.texts] == ["cat", "a very long name of a c…"]
    plain = contact_sheet({"a": (x, c)}, 2, columns=2)
    assert [text.get_text() for text in plain.texts] == ["0", "1"]
    assert named.get_size_inches()[0] > plain.get_size_inches()[0]


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (7500, "2 h 5 min"), (259_200, "3.0 days")],
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_time_is_told_once_when_steps_have_been_measured(monkeypatch, capsys):
    now, line = [0.0], "training: about 18 min for the 887 steps that are left, 1.2e+03 ms each\n"
    monkeypatch.setattr(told.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(global_step=100, max_steps=1000, is_global_zero=True)
    one = TellTime()
    one.on_train_start(trainer, None)
    for step in range(101, 160):  # one that goes on at step 100; its first steps are slow
        now[0] += 30.0 if step <= 103 else 1.2
        one.after_step(trainer, None, step)
    assert capsys.readouterr().out == line


def test_the_page_on_data_has_every_data_set_of_ones_own_and_every_key():
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    of_samples = {"Pairs", "Reflow", "RealOrGenerated", "Described"}
    named = set(choices("lightning_cfg.data")) - of_samples
    assert {name for name in named if f"`{name}`" not in page} == set()
    keys = {*keys_of(ImageFolder)[0], *keys_of(MapStyle)[0]} - {"path"}
    assert {key for key in keys if not re.search(rf"`{key}[`:]|  {key}:", page)} == set()
