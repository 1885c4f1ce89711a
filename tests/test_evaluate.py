"""Sets of images from anywhere, scored: the same numbers however they are stored or made."""

import csv
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation import reference
from lightning_cfg.evaluation.build import real_side
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.sample_sets import read_set
from lightning_cfg.evaluation.scorer import column_of
from lightning_cfg.metrics.frechet import Moments, frechet_distance, load_statistics
from lightning_cfg.metrics.meaning import meaning
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.runs.pngs import IMAGES, quantised, save_images, signed
from lightning_cfg.runs.tensors import load_tensors, save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair

HEUN = {"name": "heun", "steps": 4}
NET = {"name": "UnshuffleUNet", "channels": 8, "channel_mult": [1]}
METRICS = [
    "frechet_features",
    {"name": "kernel_distance", "size": 20, "subsets": 5},
    {"name": "precision_recall", "k": 2},
    {"name": "density_coverage", "k": 2},
    "nearest_train",
    {"name": "near_copies", "quantile": 0.1},
]
SPACE = {"name": "test_evaluate.blocks"}
seen: list[int] = []  # rows that the feature space below was given


def blocks() -> Space:
    """The mean of each quarter and channel, (n, 12), with a head of three classes."""

    def extract(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.nn.functional.avg_pool2d(x, 4).flatten(1)

    return Space(extract, {"extractor": "blocks", "weights": "1"}, head=lambda f: f[:, :3] * 9)


def images(n: int, *, first: int = 0, bright: float = 0.4) -> tuple[Tensor, Tensor]:
    """Random images of 8 x 8, brighter in the left half (class 0) or the right (class 1)."""
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(first)) - 0.5
    c = torch.arange(n) % 2
    half = torch.arange(8) // 4 == c[:, None]
    return x + bright * half[:, None, None, :], c


def stored(place: Path, n: int, *, labelled: bool = True, **how: float) -> str:
    x, c = images(n, **how)
    return str(save_images(place, x=x, c=c, seed=torch.arange(n), labelled=labelled))


@pytest.fixture(scope="module")
def made(tmp_path_factory, training) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("evaluate")
    data = {
        "name": "ImageZip",
        "path": stored(root / "bank.zip", 120),
        "held_out": stored(root / "held_out.zip", 80, first=1),
    }
    sections = {"data": data, "net": NET, "batch_size": 16, "trainer": {"max_steps": 3}}
    base = str(fit(**training(**sections), run_dir=str(root / "base")))
    judge = {
        "net": {"name": "ConvNet", "channels": 4},
        "model": {"name": "NoisyClassifier", "clean": True},
        "learner": {"name": "Classification"},
    }
    judge = str(fit(**training(**{**sections, **judge}), run_dir=str(root / "judge")))
    x, c = images(60, first=2, bright=0.6)
    foreign = save_tensors(root / "foreign.safetensors", x=x, c=c, seed=torch.arange(60))
    return SimpleNamespace(
        root=root, data=data, base=base, judge=judge, x=x, c=c, foreign=str(foreign)
    )


@pytest.fixture
def scored(made, tmp_path):
    """Evaluate, and the rows of metrics.json by set (and draw)."""

    def run(samples: dict | None = None, **settings: object) -> dict:
        settings = {"data": made.data, "features": SPACE, "metrics": METRICS, **settings}
        settings = {"by_class": False, **settings}
        place = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        evaluate(samples=samples or {}, run_dir=str(place), **settings)
        rows = json.loads((place / "metrics/metrics.json").read_text())
        return {tuple(filter(None, (r["samples"], r.get("draw")))): r for r in rows} | {
            "run": place
        }

    return run


def numbers(row: dict) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, float)}


def close(a: dict, b: dict) -> bool:
    """Equal but for the order of sums, which the size of batches decides."""
    return numbers(a) == pytest.approx(numbers(b), rel=1e-9)


# Wherever they come from


def test_the_same_samples_score_the_same_from_memory_folder_and_zip(made, tmp_path, scored):
    run = generate(
        models={"model": made.base}, guidance={"name": "unguided"}, sampler=HEUN, n=40,
        run_dir=str(tmp_path / "made"), images="zip",
    )  # fmt: skip
    tensors = load_tensors(run / SAMPLES, "x", "c", "seed")
    folder = save_images(tmp_path / "folder", **tensors, labelled=True)
    found = scored(
        {"run": str(run), "file": str(run / SAMPLES), "folder": str(folder),
         "zip": str(run / IMAGES["zip"])},
        classifier=made.judge,
        metrics=[*METRICS, "class_accuracy", "confidence", "inception_score", "recall"],
    )  # fmt: skip
    rows = [numbers(found[name,]) for name in ("run", "file", "folder", "zip")]
    assert len(rows[0]) == 15
    assert all(row == rows[0] for row in rows[1:])
    again = found["run"] / "metrics/numbers.csv"
    told = [row for row in csv.DictReader(again.open()) if row["samples"] == "run"]
    assert {row["seeds"] for row in told} == {"0 ... 39"}
    assert {row["sampler"] for row in told} == {"heun steps=4 rho=7.0"}
    assert {row["guidance"] for row in told} == {"unguided"}
    assert {row["model_weights"] for row in told} == {"ema"}
    assert {row["n"] for row in told} == {"40"}


def test_samples_of_seeds_on_the_fly_are_those_that_generate_writes(made, tmp_path, scored):
    section = {"models": {"model": made.base}, "guidance": {"name": "unguided"}, "sampler": HEUN}
    runs = {
        f"kept_{i}": str(generate(**section, n=30, seed=7 + 30 * i, batch_size=8,
                                  run_dir=str(tmp_path / f"kept{i}")))
        for i in range(3)
    }  # fmt: skip
    how = {"data": None, "class_label": None, "weights": "ema", "seed": 7, "batch_size": 8}
    found = scored(runs, generate={"fly": {**section, **how, "n": 30}})
    assert close(found["fly",], found["kept_0",])
    found = scored(generate={"fly": {**section, **how, "n": 30}}, draws=3)
    kept = scored(runs)
    draws = [numbers(found["fly", i]) for i in (1, 2, 3)]
    for i, draw in enumerate(draws):
        assert close(draw, kept[f"kept_{i}",])
    for name in draws[0]:
        three = [draw[name] for draw in draws]
        assert found["fly", "min"][name] == min(three)
        assert found["fly", "mean"][name] == pytest.approx(np.mean(three))
    told = list(csv.DictReader((found["run"] / "metrics/numbers.csv").open()))
    assert {row["seeds"] for row in told} == {"7 ... 36", "37 ... 66", "67 ... 96"}


def test_a_file_is_cut_in_draws(made, tmp_path, scored):
    found = scored({"a": made.foreign}, draws=2)
    halves = {}
    for i in range(2):
        part = {"x": made.x[30 * i :][:30], "c": made.c[:30], "seed": torch.arange(30)}
        halves[str(i)] = str(save_tensors(tmp_path / f"{i}.safetensors", **part))
    by_hand = scored(halves)
    for i in (1, 2):
        assert numbers(found["a", i]) == numbers(by_hand[str(i - 1),])
        assert found["a", i]["n"] == 30


def test_images_without_classes_are_scored_together(made, tmp_path, scored, call):
    files = {
        "zip": stored(tmp_path / "bare.zip", 60, labelled=False, first=2, bright=0.6),
        "flat": str(tmp_path / "flat"),
        "chunks": str(tmp_path / "chunks"),
    }
    with zipfile.ZipFile(files["zip"]) as file:
        for i, name in enumerate(n for n in file.namelist() if n.endswith(".png")):
            for place in (f"flat/{i:06d}.png", f"chunks/{i - i % 20:06d}/{i:06d}.png"):
                (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / place).write_bytes(file.read(name))
    found = scored({**files, "a": made.foreign})
    rows = [numbers(found[name,]) for name in (*files, "a")]
    assert all(row == rows[0] for row in rows[1:])
    config = {"samples": {"a": files["chunks"]}, "data": made.data, "features": SPACE}
    outcome = call(evaluate, config)
    assert outcome.status == 2
    assert f"{files['chunks']} says no classes: by_class=false" in outcome.err
    outcome = call(evaluate, {**config, "classifier": made.judge, "by_class": False})
    assert outcome.status == 2
    assert "says no classes" in outcome.err


def test_folders_named_by_classes_and_a_set_that_lacks_one(made, tmp_path, scored):
    """Numbers are classes where the data have numbers, also where not all of them are there."""
    x, c = images(60, first=2, bright=0.6)
    one = {"x": x[c == 1], "c": c[c == 1], "seed": torch.arange(30)}
    of_one = save_images(tmp_path / "one.zip", **one, labelled=True)
    for i, pixels in enumerate(quantised(one["x"]).permute(0, 2, 3, 1).numpy()):
        (tmp_path / "numbered/1").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"numbered/1/{i:03d}.png")
    both = {"json": str(of_one), "folder": str(tmp_path / "numbered")}
    found = scored(both, classifier=made.judge, metrics=["class_accuracy", "frechet_features"])
    assert numbers(found["json",]) == numbers(found["folder",])


# What is known of each number


def test_each_number_says_what_it_is_taken_in_and_against(made, scored):
    spaces = {"mine": SPACE, "judge": {"name": "classifier", "path": made.judge}}
    metrics = [{"name": "frechet_features", "allow_few": True}, "class_accuracy", "inception_score"]
    found = scored(
        {"a": made.foreign}, features=spaces, reference=["held_out", "bank"], metrics=metrics,
        classifier=made.judge,
    )  # fmt: skip
    row = numbers(found["a",])
    expected = (
        {f"fd_{space}{of}" for space in ("mine", "judge") for of in ("", "_vs_bank")}
        | {"class_accuracy"}
        | {f"is{std}_{s}" for s in ("mine", "judge") for std in ("", "_std")}
    )
    assert set(row) == expected
    told = json.loads((found["run"] / "metrics/numbers.json").read_text())
    of = {number["metric"]: number for number in told}
    assert set(of) == expected
    assert (of["fd_mine"]["reference"], of["fd_mine"]["m"]) == ("held_out", "80")
    assert (of["fd_mine_vs_bank"]["reference"], of["fd_mine_vs_bank"]["m"]) == ("bank", "120")
    assert of["fd_mine"]["extractor"] == "blocks"
    assert of["fd_judge"]["extractor"] == "ConvNet"
    assert len(of["fd_judge"]["weights"]) == 64
    assert of["class_accuracy"]["classifier"] == of["fd_judge"]["weights"]
    assert "reference" not in of["class_accuracy"]
    assert all(number["source"] == made.foreign and number["n"] == 60 for number in told)
    table = (found["run"] / "metrics/table.md").read_text()
    assert "| fd_mine_vs_bank |" in table
    assert "against bank (M = 120)" in table
    x, bank = signed(quantised(made.x)), images(120)[0]
    pooled = [torch.nn.functional.avg_pool2d(v, 4).flatten(1)
              for v in (x, signed(quantised(bank)))]  # fmt: skip
    distance = frechet_distance(*(Moments().add(f) for f in pooled))
    assert row["fd_mine_vs_bank"] == pytest.approx(distance, rel=1e-6)


def test_kernel_distance_is_torch_fidelitys_whatever_classes_the_real_images_have(made, scored):
    """Of the same images in the order of their files, in which the classes alternate here."""
    kid = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    metrics = [{"name": "kernel_distance", "size": 20, "subsets": 5}]
    row = numbers(scored({"a": made.foreign}, metrics=metrics)["a",])
    sides = (made.x, images(80, first=1)[0])
    features = [torch.nn.functional.avg_pool2d(signed(quantised(x)), 4).flatten(1) for x in sides]
    expected = kid(*features, kid_subsets=5, kid_subset_size=20, verbose=False)
    for column, name in (("kd_blocks", "mean"), ("kd_blocks_std", "std")):
        found = row[f"{column}_subsets5_size20"]
        assert found == pytest.approx(expected[f"kernel_inception_distance_{name}"], rel=1e-4)


def test_settings_are_in_the_columns_and_two_of_one_metric_are_two_columns(made, scored):
    """As many columns as settings, each with the value that the metric has with it alone."""
    asked = [
        ({"name": "recall"}, ["recall"]),
        ({"name": "recall", "k": 10}, ["recall_k10"]),
        (
            {"name": "kernel_distance", "size": 20, "subsets": 5},
            ["kd_mine_subsets5_size20", "kd_mine_std_subsets5_size20"],
        ),
        (
            {"name": "kernel_distance", "size": 30, "subsets": 5},
            ["kd_mine_subsets5_size30", "kd_mine_std_subsets5_size30"],
        ),
        ({"name": "precision_recall"}, ["precision_k3_mine", "recall_k3_mine"]),
        ({"name": "precision_recall", "k": 4}, ["precision_k4_mine", "recall_k4_mine"]),
        (
            {"name": "inception_score", "splits": 2},
            ["is_splits2_mine", "is_std_splits2_mine"],
        ),
        ({"name": "near_copies", "quantile": 0.1}, ["near_copies_quantile0.1_mine"]),
        ({"name": "near_copies", "quantile": 0.2}, ["near_copies_quantile0.2_mine"]),
        ({"name": "frechet_features", "allow_few": True}, ["fd_mine"]),
    ]
    sections = [section for section, _ in asked]
    how = {"features": {"mine": SPACE}, "reference": ["held_out"]}
    both = scored({"a": made.foreign}, metrics=[*sections, *sections[:2]], **how)
    row = numbers(both["a",])
    assert list(row) == [column for _, columns in asked for column in columns]
    for section, columns in asked:
        alone = numbers(scored({"a": made.foreign}, metrics=[section], **how)["a",])
        assert alone == {column: row[column] for column in columns}
    assert row["recall"] != row["recall_k10"]
    told = json.loads((both["run"] / "metrics/numbers.json").read_text())
    settings = {number["metric"]: number["settings"] for number in told}
    assert (settings["recall"], settings["recall_k10"]) == ("k=5", "k=10")
    assert settings["kd_mine_subsets5_size20"] == "subsets=5 size=20"
    assert settings["near_copies_quantile0.2_mine"] == "quantile=0.2"
    assert settings["fd_mine"] == ""
    assert [meaning(c).better for c in ("recall_k10", "kd_mine_std_subsets5_size20")] == [
        "higher",
        None,
    ]


def recalls(x: Tensor) -> dict[str, float]:
    """A metric of one's own."""
    return {"mine": 0.5}


def recalls_too(x: Tensor) -> dict[str, float]:
    """Another one, with the same column."""
    return {"mine": 0.25}


def test_a_column_is_never_written_twice(made, scored, call):
    config = {
        "samples": {"a": made.foreign}, "data": made.data, "run_dir": "clash",
        "metrics": ["test_evaluate.recalls", "test_evaluate.recalls_too"],
    }  # fmt: skip
    answer = call(evaluate, config)
    assert (answer.status, answer.out) == (2, "")
    assert "metric recalls_too: another one has a column mine too: call it otherwise" in answer.err
    assert not Path("clash").exists()


@pytest.mark.parametrize(
    "column, label, usual, n, expected",
    [
        ("fd", "inception", "fid", 50_000, "fid"),
        ("fd", "inception", "fid", 2_000, "fid_2k"),
        ("fd", "inception", "fid", 1_500, "fid_1500"),
        ("fd", "dinov2", "fd_dinov2", 10_000, "fd_dinov2_10k"),
        ("fd", "pil", "fd_dinov2", 50_000, "fd_dinov2_pil"),
        ("fd_infinity", "inception", "fid", 2_000, "fid_infinity"),
        ("kd", "inception", "kid", 2_000, "kid"),
        ("kd_std", "inception", "kid", 2_000, "kid_std"),
        ("precision_k3", "inception", "fid", 2_000, "precision_k3_inception"),
        ("fd", "judge", None, 2_000, "fd_judge"),
        ("kd_std", "judge", None, 2_000, "kd_judge_std"),
    ],
)
def test_columns_are_named_as_the_literature_does(column, label, usual, n, expected):
    names = {"fd": {"frechet": usual}, "kd": {"kernel": usual}}.get(column.partition("_")[0], {})
    space = Space(lambda x: x, {}, standard=50_000 if usual else 0, **names)
    assert column_of(column, label, space, n) == expected


def test_a_cache_that_cannot_be_written_costs_no_scores(
    made, scored, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    real_side.cache_clear()
    expected = numbers(scored({"a": made.foreign})["a",])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "file/cache"))
    real_side.cache_clear()
    capsys.readouterr()
    assert numbers(scored({"a": made.foreign})["a",]) == expected
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines
    assert all("set LIGHTNING_CFG_CACHE to another folder, or cache=false" in x for x in lines)


def test_features_are_computed_once_for_each_set(made, scored, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    other = {**made.data, "held_out": stored(tmp_path / "fresh.zip", 80, first=5)}
    seen.clear()
    scored({"a": made.foreign}, data=other)
    assert sum(seen) == 60 + 80 + 120  # samples, held out, bank: of six metrics
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.suffix for file in files].count(".npz") == 1
    assert [file.suffix for file in files].count(".npy") == 2
    real_side.cache_clear()  # as another process would
    seen.clear()
    again = scored({"a": made.foreign}, data=other)
    assert sum(seen) == 60
    files[0].write_bytes(files[0].read_bytes()[:-20])  # damaged: computed again
    real_side.cache_clear()
    seen.clear()
    assert numbers(scored({"a": made.foreign}, data=other)["a",]) == numbers(again["a",])
    assert sum(seen) > 60
    real_side.cache_clear()
    seen.clear()
    scored({"a": made.foreign}, data=other, cache=False)
    assert sum(seen) == 60 + 80 + 120
    real_side.cache_clear()
    fresh = stored(tmp_path / "fresh.zip", 80, first=6)  # other images in the same place
    changed = scored({"a": made.foreign}, data={**other, "held_out": fresh})
    assert changed["a",]["fd_blocks"] != again["a",]["fd_blocks"]


# Reference statistics of others


def test_statistics_that_evaluate_keeps_can_be_named(made, scored, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "cache"))
    real_side.cache_clear()
    usual = scored({"a": made.foreign}, metrics=["frechet_features"], reference="bank")
    (kept,) = (tmp_path / "cache").glob("*.npz")
    moments, about = load_statistics(kept)
    assert moments.count == 120
    assert about["split"] == "bank"
    found = scored({"a": made.foreign}, data=None, metrics=None, statistics={"blocks": str(kept)})
    assert found["a",]["fd_blocks"] == pytest.approx(usual["a",]["fd_blocks"], rel=1e-9)
    (told,) = json.loads((found["run"] / "metrics/numbers.json").read_text())
    assert told["reference"].startswith(kept.name)


def test_statistics_of_another_space_are_refused(made, call, tmp_path):
    f = torch.rand(50, 12, generator=torch.Generator().manual_seed(0))
    moments = Moments().add(f)
    mine = moments.save(tmp_path / "a.npz", {"space": {"extractor": "blocks", "weights": "2"}})
    bare = tmp_path / "bare.npz"
    np.savez(bare, mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    (tmp_path / "a.pkl").write_bytes(b"")
    config = {
        "samples": {"a": made.foreign}, "features": SPACE, "by_class": False, "cache": False,
        "metrics": ["frechet_features"],
    }  # fmt: skip
    for name, words in {
        str(mine): ["a.npz", "another feature space", "weights is 2 there, 1 here"],
        str(bare): ["bare.npz", "does not say which features", "features.blocks"],
        str(tmp_path / "a.pkl"): ["a.pkl is truncated or no pickle"],
        str(tmp_path / "none.npz"): ["none.npz", "no such file"],
        "edm_cifar10": ["python -m lightning_cfg.assets fetch edm_cifar10"],
    }.items():
        outcome = call(evaluate, config | {"statistics": {"blocks": name}})
        assert outcome.status == 2, name
        assert len(outcome.err.strip().splitlines()) == 1
        assert all(word in outcome.err for word in words), outcome.err
    outcome = call(evaluate, config | {"statistics": {"inception": str(mine)}})
    assert "statistics.inception is of no feature space" in outcome.err


# Bad input: one clear line


def png(size: int = 8, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def refused(call, made):
    def run(path: Path | str, **changed: object) -> str:
        config = {"samples": {"a": str(path)}, "data": made.data, "features": SPACE}
        outcome = call(evaluate, config | {"by_class": False, "metrics": METRICS} | changed)
        assert outcome.status == 2, outcome
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert not Path("runs").exists()
        return outcome.err

    return run


def test_images_of_mixed_sizes(refused, tmp_path):
    (tmp_path / "mixed").mkdir()
    for i in range(40):
        (tmp_path / f"mixed/{i:02d}.png").write_bytes(png(9 if i == 33 else 8))
    line = refused(tmp_path / "mixed")
    assert "33.png is 9 x 9 RGB, but 00.png is 8 x 8 RGB" in line


def test_images_of_another_size_than_the_data(refused, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large/0.png").write_bytes(png(16))
    assert "shape (3, 16, 16), not (3, 8, 8)" in refused(tmp_path / "large")


def test_one_broken_image_among_many_is_named(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for i in range(2000):
            content = png()
            file.writestr(f"{i:05d}.png", content[:-30] if i == 1234 else content)
    line = refused(tmp_path / "many.zip")
    assert "01234.png is damaged or cannot be read" in line


def test_an_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no image (.png, .jpg, .jpeg, .webp," in refused(tmp_path / "empty")
    assert "no such file" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("scale, offset", [(127.5, 127.5), (2.0, 0.0), (0.5, 0.5)])
def test_float_images_in_other_units(refused, made, tmp_path, scale, offset):
    tensors = {"x": made.x / made.x.abs().max() * scale + offset, "c": made.c}
    file = save_tensors(tmp_path / "other.safetensors", **tensors, seed=torch.arange(60))
    line = refused(file)
    assert "other.safetensors: images must have values in [-1, 1]" in line


def test_bright_images_are_taken_where_the_file_says_that_they_are(refused, made, tmp_path, scored):
    """And are another set than the same numbers in [0, 1]."""
    bright = (made.x.clamp(-1, 1) + 1) / 2
    tensors = {"x": bright, "c": made.c, "seed": torch.arange(60)}
    save_file(tensors, tmp_path / "silent.safetensors")
    line = refused(tmp_path / "silent.safetensors")
    assert "these are all in [0, 1], from" in line
    assert "save 2 * x - 1; or if they are so bright, say so in the file" in line
    assert "metadata={'values': '[-1, 1]'}" in line
    save_file(tensors, tmp_path / "said.safetensors", metadata={"values": "[-1, 1]"})
    save_file({**tensors, "x": 2 * bright - 1}, tmp_path / "moved.safetensors")
    one_dark = bright.clone()
    one_dark[7, 0, 0, 0] = -0.01
    save_file({**tensors, "x": one_dark}, tmp_path / "dark.safetensors")
    names = ("said", "moved", "dark")
    found = scored({name: str(tmp_path / f"{name}.safetensors") for name in names})
    assert found["moved",]["fd_blocks"] == pytest.approx(
        scored({"a": made.foreign})["a",]["fd_blocks"], rel=0.05
    )
    assert found["said",]["fd_blocks"] > 5 * found["moved",]["fd_blocks"]
    assert found["dark",]["fd_blocks"] == pytest.approx(found["said",]["fd_blocks"], rel=0.01)


def test_bright_images_of_a_run_of_ours_are_bright(made, tmp_path, scored):
    run = tmp_path / "ours"
    tensors = {"x": torch.full((60, 3, 8, 8), 0.9), "c": made.c, "seed": torch.arange(60)}
    save_tensors(run / SAMPLES, **tensors)
    with pytest.raises(UserError, match=r"all in \[0, 1\], from 0.9 to 0.9"):
        read_set(run / SAMPLES)
    manifest = {"verb": "generate", "settings": {
        "sampler": HEUN, "guidance": {"name": "unguided"}, "weights": "ema"}}  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert len(read_set(run)) == len(read_set(run / SAMPLES)) == 60


def test_every_reader_of_samples_asks_for_their_units(made, tmp_path, call, training):
    tensors = {"x": torch.rand(60, 3, 8, 8), "c": made.c, "seed": torch.arange(60)}
    file = str(save_tensors(tmp_path / "unit.safetensors", **tensors))
    real = {"name": "RealOrGenerated", "real": made.data, "path": file}
    judge = {
        "net": {"name": "ConvNet", "channels": 4},
        "model": {"name": "NoisyClassifier"},
        "learner": {"name": "Classification"},
    }
    for verb, config in (
        (pair, {"sources": [file], "data": made.data, "k": 2}),
        (evaluate, {"samples": {"a": file}, "data": made.data}),
        (fit, training(data=real, **judge)),
    ):
        answer = call(verb, config, "run_dir=run")
        assert answer.status == 2
        assert "unit.safetensors: images must have values in [-1, 1], and these" in answer.err
        assert not Path("run").exists()


def test_a_little_overshoot_is_clipped(made, tmp_path, scored):
    x = made.x.clone()
    x[:, :, 0, 0] = 1.2
    over = save_tensors(tmp_path / "over.safetensors", x=x, c=made.c, seed=torch.arange(60))
    x[:, :, 0, 0] = 1.0
    at = save_tensors(tmp_path / "at.safetensors", x=x, c=made.c, seed=torch.arange(60))
    found = scored({"over": str(over), "at": str(at)})
    assert numbers(found["over",]) == numbers(found["at",])


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"samples": {}}, ["samples and generate name nothing"]),
        ({"data": None}, ["data is missing"]),
        ({"reference": "train"}, ["reference=train", "held_out, bank"]),
        ({"draws": 0}, ["draws must be int from 1 to 1000, not 0"]),
        ({"draws": 7}, ["60 samples cannot be cut in 7 draws"]),
        ({"features": None}, ["metric frechet_features needs moments_x", "features"]),
        ({"metrics": ["class_accuracy"]}, ["needs logits", "classifier"]),
        ({"features": {"name": "pixels"}, "metrics": ["inception_score"]}, ["head_logits"]),
        ({"metrics": [{"name": "kernel_distance", "size": 999}]}, ["size=999", "60 and 80"]),
        ({"metrics": [{"name": "precision_recall", "k": 60}]}, ["k = 60", "60"]),
        ({"reference": []}, ["reference is an empty list: name one of held_out, bank, or both"]),
        ({"reference": ["bank", "bank"]}, ["reference names bank twice"]),
        ({"metrics": []}, ["metrics: the list is empty"]),
        ({"metrics": ["fid"]}, ["metrics[0].name: no 'fid'", "frechet_features"]),
        ({"features": {"a": {"name": "dinov"}}}, ["features.a.name", "'dinov2'"]),
        ({"features": "inception"}, ["weights-inception", "lightning_cfg.assets fetch inception"]),
        ({"classifier": "absent"}, ["absent"]),
    ],
)
def test_what_does_not_go_together(refused, made, monkeypatch, tmp_path, changed, words):
    monkeypatch.setenv("LIGHTNING_CFG_ASSETS", str(tmp_path / "no assets"))
    line = refused(made.foreign, **changed)
    assert all(word in line for word in words), line


def test_generate_sections_are_checked_before_anything_is_made(refused, made):
    section = {"models": {"model": made.base}, "guidance": {"name": "autoguidance"},
               "sampler": HEUN, "n": 4}  # fmt: skip
    assert "models.weak" in refused(made.foreign, generate={"fly": section})
    section["guidance"] = {"name": "unguided"}
    assert "both have a" in refused(made.foreign, generate={"a": section})
    assert "generate.fly.nn" in refused(made.foreign, generate={"fly": {**section, "nn": 3}})
    assert "generate.fly.n must be int from 1 to 100_000_000, not 0" in refused(
        made.foreign, generate={"fly": {**section, "n": 0}}
    )


def test_cache_folder_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_CFG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reference.cache_folder() == tmp_path / "lightning_cfg/statistics"
