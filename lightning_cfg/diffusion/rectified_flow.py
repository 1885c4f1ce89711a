"""Rectified flows: from noise to data, or from samples to where they should be."""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import Between, Newer, Share
from lightning_cfg.diffusion.coupling import Coupling, coupled
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.ode import integrate_in_steps
from lightning_cfg.diffusion.of_net import OfNet, drop_labels
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL, Denoiser, Velocity, expand_like


class Flow(OfNet):
    """Rectified flow from sources x0 to data x1 (Liu et al. 2023): dx/dt = v(x_t, t, c).

    x_t = (1 - t) x0 + t x1, regressed on x1 - x0. With noise as x0 it is a base model, with
    generated samples as x0 and their nearest real neighbours as x1 it is the refinement of
    Zhao & Schwing (2025, eqs. 11 and 12).

    coupling  of noise with points: "independent", or within a batch by optimal transport, over all
              of it or class by class (`coupling.coupled`). Its paths are straighter; along them go
              deterministic samplers, as what it has is a velocity and no longer a score
    """

    sigma_min, sigma_max = 0.002, 500.0  # as a denoiser: t = 1 / (1 + sigma)
    takes_x0 = True
    known_steps: int | None = None  # the Euler steps that it is known for alone; None: any

    def __init__(
        self,
        net: nn.Module,
        *,
        label_dropout: Annotated[float, Share] = 0.0,
        coupling: Annotated[Coupling, Newer] = "independent",
    ):
        super().__init__(net, label_dropout)
        self.coupling: Coupling = coupling

    def velocity(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """v(x, t, c): x (B, *shape), t (B,), c (B,) -> (B, *shape)."""
        return self.run(x, t, c)

    def average(self, x: Tensor, t: Tensor, r: Tensor, c: Tensor) -> Tensor:
        """The velocity of an Euler step from t to r (B,), which is v(x, t, c); see `velocity`."""
        return self.velocity(x, t, c)

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """The denoiser D(x, sigma, c) of the flow from Gaussian noise."""
        return denoiser_of(self.velocity)(x, sigma, c)

    def loss(
        self,
        y: Tensor,
        c: Tensor,
        draws: Draws,
        x0: Tensor | None = None,
        toward: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """|v(x_t, t, c) - (y - x0)|^2 per sample, (B,), t uniform; x0 None: Gaussian noise.

        toward  classes (B,), and share (B,) of the way to them: v is told the vectors between
        """
        t = onto(draws.uniform(), y.device).to(y)
        draws.level = "t", t
        if x0 is None:
            x0 = coupled(onto(draws.normal(*y.shape[1:]), y.device).to(y), y, c, self.coupling)
        elif self.coupling != "independent":
            raise UserError(
                f"model.coupling={self.coupling} is of noise with points; pairs have theirs already"
            )
        x_t = (1 - expand_like(t, y)) * x0 + expand_like(t, y) * y
        told = self.told(drop_labels(c, self.label_dropout, draws), toward, share)
        v = self.velocity(x_t, t, told)
        return (v - (y - x0)).square().flatten(1).sum(1)

    def told(self, c: Tensor, toward: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        """What v is told: classes (b,), or vectors (b, d), a share of the way to other classes.

        UserError for a network without vectors of its classes.
        """
        if toward is None or share is None:
            return c
        if self.class_vectors is None:
            name = type(self.net).__name__
            raise UserError(f"between=true: net {name} has no class_vectors to be told between")
        toward = torch.where(c == NULL, NULL, toward)
        return torch.lerp(self.class_vectors(c), self.class_vectors(toward), share[:, None])


class FewSteps(Flow):
    """A flow that is known for so many Euler steps alone, which learn their end together.

        x_{k+1} = x_k + v(x_k, k / steps, c) / steps,   |x_steps - y|^2,   x_0 a source, y its end

    Regressed on the ends that the data give, of `Reflow` those of another flow, whose many steps
    these then are: distillation (Liu et al. 2023, sec. 2.2) with the gradient through all steps, so
    that the later ones may mend what the earlier ones leave. Its v is not said of any other t, so
    that `refine` takes it in these steps. A training step costs as many passes.
    """

    def __init__(self, net: nn.Module, *, steps: Annotated[int, Between(1, 8)] = 2):
        super().__init__(net)
        self.known_steps: int | None = steps

    def loss(
        self,
        y: Tensor,
        c: Tensor,
        draws: Draws,
        x0: Tensor | None = None,
        toward: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """|x_steps - y|^2 per sample, (B,); see `Flow.loss`."""
        name = type(self).__name__
        if x0 is None:
            raise UserError(f"model {name} goes from samples: train it by learner Refinement")
        assert self.known_steps is not None
        draws.level = "t", torch.zeros(len(y)).to(y)
        told = self.told(c, toward, share)
        x = integrate_in_steps(self.velocity, x0, told, 0.0, 1.0, steps=self.known_steps, order=1)
        return (x - y).square().flatten(1).sum(1)


class OneStep(FewSteps):
    """`FewSteps` of one: x1 = x0 + v(x0, 0, c), learned at t = 0 alone."""

    def __init__(self, net: nn.Module):
        super().__init__(net, steps=1)


def denoiser_of(velocity: Velocity) -> Denoiser:
    """The denoiser of a flow from Gaussian noise: t = 1/(1+sigma), x_t = t x, D = x_t + (1-t) v."""

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        t = 1 / (1 + sigma)
        x_t = expand_like(t, x) * x
        return x_t + expand_like(1 - t, x) * velocity(x_t, t, c)

    return denoise


def velocity_of(denoise: Denoiser) -> Velocity:
    """The velocity of a denoiser, v = (D - x_t) / (1 - t): `denoiser_of`'s inverse, 0 < t < 1."""

    def velocity(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        D = denoise(x_t / expand_like(t, x_t), (1 - t) / t, c)
        return (D - x_t) / expand_like(1 - t, x_t)

    return velocity
