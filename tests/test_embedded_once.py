"""Real images are embedded once: by all ranks together, and kept on disk for whoever asks next."""

import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lightning_cfg.data.images import Images
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import Interrupted, UserError
from lightning_cfg.evaluation.build import real_side
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.real_features import RealFeatures
from lightning_cfg.evaluation.sample_sets import SampleSet
from lightning_cfg.runs import kept
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.kept import check_keeps, read_rows, write_rows
from lightning_cfg.runs.names import PAIRS
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.pair import pair

HERE = "test_embedded_once"
BANK, SAMPLES = 1301, 90


class Many(Images):
    """Noisy images, 1301 in either split, their classes by turns."""

    shape, num_classes = (1, 8, 8), 3

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def _load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        c = torch.arange(BANK) % 3
        y = torch.randint(256, (BANK, *self.shape), generator=keyed("many", train, self.seed))
        return y.to(torch.uint8), c


def convolved(*, file: str, known: bool = True) -> Space:
    """A convolution with weights from a file; it writes down how many images it has seen."""
    weight = safetensors.torch.load_file(file)["weight"]

    def extract(x: Tensor) -> Tensor:
        with open(Path(os.environ["COUNTED"], f"{os.getpid()}.txt"), "a") as told:
            told.write(f"{len(x)}\n")
        return torch.nn.functional.conv2d(x, weight).flatten(1)[:, :24].contiguous()

    about = {"extractor": "convolved"} | ({"weights": sha256(file)} if known else {})
    return Space(extract, about, at_once=(8, 8))


@pytest.fixture
def config(tmp_path, monkeypatch) -> dict:
    """Of `pair`; images are counted and kept in the test's folder."""
    (tmp_path / "counted").mkdir()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "one"))
    real_side.cache_clear()  # as in a process of its own
    weights(tmp_path, 0)
    x = torch.rand(SAMPLES, 1, 8, 8, generator=keyed("samples", 0)) * 2 - 1
    c = torch.arange(SAMPLES) % 3
    save_tensors(tmp_path / "x.safetensors", x=x, c=c, seed=torch.arange(SAMPLES))
    return {
        "sources": [str(tmp_path / "x.safetensors")], "data": {"name": f"{HERE}.Many"}, "k": 4,
        "features": {"name": f"{HERE}.convolved", "file": str(tmp_path / "w.safetensors")},
        "keep_close": 0.3, "device": "cpu",
    }  # fmt: skip


def scoring(config: dict) -> dict:
    shared = {key: config[key] for key in ("data", "features", "device")}
    return {
        **shared, "samples": {"a": config["sources"][0]}, "by_class": False, "batch_size": 512,
        "metrics": ["frechet_features", "precision_recall", "near_copies"],
    }  # fmt: skip


def weights(folder: Path, seed: int) -> None:
    save_tensors(
        folder / "w.safetensors", weight=torch.randn(6, 1, 5, 5, generator=keyed("w", seed))
    )


def counted(folder: Path) -> int:
    """Images embedded by all processes since this was asked last."""
    files = list((folder / "counted").iterdir())
    total = sum(int(line) for file in files for line in file.read_text().split())
    for file in files:
        file.unlink()
    return total


def kept_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def same_pairs(one: Path, other: Path) -> None:
    """But for the distances' rounding, as samples are embedded in other batches."""
    a, b = (safetensors.torch.load_file(run / PAIRS) for run in (one, other))
    assert a.keys() == b.keys()
    torch.testing.assert_close(a.pop("distance"), b.pop("distance"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    "coupling, ranks, cache",
    [("neighbours", 2, True), ("neighbours", 3, False), ("transport", 2, True)],
)
def test_pair_embeds_every_real_image_once(together, config, tmp_path, coupling, ranks, cache):
    if coupling == "transport":
        config |= {"coupling": coupling, "keep_close": 0.0}
    pair(**config, run_dir=str(tmp_path / "first"))
    assert counted(tmp_path) == BANK + SAMPLES + 1  # which says how many features there are
    run = together(
        pair, config, "run_dir=run", f"cache={cache}", ranks=ranks,
        LIGHTNING_CFG_CACHE=str(tmp_path / "two"), COUNTED=str(tmp_path / "counted"),
    )  # fmt: skip
    assert run.wait() == [0] * ranks, run.said("err")
    assert counted(tmp_path) == BANK + SAMPLES + ranks
    same_pairs(tmp_path / "first", tmp_path / "run")
    if cache:
        assert kept_in(tmp_path / "one") == kept_in(tmp_path / "two")  # to the last bit
    else:
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("cache", [True, False])
def test_evaluate_embeds_every_real_image_once(together, config, tmp_path, cache):
    asked = scoring(config)
    evaluate(**asked, run_dir=str(tmp_path / "first"))
    assert counted(tmp_path) == 2 * BANK + SAMPLES
    run = together(
        evaluate, asked, "run_dir=run", f"cache={cache}",
        LIGHTNING_CFG_CACHE=str(tmp_path / "two"), COUNTED=str(tmp_path / "counted"),
    )  # fmt: skip
    assert run.wait() == [0, 0], run.said("err")
    assert counted(tmp_path) == 2 * BANK + SAMPLES
    one, two = (
        json.loads((tmp_path / name / "metrics/metrics.json").read_text())
        for name in ("first", "run")
    )
    assert one == [{k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v
                    for k, v in two[0].items()}]  # fmt: skip
    if cache:
        one, two = kept_in(tmp_path / "one"), kept_in(tmp_path / "two")
        assert len(one) == 3  # features of both splits, moments of one
        assert one == two


def test_what_pair_has_kept_evaluate_reads_and_the_other_way_round(config, tmp_path):
    pair(**config, run_dir=str(tmp_path / "pairs"))
    counted(tmp_path)
    asked = {**scoring(config), "reference": "bank", "metrics": ["precision_recall"]}
    evaluate(**asked, run_dir=str(tmp_path / "scores"))
    assert counted(tmp_path) == SAMPLES
    shutil.rmtree(tmp_path / "one")
    real_side.cache_clear()
    evaluate(**asked, run_dir=str(tmp_path / "again"))
    assert counted(tmp_path) == BANK + SAMPLES
    pair(**config, run_dir=str(tmp_path / "others"))
    assert counted(tmp_path) == SAMPLES + 1
    same_pairs(tmp_path / "pairs", tmp_path / "others")


def test_other_weights_other_images_and_a_part_of_them_are_embedded_anew(config, tmp_path):
    pair(**config, run_dir=str(tmp_path / "pairs"))
    counted(tmp_path)
    weights(tmp_path, 1)
    pair(**config, run_dir=str(tmp_path / "weights"))
    assert counted(tmp_path) == BANK + SAMPLES + 1
    config["data"] = {"name": f"{HERE}.Many", "seed": 1}
    pair(**config, run_dir=str(tmp_path / "data"))
    assert counted(tmp_path) == BANK + SAMPLES + 1
    pair(**config, bank=200, run_dir=str(tmp_path / "few"))
    assert counted(tmp_path) == 600 + SAMPLES + 1
    pair(**{**config, "k": 2}, bank=200, run_dir=str(tmp_path / "two"))
    assert counted(tmp_path) == SAMPLES + 1


@pytest.mark.parametrize("how", ["cut", "flipped", "no hash", "nothing"])
def test_a_damaged_file_is_made_again(config, tmp_path, how, capsys):
    pair(**config, run_dir=str(tmp_path / "pairs"))
    counted(tmp_path)
    (file,) = (tmp_path / "one").iterdir()
    right = file.read_bytes()
    wrong = {"cut": right[: len(right) // 2], "no hash": right[:-32], "nothing": b"",
             "flipped": right[:999] + bytes([right[999] ^ 1]) + right[1000:]}[how]  # fmt: skip
    file.write_bytes(wrong)
    pair(**config, run_dir=str(tmp_path / "again"))
    assert counted(tmp_path) == BANK + SAMPLES + 1
    assert "computed again" in capsys.readouterr().err
    assert file.read_bytes() == right
    same_pairs(tmp_path / "pairs", tmp_path / "again")


def interrupted(*, file: str) -> Space:
    """As `convolved`, stopped in the midst of the bank."""
    inner, seen = convolved(file=file), []

    def extract(x: Tensor) -> Tensor:
        seen.append(len(x))
        if sum(seen) > 700:
            raise KeyboardInterrupt
        return inner(x)

    return Space(extract, inner.about, at_once=(8, 8))


def test_what_was_cut_off_is_not_there(config, tmp_path):
    asked = {**config, "features": {**config["features"], "name": f"{HERE}.interrupted"}}
    with pytest.raises(Interrupted):
        pair(**asked, run_dir=str(tmp_path / "stopped"))
    assert list((tmp_path / "one").iterdir()) == []
    counted(tmp_path)
    pair(**config, run_dir=str(tmp_path / "pairs"))
    assert counted(tmp_path) == BANK + SAMPLES + 1


@contextmanager
def no_file_above(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_ends_no_work_that_others_share(tmp_path):
    taken = []

    def blocks():
        for i in range(10):
            taken.append(i)
            yield torch.full((100, 8), float(i))

    with no_file_above(10_000), pytest.raises(UserError, match="could not be written") as told:
        write_rows(tmp_path / "a.npy", (1000, 8), blocks())
    assert isinstance(told.value.__cause__, OSError)
    assert taken == [*range(10)]  # the other ranks' share too
    assert list(tmp_path.iterdir()) == []
    write_rows(tmp_path / "a.npy", (1000, 8), blocks())
    expected = torch.arange(10.0).repeat_interleave(100)[:, None].expand(-1, 8)
    for mapped in (False, True):
        assert torch.equal(read_rows(tmp_path / "a.npy", mapped=mapped), expected)


def test_features_that_cannot_be_kept_cost_no_pairs(config, tmp_path, monkeypatch, capsys):
    pair(**config, run_dir=str(tmp_path / "pairs"))
    counted(tmp_path)
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "x.safetensors/cache"))
    capsys.readouterr()
    pair(**config, run_dir=str(tmp_path / "again"))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "set LIGHTNING_CFG_CACHE to another folder, or cache=false" in line
    assert counted(tmp_path) == BANK + SAMPLES + 1
    same_pairs(tmp_path / "pairs", tmp_path / "again")


def test_features_of_ones_own_are_not_kept_but_embedded_once_all_the_same(config, tmp_path):
    """Nobody knows their weights; where there is no room for all, a part at a time."""
    config["features"] |= {"known": False}
    pair(**config, run_dir=str(tmp_path / "pairs"))
    assert counted(tmp_path) == BANK + SAMPLES + 1
    assert not (tmp_path / "one").exists()
    few = RealFeatures(SampleSet((2,), torch.zeros(9), lambda rows: rows[:, None].float(), {}),
                       Space(lambda x: 3 * x, {}))  # fmt: skip
    assert few[torch.tensor([4, 1])].flatten().tolist() == [12, 3]


class Elsewhere(Ranks):
    """The first of two, of which the other sees none of its files, and has nothing to embed."""

    def all_gather_object(self, value: object) -> list:
        return [value, None]


def test_where_ranks_share_no_disk_features_are_kept_in_memory(config, tmp_path, monkeypatch):
    module = sys.modules["lightning_cfg.verbs.pair"]
    monkeypatch.setattr(module, "sharing", lambda: nullcontext(Elsewhere()))
    pair(**config, run_dir=str(tmp_path / "apart"))
    assert counted(tmp_path) == BANK + SAMPLES + 1
    assert list((tmp_path / "one").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(tmp_path / "one"))
    pair(**config, run_dir=str(tmp_path / "pairs"))
    same_pairs(tmp_path / "apart", tmp_path / "pairs")


def test_room_on_the_disk_is_looked_at_before(tmp_path, monkeypatch):
    check_keeps(tmp_path / "cache/a.npy", 1000).unlink()
    with pytest.raises(UserError, match=r"would take .* GiB of .* that are free"):
        check_keeps(tmp_path / "cache/a.npy", 1 << 60)
    assert list((tmp_path / "cache").iterdir()) == []
    old, fresh = (tmp_path / "cache" / f".{name}.npy.77.tmp.npy" for name in ("old", "fresh"))
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    check_keeps(tmp_path / "cache/a.npy", 1000)
    assert fresh.exists()
    assert not old.exists()
    assert kept.FORGOTTEN >= 3600
