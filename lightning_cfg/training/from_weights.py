"""A training that begins with the weights of another run."""

from typing import Any

from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import load
from lightning_cfg.training.learners import Learner


def begin_from(path: str, learner: Learner, data: Any) -> None:
    """Give a new learner the weights of another run's last step, and its averages.

    An average that the other run has not begins where its weights are; an average of power
    functions, or with `ema_ramp`, soon forgets where it began. UserError where the network, the
    shape or the number of classes is another.
    """
    checkpoint, of = load(path), learner.described
    assert of is not None
    for what, there, here in (
        ("shape", tuple(checkpoint["shape"]), tuple(of.shape)),
        ("num_classes", checkpoint["num_classes"], of.num_classes),
    ):
        if there != here:
            raise UserError(f"init: {path} has {what} {there}, and the data here have {here}")
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    try:
        learner.model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[min(1, str(error).count("\n"))].strip()
        raise UserError(f"init: the network of {path} is another than here: {reason}") from error
    weights = dict(learner.model.named_parameters())
    for key, averages in learner.ema.averages.items():
        begin = checkpoint["ema"].get(key, weights)
        for name, average in zip(learner.ema.names, averages, strict=True):
            average.copy_(begin[name].detach())
