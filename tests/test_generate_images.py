"""Images from end to end: drawn, written as others read them, paired, refined and evaluated."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import manifest
from PIL import Image
from torch import Tensor

from lightning_cfg.config import load
from lightning_cfg.data import ImageFolder, ImageZip
from lightning_cfg.errors import UserError
from lightning_cfg.reports.contact_sheet import contact_sheet
from lightning_cfg.reports.panels import save
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.names import PAIRS, SAMPLES, SHEET, TRAJECTORIES
from lightning_cfg.runs.pngs import IMAGES, save_images
from lightning_cfg.runs.run import content_of
from lightning_cfg.runs.tensors import load_samples, load_tensors, save_tensors
from lightning_cfg.training.learners import Classification
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine

HEUN = {"name": "heun", "steps": 4}
NET = {"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1]}
KINDS = pytest.mark.parametrize("kind", ["zip", "folder"])
READERS = {"zip": ImageZip, "folder": ImageFolder}


def load_all(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / SAMPLES, "x", "c", "seed")


def stored(path: Path, *, n: int = 24, channels: int = 3, classes: int = 2, first: int = 0) -> str:
    """Random images of 8 x 8, bright in the left half (class 0) or the right (class 1)."""
    x = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(first)) - 0.5
    c = torch.arange(n) % max(1, classes)
    bright = torch.arange(8) // 4 == c[:, None]
    x += 0.5 * bright[:, None, None, :]
    return str(save_images(path, x=x, c=c, seed=torch.arange(n) + first, labelled=classes > 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory, training) -> SimpleNamespace:
    """Data with and without classes, and models of both kinds."""
    root = tmp_path_factory.mktemp("images")
    data = {"name": "ImageZip", "path": stored(root / "bank.zip")}
    data["held_out"] = stored(root / "held_out.zip", first=1000)
    bare = {"name": "ImageZip", "path": stored(root / "bare.zip", classes=0)}
    bare["held_out"] = stored(root / "bare_held_out.zip", classes=0, first=1000)

    def trained(name: str, **sections: object) -> str:
        given = {"data": data, "net": NET, "batch_size": 16, "trainer": {"max_steps": 12}}
        return str(fit(**training(**{**given, **sections}), run_dir=str(root / name)))

    flow = {"model": {"name": "Flow"}}
    grey = {"name": "ImageZip", "path": stored(root / "grey.zip", channels=1)}
    return SimpleNamespace(
        root=root,
        data=data,
        bare_data=bare,
        edm=trained("edm"),
        flow=trained("flow", **flow),
        grey=trained("grey", data=grey),
        bare=trained("bare", data=bare),
        bare_flow=trained("bare_flow", data=bare, **flow),
    )


def drawn(model: str, run: Path, **changed: object) -> Path:
    settings = {"guidance": {"name": "unguided"}, "sampler": HEUN, "n": 6, **changed}
    return generate(models={"model": model}, run_dir=str(run), **settings)


def as_edm_does(x: Tensor) -> np.ndarray:
    """(N, H, W, C) bytes, by the formula that the published FID numbers go with."""
    return (x.numpy() * 127.5 + 128).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.fixture
def samples(made, tmp_path) -> str:
    return str(drawn(made.edm, tmp_path / "samples", n=8))


# Images for other people's tools


def contents(place: Path) -> dict[str, bytes]:
    if place.is_dir():
        files = (p for p in place.rglob("*") if p.is_file())
        return {p.relative_to(place).as_posix(): p.read_bytes() for p in files}
    with zipfile.ZipFile(place) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


@KINDS
@pytest.mark.parametrize("model", ["edm", "grey"])
def test_images_lie_where_others_look_for_them(made, tmp_path, kind, model):
    run = drawn(getattr(made, model), tmp_path / "run", seed=998, images=kind)
    held, files = load_all(run), contents(run / IMAGES[kind])
    names = [
        "000000/000998.png", "000000/000999.png", "001000/001000.png", "001000/001001.png",
        "001000/001002.png", "001000/001003.png",
    ]  # fmt: skip
    labels = json.loads(files.pop("dataset.json"))
    assert labels == {"labels": [[n, k] for n, k in zip(names, held["c"].tolist(), strict=True)]}
    assert sorted(files) == names
    read = np.stack([np.asarray(Image.open(io.BytesIO(files[name]))) for name in names])
    expected = as_edm_does(held["x"])
    assert (read == (expected[..., 0] if model == "grey" else expected)).all()
    assert len(np.unique(read)) > 30


@KINDS
def test_our_own_data_sets_read_them_back(tmp_path, kind):
    """Bytes to samples to bytes: all 256 values, and classes, survive."""
    y = torch.arange(256).reshape(4, 1, 8, 8)
    c = torch.tensor([1, 0, 0, 1])
    place = tmp_path / Path(IMAGES[kind]).name
    save_images(place, x=y / 127.5 - 1, c=c, seed=torch.arange(4), labelled=True)
    data = READERS[kind](path=str(place))
    x, k = data.real("bank")
    assert (data.shape, data.num_classes) == ((1, 8, 8), 2)
    assert k.tolist() == [0, 0, 1, 1]
    assert torch.equal(((x + 1) * 127.5).round().long(), y[[1, 2, 0, 3]])


def test_what_is_out_of_range_is_clipped(tmp_path):
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0, -0.004, 0.0, 0.003, 0.5]).reshape(1, 1, 2, 4)
    save_images(tmp_path / "a.zip", x=x, c=torch.zeros(1), seed=torch.zeros(1).long(), labelled=0)
    (pixels,) = (v for k, v in contents(tmp_path / "a.zip").items() if k.endswith(".png"))
    read = np.asarray(Image.open(io.BytesIO(pixels)))
    assert read.tolist() == [[0, 0, 255, 255], [127, 128, 128, 191]]


@KINDS
def test_images_are_an_output_of_the_run(made, tmp_path, kind, capsys):
    run = drawn(made.edm, tmp_path / "run", images=kind)
    told = manifest(run)
    expected = {SAMPLES, IMAGES[kind], *SHEET}
    assert told["outputs"] == {name: sha256(run / name) for name in expected}
    capsys.readouterr()
    drawn(made.edm, run, images=kind)
    assert "finished already" in capsys.readouterr().out
    if kind == "folder":
        next((run / IMAGES[kind]).rglob("*.png")).unlink()
    else:
        (run / IMAGES[kind]).write_bytes((run / IMAGES[kind]).read_bytes()[:-1])
    drawn(made.edm, run, images=kind)
    assert "finished already" not in capsys.readouterr().out
    assert manifest(run)["outputs"] == told["outputs"]
    again = drawn(made.edm, tmp_path / "again", images=kind)
    assert manifest(again)["outputs"][IMAGES[kind]] == told["outputs"][IMAGES[kind]]


@KINDS
@pytest.mark.parametrize("model", ["edm", "bare"])
def test_a_finished_run_makes_images_of_its_samples(made, tmp_path, kind, model, monkeypatch):
    at_once = drawn(getattr(made, model), tmp_path / "at_once", images=kind)
    run = drawn(getattr(made, model), tmp_path / "run")
    before = manifest(run)
    assert not (run / IMAGES[kind]).exists()
    monkeypatch.setattr(checkpoints, "restore", lambda *a, **k: pytest.fail("sampled again"))
    drawn(getattr(made, model), run, images=kind)
    after = manifest(run)
    new = after["outputs"].pop(IMAGES[kind])
    assert new == manifest(at_once)["outputs"][IMAGES[kind]]
    assert after["free"].pop("images") == kind
    before["free"].pop("images")
    assert after == before


def test_without_being_asked_no_images_are_written(made, tmp_path):
    run = drawn(made.edm, tmp_path / "run")
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["samples.safetensors"]


@KINDS
def test_images_of_points_are_refused(call, training, tmp_path, kind):
    fit(**training(trainer={"max_steps": 1}), run_dir=str(tmp_path / "points"))
    config = {"models": {"model": "points"}, "guidance": "unguided", "sampler": HEUN, "n": 2}
    outcome = call(generate, config, f"images={kind}", "run_dir=run")
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"images={kind} needs samples that are grey or RGB images" in outcome.err
    assert "(2,)" in outcome.err
    assert not Path("run").exists()
    assert call(generate, config, "run_dir=run").status == 0
    assert not Path("run/figures").exists()
    late = call(generate, config, f"images={kind}", "run_dir=run")
    assert (late.status, "grey or RGB" in late.err) == (2, True)


def test_images_of_two_channels_are_refused(made, training, tmp_path):
    """There is no such PNG; the samples themselves are no problem."""
    two = {"path": str(tmp_path / "pairs.safetensors"), "name": "Pairs"}
    x, none = torch.rand(4, 2, 8, 8), torch.zeros(4, 1).long()
    pairs = {"x": x, "targets": -x, "neighbours": none, "c": torch.zeros(4).long()}
    save_tensors(two["path"], **pairs, num_classes=torch.tensor(0))
    sections = {"model": {"name": "Flow"}, "learner": {"name": "Refinement"}, "net": NET}
    config = training(data=two, trainer={"max_steps": 1}, **sections)
    flow = fit(**config, run_dir=str(tmp_path / "flow"))
    checkpoint = torch.load(flow / checkpoints.LAST, weights_only=True)
    checkpoint["config"]["learner"]["name"] = "Diffusion"  # as if it had started from noise
    torch.save(checkpoint, flow / checkpoints.LAST)
    (flow / "manifest.json").unlink()  # whose hash says that it was changed
    with pytest.raises(UserError, match=r"images=zip needs .* not \(2, 8, 8\)"):
        drawn(str(flow), tmp_path / "run", images="zip")
    run = drawn(str(flow), tmp_path / "run")
    assert load_all(run)["x"].shape == (6, 2, 8, 8)
    assert not (run / "figures").exists()


@KINDS
def test_a_full_disk_leaves_nothing_half(made, tmp_path, kind, monkeypatch, call):
    """The third image does not fit: what was whole stays, and nothing claims to be finished."""
    save, count = Image.Image.save, 0

    def filling(image: Image.Image, *args: object, **kwargs: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        save(image, *args, **kwargs)

    run = drawn(made.edm, tmp_path / "finished", images=kind)
    before, told = contents(run), manifest(run)
    monkeypatch.setattr(Image.Image, "save", filling)
    config = {"models": {"model": made.edm}, "guidance": "unguided", "sampler": HEUN, "n": 6}
    outcome = call(generate, config, f"images={kind}", "run_dir=run")
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"{IMAGES[kind]} could not be written" in outcome.err
    assert "No space left" in outcome.err
    left = {p.relative_to("run").as_posix() for p in Path("run").rglob("*") if p.is_file()}
    assert left == {"config.yaml", "identity.json", SAMPLES}
    assert list(Path("run/samples").iterdir()) == [Path("run", SAMPLES)]
    held, count = load_all(run), 0
    with pytest.raises(UserError, match="could not be written"):  # over what is there already
        save_images(run / IMAGES[kind], **held, labelled=True)
    assert (contents(run), manifest(run)) == (before, told)
    monkeypatch.undo()
    again = generate(**load(generate, tmp_path / "config.yaml", [f"run_dir={tmp_path / 'run'}",
                                                                 f"images={kind}"]))  # fmt: skip
    assert manifest(again)["outputs"] == told["outputs"]


def test_a_zip_that_a_full_disk_cuts_off_is_removed(tmp_path):
    """As the system says it: the file may grow to 20 kB only."""
    resource = pytest.importorskip("resource")
    tensors = {"x": torch.rand(200, 1, 8, 8), "c": torch.zeros(200).long()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"images\.zip could not be written"):
            save_images(tmp_path / "images.zip", **tensors, seed=torch.arange(200), labelled=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# The contact sheet


def seen(figure: object) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_contact_sheet_of_generated_images_has_a_row_per_class(made, tmp_path, monkeypatch):
    drawings = []
    monkeypatch.setattr(
        sys.modules["lightning_cfg.verbs.generate"],
        "save",
        lambda f, *a, **k: (drawings.append(f), save(f, *a, **k)),
    )
    run = drawn(made.edm, tmp_path / "run", n=12)
    held, sheet = load_all(run), seen(drawings[0])
    assert sheet.shape == (2 * 9, 10 * 9, 3)
    for k in (0, 1):
        own = held["x"][held["c"] == k]
        for j, image in enumerate(own[:10]):
            tile = sheet[9 * k : 9 * k + 8, 9 * j : 9 * j + 8]
            assert np.allclose(tile, (image.clamp(-1, 1).permute(1, 2, 0) + 1) / 2, atol=1e-6)
        assert (sheet[9 * k : 9 * k + 8, 9 * len(own) :] == 1).all()
    with Image.open(run / SHEET[0]) as image:
        assert image.format == "PNG"
    assert all(name in manifest(run)["outputs"] for name in SHEET)
    drawn(made.edm, tmp_path / "one", n=12, class_label=1)  # one class fills every row
    first = load_all(tmp_path / "one")["x"].clamp(-1, 1)
    assert seen(drawings[1]).shape == (2 * 9, 10 * 9, 3)
    place = seen(drawings[1])[9:17, 9:17]
    assert np.allclose(place, (first[11].permute(1, 2, 0) + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("n, rows", [(3, 1), (7, 3), (50, 10)])
def test_contact_sheet_without_classes_is_filled_in_order(n, rows):
    x = torch.linspace(-1, 1, n)[:, None, None, None].expand(n, 1, 4, 4)
    figure = contact_sheet({"a": (x, torch.zeros(n).long())}, 0, columns=3)
    sheet = seen(figure)
    assert sheet.shape == (rows * 5, 15)
    corners = sheet[::5, ::5].flatten()[: min(n, 30)]
    assert np.allclose(corners, ((x[:30, 0, 0, 0] + 1) / 2), atol=1e-6)
    assert not figure.texts  # no row is called a class


# A flow from noise as the base model


def along(model: torch.nn.Module, noise: Tensor, c: Tensor, steps: int) -> Tensor:
    """The flow's own equation dx/dt = v from noise at t = 0 to 1, by Runge & Kutta's rule."""
    x, h = noise.double(), 1 / steps
    for i in range(steps):
        t = torch.full((len(x),), i * h, dtype=torch.float64)
        k1 = model.velocity(x, t, c)
        k2 = model.velocity(x + h / 2 * k1, t + h / 2, c)
        k3 = model.velocity(x + h / 2 * k2, t + h / 2, c)
        k4 = model.velocity(x + h * k3, t + h, c)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("model", ["flow", "bare_flow"])
@pytest.mark.parametrize(
    "sampler, levels", [({"name": "dopri5"}, 3), ({"name": "heun", "steps": 80}, 81)]
)
def test_a_flow_from_noise_is_sampled_along_its_velocity(made, tmp_path, model, sampler, levels):
    """To the ends that the limits leave out, t < 1/501 and t > 1/1.002."""
    path = getattr(made, model)
    run = drawn(path, tmp_path / "run", sampler=sampler, trajectories=2)
    held = load_all(run)
    noise = torch.stack(
        [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(6)]
    )
    restored = checkpoints.restore(path).double()
    expected = along(restored, noise, held["c"], 100)
    torch.testing.assert_close(held["x"].double(), expected, rtol=0, atol=0.015)
    assert (expected - noise).abs().mean() > 0.2
    kept = load_tensors(run / TRAJECTORIES, "path", "sigma")
    assert kept["path"].shape == (2, levels, 3, 8, 8)
    assert torch.equal(kept["path"][:, -1], held["x"][:2])
    sigma = kept["sigma"]
    assert (sigma[0].item(), sigma[-2].item(), sigma[-1].item()) == pytest.approx((500, 0.002, 0))
    start = (sigma[0] * noise[:2]).float()
    torch.testing.assert_close(kept["path"][:, 0], start)


def test_guided_flows_agree_between_samplers(made, tmp_path):
    guidance = {"name": "autoguidance", "scale": 1.5}
    models = {"model": made.flow, "weak": made.edm}
    one, two = (
        generate(models=models, guidance=guidance, sampler=s, n=4, run_dir=str(tmp_path / name))
        for name, s in (
            ("dopri5", {"name": "dopri5", "sigma_max": 80.0}),
            ("heun", {"name": "heun", "steps": 80, "sigma_max": 80.0}),
        )
    )
    torch.testing.assert_close(load_all(one)["x"], load_all(two)["x"], rtol=0, atol=0.02)


def test_limits_of_a_flow(made, tmp_path):
    with pytest.raises(UserError, match=r"sampler.sigma_max=600.* 0.002 ... 500"):
        drawn(made.flow, tmp_path / "run", sampler={"name": "dopri5", "sigma_max": 600.0})


# Data without classes


@pytest.fixture(scope="module")
def bare_chain(made, training, tmp_path_factory) -> SimpleNamespace:
    """Every verb once on data without labels."""
    root = tmp_path_factory.mktemp("bare")
    samples = drawn(made.bare, root / "samples", n=20)
    pairs = pair(sources=[str(samples)], data=made.bare_data, k=3, run_dir=str(root / "pairs"))
    on_pairs = {"data": {"name": "Pairs", "path": str(pairs)}, "net": NET, "batch_size": 16}
    learned = {"model": {"name": "Flow"}, "learner": {"name": "Refinement"}}
    flow = fit(**training(**on_pairs, **learned), run_dir=str(root / "flow"))
    refined = refine(flow=str(flow), samples=str(samples), run_dir=str(root / "refined"))
    tables = [
        evaluate(
            samples={"before": str(samples), "after": str(refined)},
            data=made.bare_data,
            fresh=8,
            by_class=by_class,
            run_dir=str(root / f"table_{by_class}"),
        )
        for by_class in (True, False)
    ]
    return SimpleNamespace(root=root, samples=samples, pairs=pairs, refined=refined, tables=tables)


def test_without_classes_every_class_is_0(bare_chain):
    for run in (bare_chain.samples, bare_chain.refined):
        assert load_all(run)["c"].tolist() == [0] * 20
    held = load_tensors(bare_chain.pairs / PAIRS, "c", "num_classes")
    assert (held["c"].tolist(), int(held["num_classes"])) == ([0] * 20, 0)
    assert manifest(bare_chain.samples)["num_classes"] == 0


def test_without_classes_the_noise_is_that_of_the_seed(made, tmp_path):
    """The label is drawn where there are no classes too: later noise is as with one class."""
    ddpm = {"name": "ddpm", "steps": 10}
    one = drawn(made.bare, tmp_path / "one", sampler=ddpm, batch_size=6)
    few = drawn(made.bare, tmp_path / "few", sampler=ddpm, batch_size=4)
    torch.testing.assert_close(load_all(one)["x"], load_all(few)["x"], rtol=0, atol=1e-4)
    zero = drawn(made.bare, tmp_path / "zero", sampler=ddpm, class_label=0)
    assert torch.equal(load_all(zero)["x"], load_all(one)["x"])
    with pytest.raises(UserError, match=r"class_label=1 is outside 0 \.\.\. 0"):
        drawn(made.bare, tmp_path / "none", class_label=1)


def test_without_classes_pairs_are_the_nearest_of_all(made, bare_chain):
    held = load_tensors(bare_chain.pairs / PAIRS, "x", "neighbours", "targets", "distance")
    y, _ = ImageZip(path=made.bare_data["path"]).real("bank")
    distance = torch.cdist(held["x"].flatten(1).double(), y.flatten(1).double())
    nearest, index = distance.topk(3, largest=False)
    torch.testing.assert_close(held["distance"].double(), nearest, rtol=1e-5, atol=1e-6)
    assert torch.equal(held["targets"][held["neighbours"]], y[index])


def test_without_classes_the_table_has_a_row_per_set(bare_chain):
    rows = [json.loads((t / "metrics/metrics.json").read_text()) for t in bare_chain.tables]
    for table, name in zip(rows, (0, "all"), strict=True):
        keys = [(row["samples"], row["class"], row["n"]) for row in table]
        assert keys == [("before", name, 20), ("after", name, 20), ("real", name, 8)]
    for one, other in zip(*rows, strict=True):
        assert one | {"class": "all"} == other
    before, _, real = rows[0]
    assert real["nearest_real"] < before["nearest_real"]


@KINDS
def test_without_classes_images_have_no_labels(made, tmp_path, kind):
    run = drawn(made.bare, tmp_path / "run", images=kind)
    assert json.loads(contents(run / IMAGES[kind])["dataset.json"]) == {"labels": None}
    data = READERS[kind](path=str(run / IMAGES[kind]))
    assert data.num_classes == 0
    assert torch.equal(data.real("bank")[1], torch.zeros(6).long())


@pytest.fixture
def unchecked(monkeypatch):
    """Lets a classifier be trained without classes, as somebody else's training may have."""
    monkeypatch.setattr(Classification, "check", lambda self, data: None)


@pytest.mark.parametrize(
    "guidance, others",
    [
        ({"name": "classifier_free", "scale": 2.0}, {}),
        ({"name": "classifier_free", "scale": 0.0}, {}),
        ({"name": "classifier_gradient", "scale": 2.0}, {"classifier": "bare_judge"}),
        ({"name": "classifier_gradient", "base": "conditional"}, {"classifier": "bare_judge"}),
    ],
)
def test_guidance_by_classes_is_refused_without_them(
    made, call, training, guidance, others, unchecked
):
    if others:
        made_up = {"net": {"name": "MLP", "outputs": 2}, "model": {"name": "NoisyClassifier"}}
        section = {"learner": {"name": "Classification"}, "data": made.bare_data, **made_up}
        fit(**training(trainer={"max_steps": 1}, **section), run_dir="bare_judge")
    config = {"models": {"model": made.bare, **others}, "guidance": guidance, "sampler": HEUN}
    outcome = call(generate, config | {"n": 2}, "run_dir=run")
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert guidance["name"] in outcome.err
    assert "needs a model that knows classes" in outcome.err
    assert not Path("run").exists()


def test_guidance_that_needs_no_classes_works_without_them(made, tmp_path):
    plain = load_all(drawn(made.bare, tmp_path / "plain"))["x"]
    one = {"name": "classifier_free", "scale": 1.0}
    assert torch.equal(load_all(drawn(made.bare, tmp_path / "one", guidance=one))["x"], plain)
    weak = {"model": made.bare, "weak": made.bare_flow}
    auto = {"name": "autoguidance", "scale": 2.0}
    run = generate(
        models=weak, guidance=auto, sampler=HEUN, n=6, run_dir=str(tmp_path / "autoguidance")
    )
    assert (load_all(run)["x"] - plain).abs().max() > 1e-3


def test_samples_with_classes_are_refused_where_there_are_none(made, tmp_path):
    tensors = {"x": torch.zeros(2, 3, 8, 8), "seed": torch.arange(2)}
    place = save_tensors(tmp_path / "a.safetensors", **tensors, c=torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"classes 0 ... 1, only 0 ... 0 are known"):
        load_samples(place, (3, 8, 8), 0)
    sources = [str(place)]
    with pytest.raises(UserError, match=r"a.safetensors holds classes"):
        pair(sources=sources, data=made.bare_data, k=1, run_dir=str(tmp_path / "pairs"))


# Bad input


@pytest.fixture
def refused(call, tmp_path):
    """Call a verb that has to refuse, and return its one line; it writes nothing."""

    def run(verb, config: dict) -> str:
        outcome = call(verb, config, "run_dir=run")
        assert outcome.status == 2, outcome
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert not Path("run").exists()
        return outcome.err

    return run


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["config"].update(net={"name": "ADMUNet", "channels": 32}),
        lambda state: state["config"]["net"].update(channels=16),
        lambda state: state["config"]["net"].update(channel_mult=[1, 2]),
        lambda state: state.update(num_classes=5),
        lambda state: state.update(shape=[1, 8, 8]),
        lambda state: state["state_dict"].popitem(),
    ],
)
def test_a_checkpoint_from_another_network(made, refused, tmp_path, change):
    state = torch.load(Path(made.edm, checkpoints.LAST), weights_only=True)
    change(state)
    state["ema"] = {k: {} for k in state["ema"]}  # so that they hide nothing
    torch.save(state, tmp_path / "other.ckpt")
    models = {"model": str(tmp_path / "other.ckpt")}
    line = refused(generate, {"models": models, "guidance": "unguided", "sampler": HEUN, "n": 2})
    assert "other.ckpt does not fit the network of its config" in line
    assert len(line) < 400


def test_networks_of_other_images(made, refused):
    models = {"model": made.edm, "weak": made.grey}
    line = refused(
        generate, {"models": models, "guidance": "autoguidance", "sampler": HEUN, "n": 2}
    )
    assert "models.weak has shape (1, 8, 8), but models.model has (3, 8, 8)" in line
    models = {"model": made.bare, "weak": made.edm}  # the other way round it is CFG
    line = refused(
        generate, {"models": models, "guidance": "autoguidance", "sampler": HEUN, "n": 2}
    )
    assert "models.weak has num_classes 2, but models.model has 0" in line


@pytest.fixture(scope="module")
def readers(made, training, bare_chain) -> dict:
    flow = {"flow": str(bare_chain.root / "flow")}
    return {
        "pair": lambda file, data: (pair, {"sources": [file], "data": data, "k": 1}),
        "refine": lambda file, data: (refine, {"samples": file, **flow}),
        "evaluate": lambda file, data: (evaluate, {"samples": {"a": file}, "data": data}),
    }


@pytest.mark.parametrize("reader", ["pair", "refine", "evaluate"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8, 3), (3, 8, 16), (192,)])
def test_sample_files_of_another_shape(made, refused, readers, tmp_path, reader, shape):
    tensors = {"c": torch.zeros(4).long(), "seed": torch.arange(4)}
    file = save_tensors(tmp_path / "other.safetensors", x=torch.zeros(4, *shape), **tensors)
    line = refused(*readers[reader](str(file), made.data))
    assert f"other.safetensors holds samples of shape {shape}, not (3, 8, 8)" in line


@pytest.mark.parametrize("reader", ["pair", "evaluate"])
def test_data_that_cannot_be_read(made, refused, readers, samples, tmp_path, reader):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(Path(made.data["path"]).read_bytes()[:-300])
    for name, word in ((str(cut), "cut.zip is truncated"), ("absent.zip", "no such file")):
        for key in ("path", "held_out"):
            if (reader, key) != ("pair", "held_out") or name == "absent.zip":
                assert word in refused(*readers[reader](samples, made.data | {key: name}))


def test_evaluate_without_held_out_images(made, refused, samples):
    data = {"name": "ImageZip", "path": made.data["path"]}
    assert "held_out" in refused(evaluate, {"samples": {"a": samples}, "data": data})


def test_a_judge_of_other_images(made, refused, training, samples, tmp_path, unchecked):
    sections = {"model": {"name": "NoisyClassifier", "clean": True}, "net": {"name": "Linear"}}
    sections |= {"learner": {"name": "Classification"}, "trainer": {"max_steps": 1}}
    fit(**training(**sections), run_dir=str(tmp_path / "points"))
    sections["net"] = {"name": "MLP", "outputs": 2}
    fit(**training(**sections, data=made.bare_data), run_dir=str(tmp_path / "bare"))
    config = {"samples": {"a": samples}, "data": made.data, "classifier": "points"}
    assert "classifier points has shape (2,), but the data have (3, 8, 8)" in refused(
        evaluate, config
    )
    config["classifier"] = "bare"
    assert "classifier bare has num_classes 0, but the data have 2" in refused(evaluate, config)
    bare = drawn(made.bare, tmp_path / "bare_samples")
    config |= {"data": made.bare_data, "samples": {"a": str(bare)}}
    assert "the data have no classes" in refused(evaluate, config)


# Whose run it is: data count by content


def moved(data: dict, folder: Path) -> dict:
    """The same files in another place."""
    folder.mkdir()
    places = {k: shutil.copy(data[k], folder / f"{k}.zip") for k in ("path", "held_out")}
    return {**data, **{k: str(v) for k, v in places.items()}, "memory": 0.0}


def paired(samples: str, data: dict, tmp_path: Path) -> None:
    pair(sources=[samples], data=data, k=2, run_dir=str(tmp_path / "run"))


def scored(samples: str, data: dict, tmp_path: Path) -> None:
    evaluate(samples={"a": samples}, data=data, metrics=METRICS, run_dir=str(tmp_path / "run"))


METRICS = ["nearest_real", "effective_targets"]
VERBS = pytest.mark.parametrize("verb", [paired, scored])


@VERBS
def test_data_in_another_place_are_the_same(made, samples, tmp_path, verb, capsys):
    verb(samples, made.data, tmp_path)
    told = manifest(tmp_path / "run")
    expected = {"data": sha256(made.data["path"]), "held_out": sha256(made.data["held_out"])}
    if verb is paired:
        expected.pop("held_out")  # it reads the bank only
    assert {k: v for k, v in told["inputs"].items() if k.startswith("data.")} == {
        f"data.{'path' if k == 'data' else k}": v for k, v in expected.items()
    }
    assert told["settings"]["data"] == {"name": "ImageZip"} | {
        k: v for k, v in told["settings"]["data"].items() if k not in ("path", "held_out", "memory")
    }
    assert told["free"]["data"]["path"] == made.data["path"]
    capsys.readouterr()
    verb(samples, moved(made.data, tmp_path / "elsewhere"), tmp_path)
    assert "finished already" in capsys.readouterr().out


@VERBS
@pytest.mark.parametrize("which", ["path", "held_out"])
def test_other_images_in_the_same_place_are_another_run(made, samples, tmp_path, verb, which):
    data = moved(made.data, tmp_path / "data")
    verb(samples, data, tmp_path)
    stored(Path(data[which]), first=5000)
    if verb is paired and which == "held_out":
        verb(samples, data, tmp_path)  # not read, so nothing is another
        return
    with pytest.raises(UserError, match=r"belongs to another run \(inputs\.(data|held_out)"):
        verb(samples, data, tmp_path)


def test_a_folders_images_count_by_content(made, samples, tmp_path):
    data = {"name": "ImageFolder", "path": stored(tmp_path / "bank")}
    paired(samples, data, tmp_path)
    assert manifest(tmp_path / "run")["inputs"]["data.path"] == sha256(tmp_path / "bank")
    (tmp_path / "bank").rename(tmp_path / "moved")
    paired(samples, data | {"path": str(tmp_path / "moved")}, tmp_path)
    (tmp_path / "moved/000000/000003.png").write_bytes(
        (tmp_path / "moved/000000/000001.png").read_bytes()
    )
    with pytest.raises(UserError, match="belongs to another run"):
        paired(samples, data | {"path": str(tmp_path / "moved")}, tmp_path)


@pytest.mark.parametrize("which", ["path", "held_out"])
def test_new_images_in_the_same_place_are_read_again(made, samples, tmp_path, which):
    """What `evaluate` keeps of the real images from call to call is that of these files."""
    data = moved(made.data, tmp_path / "data")

    def rows(name: str) -> list[dict]:
        asked = {"samples": {"a": samples}, "data": data, "metrics": METRICS}
        run = evaluate(**asked, run_dir=str(tmp_path / name))
        return json.loads((run / "metrics/metrics.json").read_text())

    one = rows("one")
    assert rows("two") == one
    stored(Path(data[which]), n=2, first=7000)  # one image of each class
    other = rows("three")
    if which == "path":
        assert [row["effective_targets"] for row in one] > [1, 1]
        assert [row["effective_targets"] for row in other] == pytest.approx([1, 1])
    else:
        nearer = [row["nearest_real"] for row in one]
        assert all(row["nearest_real"] > d for row, d in zip(other, nearer, strict=True))


def test_labels_that_stand_for_inputs_are_refused(made, samples, tmp_path):
    for label in ("data", "held_out", "features", "classifier", "real"):
        with pytest.raises(UserError, match=f"samples.{label} "):
            evaluate(samples={label: samples}, data=made.data, run_dir=str(tmp_path / "run"))


def test_generate_does_not_care_where_unused_data_lie(made, tmp_path, capsys):
    drawn(made.edm, tmp_path / "run", data=made.data)
    assert list(manifest(tmp_path / "run")["inputs"]) == ["models.model"]
    drawn(made.edm, tmp_path / "run", data=moved(made.data, tmp_path / "elsewhere"))
    assert "finished already" in capsys.readouterr().out


class Own:
    """Somebody's data set that says nothing of its files."""

    def __init__(self, *, path: str, root: str = "data"):
        self.place = path


def test_a_path_that_is_not_known_to_be_a_file_stays_part_of_the_run(tmp_path):
    section = {"name": f"{__name__}.Own", "path": "a", "root": "b"}
    assert content_of(section) == ({"name": f"{__name__}.Own", "path": "a"}, ())
    there = tmp_path / "a"
    there.write_text("a")
    known, files = content_of({**section, "path": str(there)})
    assert (known, files) == ({"name": f"{__name__}.Own"}, (sha256(there),))


# A study on a zip


@pytest.fixture
def study_config(made, training) -> dict:
    base = {k: v for k, v in training(net=NET, batch_size=16).items() if k != "data"}
    base["trainer"] = {"max_steps": 3, "accelerator": "cpu"}
    cfg = {"models": {"model": "base"}, "guidance": {"name": "classifier_free"}}
    return {
        "data": made.data,
        "fits": {"base": base},
        "methods": {"cfg": cfg},
        "scales": [2.0],
        "samples": 8,
        "generation": {"sampler": HEUN},
        "evaluation": {"metrics": ["nearest_real"]},
    }


def stages(config: dict, root: Path) -> dict[str, tuple[bool, str]]:
    import yaml

    from lightning_cfg.verbs.study import study

    (root / "study.yaml").write_text(yaml.safe_dump(config))
    study(**load(study, root / "study.yaml", [f"run_dir={root / 'study'}"]))
    found = json.loads((root / "study/study.json").read_text())["stages"]
    return {stage["name"]: (stage["reused"], stage["hash"]) for stage in found}


def test_a_study_knows_its_images_by_content(made, study_config, tmp_path):
    first = stages(study_config, tmp_path)
    assert not any(reused for reused, _ in first.values())
    elsewhere = study_config | {"data": moved(made.data, tmp_path / "elsewhere")}
    again = stages(elsewhere, tmp_path)
    assert all(reused for reused, _ in again.values())
    assert {n: h for n, (_, h) in again.items()} == {n: h for n, (_, h) in first.items()}
    stored(tmp_path / "elsewhere/path.zip", first=5000)
    assert not any(reused for reused, _ in stages(elsewhere, tmp_path).values())


def test_pictures_change_no_other_stage_of_a_study(study_config, tmp_path):
    plain = stages(study_config, tmp_path)
    study_config["generation"]["images"] = "zip"
    with_images = stages(study_config, tmp_path)
    assert {n: h for n, (_, h) in with_images.items()} == {n: h for n, (_, h) in plain.items()}
    redone = {name for name, (reused, _) in with_images.items() if not reused}
    assert redone == {"generate cfg 2 fresh"}
    (run,) = (tmp_path / "study/stages").glob("generate*")
    assert len(ImageZip(path=str(run / IMAGES["zip"])).real("bank")[1]) == 8


def test_a_study_without_classes(made, study_config, tmp_path):
    study_config["methods"]["cfg"]["guidance"] = {"name": "classifier_free"}
    config = study_config | {"data": made.bare_data, "scales": [1.0]}
    assert "evaluate real" in stages(config, tmp_path)
    assert (tmp_path / "study/report.html").is_file()
