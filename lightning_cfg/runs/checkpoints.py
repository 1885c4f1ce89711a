"""Checkpoints: a network restored from the config inside, which is a stranger's."""

import sys
import zipfile
from collections.abc import Callable
from inspect import isclass, signature
from pathlib import Path
from textwrap import shorten
from typing import Any, get_type_hints

import torch
from torch import nn

from lightning_cfg.config import Model as ModelSection
from lightning_cfg.config import Net as NetSection
from lightning_cfg.config import build, resolve
from lightning_cfg.config.check import Wrong, check
from lightning_cfg.config.trust import names_of
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import Model, Net, complete
from lightning_cfg.runs.checkpoint_keys import check_keys
from lightning_cfg.runs.exported import load_exported
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.inputs import Weights, average
from lightning_cfg.runs.manifests import IDENTITY, MANIFEST, content_hash, written_hash
from lightning_cfg.runs.names import LAST
from lightning_cfg.runs.ranks import launched
from lightning_cfg.runs.snapshots import average_of
from lightning_cfg.runs.to_come import ToCome

NETS, MODELS = "lightning_cfg.nets", "lightning_cfg.diffusion.models"


def load(path: str | Path) -> dict:
    """The content of a checkpoint of ours, by its own path or its run directory's.

    Or of a safetensors file that `export` has made of one. Raises UserError if there is none, or it
    is damaged or somebody else's.
    """
    path = output_of(path, LAST)
    if isinstance(path, ToCome):
        return path.content
    content_hash(path)  # is it as its run wrote it?
    if path.suffix == ".safetensors":
        checkpoint = load_exported(path)
        check_keys(path, checkpoint)
        return checkpoint
    try:
        if written_hash(path) is None:
            _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is truncated or not a checkpoint of ours: {reason}") from error
    check_keys(path, checkpoint)
    return checkpoint


def _check_sums(path: Path) -> None:
    """UserError where a part of the file is not as it was written, by the sums inside of it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
        if wrong is not None:
            raise ValueError(f"{wrong} in it is damaged")


def build_model(
    config: dict, shape: tuple[int, ...], num_classes: int, class_names: list[str] | None = None
) -> Model:
    """The model of a run's config, untrained; UserError where one of one's own is none."""
    shape, name = tuple(shape), config["model"]["name"]
    net = build_net(config["net"], shape, num_classes, class_names)
    model = _module("model", name, build("lightning_cfg.diffusion.models", config["model"], net))
    if not isinstance(model, Model) and hasattr(model, "loss"):
        takes = signature(model.loss).parameters  # what one of one's own leaves to be seen
        seen = {
            "takes_x0": "x0" in takes,
            "augment_dim": net.augment_dim if "augment" in takes else None,
            "classifies": len(signature(model.forward).parameters) == 2,
        }
        for key in seen.keys() - set(dir(model)):
            setattr(model, key, seen[key])
    complete(model, Model, f"model {name}", "loss")
    model.shape, model.num_classes = shape, num_classes
    return model


def build_net(
    section: dict, shape: tuple[int, ...], num_classes: int, class_names: list[str] | None = None
) -> Any:
    """The network of a section `net`, untrained, with all of `Net`; UserError where it is none."""
    name = section["name"]
    net = _module("net", name, build("lightning_cfg.nets", section, shape, num_classes))
    complete(net, Net, f"net {name}", "forward")
    if net.take_class_names is not None:
        if class_names is None:
            raise UserError(f"net {name} reads the classes' names, and the data have none")
        net.take_class_names(class_names)
    return net


def _module(what: str, name: str, made: object) -> Any:
    if not isinstance(made, nn.Module):
        raise UserError(f"{what} {name} makes a {type(made).__name__}, which is no torch.nn.Module")
    return made


def restore(path: str | Path, *, weights: Weights = "ema") -> Model:
    """The model of a checkpoint, frozen, in evaluation mode, with all that `Model` says of it.

    weights  "ema": the first average; a number: that of this half-life in images; {"std": ...}:
             that of this relative width, made of snapshots; "raw": no average
    Raises UserError if the file is damaged or not ours, does not fit its own config, lacks the
    average, holds NaN, or names code that nobody trusts (`config.trust`). A training that has not
    finished is told in a line.
    """
    checkpoint = load(path)
    model = _untrained(output_of(path, LAST), checkpoint)
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    averages, step = checkpoint["ema"], checkpoint["global_step"]
    if isinstance(weights, dict):
        made, step = average_of(output_of(path, LAST), checkpoint, **average(**weights))
        state.update(made)
    elif weights != "raw":
        half_life = next(iter(averages)) if weights == "ema" else weights
        if half_life not in averages:
            have = ", ".join(f"std {h:g}" if isinstance(h, float) else str(h) for h in averages)
            raise UserError(f"{path} has no average of half-life {weights}; it has {have}, or raw")
        state.update(averages[half_life])
    try:
        model.load_state_dict(state)
    except Exception as error:  # RuntimeError; of odd tensors others
        reason = str(error).splitlines()[min(1, str(error).count("\n"))].strip()  # the first
        reason = shorten(reason, 200, placeholder=" ...")  # another network's names fill pages
        raise UserError(f"{path} does not fit the network of its config: {reason}") from error
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"{path}: its weights {name} hold NaN or infinity: it has diverged")
    model.refines = checkpoint["config"]["learner"]["name"] == "Refinement"
    model.conditioned = checkpoint.get("conditioned")
    if model.conditioned is not None:
        model.num_classes //= model.conditioned["values"]
    model.step, model.class_names = step, checkpoint.get("class_names")
    _tell_unfinished(Path(path), checkpoint["global_step"])
    return model.eval().requires_grad_(False)


def _untrained(path: Path, checkpoint: dict) -> Model:
    """The model of a checkpoint's config, untrained, made by the package's or trusted classes."""
    config = checkpoint["config"]
    with names_of(path):
        try:
            sections = {
                "net": check(NetSection, config["net"], "net"),
                "model": check(ModelSection, config["model"], "model"),
            }
            _check_class(path, "net", resolve(NETS, sections["net"]["name"]))
            _check_class(path, "model", resolve(MODELS, sections["model"]["name"]))
            _check_size(path, sections["net"], checkpoint)
            names = checkpoint.get("class_names")
            model = build_model(sections, checkpoint["shape"], checkpoint["num_classes"], names)
        except Wrong as wrong:
            raise UserError(f"{path}: in its config {wrong}") from None
        except UserError as error:
            if str(path) in str(error):
                raise
            raise UserError(f"{path}: in its config {error}") from None
        except Exception as error:  # whatever numbers that nobody would write make a class raise
            said = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{path}: its config makes no network: {said}") from error
        complete(model, Model, f"model {config['model']['name']}", "forward")
    return model


def _check_size(path: Path, net: dict, checkpoint: dict) -> None:
    """UserError for a network of twice the numbers of the file, before it takes the memory.

    One that lacks less is made, and then told what it lacks.
    """
    held = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            shape, classes = tuple(checkpoint["shape"]), checkpoint["num_classes"]
            state = build("lightning_cfg.nets", net, shape, classes).state_dict()
        except UserError:
            raise
        except Exception:  # one of one's own that reads its numbers as it makes them
            return
    asked = sum(tensor.numel() for tensor in state.values())
    if asked > 2 * held:
        raise UserError(
            f"{path} does not fit the network of its config: that has {asked:,} numbers, and the "
            f"file holds {held:,}"
        )


def _check_class(path: Path, what: str, made_by: Callable) -> None:
    """UserError, before it is called, unless it makes a torch.nn.Module and nothing else."""
    if not isclass(made_by):  # a function says it by its annotation
        hints = get_type_hints(made_by) if hasattr(made_by, "__annotations__") else {}
        made_by = hints.get("return", type(None))
    if not (isclass(made_by) and issubclass(made_by, nn.Module)):
        raise UserError(
            f"{path}: in its config {what}.name is no class of networks: it must be a "
            "torch.nn.Module, or a function that is annotated to return one"
        )


def _tell_unfinished(path: Path, step: int) -> None:
    """A line where this is the last checkpoint of a training that goes on, or was cut off."""
    run = path if path.is_dir() else path.absolute().parent.parent
    last = path.is_dir() or path.name == Path(LAST).name
    cut_off = (run / IDENTITY).is_file() and not (run / MANIFEST).is_file()
    if last and cut_off and launched().rank == 0:
        told = f"{run} has not finished: its network is the one of step {step}"
        print(f"lightning_cfg: {told}", file=sys.stderr)


def check_fits(path: Path, checkpoint: dict) -> None:
    """UserError unless the first average of a checkpoint is one of its config's network, finite.

    The network is built without memory, so that a large one is not there twice.
    """
    check_keys(path, checkpoint)
    with torch.device("meta"):
        expected = _untrained(path, checkpoint).state_dict()
    net, weights = checkpoint["config"]["net"]["name"], next(iter(checkpoint["ema"].values()))
    for key in sorted(expected.keys() ^ weights.keys()):
        what = "lack" if key in expected else "have more than a network of these settings has,"
        raise UserError(f"{path} does not fit {net}: its weights {what} {key}")
    for key, weight in weights.items():
        if weight.shape != expected[key].shape:
            there, here = tuple(weight.shape), tuple(expected[key].shape)
            raise UserError(f"{path} does not fit {net}: {key} has shape {there}, not {here}")
        if not weight.isfinite().all():
            raise UserError(f"{path}: its weights {key} hold NaN or infinity")
