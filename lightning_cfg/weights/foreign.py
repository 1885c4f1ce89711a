"""Files of networks that others have trained: told apart by their content, none of it executed."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.exported import ABOUT
from lightning_cfg.runs.inert_pickle import open_pickle
from lightning_cfg.runs.pickled import MAGIC, Module, check_inside, mapping
from lightning_cfg.runs.tensors import kind_of, metadata
from lightning_cfg.weights import adm, dit, nvidia, torchvision
from lightning_cfg.weights.published import Published, refuse_said

OURS = "it is a checkpoint of ours already: name it in `models` as it is"
ADM = ("guided_diffusion", "otcfm")  # whose names are the same: which it is has to be said


def read(path: Path, kind: str | None = None, **told: Any) -> Published:
    """The network in a file, under our names; UserError, in one line, where there is none.

    kind  of the file, where it is to be no other, or where its names are those of two
    told  the keys of `adopt` that say what the weights do not
    Tensors are views of the file: nothing is copied that need not be.
    """
    try:
        content = _content(path)
        found = _known(content, kind, told)
    except UserError as error:
        begins = str(error).startswith(str(path))
        raise UserError(str(error) if begins else f"{path}: {error}") from error
    except Exception as error:  # of odd records and names whatever Python says of them
        odd = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{odd}{one_line(error)}"
        raise UserError(f"{path} holds no network that is known here: {reason}") from error
    if kind not in (None, found.kind):
        raise UserError(f"{path} is of the kind {found.kind}, not {kind}")
    if told["shape"] is not None and tuple(told["shape"]) != found.shape:
        raise UserError(
            f"{path}: shape={list(told['shape'])}, but its network is of {list(found.shape)}"
        )
    return found


def _content(path: Path) -> Any:
    """What the file holds: tensors by name of torch's files, records of other pickles."""
    if path.suffix == ".safetensors":
        raise UserError(OURS if ABOUT in metadata(path) else "no network in safetensors is known")
    what = kind_of(path)
    if what == "a checkpoint of torch":
        return _of_torch(path, mmap=True)
    if what not in ("", "a pickle"):
        raise UserError(f"{path} is {what}, and no file of a network that is known here")
    content = open_pickle(path)
    return _of_torch(path) if content == MAGIC else content  # from before they were zips


def _of_torch(path: Path, **how: bool) -> Any:
    try:
        with warnings.catch_warnings():  # of storages with types, in old files
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, **how)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        reason = one_line(error).partition(". ")[0][:200]
        raise UserError(f"{path} is truncated or holds more than tensors: {reason}") from error


def _known(content: Any, kind: str | None, told: dict) -> Published:
    network = _pickled(content)
    if network is not None:
        found = nvidia.published(network)
        refuse_said(told, found.kind, "shape")
        return found
    held = mapping(content)
    if {"config", "ema", "state_dict"} <= held.keys():
        raise UserError(OURS)
    flow, step = "ema_model" in held, held.get("step", 0)
    state = _state(held["ema_model"] if flow else held)
    if dit.NAMES <= state.keys():
        return dit.published(state, **told)
    if torchvision.NAMES <= state.keys():
        return torchvision.published(state, **told)
    if not {"input_blocks.0.0.weight", "time_embed.0.weight"} <= state.keys():
        names = ", ".join(map(str, list(state or held)[:3])) or "none"
        raise UserError(f"it holds no network that is known here; its first names are {names}")
    kind = kind if kind in ADM else "otcfm" if flow else "guided_diffusion"
    step = step if type(step) is int and step >= 0 else 0
    return adm.published(state, kind, step=step, **told)


def _pickled(content: Any) -> Module | None:
    """The network of one of NVIDIA's pickles: what is called ema in it, or all of it."""
    for value in (mapping(content).get("ema"), content):
        try:
            return Module(value)
        except ValueError:
            continue
    return None


def _state(held: Any) -> dict[str, Tensor]:
    """The tensors of a state dict by name, without the `module.` of DataParallel."""
    if isinstance(held, dict) and isinstance(held.get("ema"), dict):
        held = held["ema"]  # of a DiT's training
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        return {}
    found = {}
    for name, value in held.items():
        if not isinstance(value, Tensor):
            return {}
        check_inside(value.untyped_storage().nbytes() // value.element_size(),
                     value.storage_offset(), tuple(value.shape), value.stride())  # fmt: skip
        found[name.removeprefix("module.")] = value
    return found
