"""What a study names and is not here, with the command by which it comes."""

from pathlib import Path
from typing import Any

from lightning_cfg.errors import UserError
from lightning_cfg.latents.vae import fetching
from lightning_cfg.sampling.network import path_and_weights
from lightning_cfg.weights.catalogue import ASSETS
from lightning_cfg.weights.store import COMMAND, find

EXTRACTORS = {"inception": ["inception"], "dinov2": ["dinov2", "dinov2_code"]}


def absent(asked: dict, fits: list[str]) -> dict[str, str]:
    """{what is not here: how it comes}, in the order of the study.

    asked  the study's keys
    fits   what it trains itself
    """
    found: dict[str, str] = {}
    for section in asked["methods"].values():
        for network in section["models"].values():
            path, _ = path_and_weights(network)
            if isinstance(path, str) and _is_path(path) and path not in fits:
                found |= {} if Path(path).exists() else {path: how_to_make(path)}
    judge = asked["evaluation"].get("classifier")
    if isinstance(judge, str) and _is_path(judge) and not Path(judge).exists():
        found[judge] = how_to_make(judge)
    for path in _decoders(asked):
        found |= {} if Path(path).exists() else {path: fetching(path)}
    for name in _assets(asked["evaluation"]):
        try:
            find(name)
        except UserError:
            found[name] = f"{COMMAND} fetch {name}"
    return found


def how_to_make(path: str) -> str:
    """How a run of this path is made: of a published network, where it has the name of one."""
    name = Path(path).name
    if name in ASSETS and ASSETS[name].is_network:
        return f"{COMMAND} fetch {name} && python -m lightning_cfg.adopt {name} run_dir={path}"
    return "a run of `fit` or `adopt` of yours"


def _is_path(text: str) -> bool:
    """Whether it is meant as one, rather than as the name of a fit."""
    return "/" in text


def _decoders(value: Any) -> list[str]:
    """The folders of all sections `decode`, each once."""
    if not isinstance(value, dict):
        return []
    own = value.get("decode")
    paths = [own["path"]] if isinstance(own, dict) and isinstance(own.get("path"), str) else []
    for item in value.values():
        paths += _decoders(item)
    return list(dict.fromkeys(paths))


def _assets(evaluation: dict) -> list[str]:
    """What extractors and statistics need of `assets`."""
    features = evaluation.get("features") or {}
    sections = [features] if isinstance(features.get("name"), str) else list(features.values())
    own = [section for section in sections if not section.get("weights")]
    names = [asset for section in own for asset in EXTRACTORS.get(section["name"], ())]
    statistics = evaluation.get("statistics", {}).values()
    return [*names, *(s for s in statistics if s in ASSETS and not Path(s).exists())]
