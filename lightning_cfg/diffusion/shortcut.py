"""A flow that is told how far it goes, for few steps along a way that bends."""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import Between, Share
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.of_net import drop_labels
from lightning_cfg.diffusion.rectified_flow import Flow
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import expand_like


class Shortcut(Flow):
    """A flow of average velocities u(x_t, t, r) from t to r, learned from two of half the way.

        u(x, t, t + h) = (u(x, t, s) + u(x + h/2 u(x, t, s), s, t + h)) / 2,   s = t + h / 2

    (Frans et al. 2025), the right side without gradient, h = 1, 1/2, ... 2^(1 - halvings), t a
    multiple of it; the shortest two halves are velocities u(x, t, t) = v, which are learned as
    `Flow` does. An Euler step from t to r then goes along the bent way: x_r = x_t + (r - t) u(x_t,
    t, r), the whole of it in one, x0 + u(x0, 0, 1). dopri5 and Heun follow v, as of any `Flow`.

    How r is told is ours: the vector of the class plus A [h, h^2, h^3], h = r - t, of which nothing
    is left at h = 0; so it takes a network that embeds classes.
    apart     share of a batch that learns from two halves; the others learn v
    halvings  of the whole way that are learned; steps are as good as they are in 1, 2, 4, ...
    Raises UserError for a network that embeds no classes.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        label_dropout: Annotated[float, Share] = 0.0,
        apart: Annotated[float, Share] = 0.25,
        halvings: Annotated[int, Between(1, 10)] = 5,
    ):
        super().__init__(net, label_dropout=label_dropout)
        if self.class_vectors is None:
            raise UserError(f"Shortcut: net {type(net).__name__} embeds no classes")
        self.apart, self.halvings = apart, halvings
        size = self.class_vectors(torch.zeros(1, dtype=torch.long)).shape[1]
        self.tell = nn.Linear(3, size, bias=False)
        nn.init.zeros_(self.tell.weight)  # u is v to begin with

    def average(self, x: Tensor, t: Tensor, r: Tensor, c: Tensor) -> Tensor:
        """u(x, t, r): x (B, *shape), t and r (B,), c (B,) or vectors (B, d) -> (B, *shape)."""
        assert self.class_vectors is not None
        h = (r - t).to(self.tell.weight.dtype)
        told = c if c.is_floating_point() else self.class_vectors(c)
        return self.run(x, t, told + self.tell(torch.stack([h, h**2, h**3], 1)))

    def velocity(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """v(x, t, c) = u(x, t, t): x (B, *shape), t (B,), c (B,) -> (B, *shape)."""
        return self.average(x, t, t, c)

    def loss(
        self,
        y: Tensor,
        c: Tensor,
        draws: Draws,
        x0: Tensor | None = None,
        toward: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """|u(x_t, t, t + h) - its target|^2 per sample, (B,); see `Flow.loss`."""
        t, h, shortest = self.steps(y, draws)
        if x0 is None:
            x0 = onto(draws.normal(*y.shape[1:]), y.device).to(y)
        v = y - x0
        x_t = x0 + expand_like(t, y) * v
        told = self.told(drop_labels(c, self.label_dropout, draws), toward, share)
        target, rows = v.clone(), (h > 0).nonzero()[:, 0]
        if len(rows):
            of = (part[rows] for part in (x_t, t, h, shortest, told))
            target[rows] = self.two_halves(*of)
        return (self.average(x_t, t, t + h, told) - target).square().flatten(1).sum(1)

    def steps(self, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sample t and h, 0 where it learns v, and whether h is the shortest: (B,) each."""
        u, which = (onto(draws.uniform(), y.device).to(y) for _ in range(2))
        k = onto(draws.integers(self.halvings), y.device)
        apart, h = which < self.apart, 0.5 ** k.to(y)
        t = torch.where(apart, (u / h).floor() * h, u)
        draws.level = "t", t
        return t, torch.where(apart, h, 0.0), k == self.halvings - 1

    @torch.no_grad()
    def two_halves(self, x: Tensor, t: Tensor, h: Tensor, shortest: Tensor, told: Tensor) -> Tensor:
        """The mean of u over both halves of a step h (B,) from x at t: (B, *shape)."""
        half = h / 2
        known = torch.where(shortest, 0.0, half)  # how far an answer is told to reach
        first = self.average(x, t, t + known, told)
        x = x + expand_like(half, x) * first
        return (first + self.average(x, t + half, t + half + known, told)) / 2
