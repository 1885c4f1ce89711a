"""Named tensors in files, with every mistake in them told in one line."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.files import write
from lightning_cfg.runs.manifests import content_hash
from lightning_cfg.runs.to_come import ToCome

WHOLE = {"c", "seed", "neighbours", "num_classes", "source", "bin", "targets_c"}  # tensors by name
LAID = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32"}  # in this order in a file
KINDS = {  # of files that are none of ours, by their first bytes
    b"PK\x03\x04": "a zip",
    b"\x93NUMPY": "an array of numpy",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip",
}


def save_tensors(path: str | Path, /, **tensors: Tensor) -> Path:
    """A safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    return write(path, save)


def save_rows(
    path: str | Path,
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]],
    blocks: Iterable[dict[str, Tensor]],
) -> Path:
    """The file of `save_tensors`, of tensors that come some rows at a time, in order.

    So it takes the memory of a block. Its head says by name what lies where, as json of a length
    that is a multiple of 8, which stands before it in 8 bytes.
    """
    names = sorted(shapes, key=lambda name: (list(LAID).index(shapes[name][1]), name))
    head, end = {}, 0
    for name in names:
        shape, kind = shapes[name]
        start, end = end, end + torch.Size(shape).numel() * kind.itemsize
        head[name] = {"dtype": LAID[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def save(temporary: Path) -> None:
        at = {name: 8 + len(text) + head[name]["data_offsets"][0] for name in names}
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for block in blocks:
                for name, rows in block.items():
                    if rows.dtype != shapes[name][1]:
                        raise TypeError(f"{name} is {rows.dtype}, not {shapes[name][1]}")
                    file.seek(at[name])
                    at[name] += file.write(rows.detach().cpu().contiguous().numpy().data)
        for name in names:
            if at[name] != 8 + len(text) + head[name]["data_offsets"][1]:
                raise ValueError(f"{name}: other rows came than were announced")

    return write(path, save)


def load_tensors(
    path: str | Path, *names: str, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, and those optional ones that it has.

    Those in WHOLE come as int64, whatever kind of integer they are; the others as float32 or, where
    they are, float64. Raises UserError if it is missing, truncated, another kind of file, not as
    its run wrote it, lacks one of them, or holds another kind of number, NaN or infinity.
    """
    if isinstance(path, ToCome):
        return {n: path.content[n] for n in (*names, *optional) if n in path.content}
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    content_hash(Path(path))  # is it as its run wrote it?
    try:
        with safe_open(path, "pt") as file:
            have = set(file.keys())
            missing = [name for name in names if name not in have]
            if missing:
                raise UserError(f"{path} has no {missing[0]!r}; it holds {', '.join(sorted(have))}")
            found = [*names, *(name for name in optional if name in have)]
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        if known := kind_of(path):
            asked = f"safetensors file with {', '.join(names)}"
            raise UserError(f"{path} is {known}; what is read here is a {asked}") from error
        raise UserError(f"{path} is truncated or not a safetensors file: {error}") from error
    return {name: _checked(path, name, tensor) for name, tensor in tensors.items()}


def _checked(path: str | Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as numbers of the kind that its name stands for, all of them finite."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if name in WHOLE:
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise UserError(f"{path}: {name} is {kind}, and must be whole numbers, such as int64")
        return tensor.long()
    if not tensor.is_floating_point():
        raise UserError(f"{path}: {name} is {kind}, and must be float32")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not all(
        part.isfinite().all() for part in tensor.reshape(-1).split(2**20)
    ):  # in little memory
        rows = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
        bad = (~rows.isfinite().all(1)).nonzero().flatten()
        raise UserError(
            f"{path}: {name} holds NaN or infinity in {len(bad)} of {len(rows)} rows, "
            f"first in row {int(bad[0])}"
        )
    return tensor


def kind_of(path: str | Path) -> str:
    """What a file is by its first bytes, in words; "" for what is not known here."""
    with open(path, "rb") as file:
        start = file.read(512)  # a zip begins with the name of its first file
    found = next((kind for first, kind in KINDS.items() if start.startswith(first)), "")
    if found == "a zip" and b".npy" in start:
        return "an npz of numpy"
    return "a checkpoint of torch" if found == "a zip" and b"/data.pkl" in start else found


def metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def load_samples(
    path: str | Path, shape: tuple[int, ...] | None = None, num_classes: int | None = None
) -> dict[str, Tensor]:
    """A sample file: x (N, *shape), c (N,) and seed (N,).

    num_classes 0 is data without classes, whose c are 0; None: any; shape None or (): any. Raises
    UserError as `load_tensors` does, and if it is empty or its shapes or classes are others.
    """
    samples = load_tensors(path, "x", "c", "seed")
    x, c = samples["x"], samples["c"]
    if x.ndim < 2:
        raise UserError(f"{path}: x has shape {tuple(x.shape)}, not (N, ...), a row per sample")
    if shape and tuple(x.shape[1:]) != tuple(shape):
        raise UserError(
            f"{path} holds samples of shape {tuple(x.shape[1:])}, not {tuple(shape)} as here"
        )
    for name in ("c", "seed"):
        if samples[name].shape != (len(x),):
            had = tuple(samples[name].shape)
            raise UserError(f"{path}: {name} has shape {had}, not ({len(x)},), one per sample")
    if len(x) == 0:
        raise UserError(f"{path} holds no sample")
    last = None if num_classes is None else max(1, num_classes) - 1
    if last is not None and not 0 <= int(c.min()) <= int(c.max()) <= last:
        raise UserError(
            f"{path} holds classes {int(c.min())} ... {int(c.max())}, "
            f"only 0 ... {last} are known here"
        )
    return samples


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """The content hash of named tensors, on any device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
