"""What a GPU makes of everything that is slow, in minutes: a table as text and as JSON.

    python benchmarks/gpu.py --out runs/gpu --seconds 290
    python benchmarks/gpu.py --out runs/gpu --only edm sampling
    python benchmarks/gpu.py --out runs/tiny --device cpu --tiny       whether it runs, in a minute

limits      what the card does at most: products, copies, 3x3 convolutions at the networks' shapes
edm         a training step of conf/cifar_edm.yaml, batch 512: bare loops in EDM's precisions, `fit`
            without and with compilation, with Lightning's loop and without; its kernels by kind
sampling    classifier-free guidance: one batch of both passes or two, by its size; 18 Heun steps
adm         training steps of conf/mnist.yaml and conf/cifar_flow.yaml, not compiled
fractal     the MLP of conf/fractal_base.yaml, batch 1024, 4096: a plain loop, a CUDA graph, `fit`
neighbours  exact ones of 50,000 points in 50,000, in 3072 dimensions
features    Inception, and the layout of DINOv2's ViT-L/14, in float32
compiled    what takes long to compile, as far as there is time: adm, fractal, sampling in TF32

They come in this order, each row as soon as it is measured, and gpu.txt and gpu.json in --out are
whole after each. A row whose time would not suffice is skipped and says so; one that fails says
why, and the next ones run. Images are noise and weights are random: neither changes the time.

Seconds are medians with their range, by a clock that waits for the device, after a warm-up. Each
row says how many times faster than an alternative of the same run it is, and how many times the
card's limit it takes: roofline.py counts that, with the rates of `limits`. Targets: 1.6 for
training, 1.4 for sampling. A convolution's own limit is what cuDNN reaches at its shape, or of
those in use the usual; in brackets stands the limit if convolutions were as fast as products.
"""

import time

START = time.monotonic()  # importing takes seconds that count

import argparse  # noqa: E402
import contextlib  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from importlib.metadata import PackageNotFoundError, version  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import gpu_points  # noqa: E402
import gpu_sampling  # noqa: E402
import gpu_search  # noqa: E402
import torch  # noqa: E402
from gpu_card import Card, most_used  # noqa: E402
from gpu_table import Found, Table, timed  # noqa: E402
from gpu_training import COUNTED, Fitted, Task, bare, fitted, kind_of, look  # noqa: E402
from roofline import Layer  # noqa: E402

from lightning_cfg.diffusion.draws import Draws, onto  # noqa: E402

FIT = {  # what `speed_of` gives on CUDA: of images, and of points
    "images": {"precision": "bf16-mixed", "channels_last": True, "matmul_precision": "high"},
    "points": {"precision": "32-true", "channels_last": False, "matmul_precision": "highest"},
}
TRAINING, SAMPLING = 1.6, 1.4  # targets, times the limit
SIZES = (16, 32, 64, 128, 256, 512, 1024)  # samples that are guided at once


class Bench:
    """What all lines share: the device, the table, the card's rates, the tasks, what was found."""

    def __init__(self, table: Table, device: torch.device, *, tiny: bool):
        self.table, self.device, self.tiny = table, device, tiny
        self.card = Card(device, seconds=0.01 if tiny else 0.3)
        self.found: dict[str, Found | None] = {}

    @functools.cached_property
    def edm(self) -> Task:
        small = {"channels": 32, "blocks": 1, "channel_mult": [1, 1]}
        shape = (3, 16, 16) if self.tiny else (3, 32, 32)
        return Task.of("cifar_edm.yaml", shape, tiny=self.tiny, net=small, batch=4)

    @functools.cache  # noqa: B019
    def adm(self, name: str) -> Task:
        small = {"channels": 32, "blocks": 1, "channel_mult": [1, 1], "head_channels": 32}
        shape = {"mnist": (1, 28, 28), "cifar_flow": (3, 32, 32)}[name]
        shape = (shape[0], 8, 8) if self.tiny else shape
        return Task.of(f"{name}.yaml", shape, tiny=self.tiny, net=small, batch=4)

    @functools.cached_property
    def fractal(self) -> Task:
        return Task.of("fractal_base.yaml", (2,), tiny=self.tiny, net={"width": 16}, batch=16)

    def limit(self, layers: list[Layer], precision: str) -> float | None:
        return self.card.limit(layers, precision)

    def target(self, found: Found, target: float) -> None:
        """Whether it is met is told in the note."""
        if found.limit:
            met = "met" if found.seconds <= target * found.limit else "MISSED"
            found.note = f"{found.note} target {target}: {met}".strip()

    def ideal(self, layers: list[Layer], precision: str, seconds: float) -> str:
        """How many times the limit it takes that there would be if convolutions were products."""
        rates = self.card.rates(precision)
        return (
            "" if rates is None else f"[{seconds / rates.ideal().limit(layers):.2f} x by products]"
        )

    def fit(
        self, line: str, name: str, task: Task, kind: str, *, compile: bool, needs: float,
        than: tuple[str, ...] = (), mode: str | None = None, look: Callable | None = None,
    ) -> Fitted | None:  # fmt: skip
        """Rows of `fit`'s step: within Lightning's loop, and without it."""
        table, rate = self.table, "bf16" if kind == "images" else "fp32"
        layers = task.layers(size=2 if rate == "bf16" else 4)
        limit, whole = self.limit(layers, rate), []

        def within() -> Found:
            speed = {**FIT[kind], "compile": compile}
            whole.append(fitted(task, self.device, speed, mode=mode, look=look,
                                pairs=2 if self.tiny else 3))  # fmt: skip
            spread = whole[0].lightning
            found = Found.rate(spread, task.batch, "images", limit=limit,
                               compile=whole[0].first if compile else None)  # fmt: skip
            found.note = self.ideal(layers, rate, spread.median)
            if compile and kind == "images":
                self.target(found, TRAINING)
            return found

        others = {other: self.found.get(f"{line} {other}") for other in than}
        found = table.measure(line, f"fit, {name}", within, needs=needs, than=others)
        self.found[f"{line} fit, {name}"] = found
        if found is None:
            return None
        own = whole[0].own
        table.tell(
            line, f"the same without Lightning's loop, {name}", value=vars(own.rate(task.batch)),
            unit="images/s", seconds=own.median, limit=limit,
            times={"with it": found.seconds / own.median},
        )  # fmt: skip
        return whole[0]


def limits(bench: Bench) -> None:
    task = bench.edm
    shapes = most_used(task.layers(size=2, training=False), 4)
    n, batch = (64, 4) if bench.tiny else (8192, task.batch)
    bench.card.measure(bench.table, shapes, n=n, batch=batch)


def edm(bench: Bench) -> None:
    task, table, device = bench.edm, bench.table, bench.device
    ways = {
        "bare loop, fp32": (False, True, "fp32", 12),
        "bare loop, TF32": (False, False, "tf32", 8),
        "bare loop, fp16": (True, False, "fp16", 8),
    }
    for name, (half, precise, rate, needs) in ways.items():
        layers = task.layers(size=2 if half else 4)

        def measured(half=half, precise=precise, rate=rate, layers=layers) -> Found:
            found = bare(task, device, half=half, precise=precise)
            found.limit = bench.limit(layers, rate)
            return found

        than = {"bare loop, fp32": bench.found.get("edm bare loop, fp32")}
        bench.found[f"edm {name}"] = table.measure("edm", name, measured, needs=needs, than=than)
    bench.fit("edm", "not compiled", task, "images", compile=False, needs=15, than=tuple(ways))
    done = bench.fit(
        "edm", "compiled", task, "images", compile=True, needs=60,
        than=(*ways, "fit, not compiled"), look=look,
    )  # fmt: skip
    sent(bench)
    if done is not None and "error" in done.looked:
        bench.table.tell("edm", "kernels", error=done.looked["error"])
    elif done is not None:
        tell_kernels(bench, task, done)


def sent(bench: Bench) -> None:
    """What a step takes of the host before the network: its images, augmented, and its noise.

    The number of images that are warped is another at each step, and cuDNN looks at each new one
    anew: what that takes is seen beside the same step again and again.
    """
    task, device, table = bench.edm, bench.device, bench.table
    task.data.to(device)
    steps, seconds = itertools.count(), 0.0 if bench.tiny else 0.5

    def batch(step: Callable[[], int]) -> Found:
        def made() -> object:
            return task.data.batch(Draws(seed=2, step=step(), batch_size=task.batch))

        return Found.rate(timed(made, device, seconds=seconds), task.batch, "images")

    def noise() -> Found:
        def made() -> object:
            draws = Draws(seed=2, step=0, batch_size=task.batch)
            return onto(draws.normal(*task.data.shape), device)

        return Found.rate(timed(made, device, seconds=seconds), task.batch, "images")

    same = table.measure("edm", "the images of one step, again", lambda: batch(lambda: 0), needs=2)
    table.measure("edm", "the images of new steps", lambda: batch(lambda: next(steps)), needs=2,
                  than={"the same again": same})  # fmt: skip
    table.measure("edm", "the noise of a step, drawn and sent", noise, needs=2)


def tell_kernels(bench: Bench, task: Task, done: Fitted) -> None:
    """A row per kind of kernel with what it loses to the limit, the slowest ones, the waits."""
    kernels, table = done.looked["kernels"], bench.table
    kinds: dict[str, float] = {}
    for name, seconds in kernels.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + seconds
    least: dict[str, float] = {}
    if rates := bench.card.rates("bf16"):
        for kind, seconds in rates.by_kind(task.layers(size=2)).items():
            least[COUNTED[kind]] = least.get(COUNTED[kind], 0.0) + seconds
    lost = {kind: seconds - least.get(kind, 0.0) for kind, seconds in kinds.items()}
    lost["nothing, while the device waits"] = done.own.median - sum(kernels.values())
    for kind in sorted(lost, key=lost.__getitem__, reverse=True):
        seconds = kinds.get(kind, lost[kind])
        row = {"value": {"median": 1e3 * lost[kind]}, "unit": "ms lost of", "seconds": seconds}
        row["value"] |= {"low": 1e3 * lost[kind], "high": 1e3 * lost[kind]}
        table.tell("edm", f"kernels: {kind}", **row, limit=least.get(kind))
    for name in sorted(kernels, key=kernels.__getitem__, reverse=True)[:5]:
        what = f"{kind_of(name)}, of one step {sum(kernels.values()):.4g} s"
        table.tell("edm", f"slowest: {name[:120]}", seconds=kernels[name], note=what)
    waits = ", ".join(f"{place} ({n})" for place, n in done.looked["waits"].items())
    table.tell("edm", "places where a step waits for the device", note=waits or "none seen")


def sampling(bench: Bench) -> None:
    """One batch or two by size, not compiled; then whole samples."""
    task, device, table = bench.edm, bench.device, bench.table
    sizes = (2, 4) if bench.tiny else SIZES
    model = gpu_sampling.model_of(task, device, channels_last=True, compiled=False)
    for precision in ("bf16", "tf32"):
        for size in sizes if precision == "bf16" else sizes[::2]:
            each = functools.partial(
                gpu_sampling.evaluated, task, model, device, size, precision=precision,
                seconds=0.0 if bench.tiny else 0.2,
            )  # fmt: skip
            two = table.measure("sampling", f"CFG of {size}, two passes, {precision}",
                                functools.partial(each, together=False), needs=2)  # fmt: skip
            table.measure("sampling", f"CFG of {size}, one batch, {precision}",
                          functools.partial(each, together=True), needs=2,
                          than={"two passes": two})  # fmt: skip
    del model
    plain = whole(bench, "as generate runs it", None, needs=8, channels_last=False, together=False)
    tf32 = whole(bench, "channels-last, tf32", "tf32", needs=8, than={"generate": plain})
    bf16 = whole(bench, "channels-last, bf16", "bf16", needs=8, than={"generate": plain})
    whole(bench, "compiled, bf16", "bf16", needs=30, compiled=True, repeats=3,
          than={"generate": plain, "not compiled": bf16})  # fmt: skip
    bench.found |= {"generate": plain, "sampling tf32": tf32}


def whole(
    bench: Bench, name: str, precision: str | None, *, needs: float, than: dict | None = None,
    together: bool = True, **how: object,
) -> Found | None:  # fmt: skip
    """A row of whole samples."""
    task, (batch, steps) = bench.edm, (2, 2) if bench.tiny else (128, 18)
    rate = precision or "tf32"
    layers = task.layers(size=2 if rate == "bf16" else 4, training=False, batch=2 * batch)
    one = bench.limit(layers, rate)
    limit = None if one is None else (2 * steps - 1) * one
    make = functools.partial(
        gpu_sampling.generated, task, bench.device, batch, steps=steps, together=together,
        precision=precision, limit=limit, **how,
    )  # fmt: skip

    def measured() -> Found:
        found = make()
        if how.get("compiled"):
            bench.target(found, SAMPLING)
        return found

    what = f"{steps} Heun steps of {batch}, CFG, {name}"
    return bench.table.measure("sampling", what, measured, needs=needs, than=than)


def adm(bench: Bench) -> None:
    for name in ("mnist", "cifar_flow"):
        task, line = bench.adm(name), f"adm {name}"

        def measured(task=task) -> Found:
            found = bare(task, bench.device, half=False, precise=False)
            found.limit = bench.limit(task.layers(size=4), "tf32")
            return found

        what = "bare loop, TF32"
        bench.found[f"{line} {what}"] = bench.table.measure(line, what, measured, needs=6)
        bench.fit(line, "not compiled", task, "images", compile=False, needs=8,
                  than=("bare loop, TF32",))  # fmt: skip


def fractal(bench: Bench) -> None:
    for size in (16, 32) if bench.tiny else (1024, 4096):
        task, line = bench.fractal.sized(size), f"fractal {size}"
        limit = bench.limit(task.layers(size=4), "fp32")
        for name, graph in (("plain loop", False), ("plain loop, one CUDA graph", True)):
            than = {"plain loop": bench.found.get(f"{line} plain loop")}
            bench.found[f"{line} {name}"] = bench.table.measure(
                line, name, functools.partial(gpu_points.plain, task, bench.device, graph=graph,
                                              limit=limit), needs=4, than=than,
            )  # fmt: skip
        bench.fit(line, "not compiled", task, "points", compile=False, needs=6,
                  than=("plain loop", "plain loop, one CUDA graph"))  # fmt: skip


def neighbours(bench: Bench) -> None:
    n, d = (200, 48) if bench.tiny else (50_000, 3072)
    rate = bench.card.products.get("fp32")
    search = functools.partial(gpu_search.searched, n=n, d=d, device=bench.device, rate=rate)
    what = f"{n:,} in {n:,} of {d} dimensions"
    plain = bench.table.measure("neighbours", f"{what}, torch.cdist and topk",
                                lambda: search(False), needs=8)  # fmt: skip
    bench.table.measure("neighbours", f"{what}, ours, exact", lambda: search(True), needs=20,
                        than={"torch.cdist": plain})  # fmt: skip


def features(bench: Bench) -> None:
    images, table = 2 if bench.tiny else 256, bench.table
    spaces = {
        "Inception": gpu_search.random_inception,
        "ViT-L/14": functools.partial(gpu_search.vit, tiny=bench.tiny),
    }
    for name, make in spaces.items():
        made = functools.cache(make)
        layers = functools.cache(lambda made=made: gpu_search.space_layers(made(), images))
        plain = None
        for how in ("plain", "ours", "tf32"):

            def measured(how=how, made=made, layers=layers) -> Found:
                limit = bench.limit(layers(), "tf32" if how == "tf32" else "fp32")
                return gpu_search.extracted(made(), images, bench.device, how=how, limit=limit)

            than = {"plain": plain} if how != "plain" else {}
            what = {"plain": "plain fp32", "ours": "ours", "tf32": "plain, TF32"}[how]
            found = table.measure("features", f"{name}, {what}", measured, needs=6, than=than)
            plain = found if how == "plain" else plain


def compiled(bench: Bench) -> None:
    task = bench.fractal.sized(16 if bench.tiny else 1024)
    line = f"fractal {task.batch}"
    for mode in (None, "reduce-overhead"):
        bench.fit(line, f"compiled{', ' + mode if mode else ''}", task, "points", compile=True,
                  mode=mode, needs=15, than=("plain loop", "fit, not compiled"))  # fmt: skip
    for name, needs in (("mnist", 30), ("cifar_flow", 45)):
        bench.fit(f"adm {name}", "compiled", bench.adm(name), "images", compile=True, needs=needs,
                  than=("bare loop, TF32", "fit, not compiled"))  # fmt: skip
    whole(bench, "compiled, tf32", "tf32", needs=30, compiled=True,
          than={"generate": bench.found.get("generate"),
                "not compiled": bench.found.get("sampling tf32")})  # fmt: skip


LINES = {
    line.__name__: line
    for line in (limits, edm, sampling, adm, fractal, neighbours, features, compiled)
}


def about(device: torch.device) -> dict[str, object]:
    """The card, its driver and clocks, the versions and the commit, as far as they are known."""
    found: dict[str, object] = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        found[query] = _said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        found["CUDA"], found["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("lightning", "triton", "faiss-cpu", "torchvision"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    found["commit"] = _said("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")
    found["cores"] = os.cpu_count()
    return {name: value for name, value in found.items() if value}


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextlib.contextmanager
def traced_only() -> Iterator[None]:
    """torch.compile reads the code and compiles nothing: whether it can be read, in seconds."""
    compile = torch.compile

    def traced(function: object, **how: object) -> object:
        return compile(function, backend="eager", dynamic=how.get("dynamic"))

    with mock.patch.object(torch, "compile", traced):
        yield


def main(words: list[str] | None = None, *, start: float | None = None) -> Table:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.txt and gpu.json")
    parser.add_argument("--seconds", type=float, default=290.0, help="for all, imports included")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to try it")
    parser.add_argument("--only", nargs="+", choices=LINES, help="limits come with all of them")
    asked = parser.parse_args(words)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --tiny tries it without")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    start = time.monotonic() if start is None else start
    table = Table(asked.out, about(device), device, start + asked.seconds)
    bench = Bench(table, device, tiny=asked.tiny)
    chosen = [name for name in LINES if not asked.only or name in (*asked.only, "limits")]
    with table.ended_by_force(), traced_only() if asked.tiny else contextlib.nullcontext():
        for name in chosen:
            try:
                LINES[name](bench)
            except Exception as error:  # of what a row does not catch: the next lines run
                table.tell(name, "as a whole", error=f"{type(error).__name__}: {error}")
    table.tell("time", "in all", note=f"{time.monotonic() - start:.0f} s of {asked.seconds:.0f}")
    return table


if __name__ == "__main__":
    gc.freeze()  # what was imported stays, and is not gone through after every row
    main(start=START)
