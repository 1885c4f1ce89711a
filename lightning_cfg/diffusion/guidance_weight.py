"""A learned strength of guidance: a small network of noise level and class."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from lightning_cfg.config import Between, Newer, Positive, Real
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.interfaces import NULL, Denoiser, Known, Model, check_same, expand_like
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.runs.inputs import Checkpoint, Weights

SIGMA_DATA = 0.5  # of EDM's weight of the noise levels, which only sets how fast each is learned


class GuidanceWeight(Model):
    """w(c, sigma) = exp(net(0, ln(sigma) / 4, c)), with which CFG's D_w is nearest to the data.

    loss = lambda(sigma) |D_u + w (D_c - D_u) - y|^2, D those of a trained model, which stays as it
    is: the l2 objective of Galashov et al. (2025), |x~_s - x_s|^2 with x~_s a deterministic step
    from x_t to s < t. Where x_s and x_t have the same noise that is (1 - s/t)^2 |D_w - y|^2, whose
    minimiser does not depend on s, and so nor does w here. Of exact models w is 1.

    With objective=mmd it is theirs on distributions, here with the energy distance:

        2 E|x~_s - x_s| - E|x~_s - x~_s'| - E|x_s - x_s'|,   s = gap t

    in each class of a rank's own (micro-)batch, which has a t of its own, over pairs of points.
    Where every point is right, so is their distribution, and not the other way: w is free where it
    moves points and leaves their distribution. Read were the abstract and accounts of the paper,
    and not its kernel, its weight of the levels and its s. Its third objective adds a reward, such
    as a text's score: where the two balance is nobody's truth, and it is not here.

    net      any network of one number or more, of which the mean is taken, such as {name: MLP,
             width: 32, blocks: 1, outputs: 1}; one whose last layer is 0 starts at w = 1
    of       the model that is guided: a run of `fit`, or a checkpoint of it, with label dropout
    weights  of that model, as in `generate`
    P_mean   ln sigma ~ N(P_mean, P_std^2) in training, as of EDM
    objective  l2 or mmd
    gap      s / t of mmd: of 1 there is no step, and near it little to see
    """

    weighs = True

    def __init__(
        self,
        net: nn.Module,
        *,
        of: Checkpoint,
        weights: Weights = "ema",
        P_mean: Annotated[float, Real] = -1.2,
        P_std: Annotated[float, Positive] = 1.2,
        objective: Annotated[Literal["l2", "mmd"], Newer] = "l2",
        gap: Annotated[float, Between(0, 1, above=True, below=True), Newer] = 0.7,
    ):
        super().__init__()
        self.net, self.P_mean, self.P_std = net, P_mean, P_std
        self.objective, self.gap = objective, gap
        self._restore: Callable[[], Denoiser] = lambda: restore(of, weights=weights)
        self._guided: list[Denoiser] = []  # in a list: no part of this module

    def weight(self, sigma: Tensor, c: Tensor) -> Tensor:
        """w, (B,), at noise levels sigma (B,) for classes c (B,)."""
        dtype = next(self.net.parameters()).dtype
        nothing = torch.zeros(len(sigma), *self.shape, dtype=dtype, device=sigma.device)
        answer = self.net(nothing, (sigma.log() / 4).to(dtype), c)
        return answer.flatten(1).mean(1).exp().to(sigma.dtype)

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """w at every coordinate of x, (B, *shape), where it is the same."""
        return expand_like(self.weight(sigma, c), x).expand_as(x)

    def guides(self, denoise: Denoiser) -> None:
        """The model that is guided, in place of the one that `of` names."""
        self._guided = [denoise]

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """Per sample (B,): the weighted squared error, or its share of the energy distances."""
        if not self._guided:
            self.guides(self._checked(self._restore()))
        denoise = self._guided[0]
        if isinstance(denoise, nn.Module):
            denoise.to(y.device)
        sigma = onto((self.P_mean + self.P_std * draws.normal()).exp(), y.device).to(y)
        if self.objective == "mmd":
            sigma = first_of(c, sigma)
        draws.level = "sigma", sigma
        n = onto(draws.normal(*y.shape[1:]), y.device).to(y)
        x = y + expand_like(sigma, y) * n
        with torch.no_grad():
            D_c, D_u = denoise(x, sigma, c), denoise(x, sigma, torch.full_like(c, NULL))
        D_w = D_u + expand_like(self.weight(sigma, c), y) * (D_c - D_u)
        if self.objective == "mmd":
            s = expand_like(self.gap * sigma, y)
            return energy(D_w + self.gap * (x - D_w), y + s * n, c)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        return weight * (D_w - y).square().flatten(1).sum(1)

    def _checked(self, denoise: Denoiser) -> Denoiser:
        check_same("model.of", Known(denoise), "the data have", self)
        return denoise


def first_of(c: Tensor, values: Tensor) -> Tensor:
    """(B,) for each sample the value of the first one of its class."""
    same = c[:, None] == c[None, :]
    return values[same.int().argmax(1)]


def energy(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """(B,) whose sum over a class, by its number, is the energy distance of a's points to b's.

    Row i is the mean over the others j of its class of |a_i - b_j| + |b_i - a_j| - |a_i - a_j| -
    |b_i - b_j|, of one alone in its class 0. As j is not i, a_i and b_i may depend on each other.
    """
    a, b = a.flatten(1), b.flatten(1)
    others = (c[:, None] == c[None, :]).fill_diagonal_(False)
    between = distances(a, b) + distances(b, a) - distances(a, a) - distances(b, b)
    return (between * others).sum(1) / others.sum(1).clamp(min=1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|, (n, m), with a gradient where it is 0."""
    return ((a[:, None] - b[None, :]).square().sum(2) + 1e-24).sqrt()
