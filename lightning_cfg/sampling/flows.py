"""Samples taken along flows, one after another, and what these are told beside the class."""

from dataclasses import dataclass

from torch import Tensor

from lightning_cfg.data.pairs import Pairs
from lightning_cfg.diffusion.rectified_flow import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Model
from lightning_cfg.refinement.condition import ByScale, ClassVectors, Condition, condition_of
from lightning_cfg.refinement.solver import Solver, refined


@dataclass(frozen=True)
class Leg:
    """A flow, how it is followed, and what it is told beside the class."""

    model: Flow
    solver: Solver
    condition: Condition | None

    @property
    def vectors(self) -> ClassVectors | None:
        """The network's, of classes that lie on the CPU, as samples do until they are moved."""
        own, place = self.model.class_vectors, next(self.model.parameters()).device
        return None if own is None else lambda c: own(c.to(place))


def leg_of(name: str, model: Model, solver: Solver) -> Leg:
    """The way along a trained flow; UserError, naming it, if it is none that refines samples."""
    if not model.refines:
        raise UserError(
            f"{name} starts from noise: refine needs a flow that learner Refinement trained"
        )
    if not isinstance(model, Flow):
        raise UserError(f"{name} is a {type(model).__name__}: refine needs model Flow")
    solver.check(model)
    return Leg(model, solver, _condition(model))


def _condition(model: Flow) -> Condition | None:
    """What the flow is told beside the class; checkpoints of version 0.1 name its pairs instead."""
    if model.conditioned is None:
        return None
    if "pairs" in model.conditioned:
        return Pairs(path=model.conditioned["pairs"]).condition
    return condition_of(model.conditioned)


def check_alike(legs: list[Leg]) -> None:
    """UserError unless all move samples of one shape."""
    shapes = {tuple(leg.model.shape): None for leg in legs}
    if len(shapes) > 1:
        raise UserError(
            f"flow: these move samples of different shapes, {' and '.join(map(str, shapes))}"
        )


def told_scale(
    legs: list[Leg],
    samples: str,
    scale: float | None,
    method: str | None,
    *,
    at: float | None,
    beyond: bool,
) -> tuple[float | None, bool]:
    """The scale that the flows are told, and whether it is beyond those of a flow's sources.

    samples  what the samples are called
    scale    of their guidance, and its method, in words; None where these are not known
    at       the scale where the samples do not say it
    beyond   whether one beyond those of a flow's sources is taken
    UserError where it is needed and not known, is another method's, or lies beyond them unasked.
    """
    told = [leg.condition for leg in legs if isinstance(leg.condition, ByScale)]
    if at is not None and not told:
        raise UserError(f"at={at:g}: the flow is not conditioned on the guidance scale")
    if at is not None and scale is not None and at != scale:
        raise UserError(f"at={at:g}: {samples} says that its guidance scale is {scale:g}")
    scale = at if scale is None else scale
    extrapolated = False
    for condition in told:
        if scale is None:
            raise UserError(
                f"{samples} does not say its guidance scale, on which the flow is conditioned: "
                "say it by at="
            )
        if None not in (condition.method, method) and condition.method != method:
            raise UserError(
                f"{samples} was guided by {method}, and the flow knows the scales of "
                f"{condition.method}: another method's are not the same thing"
            )
        if not condition.knows(scale):
            extrapolated = True
            low, high = condition.scales[0], condition.scales[-1]
            if not beyond:
                raise UserError(
                    f"{samples} has guidance scale {scale:g}, and the flow knows those from "
                    f"{low:g} to {high:g}: extrapolate=true takes the nearest of them"
                )
    return scale, extrapolated


def moved(legs: list[Leg], x: Tensor, c: Tensor, scale: float | None) -> tuple[Tensor, list[int]]:
    """A batch at the end of its way, and the evaluations of every flow.

    scale  of their guidance, for flows that are told it
    """
    spent = []
    for leg in legs:
        told = c
        if leg.condition is not None:
            told = leg.condition.told(x, c, scale, leg.vectors)
        x, evaluations = refined(leg.model, x, told, leg.solver)
        spent.append(evaluations)
    return x, spent
