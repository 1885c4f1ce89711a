"""Zips and folders of images: read as PIL reads them, in keyed batches, and refused by name."""

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cfg.config import checked
from lightning_cfg.data import ImageFolder, ImageZip
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation import features
from lightning_cfg.runs.files import sha256
from lightning_cfg.verbs.fit import fit

N = 40
LABELS = (np.random.default_rng(1).permutation(N) % 4).tolist()
PIXELS = np.random.default_rng(2).integers(0, 256, (N, 6, 8, 3), dtype=np.uint8)
KINDS = pytest.mark.parametrize("kind", [ImageZip, ImageFolder])


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(content, form)
    return content.getvalue()


def photographs(form: str = "PNG") -> dict[str, bytes]:
    """40 images in two folders, as EDM's tool lays them out, and their classes."""
    ending = {"PNG": "png", "JPEG": "jpg"}[form]
    files = {f"{i // 20:02}/{i:05}.{ending}": encoded(PIXELS[i], form) for i in range(N)}
    labels = [[name, k] for name, k in zip(files, LABELS, strict=True)]
    return {**files, "dataset.json": json.dumps({"labels": labels[::-1]}).encode()}


def stored(kind: type, path: Path, files: dict[str, bytes]) -> str:
    """The files as a zip or a folder; out of order, since only names should count."""
    backwards = reversed(files.items())
    if kind is ImageZip:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in backwards:
                file.writestr(name, content)
    else:
        for name, content in backwards:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return str(path)


def labelled(change: Callable[[list], object]) -> dict[str, bytes]:
    """The images with other labels: what `change` makes of the list, or what it returns."""
    files = photographs()
    labels = json.loads(files["dataset.json"])["labels"]
    returned = change(labels)
    labels = labels if returned is None else returned
    return {**files, "dataset.json": json.dumps({"labels": labels}).encode()}


def refused(data: object, *words: str) -> None:
    """The first batch is refused in one line with all the words."""
    with pytest.raises(UserError) as error:
        data.num_classes, data.batch(Draws(seed=0, step=0, batch_size=N))
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def batch(data, step: int, rows: slice | None = None, size: int = 16) -> dict:
    return data.batch(Draws(seed=5, step=step, batch_size=size, rows=rows))


@KINDS
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("memory", [0, 1])
def test_real_gives_what_pil_reads_class_by_class(tmp_path, kind, form, memory):
    files = photographs(form)
    data = kind(path=stored(kind, tmp_path / "data", files), memory=memory)
    assert (data.shape, data.num_classes, data.truth) == ((3, 6, 8), 4, None)
    images = [content for name, content in files.items() if name != "dataset.json"]
    read = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in images])
    if form == "PNG":
        assert (read == PIXELS).all()
    for per_class in (None, 3):
        order = np.concatenate([np.flatnonzero(np.equal(LABELS, k))[:per_class] for k in range(4)])
        y, c = data.real("bank", per_class)
        assert c.tolist() == [LABELS[i] for i in order]
        expected = read[order].transpose(0, 3, 1, 2) / 127.5 - 1
        np.testing.assert_allclose(y, expected, atol=1e-6)


@KINDS
def test_grey_images_have_one_channel(tmp_path, kind):
    files = {f"{i}.png": encoded(PIXELS[i, :, :, 0]) for i in range(3)}
    data = kind(path=stored(kind, tmp_path / "data", files))
    assert data.shape == (1, 6, 8)
    expected = torch.from_numpy(PIXELS[:3, None, :, :, 0]) / 127.5 - 1
    torch.testing.assert_close(data.real("bank")[0], expected)


@KINDS
def test_an_epoch_of_batches_is_every_image_once(tmp_path, kind):
    data = kind(path=stored(kind, tmp_path / "data", photographs()))
    batches = [batch(data, step) for step in range(5)]  # 80 images: two epochs
    y = torch.cat([b["y"] for b in batches])
    c = torch.cat([b["c"] for b in batches])
    bank = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1
    seen = [int((bank - one).abs().flatten(1).amax(1).argmin()) for one in y]
    assert torch.allclose(bank[seen], y, atol=1e-6)
    assert sorted(seen[:N]) == sorted(seen[N:]) == list(range(N))
    assert seen[:N] != seen[N:]
    assert c.tolist() == [LABELS[i] for i in seen]


@KINDS
def test_memory_changes_no_bit(tmp_path, kind):
    path = stored(kind, tmp_path / "data", photographs("JPEG"))
    kept, read = kind(path=path, flip=True), kind(path=path, flip=True, memory=0)
    for step in range(6):
        a, b = batch(kept, step), batch(read, step)
        assert torch.equal(a["y"], b["y"])
        assert torch.equal(a["c"], b["c"])
    assert all(map(torch.equal, kept.real("bank"), read.real("bank")))


def test_what_fits_is_kept_and_what_is_larger_is_read_again(tmp_path):
    fits = N * 3 * 6 * 8 / 2**30
    for memory, kept in ((fits, True), (fits * 0.999, False)):
        path = stored(ImageFolder, tmp_path / "data", photographs())
        data = ImageFolder(path=path, memory=memory)
        before = batch(data, 0)["y"]
        shutil.rmtree(path)
        if kept:
            assert torch.equal(batch(data, 0)["y"], before)
        else:
            refused(data, "No such file")


@pytest.mark.parametrize("memory", [0, 1])
def test_ranks_share_a_batch(tmp_path, memory):
    path = stored(ImageZip, tmp_path / "data", photographs())
    data = ImageZip(path=path, flip=True, memory=memory)
    whole = batch(data, 3)
    parts = [batch(data, 3, rows) for rows in (slice(0, 8), slice(8, 16))]
    for name, rows in whole.items():
        assert torch.equal(rows, torch.cat([p[name] for p in parts]))
    assert not (parts[0]["y"][:, None] == parts[1]["y"]).flatten(2).all(2).any()  # disjoint


@KINDS
def test_folders_are_classes_where_there_is_no_dataset_json(tmp_path, kind):
    files = {
        "zebra/a.png": encoded(PIXELS[0]),
        "ant/deep/b.png": encoded(PIXELS[1]),
        "bee/c.JPG": encoded(PIXELS[2], "JPEG"),
        "zebra/d.jpeg": encoded(PIXELS[3], "JPEG"),
        "zebra/notes.txt": b"not an image",
        "zebra/._a.png": b"what some systems leave",
    }
    data = kind(path=stored(kind, tmp_path / "data", files))
    y, c = data.real("bank")
    assert (data.num_classes, c.tolist()) == (3, [0, 1, 2, 2])
    torch.testing.assert_close(y[2], torch.from_numpy(PIXELS[0]).permute(2, 0, 1) / 127.5 - 1)


def below(*folders: str) -> dict[str, bytes]:
    """An image in each of these folders."""
    return {f"{folder}/{i}.png": encoded(PIXELS[i]) for i, folder in enumerate(folders)}


@KINDS
@pytest.mark.parametrize(
    "folders, classes, names",
    [
        (["mydata/cat", "mydata/dog", "mydata/cat"], [0, 1, 0], ["cat", "dog"]),
        (["a/b/cat", "a/b/dog/deep"], [0, 1], ["cat", "dog"]),
        (["cat", "cat"], [0, 0], ["cat"]),  # a data set of one class
        (["mydata/cat", "mydata/cat"], [0, 0], ["cat"]),
        (["cat/old", "dog/new"], [0, 1], ["cat", "dog"]),
    ],
)
def test_a_folder_that_all_classes_lie_in_is_none(tmp_path, kind, folders, classes, names):
    data = kind(path=stored(kind, tmp_path / "data", below(*folders)))
    y, c = data.real("bank")
    assert (c.tolist(), data.class_names, data.num_classes) == (
        sorted(classes),
        names,
        len(names),
    )
    order = sorted(range(len(folders)), key=classes.__getitem__)
    expected = torch.from_numpy(PIXELS[order]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(y, expected)


@KINDS
def test_a_dataset_json_says_otherwise_of_such_a_folder(tmp_path, kind):
    files = below("mydata/cat", "mydata/dog")
    labels = {"labels": [[name, 0] for name in files]}
    files["dataset.json"] = json.dumps(labels).encode()
    data = kind(path=stored(kind, tmp_path / "data", files))
    assert (data.num_classes, data.class_names) == (1, None)


@KINDS
def test_an_image_beside_the_classes_of_such_a_folder_is_refused(tmp_path, kind):
    files = below("mydata/cat", "mydata/dog", "mydata")
    path = stored(kind, tmp_path / "data", files)
    refused(kind(path=path), "mydata/2.png has no class", "none of the folders of mydata")


@KINDS
def test_what_is_not_read_is_said_once(tmp_path, kind, capsys):
    others = {"a/1.heic": b"", "a/2.HEIC": b"", "b/3.avif": b"", "b/4.gif": b"", "README": b""}
    files = {**below("a", "b"), **others, "a/.hidden.tif": b""}
    path = stored(kind, tmp_path / "data", files)
    for _ in range(2):
        assert len(kind(path=path).real("bank")[1]) == 2
    out, err = capsys.readouterr()
    said = "left out: 1 .avif, 1 .gif, 2 .heic, 1 without ending"
    assert (out, err.count("\n")) == ("", 1)
    assert (
        f"{path}: files that are not .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff were {said}" in err
    )
    del files["a/0.png"], files["b/1.png"]
    alone = kind(path=stored(kind, tmp_path / "alone", files))
    refused(alone, "holds no image", "only 1 .avif, 1 .gif, 2 .heic, 1 without ending")


@pytest.mark.parametrize("way", ["./{}", "/{}", ".//{}", "{}"])
@pytest.mark.parametrize("told", ["./{}", "{}", None])
def test_names_in_a_zip_mean_what_they_mean_to_others(tmp_path, way, told):
    files = below("a", "b")
    entries = {way.format(name): content for name, content in files.items()}
    if told is not None:
        labels = [[told.format(name), 1 - k] for k, name in enumerate(files)]
        entries[way.format("dataset.json")] = json.dumps({"labels": labels}).encode()
    data = ImageZip(path=stored(ImageZip, tmp_path / "data.zip", entries))
    y, c = data.real("bank")
    order = [0, 1] if told is None else [1, 0]
    assert (c.tolist(), data.num_classes) == ([0, 1], 2)
    expected = torch.from_numpy(PIXELS[order]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(y, expected)


def test_backslashes_in_a_zip_are_folders_and_nothing_lies_outside(tmp_path):
    entries = {name.replace("/", "\\"): content for name, content in below("a", "b").items()}
    data = ImageZip(path=stored(ImageZip, tmp_path / "data.zip", entries))
    assert data.class_names == ["a", "b"]
    entries = {**below("a"), "../b/1.png": encoded(PIXELS[0])}
    outside = ImageZip(path=stored(ImageZip, tmp_path / "outside.zip", entries))
    refused(outside, "../b/1.png would lie outside of it")


def test_links_are_followed_and_a_file_counts_once(tmp_path):
    """A link to its parent, one to a class, one to a file, and links to what lies elsewhere."""
    plain = tmp_path / "plain"
    stored(ImageFolder, plain, below("cat", "dog", "dog"))
    files = tmp_path / "data"
    stored(ImageFolder, files, below("cat", "dog"))
    stored(ImageFolder, tmp_path / "store", {"dog.png": encoded(PIXELS[2])})
    (files / "dog/2.png").symlink_to(tmp_path / "store/dog.png")
    assert sha256(files) == sha256(plain)
    (files / "cat/loop").symlink_to(files)
    (files / "dog/up").symlink_to("..")
    (files / "another").symlink_to("cat")
    (files / "cat/again.png").symlink_to("0.png")
    (files / "itself").symlink_to(".")
    assert sha256(files) == sha256(plain)
    data = ImageFolder(path=str(files))
    assert data.class_names == ["cat", "dog"]
    assert data.real("bank")[1].tolist() == [0, 1, 1]
    (tmp_path / "elsewhere").mkdir()
    for name in ("cat", "dog"):  # classes that lie elsewhere
        (tmp_path / "elsewhere" / name).symlink_to(plain / name)
    assert sha256(tmp_path / "elsewhere") == sha256(plain)


def test_what_is_neither_file_nor_folder_is_refused_at_once(tmp_path):
    for name, make in {
        "pipe.png": os.mkfifo,
        "pipe": os.mkfifo,
        "gone.png": lambda path: Path(path).symlink_to("nothing"),
        "circle": lambda path: Path(path).symlink_to("circle"),
    }.items():
        place = tmp_path / f"with {name}"
        stored(ImageFolder, place, below("a", "b"))
        make(place / "a" / name)
        refused(ImageFolder(path=str(place)), f"a/{name} is neither a file nor a folder")
        with pytest.raises(UserError, match="neither a file nor a folder"):
            sha256(place)


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    path = stored(ImageFolder, tmp_path / "data", below("a", "b"))

    def denied(place: str, scan: Callable = os.scandir) -> object:
        if str(place).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", denied)
    refused(ImageFolder(path=path), "data/b cannot be read: Permission denied")


@KINDS
def test_images_and_files_have_bounds(tmp_path, kind, monkeypatch):
    """A large picture is refused before it is decoded, a bomb before it is inflated."""
    large = Image.new("1", (12_000, 12_000))
    content = io.BytesIO()
    large.save(content, "PNG")
    files = {"a/0.png": content.getvalue()}
    path = stored(kind, tmp_path / "large", files)
    refused(kind(path=path), "a/0.png is 12000 x 12000 1, more than the 67108864 pixels")
    files = below("a", "b")
    files["b/1.png"] = content.getvalue()
    refused(
        kind(path=stored(kind, tmp_path / "second", files)), "b/1.png is 12000 x 12000 1, more than"
    )
    monkeypatch.setattr("lightning_cfg.data.image_files.MOST_BYTES", 2000)
    for name in ("dataset.json", "a/2.png"):
        files = {**below("a"), name: bytes(5000)}
        path = stored(kind, tmp_path / f"bomb{len(name)}", files)
        refused(kind(path=path), f"{name} takes 5000 bytes, more than the 2000 that a file")


def test_a_zip_that_inflates_is_refused_by_what_its_table_says(tmp_path):
    place = tmp_path / "bomb.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/0.png", encoded(PIXELS[0]))
        with file.open("dataset.json", "w") as inside:
            for _ in range(300):
                inside.write(bytes(2**20))
    data = ImageZip(path=str(place))
    refused(data, "dataset.json takes 314572800 bytes, more than the 268435456 that a file")


@KINDS
@pytest.mark.parametrize("null", [True, False])
def test_without_labels_there_are_no_classes(tmp_path, kind, null):
    files = {f"{i}.png": encoded(PIXELS[i]) for i in range(5)}
    if null:  # then folders are no classes
        files = {f"00/{name}": content for name, content in files.items()}
        files["dataset.json"] = b'{"labels": null}'
    data = kind(path=stored(kind, tmp_path / "data", files))
    assert data.num_classes == 0
    assert batch(data, 0)["c"].tolist() == [0] * 16
    for per_class in (None, 4):
        expected = torch.from_numpy(PIXELS[: per_class or 5]).permute(0, 3, 1, 2) / 127.5 - 1
        y, c = data.real("bank", per_class)
        torch.testing.assert_close(y, expected)
        assert c.tolist() == [0] * len(y)


def test_nothing_but_the_first_image_is_read_before_a_batch(tmp_path):
    files = photographs()
    names = list(files)
    for name in names[1:N]:
        files[name] = b"damaged"
    data = ImageZip(path=stored(ImageZip, tmp_path / "data", files))
    assert (data.shape, data.num_classes) == ((3, 6, 8), 4)
    refused(data, names[1])


# Bad input


def test_a_path_that_is_not_there_or_of_the_other_kind_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for kind, name, words in (
        (ImageZip, "nowhere", "no such file"),
        (ImageFolder, "nowhere", "no such folder"),
        (ImageZip, "folder", "is a folder: data.name=ImageFolder"),
        (ImageFolder, "file", "is a file: data.name=ImageZip"),
    ):
        with pytest.raises(UserError, match=f"{name}.* {words}|{name}: {words}"):
            kind(path=str(tmp_path / name))
        good = stored(kind, tmp_path / kind.__name__, photographs())
        with pytest.raises(UserError, match=words):
            kind(path=good, held_out=str(tmp_path / name))
        shutil.rmtree(good) if kind is ImageFolder else os.remove(good)
    with pytest.raises(UserError, match=r"memory must be float of at least 0 or .inf, not -1"):
        checked(ImageFolder, {"path": str(tmp_path), "memory": -1})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path, share):
    path = Path(stored(ImageZip, tmp_path / "cut.zip", photographs()))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(ImageZip(path=str(path)), "cut.zip is truncated or not a zip")


def test_a_byte_changed_inside_a_zip_is_noticed(tmp_path):
    path = Path(stored(ImageZip, tmp_path / "data.zip", photographs("JPEG")))
    with zipfile.ZipFile(path) as file:
        victim = file.getinfo("00/00007.jpg")
    content = bytearray(path.read_bytes())
    content[victim.header_offset + 30 + len(victim.filename) + victim.file_size - 10] ^= 1
    path.write_bytes(content)
    refused(ImageZip(path=str(path)), "00/00007.jpg", "damaged", "CRC")


@KINDS
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 10, 60, 0.7])
def test_a_damaged_image_is_named(tmp_path, kind, form, keep):
    files = photographs(form)
    victim = list(files)[7]
    whole = files[victim]
    files[victim] = whole[: int(keep * len(whole)) if keep < 1 else keep]
    refused(kind(path=stored(kind, tmp_path / "data", files)), victim, "damaged or cannot be read")


@pytest.mark.parametrize("first", [True, False])
def test_an_image_of_another_format_is_refused(tmp_path, first):
    files = photographs()
    victim = list(files)[0 if first else 3]
    files[victim] = encoded(PIXELS[0], "GIF")
    data = ImageFolder(path=stored(ImageFolder, tmp_path / "data", files))
    refused(data, victim, "neither PNG, JPEG, WebP, BMP nor TIFF")


def colours_of_16_bits() -> bytes:
    """An 8 x 6 RGB image with two bytes per colour, which PIL cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    rows = zlib.compress(6 * (b"\0" + 8 * 6 * b"\7"))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


ODD = {
    "RGBA": encoded(PIXELS[0], mode="RGBA"),
    "LA": encoded(PIXELS[0], mode="LA"),
    "P": encoded(PIXELS[0], mode="P"),
    "1": encoded(PIXELS[0], mode="1"),
    "CMYK": encoded(PIXELS[0], "JPEG", mode="CMYK"),
    "I;16": encoded(PIXELS[0, :, :, 0].astype(np.uint16) * 256),
    "16-bit RGB": colours_of_16_bits(),
}


@pytest.mark.parametrize("mode", ODD)
def test_an_image_of_a_mode_that_cannot_be_read_is_refused(tmp_path, mode):
    for place in (0, 9):  # alone it could be the first, which says what the others should be
        files = photographs()
        victim = list(files)[place]
        files[victim] = ODD[mode]
        path = stored(ImageZip, tmp_path / f"{place}.zip", files)
        refused(ImageZip(path=path), victim, f"8 x 6 {mode}" if mode != "I;16" else "8 x 6 ")


@KINDS
@pytest.mark.parametrize(
    "odd, said",
    [(PIXELS[0, :5], "8 x 5 RGB"), (PIXELS[0, :, :5], "5 x 6 RGB"), (PIXELS[0, ..., 0], "8 x 6 L")],
)
def test_an_image_of_another_size_or_mode_is_refused(tmp_path, kind, odd, said):
    files = photographs()
    files["01/00030.png"] = encoded(odd)
    data = kind(path=stored(kind, tmp_path / "data", files))
    refused(data, f"01/00030.png is {said}, but 00/00000.png is 8 x 6 RGB")


@KINDS
def test_no_image_is_refused(tmp_path, kind):
    files = {"dataset.json": b'{"labels": null}', "notes.txt": b""}
    refused(
        kind(path=stored(kind, tmp_path / "data", files)),
        "holds no image (.png, .jpg, .jpeg, .webp,",
    )


@KINDS
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda labels: labels.pop(3) and None, "dataset.json has no class for 01/00036.png"),
        (lambda labels: labels.append(["x.png", 1]), "x.png, which is not among the images"),
        (lambda labels: labels.append(["00/00000.png", 9]), "00/00000.png has the classes"),
        (lambda labels: labels[5].__setitem__(1, -1), "has class -1, not an integer of 0 or more"),
        (lambda labels: labels[5].__setitem__(1, 1.0), "has class 1.0, not an integer"),
        (lambda labels: labels[5].__setitem__(1, True), "has class True, not an integer"),
        (lambda labels: labels[5].__setitem__(1, None), "has class None, not an integer"),
        (lambda labels: labels[5].__setitem__(1, [0, 1]), "has class [0, 1], not an integer"),
        (lambda labels: labels[5].__setitem__(1, 7), "class 4 of the classes 0 ... 7 has no"),
        (lambda labels: labels[5].append(0), "not a list of [file, class]"),
        (lambda labels: 7, "not a list of [file, class]"),
        (lambda labels: [[["a"], 0]], "not a list of [file, class]"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, kind, change, words):
    data = kind(path=stored(kind, tmp_path / "data", labelled(change)))
    refused(data, "data: dataset.json" if "0 ..." not in words else "data: class 4", words)


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"labels": [["a', "is damaged or not json"),
        (b"", "is damaged or not json"),
        (b"\xff\xfe\x00", "is damaged or not json"),
        (b"{}", 'is not {"labels"'),
        (b"[]", 'is not {"labels"'),
    ],
)
def test_a_dataset_json_that_is_something_else_is_refused(tmp_path, content, words):
    files = {**photographs(), "dataset.json": content}
    data = ImageZip(path=stored(ImageZip, tmp_path / "data", files))
    refused(data, "data: dataset.json", words)


def test_a_dataset_json_below_the_top_is_refused(tmp_path):
    files = {f"top/{name}": content for name, content in photographs().items()}
    data = ImageZip(path=stored(ImageZip, tmp_path / "data", files))
    refused(data, "top/dataset.json must lie at the top")


def test_an_image_outside_the_class_folders_is_refused(tmp_path):
    files = {"ant/a.png": encoded(PIXELS[0]), "b.png": encoded(PIXELS[1])}
    data = ImageFolder(path=stored(ImageFolder, tmp_path / "data", files))
    refused(data, "b.png has no class")


@KINDS
def test_held_out_images_are_read_and_must_be_like_the_others(tmp_path, kind):
    path = stored(kind, tmp_path / "data", photographs())

    def with_held_out(name: str, files: dict[str, bytes]):
        return kind(path=path, held_out=stored(kind, tmp_path / name, files))

    swapped = {f"{k}/{k}.png": encoded(PIXELS[-1 - k]) for k in range(4)}
    labels = json.dumps({"labels": [[name, k] for k, name in enumerate(swapped)]}).encode()
    y, c = with_held_out("good", {**swapped, "dataset.json": labels}).real("held_out")
    assert c.tolist() == [0, 1, 2, 3]
    expected = torch.from_numpy(PIXELS[-1:-5:-1].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(y, expected)

    smaller = {**{name: encoded(PIXELS[0, :5]) for name in swapped}, "dataset.json": labels}
    fewer = {"a.png": encoded(PIXELS[0]), "dataset.json": b'{"labels": [["a.png", 0]]}'}
    for name, files, words in (
        ("smaller", smaller, r"smaller has shape \(3, 5, 8\), .*data has \(3, 6, 8\)"),
        ("fewer", fewer, r"fewer has num classes 1, .*data has 4"),
        ("named", swapped, r"named has class names .*'0', '1', '2', '3'.*data has None"),
    ):
        data = with_held_out(name, files)
        data.batch(Draws(seed=0, step=0, batch_size=4))  # they are not read to train
        with pytest.raises(UserError, match=words):
            data.real("held_out")
    with pytest.raises(UserError, match=r"data\.held_out is needed"):
        kind(path=path).real("held_out")


def test_the_hash_of_a_folder_is_that_of_its_names_and_contents(tmp_path):
    files = {"a/x": b"1", "a/y": b"2", "b": b"3"}

    def hashed(name: str, files: dict[str, bytes]) -> str:
        return sha256(stored(ImageFolder, tmp_path / name, files))

    same = hashed("one", files)
    assert hashed("elsewhere", dict(reversed(files.items()))) == same
    assert hashed("hidden", {**files, ".x": b"", ".git/x": b"4", "a/.y": b"5"}) == same
    others = [
        {**files, "a/x": b"0"},
        {**files, "a/x": b"2", "a/y": b"1"},
        {**files, "c": b""},
        {"a/x": b"1", "a/y": b"2"},
        {"a/z": b"1", "a/y": b"2", "b": b"3"},
        {"a": b"1", "y": b"2", "b": b"3"},
    ]
    hashes = {hashed(f"other{i}", other) for i, other in enumerate(others)}
    assert len(hashes - {same}) == len(others)


@KINDS
@pytest.mark.parametrize("classes", [True, False])
def test_fit_trains_on_them_and_knows_them_again(training, call, tmp_path, kind, classes):
    files = photographs() if classes else labelled(lambda labels: None)
    if not classes:
        files["dataset.json"] = b'{"labels": null}'
    path = Path(stored(kind, tmp_path / "data", files))

    def run(path: Path):
        config = training(
            data={"name": kind.__name__, "path": str(path), "flip": True},
            net={"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1]},
            batch_size=4,
            trainer={"max_steps": 2},
            run_dir="run",
        )
        return call(fit, config)

    assert run(path).status == 0
    moved = path.rename(tmp_path / "moved")
    assert "finished already" in run(moved).out
    files[next(iter(files))] = encoded(255 - PIXELS[0])
    other = run(Path(stored(kind, tmp_path / "other", files)))
    assert (other.status, "belongs to another run (inputs.data" in other.err) == (2, True)


JPEGS = Path(os.environ.get("LIGHTNING_CFG_DATA", "data"), "cifar10_jpeg")
TRAIN, TEST = JPEGS / "cifar10-jpeg-train.zip", JPEGS / "cifar10-jpeg-test.zip"


@pytest.mark.skipif(
    not (TRAIN.is_file() and TEST.is_file()),
    reason=f"no zips of CIFAR-10 as JPEG in {JPEGS} (set LIGHTNING_CFG_DATA to the folder above)",
)
def test_the_photographs_of_cifar10_jpeg():
    read = ImageZip(path=str(TRAIN), held_out=str(TEST), memory=0)
    assert (read.shape, read.num_classes) == ((3, 32, 32), 10)
    y, c = read._bank
    assert torch.bincount(c).tolist() == [5000] * 10
    rows = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[:500]
    with zipfile.ZipFile(TRAIN) as file:
        labels = dict(json.loads(file.read("dataset.json"))["labels"])
        names = sorted(labels)
        for i, pixels in zip(rows.tolist(), y[rows], strict=True):
            expected = np.asarray(Image.open(io.BytesIO(file.read(names[i]))))
            assert (pixels.permute(1, 2, 0).numpy() == expected).all()
            assert int(c[i]) == labels[names[i]]
    kept = ImageZip(path=str(TEST))
    y, c = kept.real("bank")
    assert torch.bincount(c).tolist() == [1000] * 10
    assert all(map(torch.equal, read.real("held_out"), (y, c)))


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_batches_say_what_was_done_to_them(tmp_path, flip):
    path = stored(ImageZip, tmp_path / "a.zip", photographs())
    plain, data = ImageZip(path=path, flip=flip), ImageZip(path=path, flip=flip, augment=0.05)
    assert (plain.augment_dim, data.augment_dim) == (0, 9)
    assert "augment" not in batch(plain, 3)
    got, as_it_is = batch(data, 3), batch(plain, 3)
    assert torch.equal(got["c"], as_it_is["c"])
    done = (got["augment"] != 0).any(1)
    assert 0 < done.sum() < len(done)
    same = (got["y"] == as_it_is["y"]).flatten(1).all(1)
    assert torch.equal(same, ~done)  # random pixels: each that was mapped differs
    parts = [batch(data, 3, slice(0, 10)), batch(data, 3, slice(10, 16))]
    for name, whole in got.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole)


def test_moving_images_to_a_device_changes_no_batch(tmp_path):
    path = stored(ImageZip, tmp_path / "a.zip", photographs())
    for memory in (2.0, 0.0):
        data = ImageZip(path=path, memory=memory)
        before = batch(data, 5)
        data.to("cpu")
        after = batch(data, 5)
        assert torch.equal(before["y"], after["y"])


def test_a_feature_space_refuses_images_of_another_shape(tmp_path):
    images = {f"{k}/{i}.png": encoded(PIXELS[i, :, :6, 0]) for i in range(8) for k in [i % 2]}
    image = {"name": "ImageZip", "path": stored(ImageZip, tmp_path / "a.zip", images)}
    run = fit(
        data=image,
        net={"name": "ConvNet", "channels": 4},
        model={"name": "NoisyClassifier", "clean": True},
        learner={"name": "Classification"},
        batch_size=4,
        trainer={"max_steps": 1, "accelerator": "cpu"},
        run_dir=str(tmp_path / "run"),
    )
    space = features.classifier(path=str(run))
    assert space(torch.zeros(2, 1, 6, 6)).shape == (2, 64)
    with pytest.raises(UserError, match=r"reads shape \(1, 6, 6\), not \(1, 8, 8\)"):
        space(torch.zeros(2, 1, 8, 8))
