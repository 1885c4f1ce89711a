"""A guider of diffusers as a guidance method of ours."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cfg.diffusers.folder import library
from lightning_cfg.errors import UserError, did_you_mean, one_line
from lightning_cfg.guidance.needs import require_null
from lightning_cfg.guidance.scales import two_passes
from lightning_cfg.interfaces import Denoiser, Guided, expand_like

PREDICTIONS = ["pred_cond", "pred_uncond"]


def guider(
    model: Denoiser,
    *,
    guider: str,
    keys: dict = {},  # noqa: B006  it is copied
    prediction: Literal["epsilon", "sample"] = "epsilon",
) -> Guided:
    """diffusers' guider on the predictions with and without a class, of D_c and D_null.

    guider      a class of diffusers.guiders that needs these two alone, such as
                AdaptiveProjectedGuidance
    keys        of it; `start` and `stop` are shares of the sampler's steps
    prediction  what it works on: noise (x - D) / sigma, as of networks that predict epsilon, or D
    UserError for one that reaches into a network's layers, for unknown keys, and for samplers
    without steps. Guiders are called experimental by diffusers itself.
    """
    require_null(model, f"guider {guider}")
    own, steps = _made(guider, keys), [0]

    def take_levels(levels: list[float]) -> None:
        steps[0] = len(levels) - 1

    def begin_step(i: int, sigma: float) -> None:
        own.set_state(i, steps[0], torch.tensor(sigma))
        own.prepare_inputs({})  # where theirs begin what they remember, as APG its momentum

    def guided(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if own._step is None:
            raise UserError(f"guider {guider} counts the sampler's steps, and it has none")
        D, D_null = two_passes(model, x, sigma, c, True, own.num_conditions > 1)
        if prediction == "sample":
            return own.forward(D, D_null).pred
        s = expand_like(sigma, x)
        null = None if D_null is None else (x - D_null) / s
        return x - s * own.forward((x - D) / s, null).pred

    return Guided(guided, take_levels=take_levels, begin_step=begin_step)


def _made(name: str, keys: dict) -> Any:
    """The guider of diffusers; UserError where there is none of this name or with these keys."""
    library()
    from diffusers import guiders

    base = guiders.guider_utils.BaseGuidance
    known = [one for one, kind in vars(guiders).items() if _serves(kind, base)]
    if name not in known:
        raise UserError(f"guider {name} is not known; {did_you_mean(name, known)}")
    try:
        return getattr(guiders, name)(**keys)
    except (TypeError, ValueError) as error:
        raise UserError(f"guider {name}: {one_line(error)}") from error


def _serves(kind: Any, base: Any) -> bool:
    """Whether it needs the two predictions alone, and changes nothing in the network."""
    if not isinstance(kind, type) or not issubclass(kind, base) or kind is base:
        return False
    return kind._input_predictions == PREDICTIONS and kind.prepare_models is base.prepare_models
