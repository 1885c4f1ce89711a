"""A network that no run of ours trained: of diffusers, or anyone's by a dotted path."""

from typing import Any

from torch import nn

from lightning_cfg.config import build
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet, Model, complete


def elsewhere(role: str, section: dict, data: DataSet | None, *, classifies: bool) -> Model:
    """The denoiser D(x, sigma, c), or the classifier, of a section {name: ..., ...}.

    One of one's own is a torch.nn.Module with `forward`, `shape` and `num_classes`; of a class NULL
    it is asked with c = -1, where `label_dropout` is not 0. See `interfaces.Model` for what else it
    may say; `take_data` is called with the run's data. UserError where it is none.
    """
    who = f"{role} {section['name']}"
    made = build("lightning_cfg.diffusers", section)
    if not isinstance(made, nn.Module):
        raise UserError(f"{who} makes a {type(made).__name__}, which is no torch.nn.Module")
    model: Any = complete(made.eval().requires_grad_(False), Model, who, *NEEDED)
    if model.take_data is not None:
        model.take_data(data)
    if classifies != model.classifies:
        is_one = "no classifier" if classifies else "a classifier"
        raise UserError(f"{who} is {is_one}: classifies = {model.classifies}")
    return model


NEEDED = ("forward", "shape", "num_classes")
