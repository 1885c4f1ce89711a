"""How samples are taken along a refinement flow: by which method, how far, and how guided."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cfg.diffusion.ode import integrate, integrate_in_steps
from lightning_cfg.diffusion.rectified_flow import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import require_null
from lightning_cfg.interfaces import NULL, Velocity


@dataclass(frozen=True)
class Solver:
    """How samples are taken along a refinement; see `refine`."""

    method: str = "dopri5"
    steps: int = 8
    rtol: float = 1e-5
    atol: float = 1e-5
    max_evaluations: int = 2000
    strength: float = 1.0
    scale: float = 1.0

    def check(self, model: Flow) -> None:
        """UserError for a guidance or a solver that is not for this flow."""
        known, asked = model.known_steps, (self.method, self.steps)
        # one step is straight, so that a share of it is a place on it; of several no such is known
        whole = known == 1 or self.strength in (0, 1)
        if known is not None and (asked != ("euler", known) or not whole):
            steps = "one step" if known == 1 else f"{known} steps, the whole way"
            asked_for = f"method=euler steps={known}" + (" strength=1" if known > 1 else "")
            raise UserError(
                f"the flow's model is {type(model).__name__}, which is known for {steps}: "
                f"{asked_for}"
            )
        if self.scale != 1:
            require_null(model, f"scale={self.scale:g} inside the flow")

    @property
    def stride(self) -> float:
        """How far a velocity is followed before the next is asked for; 0 where that is not all."""
        return self.strength / self.steps if self.method == "euler" else 0.0

    def guided(self, velocity: Velocity) -> Velocity:
        """v_u + w (v_c - v_u), which is v_c where the scale w is 1."""
        if self.scale == 1:
            return velocity

        def both(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            v_u = velocity(x, t, torch.full((len(x),), NULL, device=x.device))
            return v_u + self.scale * (velocity(x, t, c) - v_u)

        return both

    def run(self, velocity: Velocity, x: Tensor, c: Tensor) -> Tensor:
        """x at t = strength."""
        velocity, ends = self.guided(velocity), (0.0, self.strength)
        if self.strength == 0:
            return x
        if self.method == "dopri5":
            limits = {"rtol": self.rtol, "atol": self.atol}
            return integrate(velocity, x, c, ends, **limits, max_evaluations=self.max_evaluations)[
                -1
            ]
        order = {"euler": 1, "heun": 2}[self.method]
        return integrate_in_steps(velocity, x, c, *ends, steps=self.steps, order=order)


@torch.no_grad()
def refined(model: Flow, x: Tensor, c: Tensor, solver: Solver) -> tuple[Tensor, int]:
    """One batch of samples (B, *shape) taken along the flow, and the evaluations that it took.

    In float64 on the model's device; the result is float32 on the CPU. Raises UserError as
    `ode.integrate` does.
    """
    place, evaluations = next(model.parameters()).device, 0

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return model.average(x, t, t + solver.stride, c)

    end = solver.run(velocity, x.double().to(place), c.to(place))
    return end.float().cpu(), evaluations
