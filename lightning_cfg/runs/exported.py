"""A checkpoint as one safetensors file, which every program reads without running anything.

    raw.NAME         the weights as they were trained last
    ema.KEY.NAME     each average: KEY its half-life in images, or std_0.1
    conditioned.KEY  tensors that a conditioned flow is told by
    metadata         "lightning_cfg": the config, shape, classes, step and the rest as json

What only a training goes on from, the optimiser's state, is not there.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.files import write

ABOUT = "lightning_cfg"  # the key of the metadata
PLAIN = ("config", "shape", "num_classes", "global_step")  # of a checkpoint, what json holds


def save_exported(checkpoint: dict[str, Any], path: Path) -> Path:
    """The weights of a checkpoint, its averages and what makes a network of them, in one file."""
    told: dict[str, Any] = {key: checkpoint[key] for key in PLAIN}
    sets = {"raw": checkpoint["state_dict"]}
    sets |= {f"ema.{_key(key)}": held for key, held in checkpoint["ema"].items()}
    if held := checkpoint.get("conditioned"):
        sets["conditioned"] = {k: v for k, v in held.items() if isinstance(v, Tensor)}
        told["conditioned"] = {k: v for k, v in held.items() if not isinstance(v, Tensor)}
    told["averages"] = list(checkpoint["ema"])
    tensors = {
        f"{of}.{name.removeprefix('model.')}": tensor.detach().cpu().contiguous().clone()
        for of, tensors in sets.items()
        for name, tensor in tensors.items()
    }
    about = {ABOUT: json.dumps(told), "format": "pt"}  # of transformers' and diffusers' readers

    def save(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, about)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    return write(path, save)


def load_exported(path: Path) -> dict[str, Any]:
    """What `save_exported` wrote, as a checkpoint; UserError where the file is none.

    What is in it, key by key, is whoever reads checkpoints to check (`checkpoint_keys`).
    """
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(ABOUT)
            if about is None:
                raise UserError(
                    f"{path} is a safetensors file, but no run that `export` has written"
                )
            told = json.loads(about)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            averages = {key: _of(tensors, f"ema.{_key(key)}") for key in told.pop("averages")}
            checkpoint = told | {"ema": averages}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is truncated or not what `export` writes: {one_line(error)}"
        ) from error
    checkpoint["state_dict"] = {f"model.{name}": t for name, t in _of(tensors, "raw").items()}
    if "conditioned" in checkpoint:
        checkpoint["conditioned"] = told["conditioned"] | _of(tensors, "conditioned")
    return checkpoint


def _key(key: float) -> str:
    return f"std_{key!r}" if isinstance(key, float) else str(key)


def _of(tensors: dict[str, Tensor], of: str) -> dict[str, Tensor]:
    return {n.removeprefix(of + "."): t for n, t in tensors.items() if n.startswith(of + ".")}
