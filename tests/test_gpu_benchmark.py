"""benchmarks/gpu.py runs whole on a CPU with tiny sizes, and counts the limit of a step rightly."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_cfg.nets import ADMUNet, SongUNet

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "gpu.json").read_text())["rows"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["song", "adm"])
def test_flops_are_those_of_torchs_counter(name, training):
    import roofline

    with torch.device("meta"):
        if name == "song":
            net = SongUNet((3, 16, 16), 10, channels=32, blocks=1, augment_dim=9)
        else:
            net = ADMUNet((3, 16, 16), 10, channels=32, blocks=1)
        x, noise = torch.empty(2, 3, 16, 16), torch.empty(2)
        c = torch.zeros(2, dtype=torch.long)
    layers = roofline.layers(lambda: net(x, noise, c), size=2, training=training)
    with FlopCounterMode(display=False) as counter:
        out = net(x, noise, c)
        if training:
            out.sum().backward()
    assert sum(layer.flops for layer in layers) == counter.get_total_flops()


def test_limit_of_a_convolution_and_a_linear_layer_by_hand():
    import roofline

    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(),
                                  torch.nn.Linear(320, 7))  # fmt: skip
        x = torch.empty(4, 3, 8, 8, requires_grad=True)
    convolution, product = roofline.layers(lambda: net(x), size=2, training=False)
    # 2 FLOPs x outputs (4 x 5 x 8 x 8) x 3 channels x 9; image, weights and answer of 2 bytes
    assert convolution.flops == 2 * 1280 * 27
    assert convolution.shape == (3, 5, 8, 3, 1, 1)
    assert convolution.bytes == 2 * (4 * 3 * 64 + 5 * 27 + 1280)
    assert product.flops == 2 * 4 * 320 * 7
    assert product.bytes == 2 * (4 * 320 + 320 * 7 + 4 * 7)

    back = [
        layer
        for layer in roofline.layers(lambda: net(x), size=2, training=True)
        if layer not in (convolution, product)
    ]
    assert sum(layer.flops for layer in back) == 2 * (convolution.flops + product.flops)
    assert sum(layer.bytes for layer in back) == 2 * (convolution.bytes + product.bytes)

    # one bound by its bytes, one by its FLOPs
    own = {("convolution", convolution.shape): 1e3}
    rates = roofline.Rates(product=1e12, convolution=1e12, bandwidth=1e3, own=own)
    expected = 2 * 1280 * 27 / 1e3 + product.bytes / 1e3
    assert rates.limit([convolution, product]) == pytest.approx(expected)
    assert rates.ideal().limit([convolution]) == pytest.approx(convolution.bytes / 1e3)
    step = roofline.optimiser(net, averages=2)
    numbers = 5 * 27 + 5 + 320 * 7 + 7
    assert step.bytes == 4 * numbers * (1 + 4 + 3 + 2 * 3)  # norm; read; written; two averages


def test_a_row_that_fails_or_has_no_time_is_told_and_the_next_one_is_measured(tmp_path):
    from gpu_table import Found, Spread, Table

    def out_of_memory() -> Found:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3.00 GiB")

    def endless() -> Found:
        while True:
            time.sleep(0.01)

    table = Table(tmp_path, {"device": "none"}, torch.device("cpu"), time.monotonic() + 20)
    two = Spread(2.0, 1.0, 4.0)
    slow = table.measure("a", "slow", lambda: Found.rate(two, 8, "images"), needs=1)
    table.measure("a", "large", out_of_memory, needs=1)
    table.measure("a", "long", lambda: pytest.fail("there was no time"), needs=60)
    assert [row.get("error", "")[:9] for row in rows_of(tmp_path)] == [
        "", "OutOfMemo", "skipped: ",
    ]  # fmt: skip
    one = Spread(1.0, 1.0, 1.0)
    fast = Found.rate(one, 8, "images", limit=0.5)
    table.measure("a", "fast", lambda: fast, needs=1, than={"slow": slow, "large": None})
    last = rows_of(tmp_path)[-1]
    assert last["times"] == {"slow": 2.0}
    assert last["value"]["median"] == 8.0
    text = (tmp_path / "gpu.txt").read_text().splitlines()
    assert text[1].endswith("slow: 4 images/s (2 ... 8) 2000 ms")
    assert "2.00 times slow | 2.00 x limit" in text[-1]
    table.ends = time.monotonic() + 0.5
    table.measure("a", "endless", endless, needs=0.1)
    assert rows_of(tmp_path)[-1]["error"].startswith("TimeUp: it was cut off after")
    assert table.left() <= 0
    assert not list(tmp_path.glob("*.new"))


def test_every_line_runs_tiny_on_a_cpu(tmp_path, monkeypatch):
    import gpu

    # what takes longest and is not ours
    monkeypatch.setattr(gpu.gpu_search, "random_inception", lambda: gpu.gpu_search.vit(tiny=True))
    gpu.main(["--out", str(tmp_path), "--device", "cpu", "--tiny", "--seconds", "900"])
    rows = rows_of(tmp_path)
    errors = {row["what"]: row["error"] for row in rows if "error" in row}
    assert errors == {"plain loop, one CUDA graph": "ValueError: a graph needs CUDA"}
    assert {row["line"].split()[0] for row in rows} == (set(gpu.LINES) - {"compiled"}) | {"time"}
    for row in rows:
        if row["what"].startswith(("fit, ", "bare loop", "2 Heun")):
            assert min(row["limit"], row["seconds"]) > 0, row
    fits = [row for row in rows if row["what"] == "fit, compiled" and row["line"] == "edm"]
    assert set(fits[0]["times"]) == {"bare loop, fp32", "bare loop, TF32", "bare loop, fp16",
                                     "fit, not compiled"}  # fmt: skip
    assert sum(row["what"].startswith("slowest: ") for row in rows) == 5


def test_only_some_lines_and_no_time(tmp_path):
    import gpu

    words = ["--out", str(tmp_path), "--device", "cpu", "--tiny", "--only", "neighbours"]
    gpu.main([*words, "--seconds", "0.5"])
    rows = rows_of(tmp_path)
    assert {row["line"] for row in rows} == {"limits", "neighbours", "time"}
    assert all(row.get("error", "").startswith("skipped: ") for row in rows[:-1])
