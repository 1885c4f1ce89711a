"""Dhariwal & Nichol's UNet written out from their paper, by the names of its weights, and slowly.

Nothing is shared with the package: norms, attention, the embedding of time and the resampling are
sums and loops. No output of the original with these options is at hand, so this stands for it.
"""

import math
import re

import torch
from torch import Tensor

State = dict[str, Tensor]


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    w, b = state[f"{name}.weight"], state[f"{name}.bias"]
    pad = w.shape[-1] // 2
    return torch.nn.functional.conv2d(x, w, b, stride=stride, padding=pad)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def norm(state: State, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
    h = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    shape = (-1, *[1] * (x.ndim - 2))
    return h * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape)


def resample(x: Tensor, way: str) -> Tensor:
    if way == "down":
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if way == "up" else x


def residual(state: State, name: str, x: Tensor, embedding: Tensor, way: str) -> Tensor:
    h = resample(silu(norm(state, f"{name}.in_layers.0", x)), way)
    h, x = conv(state, f"{name}.in_layers.2", h), resample(x, way)
    told = linear(state, f"{name}.emb_layers.1", silu(embedding))[:, :, None, None]
    n = h.shape[1]
    if told.shape[1] == 2 * n:  # a scale and a shift
        h = norm(state, f"{name}.out_layers.0", h) * (1 + told[:, :n]) + told[:, n:]
    else:
        h = norm(state, f"{name}.out_layers.0", h + told)
    h = conv(state, f"{name}.out_layers.3", silu(h))
    return h + (conv(state, f"{name}.skip_connection", x) if h.shape[1] != x.shape[1] else x)


def attention(state: State, name: str, x: Tensor, head_channels: int, new_order: bool) -> Tensor:
    n, positions = x.shape[1], x.flatten(2)
    h = norm(state, f"{name}.norm", positions)
    w, b = state[f"{name}.qkv.weight"].squeeze(-1), state[f"{name}.qkv.bias"]
    qkv = w @ h + b[:, None]
    out = []
    for head in range(n // head_channels):
        if new_order:  # all queries, then all keys, then all values
            q, k, v = (qkv[:, i * n + head * head_channels :][:, :head_channels] for i in range(3))
        else:  # of each head its query, key and value
            q, k, v = qkv[:, 3 * head * head_channels :][:, : 3 * head_channels].chunk(3, 1)
        weights = (q.mT @ k / math.sqrt(head_channels)).softmax(2)
        out.append(v @ weights.mT)
    w, b = state[f"{name}.proj_out.weight"].squeeze(-1), state[f"{name}.proj_out.bias"]
    return (positions + w @ torch.cat(out, 1) + b[:, None]).reshape(x.shape)


def time_features(t: Tensor, width: int) -> Tensor:
    angles = [t * 10_000.0 ** (-i / (width // 2)) for i in range(width // 2)]
    return torch.stack([a.cos() for a in angles] + [a.sin() for a in angles], 1)


def unet(
    state: State, x: Tensor, t: Tensor, y: Tensor | None, *, head_channels: int,
    new_order: bool = False,
) -> Tensor:  # fmt: skip
    """All its output channels of x (B, C, H, W) at timesteps t (B,), classes y (B,)."""
    width = state["time_embed.0.weight"].shape[1]
    embedding = silu(linear(state, "time_embed.0", time_features(t, width)))
    embedding = linear(state, "time_embed.2", embedding)
    if y is not None:
        embedding = embedding + state["label_emb.weight"][y]

    def layers(block: str, h: Tensor, resamples: str) -> Tensor:
        names = {m[1] for k in state if (m := re.match(rf"({block}\.\d+)\.", k))}
        for name in sorted(names, key=lambda name: int(name.rpartition(".")[2])):
            has = {k.removeprefix(f"{name}.") for k in state if k.startswith(f"{name}.")}
            if "in_layers.0.weight" in has:
                # on the way up the one that doubles follows another
                way = "" if resamples == "up" and name.endswith(".0") else resamples
                h = residual(state, name, h, embedding, way)
            elif "qkv.weight" in has:
                h = attention(state, name, h, head_channels, new_order)
            elif "op.weight" in has:
                h = conv(state, f"{name}.op", h, stride=2)
            elif "conv.weight" in has:
                h = conv(state, f"{name}.conv", resample(h, "up"))
            else:
                h = conv(state, name, h)
        return h

    count = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("input_blocks."))
    ups = {
        int(k.split(".")[1]) for k in state
        if re.match(r"output_blocks\.\d+\.([12]\.in_layers|\d\.conv)", k)
    }  # fmt: skip
    each = count // (len(ups) + 1)  # input blocks of a level: one that halves, or the first
    h, skips = x, []
    for i in range(count):
        halves = i > 0 and i % each == 0
        h = layers(f"input_blocks.{i}", h, "down" if halves else "")
        skips.append(h)
    h = layers("middle_block", h, "")
    for i in range(count):
        h = layers(f"output_blocks.{i}", torch.cat([h, skips.pop()], 1), "up" if i in ups else "")
    return conv(state, "out.2", silu(norm(state, "out.0", h)))
