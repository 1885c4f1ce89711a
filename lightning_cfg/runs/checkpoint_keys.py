"""What a checkpoint of ours holds, key by key: whoever wrote it, nothing else gets further."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_cfg.errors import UserError

WIDEST = 12**-0.5  # relative width of an average, that of the mean of all
LARGEST = 2**31  # numbers in a sample, classes: beyond that it is no network but a mistake


def check_keys(path: Path, checkpoint: Any) -> None:
    """UserError, naming the key, unless all is there that `fit` writes, and of its kind."""
    if not isinstance(checkpoint, dict) or not {"config", "ema"} <= checkpoint.keys():
        raise UserError(f"{path} is a checkpoint, but not one that `fit` here has written")
    for key, (fits, what) in KEYS.items():
        if key not in checkpoint:
            raise UserError(f"{path} has no {key}: it is not one that `fit` has written")
        if not fits(checkpoint[key]):
            raise UserError(f"{path}: its {key} must be {what}")
    held = checkpoint.get("conditioned")
    if held is not None and not _conditioned(held, checkpoint["num_classes"]):
        raise UserError(f"{path}: its conditioned must be the state of a condition on pairs")
    names = checkpoint.get("class_names")
    if names is not None and not _names(names, checkpoint["num_classes"], held):
        raise UserError(f"{path}: its class_names must be a text for each class")
    kept = checkpoint.get("snapshots")
    if kept is not None and not _snapshots(kept):
        raise UserError(f"{path}: its snapshots must be hashes by step")


def check_to_go_on(path: Path, checkpoint: dict) -> None:
    """UserError unless it also has what a training goes on from."""
    for key, kind in (("optimizer_states", list), ("lr_schedulers", list), ("loops", dict)):
        if not isinstance(checkpoint.get(key), kind) or not checkpoint[key]:
            raise UserError(f"{path} has no {key}, without which a training cannot go on from it")
    for section in ("data", "net", "model", "learner"):
        if not _section(checkpoint["config"].get(section)):
            raise UserError(f"{path}: its config must have {section}, a section with a name")


def _section(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _config(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_section, map(value.get, RESTORED)))


def _whole(value: Any, low: int = 0) -> bool:
    return type(value) is int and low <= value < LARGEST


def _shape(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 8:
        return False
    n = 1
    for side in value:
        if not _whole(side, 1):
            return False
        n *= side
    return n < LARGEST


def _tensors(value: Any) -> bool:
    """Of parameters and buffers by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(held, Tensor) for name, held in value.items()
    )


def _snapshots(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _whole(step, 1) and isinstance(digest, str) for step, digest in value.items()
    )


def _names(value: Any, classes: int, conditioned: dict | None) -> bool:
    """Of the classes of samples, of which a condition has several each."""
    values = 1 if conditioned is None else conditioned["values"]
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return texts and len(value) * values == classes


def _averages(value: Any) -> bool:
    """By half-life, a whole number, or relative width."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            (type(key) is int or (type(key) is float and 0 < key < WIDEST))
            and _tensors(held)
            and _real(held)
            for key, held in value.items()
        )
    )


def _real(tensors: dict[str, Tensor]) -> bool:
    return all(held.is_floating_point() for held in tensors.values())


def _conditioned(held: Any, classes: int) -> bool:
    """The `state` of a `refinement.condition.Condition`; of version 0.1, where its pairs lie."""
    if not isinstance(held, dict) or not _whole(held.get("values"), 1) or classes % held["values"]:
        return False
    others = {key: value for key, value in held.items() if key not in ("values", "classes")}
    if others.keys() == {"pairs"}:
        return isinstance(others["pairs"], str)
    if not _whole(held.get("classes")) or held["classes"] * held["values"] != classes:
        return False
    if others.keys() in ({"scales"}, {"scales", "method"}):  # without: of version 0.1
        scales = others["scales"]
        if not isinstance(others.get("method"), str | None):
            return False
        numbers = isinstance(scales, list) and all(type(s) in (int, float) for s in scales)
        return numbers and len(scales) == held["values"] and scales == sorted(scales)
    if others.keys() != {"edges", "targets", "targets_c"} or not _tensors(others):
        return False
    edges, targets, of = others["edges"], others["targets"], others["targets_c"]
    return edges.shape == (held["values"] - 1,) and of.shape == (len(targets),)


RESTORED = ("net", "model", "learner")  # sections that a network is restored by
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_config, f"a config with the sections {', '.join(RESTORED)}, each with a name"),
    "shape": (_shape, "a list of whole numbers, the shape of a sample"),
    "num_classes": (_whole, "a whole number, 0 or more"),
    "state_dict": (_tensors, "tensors by name"),
    "ema": (_averages, "tensors of real numbers by name, by half-life or std"),
    "global_step": (_whole, "a whole number of steps"),
}
