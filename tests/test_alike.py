"""Images of many sizes and kinds made alike, against EDM's own code, PIL and torchvision."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from lightning_cfg.data import ImageFolder, ImageZip
from lightning_cfg.diffusion.draws import Draws
from lightning_cfg.errors import UserError

RNG = np.random.default_rng(3)


def center_crop(width: int, height: int, img: np.ndarray) -> np.ndarray:
    """EDM's dataset_tool.py, `make_transform`, as it is published."""
    crop = np.min(img.shape[:2])
    img = img[
        (img.shape[0] - crop) // 2 : (img.shape[0] + crop) // 2,
        (img.shape[1] - crop) // 2 : (img.shape[1] + crop) // 2,
    ]
    if img.ndim == 2:
        img = img[:, :, np.newaxis].repeat(3, axis=2)
    pil = Image.fromarray(img, "RGB").resize((width, height), Image.Resampling.LANCZOS)
    return np.array(pil)


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise, so that filters and roundings differ."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [40 * np.sin(x / 5 + k) + 40 * np.cos(y / 7 - k) + 128 for k in range(3)]
    pixels = np.stack(channels, 2) + RNG.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def folder(path: Path, **images: Image.Image | bytes) -> str:
    """Images by name; cat_1_png is cat/1.png."""
    for name, image in images.items():
        *folders, stem, ending = name.split("_")
        place = path.joinpath(*folders, f"{stem}.{ending}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            place.write_bytes(image)
        else:
            image.save(place, **({"lossless": True} if ending == "webp" else {}))
    return str(path)


def bytes_of(data) -> np.ndarray:
    """All training images (N, H, W, C) uint8, in the files' order."""
    y, rows, _ = data.rows("bank")
    return y[rows.sort().values].permute(0, 2, 3, 1).numpy()


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("shape", [(37, 52), (52, 37), (41, 40), (16, 16), (9, 13), (100, 33)])
def test_crop_and_size_are_edms(tmp_path, shape):
    images = {f"{i}_png": picture(*shape) for i in range(2)}
    path = folder(tmp_path / "data", **images)
    expected = [center_crop(16, 16, np.asarray(image)) for image in images.values()]
    for memory in (0, 1):
        data = ImageFolder(path=path, size=16, crop="center", memory=memory)
        assert data.shape == (3, 16, 16)
        np.testing.assert_array_equal(bytes_of(data), expected)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_mixed_sizes_and_kinds_become_one_as_edms_tool_makes_them(tmp_path):
    images = {
        "cat_a_png": picture(40, 30),
        "cat_b_webp": picture(25, 61),
        "cat_c_bmp": picture(33, 33, "L"),
        "dog_d_tiff": picture(20, 24),
        "dog_e_jpg": picture(64, 48),
        "dog_f_tif": picture(30, 30, "L"),
    }
    path = folder(tmp_path / "data", **images)
    data = ImageFolder(path=path, size=16, crop="center", channels=3)
    places = [Path(path, *name.split("_")[:-2]) for name in images]
    names = [p / ".".join(name.split("_")[-2:]) for p, name in zip(places, images, strict=True)]
    read = [np.asarray(Image.open(name)) for name in names]  # as PIL reads what was written
    np.testing.assert_array_equal(bytes_of(data), [center_crop(16, 16, one) for one in read])
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)


def test_a_conversion_to_rgb_is_torchvisions_and_one_to_grey_is_pils(tmp_path):
    modes = ["RGB", "L", "P", "RGBA", "LA", "1"]
    images = {f"k_{i}_png": picture(12, 12, mode) for i, mode in enumerate(modes)}
    images["k_6_jpg"] = picture(12, 12, "CMYK")
    path = folder(tmp_path / "data", **images)
    theirs = [np.asarray(image) for image, _ in TorchvisionFolder(path)]
    np.testing.assert_array_equal(bytes_of(ImageFolder(path=path, channels=3)), theirs)
    files = sorted(Path(path, "k").iterdir())
    grey = [np.asarray(Image.open(file).convert("L"))[..., None] for file in files]
    data = ImageFolder(path=path, channels=1)
    assert data.shape == (1, 12, 12)
    np.testing.assert_array_equal(bytes_of(data), grey)


@pytest.mark.parametrize("form", ["webp", "bmp", "tiff", "tif", "png"])
def test_every_kind_is_read_as_pil_reads_it(tmp_path, form):
    images = [picture(7, 9), picture(7, 9)]
    path = folder(tmp_path / "data", **{f"{i}_{form}": one for i, one in enumerate(images)})
    np.testing.assert_array_equal(bytes_of(ImageFolder(path=path)), np.stack(images))


def refused(data, *words: str) -> None:
    with pytest.raises(UserError) as error:
        data.batch(Draws(seed=0, step=0, batch_size=8))
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_a_picture_that_is_unlike_is_named_with_the_keys_that_help(tmp_path):
    sizes = folder(tmp_path / "sizes", a_png=picture(64, 64), b_jpg=picture(48, 80))
    told = "b.jpg is 80 x 48 RGB, but a.png is 64 x 64 RGB", "data.size=64 data.crop=center makes"
    refused(ImageFolder(path=sizes), *told)
    refused(ImageFolder(path=sizes, crop="center"), *told)
    hint = "which size=32 would stretch: data.crop=center takes the square in its middle"
    refused(ImageFolder(path=sizes, size=32), "b.jpg is 80 x 48 RGB", hint)
    modes = folder(tmp_path / "modes", a_png=picture(9, 9), b_png=picture(9, 9, "L"))
    hint = "all images must be alike: data.channels=3 makes them so"
    refused(ImageFolder(path=modes), "b.png is 9 x 9 L, but a.png is 9 x 9 RGB", hint)
    palette = folder(tmp_path / "palette", a_png=picture(9, 9, "P"))
    refused(ImageFolder(path=palette), "a.png is 9 x 9 P", "data.channels=3 makes RGB of it")


def tiff_of_16_bits() -> bytes:
    """A 2 x 2 RGB image with two bytes per colour, which PIL reads as 8 and cannot write."""
    tags = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 4, 1, 2), (279, 4, 1, 24), (339, 3, 1, 1)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    assert len(head + directory) == 134
    return head + directory + struct.pack("<3H", 16, 16, 16) + bytes(range(24))


@pytest.mark.parametrize("channels", [None, 3])
def test_colours_of_16_bits_in_a_tiff_are_not_cut_without_a_word(tmp_path, channels):
    content = tiff_of_16_bits()
    assert Image.open(io.BytesIO(content)).mode == "RGB"
    path = folder(tmp_path / "data", a_tiff=content)
    refused(ImageFolder(path=path, channels=channels), "a.tiff is 2 x 2 16-bit RGB; only 8-bit")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_what_only_begins_like_a_kind_is_refused(tmp_path):
    path = folder(tmp_path / "data", a_webp=b"RIFF\x10\0\0\0WAVEfmt " + bytes(40))
    refused(ImageFolder(path=path), "a.webp is damaged or cannot be read: it is neither PNG, JPEG")
    with io.BytesIO() as whole:
        picture(9, 9).save(whole, "TIFF")
        cut = folder(tmp_path / "cut", a_tiff=whole.getvalue()[:60])
    refused(ImageFolder(path=cut), "a.tiff is damaged or cannot be read")


def test_batches_of_resized_images_are_those_of_images_resized_before(tmp_path):
    images = {f"{i}_png": picture(20 + i, 24) for i in range(6)}
    path = folder(tmp_path / "large", **images)
    data = ImageFolder(path=path, size=8, crop="center", flip=True)
    small = {f"{i}_png": Image.fromarray(one) for i, one in enumerate(bytes_of(data))}
    ready = ImageFolder(path=folder(tmp_path / "small", **small), flip=True)
    for step in range(3):
        draws = [Draws(seed=1, step=step, batch_size=4) for _ in range(2)]
        a, b = (d.batch(n)["y"] for d, n in zip((data, ready), draws, strict=True))
        assert torch.equal(a, b)


def test_held_out_images_are_made_alike_too(tmp_path):
    train = folder(tmp_path / "train", a_x_png=picture(20, 24), b_y_png=picture(22, 21))
    test = folder(tmp_path / "test", a_x_png=picture(30, 24, "L"), b_y_png=picture(12, 91))
    keys = {"size": 8, "crop": "center", "channels": 3}
    data = ImageFolder(path=train, held_out=test, **keys)
    assert data.real("held_out")[0].shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="no such file"):
        ImageZip(path=str(tmp_path / "gone.zip"), **keys)
