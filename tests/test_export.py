"""What `export` writes, read by other people's readers and by our own verbs."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from safetensors import safe_open
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from lightning_cfg.__main__ import main
from lightning_cfg.runs.checkpoints import load, restore
from lightning_cfg.runs.names import LAST, SAMPLES
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.export import export
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate

HEUN = {"name": "heun", "steps": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory, training, mixture) -> SimpleNamespace:
    """A trained network of points, one of images, and 12 samples of each."""
    root = tmp_path_factory.mktemp("made")
    net = {"name": "UnshuffleUNet", "channels": 4, "channel_mult": [1]}
    images = {"data": {"name": "helpers.toys.Halves"}, "net": net, "trainer": {"max_steps": 2}}
    points, pictures = (
        fit(**training(**sections), run_dir=str(root / name))
        for name, sections in {"points": {}, "pictures": images}.items()
    )
    common = {"guidance": {"name": "classifier_free", "scale": 2.0}, "sampler": HEUN, "n": 12}
    made = {"models": {"model": str(pictures)}, **common}
    samples = generate(**made, run_dir=str(root / "samples"))
    return SimpleNamespace(points=points, pictures=pictures, samples=samples, common=common)


def as_bytes(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """A run's samples as EDM rounds them, (N, H, W, C), and their classes, without our code."""
    held = load_tensors(run / SAMPLES, "x", "c")
    y = (held["x"].numpy() * np.float32(127.5) + np.float32(128)).clip(0, 255).astype(np.uint8)
    return y.transpose(0, 2, 3, 1), held["c"].numpy()


def refused(*words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, words)])
    return str(stop.value.code)


# samples


def test_an_npz_holds_the_bytes_of_the_samples(made, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(made.samples), str(tmp_path / "mine.npz")])
    assert capsys.readouterr().out == f"lightning_cfg: {tmp_path / 'mine.npz'}\n"
    y, c = as_bytes(made.samples)
    with np.load(tmp_path / "mine.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], y)
        assert np.array_equal(arrays["arr_1"], c)
    with zipfile.ZipFile(tmp_path / "mine.npz") as file:
        assert file.testzip() is None


def test_samples_without_classes_have_one_array(tmp_path):
    x = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
    zeros = torch.zeros(2, dtype=torch.long)
    file = save_tensors(tmp_path / "x.safetensors", x=x, c=zeros, seed=torch.arange(2))
    with np.load(export(source=str(file), to=str(tmp_path / "x.npz"))) as arrays:
        assert arrays.files == ["arr_0"]
        assert arrays["arr_0"].shape == (2, 4, 4, 3)
    folder = export(source=str(file), to=str(tmp_path / "pngs"))
    assert json.loads((folder / "dataset.json").read_text()) == {"labels": None}


class Blocks(FeatureExtractorBase):
    """A stand-in for Inception, whose weights are not here: the means of four blocks."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.feature_extractor_internal_dtype = torch.float64

    def forward(self, x):
        assert x.dtype == torch.uint8
        means = torch.nn.functional.avg_pool2d(x.double().mean(1, keepdim=True), 4)
        return (means.flatten(1),)

    @staticmethod
    def get_provided_features_list():
        return ("4",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "4"

    @staticmethod
    def can_be_compiled():
        return False


def test_torch_fidelity_reads_the_folder_as_the_samples_are(made, tmp_path, monkeypatch):
    """Its Fréchet distance of two folders, against the one of our bytes in numpy."""
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "blocks", Blocks)
    folder = export(source=str(made.samples), to=str(tmp_path / "pngs"))
    y, _ = as_bytes(made.samples)
    other = tmp_path / "other"
    other.mkdir()
    for i, image in enumerate(255 - y):
        Image.fromarray(image.squeeze(2)).convert("RGB").save(other / f"{i}.png")
    for i, image in enumerate(y):
        assert np.array_equal(np.asarray(Image.open(folder / f"{i:06d}.png")), image.squeeze(2))
    found = torch_fidelity.calculate_metrics(
        input1=str(folder), input2=str(other), fid=True, feature_extractor="blocks", cuda=False,
        batch_size=4, verbose=False, cache=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip

    def features(y: np.ndarray) -> np.ndarray:
        return y.astype(float).reshape(len(y), 2, 4, 2, 4).mean((2, 4)).reshape(len(y), 4)

    a, b = features(y.squeeze(3)), features(255 - y.squeeze(3))
    S, T = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(S @ T).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S + T) - 2 * root
    assert found == pytest.approx(expected, rel=1e-6)


def test_our_own_evaluate_gives_the_folder_the_numbers_of_the_run(made, tmp_path):
    folder = export(source=str(made.samples), to=str(tmp_path / "pngs"))
    run = evaluate(
        samples={"run": str(made.samples), "folder": str(folder)},
        data={"name": "helpers.toys.Halves"}, real=20, bank=20, features={"name": "pixels"},
        metrics=[{"name": "frechet_features", "allow_few": True}], by_class=True,
        run_dir=str(tmp_path / "scores"),
    )  # fmt: skip
    rows = json.loads((run / "metrics/metrics.json").read_text())
    numbers = {(row["samples"], row["class"]): row["fd_pixels"] for row in rows}
    for c in {c for _, c in numbers}:
        if ("run", c) in numbers:
            assert numbers["run", c] == numbers["folder", c] > 0


# networks


def test_a_network_is_read_back_to_the_last_bit(made, tmp_path):
    file = export(source=str(made.points), to=str(tmp_path / "mine.safetensors"))
    theirs, ours = load(file), load(made.points)
    assert theirs["ema"].keys() == ours["ema"].keys() == {100, 1000}
    for weights in ("raw", "ema", 1000):
        a, b = restore(file, weights=weights), restore(made.points, weights=weights)
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
        assert a.step == b.step == 20
    runs = [
        generate(models={"model": str(of)}, **made.common, run_dir=str(tmp_path / name))
        for name, of in (("from_run", made.points), ("from_file", file))
    ]
    x, y = (load_tensors(run / SAMPLES, "x")["x"] for run in runs)
    assert torch.equal(x, y)


def test_others_can_read_the_network(made, tmp_path):
    file = export(source=str(made.points / LAST), to=str(tmp_path / "mine.safetensors"))
    with safe_open(file, "pt") as held:
        told = json.loads(held.metadata()["lightning_cfg"])
        names = {name.partition(".")[0] for name in held.keys()}
        assert names == {"raw", "ema"}
    assert told["config"]["net"]["name"] == "MLP"
    assert told["config"]["model"] == {**told["config"]["model"], "label_dropout": 0.2}
    assert (told["shape"], told["num_classes"], told["averages"]) == ([2], 2, [100, 1000])


def test_averages_by_a_power_of_time_and_conditions_are_kept(made, tmp_path):
    checkpoint = load(made.points)
    condition = {"values": 2, "classes": 1, "edges": torch.tensor([0.5])}
    condition |= {"targets": torch.randn(3, 2), "targets_c": torch.zeros(3, dtype=torch.long)}
    checkpoint["ema"] = {0.05: checkpoint["ema"][100], **checkpoint["ema"]}
    checkpoint["conditioned"] = condition
    torch.save(checkpoint, tmp_path / "mine.ckpt")
    file = export(source=str(tmp_path / "mine.ckpt"), to=str(tmp_path / "mine.safetensors"))
    found = load(file)
    assert list(found["ema"]) == [0.05, 100, 1000]
    held = found["conditioned"]
    assert held.keys() == condition.keys()
    assert all(torch.equal(held[k], v) for k, v in condition.items() if isinstance(v, torch.Tensor))


def test_adopt_says_that_it_can_be_named_as_it_is(made, tmp_path, capsys):
    file = export(source=str(made.points), to=str(tmp_path / "mine.safetensors"))
    with pytest.raises(SystemExit, match="2"):
        main(["adopt", str(file), f"run_dir={tmp_path / 'run'}"])
    assert "it is a checkpoint of ours already: name it in `models`" in capsys.readouterr().err


# mistakes


def test_mistakes_are_one_line(made, tmp_path, capsys):
    (tmp_path / "there.npz").touch()
    (tmp_path / "empty").mkdir()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    latents = save_tensors(
        tmp_path / "latents.safetensors", x=torch.zeros(2, 4, 2, 2),
        c=torch.zeros(2, dtype=torch.long), seed=torch.arange(2),
    )  # fmt: skip
    for words, told in {
        (made.samples,): "needs two places, FROM and TO",
        (tmp_path / "none", "x.npz"): "none: no such run or file",
        (tmp_path / "empty", "x.npz"): "holds neither samples/samples.safetensors nor checkpoints",
        (made.samples, tmp_path / "there.npz"): "there.npz is there already: force=true",
        (made.samples, tmp_path / "x.png"): "samples become a folder, or a file that ends in .npz",
        (made.points, tmp_path / "x.npz"): "a network becomes a file that ends in .safetensors",
        (made.samples, made.samples): "is there already: force=true writes over it",
        (made.samples, made.samples, "force=true"): "which `export` has not written: another",
        (made.samples, photos, "force=true"): "photos holds cat.jpg, which `export` has not",
        (latents, tmp_path / "x.npz"): "shape (4, 2, 2), which are no grey or RGB images",
        (made.samples, tmp_path / "x.npz", "decoed=1"): "unknown key 'decoed'; did you mean",
    }.items():
        assert refused(*words) == "2", words
        err = capsys.readouterr().err
        assert told in err, err
        assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("x.*"))
    assert (photos / "cat.jpg").exists()


def test_what_it_wrote_it_writes_over_if_asked(made, tmp_path):
    folder = export(source=str(made.samples), to=str(tmp_path / "pngs"))
    (folder / "000003.png").write_bytes(b"")
    export(source=str(made.samples), to=str(folder), force=True)
    assert (folder / "000003.png").stat().st_size > 0


def test_files_that_are_none_are_one_line(made, tmp_path, capsys):
    file = export(source=str(made.points), to=str(tmp_path / "mine.safetensors"))
    whole = file.read_bytes()
    for content, told in {
        whole[: len(whole) // 2]: "truncated or not what `export` writes",
        whole.replace(b'\\"averages\\"', b'\\"everages\\"', 1): "not what `export` writes",
        whole.replace(b'\\"shape\\"', b'\\"shope\\"', 1): "has no shape",
    }.items():
        file.write_bytes(content)
        with pytest.raises(Exception, match=r"mine\.safetensors") as error:
            restore(file)
        assert told in str(error.value)
    samples = made.samples / SAMPLES
    with pytest.raises(Exception, match="is a safetensors file, but no run that `export`"):
        restore(samples)
