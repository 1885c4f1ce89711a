"""What a method needs of its model."""

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Denoiser, Known


def require_classes(model: Denoiser, method: str) -> None:
    """UserError if the model says that its data have no classes."""
    if Known(model).num_classes == 0:
        raise UserError(
            f"{method} needs a model that knows classes; this one was trained on data without any"
        )


def require_null(model: Denoiser, method: str) -> None:
    """UserError if the model never learned the class "no class", or its data have no classes."""
    require_classes(model, method)
    if Known(model).label_dropout == 0:
        raise UserError(
            f"{method} needs a model trained with label dropout; this one has "
            "model.label_dropout: 0, so it has no unconditional part (train with 0.1)"
        )
