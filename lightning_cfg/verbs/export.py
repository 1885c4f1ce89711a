"""`export`: what a run holds, in the forms that other people's programs read.

    python -m lightning_cfg.export FROM TO [key=value ...]

FROM is a run or a file of it. Samples become a folder of PNGs or an npz, a trained network becomes
one safetensors file: the ending of TO says which.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import Decode, Document, help_of, load, set_key
from lightning_cfg.errors import UserError
from lightning_cfg.latents.pictures import Pictures, pictures_of
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.exported import save_exported
from lightning_cfg.runs.files import write
from lightning_cfg.runs.manifests import read_manifest
from lightning_cfg.runs.names import LAST, SAMPLES
from lightning_cfg.runs.pngs import drawable, save_flat
from lightning_cfg.runs.tensors import load_samples
from lightning_cfg.sampling.prepared import pick_device

OURS = re.compile(r"\d{6,}\.png|dataset\.json")
ROWS = 256  # images that are in memory at once


def export(
    *,
    source: str,
    to: str,
    decode: Decode | None = None,
    device: str = "auto",
    force: bool = False,
) -> Path:
    """Write what a run holds in a form that other people's programs read.

    source  a run of `generate` or `refine`, or a file of samples; a run of `fit` or `adopt`, or a
            checkpoint
    to      of samples a folder, of PNGs by seed and dataset.json, or a file.npz of arr_0
            (N, H, W, C) uint8 and, where there are classes, arr_1 (N,), as ADM's evaluations read;
            of a network a file.safetensors of all its weights and averages with its config
    decode  what makes images of latents
    force   writes over a file that is there, or a folder that holds nothing but such PNGs
    """
    place, out = Path(source).expanduser(), Path(to).expanduser()
    if out.exists() and not force:
        raise UserError(f"{out} is there already: force=true writes over it")
    if out.is_dir() and (others := _others(out)):
        raise UserError(f"{out} holds {others[0]}, which `export` has not written: another folder")
    if _is_network(place):
        if out.suffix != ".safetensors":
            raise UserError(f"a network becomes a file that ends in .safetensors, not {out}")
        return save_exported(checkpoints.load(place), out)
    if out.suffix not in ("", ".npz"):
        raise UserError(f"samples become a folder, or a file that ends in .npz, not {out}")
    file = place / SAMPLES if place.is_dir() else place
    held = load_samples(file)
    pictures = pictures_of(decode, tuple(held["x"].shape[1:]), pick_device(device))
    if not drawable(pictures.shape):
        raise UserError(
            f"{file} holds samples of shape {pictures.shape}, which are no grey or RGB images: of "
            "latents `decode` makes some"
        )
    labelled = _labelled(place if place.is_dir() else file.parent.parent, held["c"])
    if out.suffix == ".npz":
        return _save_npz(out, held["x"], held["c"] if labelled else None, pictures)
    return save_flat(out, **held, labelled=labelled, as_bytes=pictures.bytes)


def _others(folder: Path) -> list[str]:
    """What lies in a folder beside PNGs by seed and dataset.json."""
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if not OURS.fullmatch(name))


def _is_network(place: Path) -> bool:
    """Whether a checkpoint is meant, and not samples; UserError where there is neither."""
    if not place.exists():
        raise UserError(f"{place}: no such run or file")
    if not place.is_dir():
        return place.suffix == ".ckpt"
    if not any((place / name).is_file() for name in (LAST, SAMPLES)):
        raise UserError(f"{place} holds neither {SAMPLES} nor {LAST}: a run of another verb?")
    return (place / LAST).is_file()


def _labelled(run: Path, c: Tensor) -> bool:
    """Whether these are classes: the run says it; of others' files, where not all are 0."""
    classes = read_manifest(run).get("num_classes")
    return bool(c.any()) if classes is None else classes > 0


def _save_npz(path: Path, x: Tensor, c: Tensor | None, pictures: Pictures) -> Path:
    """arr_0 and arr_1, the second where there are classes."""
    parts = [pictures.bytes(some).cpu() for some in x.split(ROWS)]
    arrays = [torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()]
    arrays += [] if c is None else [c.numpy()]

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, *arrays)

    return write(path, save)


def main(words: list[str]) -> int:
    """Run from the command line; the status. Raises UserError for a mistake."""
    usage = "python -m lightning_cfg.export FROM TO [key=value ...]"
    if any(word in ("-h", "--help") for word in words):
        first, _, rest = help_of(export, {}).partition("usage: ")
        keys = rest.partition("--key value")[2]
        print(f"{first}usage: {usage}\nFROM is the key source, TO the key to{keys}")
        return 0
    files = [word for word in words if "=" not in word]
    if len(files) != 2 or any(word.startswith("-") for word in files):
        raise UserError(f"needs two places, FROM and TO: {usage}")
    document = Document(Path(files[0]), {"source": files[0], "to": files[1]})
    for word in words:
        if word not in files:
            set_key(document, word)
    print(f"lightning_cfg: {export(**load(export, document))}")
    return 0
