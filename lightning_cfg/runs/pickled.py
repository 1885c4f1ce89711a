"""What the records of an inert pickle mean: tensors of torch, arrays of numpy, modules with state.

Only plain numbers are rebuilt, and never by what the pickle names: a tensor is a view of the bytes
of its storage, within it and not larger than it, an array one of its own bytes.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.runs.inert_pickle import Made, Named, Persistent, run

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's files from before they were zips
STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
MODULES = ("torch", "torch.storage", "torch.cuda")
NUMBERS = {kind + size for kind in "iu" for size in "1248"} | {"f2", "f4", "f8", "b1"}
MOST = 200_000  # of a network's modules and tensors, or of its settings: shared ones count again


def named(value: Any, *names: str) -> bool:
    """Whether it is a call of one of these, by the names after the last dot of numpy's modules."""
    return isinstance(value, Made) and str(value.of).replace("numpy._core", "numpy.core") in names


def mapping(value: Any) -> dict:
    """The items of a dict, or of what would have been some kind of one; {} of anything else."""
    if not isinstance(value, Made):
        return value if isinstance(value, dict) else {}
    first = value.args[0] if value.args else ()
    pairs = first.items() if isinstance(first, dict) else first
    listed = [tuple(pair) for pair in pairs] if isinstance(pairs, (list, tuple)) else []
    return dict([*listed, *value.pairs])


# numpy


def array(value: Any) -> np.ndarray:
    """The array that a record stands for; ValueError for one of anything but plain numbers."""
    if named(value, "numpy.core.numeric._frombuffer"):
        raw, dtype, shape, order = value.args
        return _array(raw, dtype, shape, order == "F")
    if not named(value, "numpy.core.multiarray._reconstruct") or not isinstance(value.state, tuple):
        raise ValueError(f"{_told(value)} stands where an array should")
    _, shape, dtype, fortran, raw = value.state
    return _array(raw, dtype, shape, fortran)


def _array(raw: Any, dtype: Any, shape: tuple, fortran: bool) -> np.ndarray:
    kind, content = _dtype(dtype), _bytes(raw)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape}")
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} has {len(content):,} bytes")
    flat = np.frombuffer(content, kind) if len(content) else np.empty(0, kind)
    return flat.reshape(shape, order="F" if fortran else "C")


def _dtype(value: Any) -> np.dtype:
    code = value.args[0] if named(value, "numpy.dtype") and value.args else None
    if code not in NUMBERS:
        raise ValueError(f"numbers of the kind {_told(code)} are not read")
    order = value.state[1] if isinstance(value.state, tuple) else "="
    return np.dtype(code).newbyteorder("=" if order == "|" else order)


def _bytes(value: Any) -> bytes | memoryview:
    if named(value, "_codecs.encode") and value.args[1] == "latin1":  # bytes before protocol 3
        return value.args[0].encode("latin1")
    if named(value, "__builtin__.bytes") and not value.args:
        return b""
    if isinstance(value, str):  # of Python 2
        return value.encode("latin1")
    if not isinstance(value, (bytes, memoryview)):
        raise ValueError(f"{_told(value)} stands where bytes should")
    return value


def plain(value: Any, left: "Allowed | None" = None) -> Any:
    """A setting as plain Python: numbers of numpy become Python's, dicts of any kind dicts."""
    left = Allowed() if left is None else left
    left.take()
    if named(value, "numpy.core.multiarray.scalar"):
        dtype, raw = value.args
        return _array(raw, dtype, (), False).item()
    if named(value, "numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer"):
        return array(value).tolist()
    if isinstance(value, (Made, dict)):
        return {key: plain(item, left) for key, item in mapping(value).items()}
    return [plain(item, left) for item in value] if isinstance(value, (list, tuple)) else value


class Allowed:
    """How much may still be walked through: what holds itself many times over would never end."""

    def __init__(self) -> None:
        self.left = MOST

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it unfolds to more than {MOST:,} things")


# torch


class Tensors:
    """The tensors of a pickle, each storage read once."""

    def __init__(self) -> None:
        self.storages: dict[int, Tensor] = {}

    def tensor(self, value: Any) -> Tensor:
        """The tensor that a record stands for, a view of the file; ValueError for what is none."""
        if named(value, *PARAMETERS):
            return self.tensor(value.args[0])
        if not named(value, "torch._utils._rebuild_tensor_v2"):
            raise ValueError(f"{_told(value)} stands where a tensor should")
        made, offset, size, stride = value.args[:4]
        if id(made) not in self.storages:
            if not named(made, "torch.storage._load_from_bytes") or len(made.args) != 1:
                raise ValueError(f"{_told(made)} stands where a storage should")
            self.storages[id(made)] = storage(_bytes(made.args[0]))
        held = self.storages[id(made)]
        check_inside(len(held), offset, size, stride)
        return torch.as_strided(held, size, stride, offset)


def check_inside(numbers: int, offset: Any, size: tuple, stride: tuple) -> None:
    """ValueError unless a tensor lies in a storage of so many numbers and is not larger than it."""
    whole = all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    if not whole or len(size) != len(stride):
        raise ValueError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else -1
    if offset + last >= max(numbers, 1) or math.prod(size) > numbers:
        raise ValueError(f"a tensor of size {tuple(size)} exceeds its storage of {numbers} numbers")


def storage(content: bytes | memoryview) -> Tensor:
    """The numbers (n,) in the bytes of a storage, as torch wrote them before its files were zips.

    It stands for `torch.storage._load_from_bytes`, which runs what is in them. Five pickles come
    first: two numbers, the writer's system, which storage it is, which storages follow.
    """
    view, at, heads = memoryview(content), 0, []
    try:
        for _ in range(5):
            value, at = run(view, at)
            heads.append(value)
    except Exception as error:  # whatever odd bytes make the decoder raise
        raise ValueError(f"a storage in it is not as torch writes one: {error}") from error
    magic, protocol, system, which, keys = heads
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(which, Persistent):
        raise ValueError("a storage in it is not as torch writes one")
    kind, of, key, _, numbers, *view_of = which.id
    name = of.name if isinstance(of, Named) and of.module in MODULES else ""
    if kind != "storage" or name not in STORAGES or any(part is not None for part in view_of):
        raise ValueError(f"a storage in it is of another kind, {_told(of)}")
    if not mapping(system).get("little_endian", True):
        raise ValueError("a storage in it is of a big-endian machine")
    dtype, begin = STORAGES[name], at + 8
    told = int.from_bytes(view[at:begin], "little")
    size = numbers * dtype.itemsize if type(numbers) is int else -1
    if keys != [key] or told != numbers or size != len(view) - begin:
        raise ValueError(f"a storage of {numbers} numbers has {len(view) - begin:,} bytes")
    if not numbers:
        return torch.empty(0, dtype=dtype)
    if view.readonly:
        view = memoryview(bytearray(view))
    return torch.frombuffer(view, dtype=dtype, count=numbers, offset=begin)


# modules


class Module:
    """A torch.nn.Module in a pickle: its class's name and what it was made with, none of its code.

    NVIDIA's are `_reconstruct_persistent_obj` of {class_name, module_src, state}: the source stays
    an unread text.
    """

    def __init__(self, value: Any):
        meta = value.args[0] if named(value, PERSISTENT) and value.args else None
        state = mapping(meta).get("state") if meta is not None else getattr(value, "state", None)
        self.class_name = mapping(meta).get("class_name") if meta is not None else str(value)
        self.state = mapping(state)
        if not {"_parameters", "_buffers", "_modules"} <= self.state.keys():
            raise ValueError(f"{_told(value)} stands where a network should")

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords that it was made with, where it says so."""
        return mapping(plain(self.state.get("_init_kwargs") or {}))

    def child(self, name: str) -> "Module":
        """The module of that name in it; ValueError if there is none."""
        return Module(mapping(self.state["_modules"]).get(name))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as `state_dict` has them; ValueError for odd ones."""
        read = Tensors()
        return {name: read.tensor(value) for name, value in self._held("", Allowed())}

    def _held(self, prefix: str, left: Allowed) -> Iterator[tuple[str, Any]]:
        unsaved = self.state.get("_non_persistent_buffers_set") or ()
        if isinstance(unsaved, Made):  # a set before protocol 4
            unsaved = unsaved.args[0] if unsaved.args else ()
        for held in ("_parameters", "_buffers"):
            for name, value in mapping(self.state[held]).items():
                left.take()
                if value is not None and name not in unsaved:
                    yield f"{prefix}{name}", value
        for name, value in mapping(self.state["_modules"]).items():
            left.take()
            if value is not None:
                yield from Module(value)._held(f"{prefix}{name}.", left)


PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"


def _told(value: Any) -> str:
    if isinstance(value, (Made, Named)):
        return str(value)
    return repr(value) if isinstance(value, (str, int)) or value is None else type(value).__name__
