"""The least time that a network can take on a card: counted layer by layer, without running it.

    limit = sum over layers of max(FLOPs / rate, bytes / bandwidth)

with the rate and the bandwidth that were measured on the card. `layers` runs the network on torch's
meta device, which has shapes and no numbers, and writes down what each operator must do:

convolutions and products  2 FLOPs a multiplication; what they read and write, weights included
attention                  its products' FLOPs. Its queries, keys and values are counted with the
                           layers that make them, and no matrix of weights need be written
normalisations             what they read and write; backward they read x and the gradient
all others                 nothing: they can be done where a neighbour reads or writes
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """What one operator must do: FLOPs and bytes; `name` says its kind and its shape.

    shape  of a convolution (channels in, channels out, H of what it reads, kernel, stride, groups),
           by which it can be measured
    """

    kind: str
    name: str
    flops: int
    bytes: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rates:
    """What a card was measured to do: FLOP/s of products and of convolutions, bytes/s.

    own  of those convolutions that were measured by themselves, FLOP/s by (kind, shape)
    """

    product: float
    convolution: float
    bandwidth: float
    own: dict[tuple[str, tuple[int, ...]], float]

    def of(self, layer: Layer) -> float:
        if not layer.kind.startswith("convolution"):
            return self.product
        return self.own.get((layer.kind, layer.shape), self.convolution)

    def seconds(self, layer: Layer) -> float:
        """The limit of one layer."""
        return max(layer.flops / self.of(layer), layer.bytes / self.bandwidth)

    def limit(self, layers: Iterable[Layer]) -> float:
        """Seconds that all of them take at least."""
        return sum(map(self.seconds, layers))

    def by_kind(self, layers: Iterable[Layer]) -> dict[str, float]:
        found: dict[str, float] = {}
        for layer in layers:
            found[layer.kind] = found.get(layer.kind, 0.0) + self.seconds(layer)
        return found

    def ideal(self) -> "Rates":
        """The same card, if its convolutions were as fast as its products."""
        return replace(self, convolution=self.product, own={})


class Counted(TorchDispatchMode):
    """Writes down the layers of what runs within it, of numbers of `size` bytes."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.layers = size, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        count = COUNTS.get(function.overloadpacket)
        if count is not None:
            self.layers.append(count(args, out, self.size))
        return out


def layers(run: Callable[[], Tensor], *, size: int, training: bool) -> list[Layer]:
    """Those of `run`, on the meta device, and where it is trained those of its backward pass."""
    with torch.set_grad_enabled(training), torch.device("meta"), Counted(size) as counted:
        out = run()
        if training:
            out.sum().backward()
    return counted.layers


def optimiser(net: nn.Module, *, averages: int) -> Layer:
    """A step of Adam and of the averages, in float32.

    Read: the gradient for its norm; weights, gradient and both moments; weights and each average.
    Written: weights and both moments; each average.
    """
    numbers = sum(p.numel() for p in net.parameters())
    return Layer("optimiser", "optimiser", 0, 4 * numbers * (1 + 7 + 3 * averages))


def _bytes(size: int, *shapes: Any) -> int:
    return size * sum(prod(shape) for shape in shapes)


def _convolution(args: tuple, out: Tensor, size: int) -> Layer:
    x, weight = args[:2]
    shape = _shape(x, weight, args[3], args[6], args[8])
    flops = _flops(x, out, weight, transposed=args[6])
    moved = _bytes(size, x.shape, weight.shape, out.shape)
    return Layer("convolution", _name(*shape), flops, moved, shape)


def _convolution_backward(args: tuple, out: tuple, size: int) -> Layer:
    gradient, x, weight = args[:3]
    one = _flops(x, gradient, weight, transposed=args[7])
    moved = _bytes(size, gradient.shape, x.shape, weight.shape)  # three read or written, each time
    times = sum(args[10][:2])  # to its input, and to its weights
    shape = _shape(x, weight, args[4], args[7], args[9])
    return Layer("convolution backward", _name(*shape), times * one, times * moved, shape)


def _flops(x: Tensor, out: Tensor, weight: Tensor, *, transposed: bool) -> int:
    return 2 * (x if transposed else out).numel() * weight[0].numel()


def _shape(x: Tensor, weight: Tensor, stride: list, transposed: bool, groups: int) -> tuple:
    before, after = x.shape[1], weight.shape[1] * groups if transposed else weight.shape[0]
    step = -stride[0] if transposed else stride[0]
    return before, after, x.shape[2], weight.shape[2], step, groups


def _name(before: int, after: int, height: int, kernel: int, step: int, groups: int) -> str:
    what = f"{kernel}x{kernel} {before}->{after} at {height}x{height}"
    what += f", {groups} groups" if groups > 1 else ""
    return what if step == 1 else what + (f", by {step}" if step > 0 else f", to {-step} times")


def _product(a: Tensor, b: Tensor, size: int) -> Layer:
    (n, k), m = a.shape, b.shape[1]
    return Layer("product", f"{n}x{k}x{m}", 2 * n * k * m, _bytes(size, (n, k), (k, m), (n, m)))


def _attention(args: tuple, out: Tensor, size: int) -> Layer:
    (b, n, k), m = args[0].shape, args[1].shape[2]
    return Layer("attention", f"{b}x{n}x{k}x{m}", 2 * b * n * k * m, 0)


def _normalisation(args: tuple, out: tuple, size: int) -> Layer:
    shape = tuple(args[0].shape)
    return Layer("normalisation", _at(shape), 0, _bytes(size, shape, shape))


def _normalisation_backward(args: tuple, out: tuple, size: int) -> Layer:
    shape = tuple(args[0].shape)
    return Layer("normalisation backward", _at(shape), 0, _bytes(size, shape, shape, shape))


def _at(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))


COUNTS = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.mm: lambda args, out, size: _product(*args[:2], size),
    aten.addmm: lambda args, out, size: _product(*args[1:3], size),
    aten.bmm: _attention,
    aten.native_group_norm: _normalisation,
    aten.native_group_norm_backward: _normalisation_backward,
    aten.native_layer_norm: _normalisation,
    aten.native_layer_norm_backward: _normalisation_backward,
}
