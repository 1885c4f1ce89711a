"""What a card can do at most, measured: products, convolutions at the networks' shapes, copies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

import torch
from gpu_table import Found, Table, timed
from roofline import Layer, Rates
from torch import Tensor

from lightning_cfg.runs.precision import matmul

PRECISIONS = {  # of a product: the numbers' type, and how float32 is multiplied
    "bf16": (torch.bfloat16, "high"),
    "fp16": (torch.float16, "high"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}


@contextmanager
def at(precision: str, device: torch.device) -> Iterator[None]:
    """Networks of float32 weights run at this precision, by autocast where it is a half one."""
    dtype, how = PRECISIONS[precision]
    half = dtype != torch.float32
    with matmul(how), torch.autocast(device.type, dtype) if half else nullcontext():
        yield


class Card:
    """The rates of a device; those that could not be measured are missing."""

    def __init__(self, device: torch.device, *, seconds: float = 0.3):
        self.device, self.bandwidth, self.seconds = device, 0.0, seconds  # of a measurement
        self.products: dict[str, float] = {}
        self.convolutions: dict[str, dict[tuple, float]] = {name: {} for name in PRECISIONS}

    def rates(self, precision: str) -> Rates | None:
        """What a network at this precision is held against; None where it was not measured."""
        if precision not in self.products or not self.bandwidth:
            return None
        product, own = self.products[precision], self.convolutions[precision]
        usual = median(own.values()) if own else product
        return Rates(product, usual, self.bandwidth, own)

    def limit(self, layers: list[Layer], precision: str) -> float | None:
        rates = self.rates(precision)
        return None if rates is None else rates.limit(layers)

    def measure(self, table: Table, shapes: list[tuple], *, n: int, batch: int) -> None:
        """Rows of products of n x n, of copies, and of 3x3 convolutions of these shapes."""
        for name in PRECISIONS:
            found = table.measure(
                "limits", f"product of {n}x{n}, {name}", lambda name=name: self._product(name, n),
                needs=2,
            )  # fmt: skip
            if found:
                self.products[name] = 1e12 * found.value.high
        found = table.measure("limits", "copy", lambda: self._copied(n), needs=2)
        if found:
            self.bandwidth = 1e9 * found.value.high
        # the first shape at every precision, so that no limit goes without
        for number, shape in enumerate(shapes):
            for name in ("bf16", "tf32", "fp32", "fp16") if number == 0 else ("bf16", "tf32"):
                for kind in ("convolution", "convolution backward"):
                    self._convolution(table, name, kind, shape, batch)

    def _product(self, name: str, n: int) -> Found:
        dtype, how = PRECISIONS[name]
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        with matmul(how):
            seconds = timed(lambda: a @ b, self.device, seconds=self.seconds)
        return Found(seconds.rate(2e-12 * n**3), "TFLOP/s", seconds.median)

    def _copied(self, n: int) -> Found:
        a = torch.randn(4 * n * n, device=self.device)
        b = torch.empty_like(a)
        seconds = timed(lambda: b.copy_(a), self.device, seconds=self.seconds)
        return Found(seconds.rate(2e-9 * a.nbytes), "GB/s read and written", seconds.median)

    def _convolution(self, table: Table, name: str, kind: str, shape: tuple, batch: int) -> None:
        before, after, height, *_ = shape
        found = table.measure(
            "limits", f"{kind} 3x3 {before}->{after} at {height}x{height}, {name}",
            lambda: self._convolved(name, kind, shape, batch), needs=2,
        )  # fmt: skip
        if found:
            self.convolutions[name][kind, shape] = 1e12 * found.value.high

    def _convolved(self, name: str, kind: str, shape: tuple, batch: int) -> Found:
        """The faster of cuDNN's own choice and of trying its ways (benchmark)."""
        before, after, height, *_ = shape
        (dtype, how), channels_last = PRECISIONS[name], torch.channels_last

        def random(*size: int) -> Tensor:
            x = torch.randn(*size, device=self.device).to(dtype)
            return x.contiguous(memory_format=channels_last)

        x, weight = random(batch, before, height, height), random(after, before, 3, 3)
        gradient, flops = random(batch, after, height, height), 2 * 9 * before * after
        flops *= batch * height**2

        def run() -> object:
            if kind == "convolution":
                return torch.nn.functional.conv2d(x, weight, padding=1)
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                [True, True, False],
            )  # fmt: skip

        times = 1 if kind == "convolution" else 2
        with matmul(how):
            chosen, tried = (self._with_benchmark(on, run) for on in (False, True))
        best = min(chosen, tried, key=lambda spread: spread.median)
        ratio = chosen.median / tried.median
        rate = best.rate(1e-12 * times * flops)
        return Found(rate, "TFLOP/s", best.median, note=f"cudnn.benchmark {ratio:.2f} times none")

    def _with_benchmark(self, on: bool, run: Callable):
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = on
        try:
            return timed(run, self.device, seconds=self.seconds / 6, repeats=3)
        finally:
            torch.backends.cudnn.benchmark = before


def most_used(layers: list[Layer], count: int) -> list[tuple]:
    """The shapes of the 3x3 convolutions, without a change of size, that have the most FLOPs."""
    flops: dict[tuple, int] = {}
    for layer in layers:
        if layer.kind == "convolution" and layer.shape[3:] == (3, 1, 1):
            flops[layer.shape] = flops.get(layer.shape, 0) + layer.flops
    return sorted(flops, key=flops.__getitem__, reverse=True)[:count]
