"""Pickles in the layout of NVIDIA's, with a trap in the place of each class's source."""

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from helpers import adm

TRAP = "open('executed.txt', 'w').write('x')\nraise SystemExit"


class Persistent:
    """Pickled, it is a call of torch_utils.persistence."""

    def __init__(self, class_name: str, state: dict):
        self.meta = {"type": "class", "version": 6, "module_src": TRAP}
        self.meta |= {"class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module(
    weights: dict[str, Tensor], class_name: str, made_with: dict, inner: dict, **attributes: object
) -> Persistent:
    """A module of these weights; `inner` has (class name, keywords) of modules by their names."""
    children: dict[str, dict] = {}
    parameters = OrderedDict()
    for name, weight in weights.items():
        first, dot, rest = name.partition(".")
        if dot:
            children.setdefault(first, {})[rest] = weight
        else:
            parameters[name] = torch.nn.Parameter(weight, requires_grad=False)
    modules = OrderedDict()
    for name, held in children.items():
        modules[name] = module(held, *inner.get(name, ("Any", {})), inner={})
    state = {"training": False, "_parameters": parameters, "_buffers": OrderedDict()}
    state["_non_persistent_buffers_set"] = set()
    state |= {"_modules": modules, "_init_args": (), "_init_kwargs": made_with, **attributes}
    return Persistent(class_name, state)


def write(path: Path, protocol: int = 4, **held: object) -> Path:
    """A dict in a pickle, as NVIDIA's training loop writes it."""
    names = ("torch_utils", "torch_utils.persistence")
    before = {name: sys.modules.get(name) for name in names}
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: dict) -> None:
        raise AssertionError

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules.update({names[0]: types.ModuleType(names[0]), names[1]: persistence})
    try:
        with open(path, "wb") as file:
            pickle.Pickler(file, protocol).dump(held)
    finally:
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old
    return path


def edm(
    path: Path, weights: dict[str, Tensor], net: str, keywords: dict, shape: tuple, classes: int,
    class_name: str = "EDMPrecond", protocol: int = 4, **attributes: object,
) -> Path:  # fmt: skip
    """A snapshot of EDM's: `weights` in its own names, `keywords` of the network in it."""
    data = {"img_resolution": shape[-1], "img_channels": shape[0], "label_dim": classes}
    inner = {"model": (net, {**data, **keywords})}
    attributes = {**data, "sigma_data": 0.5, **attributes}
    made = {**data, "model_type": net, **keywords}
    return write(path, protocol, ema=module(weights, class_name, made, inner, **attributes))


def dhariwal(state: dict[str, Tensor], x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
    """EDM's DhariwalUNet written out, by its names: of each channel of qkv its q, k and v."""
    conv, linear, norm, silu = adm.conv, adm.linear, adm.norm, adm.silu

    def block(name: str, x: Tensor, way: str) -> Tensor:
        h = adm.resample(silu(norm(state, f"{name}.norm0", x)), way)
        h, x = conv(state, f"{name}.conv0", h), adm.resample(x, way)
        scale, shift = linear(state, f"{name}.affine", embedding)[:, :, None, None].chunk(2, 1)
        h = silu(norm(state, f"{name}.norm1", h) * (scale + 1) + shift)
        h = conv(state, f"{name}.conv1", h)
        x = h + (conv(state, f"{name}.skip", x) if f"{name}.skip.weight" in state else x)
        if f"{name}.qkv.weight" not in state:
            return x
        qkv = conv(state, f"{name}.qkv", norm(state, f"{name}.norm2", x)).flatten(2)
        heads = []
        for rows in qkv.split(3 * 64, 1):
            q, k, v = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]
            heads.append(v @ (q.mT @ k / 8).softmax(2).mT)
        return x + conv(state, f"{name}.proj", torch.cat(heads, 1).reshape(x.shape))

    features = adm.time_features(noise, state["map_layer0.weight"].shape[1])
    embedding = linear(state, "map_layer1", silu(linear(state, "map_layer0", features)))
    if labels is not None:
        embedding = embedding + labels @ state["map_label.weight"].T
    embedding = silu(embedding)
    inside = [name for name in state if name.startswith(("enc.", "dec."))]
    names = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in inside))
    skips = []
    for name in names:
        way = "down" if name.endswith("_down") else "up" if name.endswith("_up") else ""
        if name.startswith("enc."):
            x = conv(state, name, x) if name.endswith("_conv") else block(name, x, way)
            skips.append(x)
        else:
            x = torch.cat([x, skips.pop()], 1) if "_block" in name else x
            x = block(name, x, way)
    return conv(state, "out_conv", silu(norm(state, "out_norm", x)))


def dhariwal_weights(
    shape: tuple, classes: int, channels: int, mult: list[int], blocks: int, attention: list[int]
) -> dict[str, Tensor]:
    """Random weights of such a network, in its order of names."""
    g = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    width = 4 * channels

    def layer(name: str, *size: int, bias: bool = True) -> None:
        n = max(1, torch.tensor(size[1:]).prod().item())
        found[f"{name}.weight"] = torch.randn(size, generator=g) / n**0.5
        if bias:
            found[f"{name}.bias"] = torch.randn(size[0], generator=g) * 0.1

    def group(name: str, n: int) -> None:
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(n, generator=g)
        found[f"{name}.bias"] = 0.1 * torch.randn(n, generator=g)

    def block(name: str, before: int, after: int, attends: bool = False, way: str = "") -> None:
        group(f"{name}.norm0", before)
        layer(f"{name}.conv0", after, before, 3, 3)
        if way:
            found[f"{name}.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
            found[f"{name}.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        layer(f"{name}.affine", 2 * after, width)
        group(f"{name}.norm1", after)
        layer(f"{name}.conv1", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip", after, before, 1, 1)
        if attends:
            group(f"{name}.norm2", after)
            layer(f"{name}.qkv", 3 * after, after, 1, 1)
            layer(f"{name}.proj", after, after, 1, 1)

    layer("map_layer0", width, channels)
    layer("map_layer1", width, width)
    if classes:
        layer("map_label", width, classes, bias=False)
    before, skips = shape[0], []
    for level, m in enumerate(mult):
        r, after = shape[-1] >> level, channels * m
        if level == 0:
            layer(f"enc.{r}x{r}_conv", after, before, 3, 3)
            before = after
        else:
            block(f"enc.{r}x{r}_down", before, before, way="down")
        skips.append(before)
        for i in range(blocks):
            block(f"enc.{r}x{r}_block{i}", before, after, r in attention)
            before = after
            skips.append(before)
    for level, m in reversed(list(enumerate(mult))):
        r, after = shape[-1] >> level, channels * m
        if level == len(mult) - 1:
            block(f"dec.{r}x{r}_in0", before, before, True)
            block(f"dec.{r}x{r}_in1", before, before)
        else:
            block(f"dec.{r}x{r}_up", before, before, way="up")
        for i in range(blocks + 1):
            block(f"dec.{r}x{r}_block{i}", before + skips.pop(), after, r in attention)
            before = after
    group("out_norm", before)
    layer("out_conv", shape[0], before, 3, 3)
    return found
