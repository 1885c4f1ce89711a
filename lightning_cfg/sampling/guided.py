"""A guidance section becomes a guided denoiser; what sections need, and their scale."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_cfg.config import build, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Guided, as_guided
from lightning_cfg.sampling.checked import check_answer
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded


def guide(guidance: dict, networks: Mapping[str, Callable[..., Tensor]]) -> Guided:
    """The guided denoiser: a method's positional parameters name the networks it gets.

    A section `scale` is a schedule; a section `of` is another method, with the same networks but
    the model that this one gives it.
    """
    function = resolve("lightning_cfg.guidance", guidance["name"])
    keys = {key: value for key, value in guidance.items() if key != "name"}
    if isinstance(keys.get("scale"), dict):
        keys["scale"] = build("lightning_cfg.guidance.schedules", keys["scale"])
    inner = keys.get("of")
    if isinstance(inner, dict):
        keys["of"] = lambda model: guide(inner, {**networks, "model": model})
    guided = function(*(networks[role] for role in _own_roles(guidance)), **keys)
    return looked_at(guided, f"guidance {guidance['name']}")


def looked_at(denoise: Denoiser, name: str) -> Guided:
    """What a method returned, whose first answer is looked at."""
    if not callable(denoise):
        raise UserError(f"{name} returns {type(denoise).__name__}, not a denoiser")
    guided, first = as_guided(denoise), True

    def checked(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        nonlocal first
        D = guided.denoise(x, sigma, c)
        if first:
            check_answer(name, D, x, tuple(x.shape))
            first = False
        return D

    return replace(guided, denoise=checked)


def with_scale(guidance: dict, scale: float) -> dict | None:
    """The section with another scale: its own, a schedule's, or that of the method it changes.

    None where there is no scale to set.
    """
    for key in ("scale", "of"):
        if isinstance(guidance.get(key), dict):
            inner = with_scale(guidance[key], scale)
            return None if inner is None else {**guidance, key: inner}
        if key == "scale" and key in guidance:
            return {**guidance, "scale": scale}
    return None


def scale_of(guidance: dict) -> float | None:
    """The scale that `with_scale` sets; None where there is none."""
    for key in ("scale", "of"):
        if isinstance(guidance.get(key), dict):
            return scale_of(guidance[key])
        if key == "scale" and key in guidance:
            return guidance["scale"]
    return None


def spare(guidance: dict, models: dict) -> list[str]:
    """The roles in `models` that the guidance does not ask for."""
    roles = _roles(guidance)
    return [role for role in models if role not in roles]


def check_roles(guidance: dict, models: dict, *, more: bool = False) -> None:
    """UserError unless `models` has just the networks that the guidance asks for.

    more  whether it may have others too
    """
    roles = _roles(guidance)
    for role in roles:
        if role not in models:
            raise UserError(
                f"guidance {named(guidance)} needs models.{role}, which the run does not have"
            )
    for role in [] if more else spare(guidance, models):
        raise UserError(
            f"models.{role} is not used by guidance {named(guidance)}, which takes "
            + " and ".join(f"models.{r}" for r in roles)
            + "; spare_models=true leaves it out, as for a sweep over methods"
        )


def check_together(guidance: dict, sampler: dict) -> None:
    """UserError where a sampler cannot do what a guidance asks of it, before there is a network.

    Methods from elsewhere, of which nothing is known, are left to the run itself.
    """
    inner = guidance
    while isinstance(inner, dict):
        if "." in inner["name"]:
            return
        inner = inner.get("of")
    stand_in = StandIn()
    asks = guide(guidance, {role: stand_in for role in _roles(guidance)})
    asks = replace(asks, denoise=stand_in, candidates=1)
    for _ in sample(sampler, asks, *seeded([0], (1,), 1)):
        pass


class StandIn:
    """In place of a network that is not there yet: it answers x, and embeds classes."""

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        return x

    def class_vectors(self, c: Tensor) -> Tensor:
        return torch.zeros(len(c), 2)

    def scaled_classes(self, c: Tensor, w: Tensor) -> Tensor:
        return torch.zeros(len(c), 2)


def named(guidance: dict) -> str:
    """A method's name, and that of the method which it changes: "interval of classifier_free"."""
    inner = guidance.get("of")
    return guidance["name"] + (f" of {named(inner)}" if isinstance(inner, dict) else "")


def _roles(guidance: dict) -> list[str]:
    roles, inner = _own_roles(guidance), guidance.get("of")
    if not isinstance(inner, dict):
        return roles
    if "model" not in _own_roles(inner):
        raise UserError(
            f"guidance {guidance['name']} changes what its `of` does with `model`, and "
            f"{inner['name']} has no parameter of this name"
        )
    return list(dict.fromkeys([*roles, *_roles(inner)]))


def _own_roles(guidance: dict) -> list[str]:
    function = resolve("lightning_cfg.guidance", guidance["name"])
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
