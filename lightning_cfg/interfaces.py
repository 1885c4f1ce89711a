"""The few shapes that everything here agrees on.

Everything between noise and sample is a denoiser in variance-exploding coordinates
x = y + sigma n, n ~ N(0, I). EDM networks, DDPMs, rectified flows from noise, closed-form
mixtures and guided models are all denoisers.

    x      (B, *shape)  float, the noisy sample
    sigma  (B,)         noise level, in units of the data
    c      (B,)         long, the class; NULL = -1 means "no class"
    t      (B,)         flow time, from the source (0) to the data (1)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, overload

import torch
from torch import Tensor

from lightning_cfg.errors import UserError

NULL = -1  # the class "no class", which label dropout trains and classifier-free guidance asks for

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # D(x, sigma, c), the posterior mean of y
Classifier = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) of the noisy x at sigma
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # v(x, t, c)
Features = Callable[[Tensor], Tensor]  # x in [-1, 1] -> (B, d) float32


class Known:
    """What guidance may know of a network, and the answer of one that does not say.

    shape          of a sample
    num_classes    0 where the data have no classes
    label_dropout  0 where it never learned the class "no class"
    class_vectors  its embedding of classes, (B,) -> (B, d), which it also takes as c
    clean          a classifier that was trained on clean samples only
    sigma_min      the noise levels that it was trained for, up to sigma_max
    """

    def __init__(self, net: Callable[..., Tensor]):
        self.net = net
        self.shape: tuple[int, ...] | None = getattr(net, "shape", None)
        self.num_classes: int | None = getattr(net, "num_classes", None)
        self.label_dropout: float = getattr(net, "label_dropout", 1.0)
        self.class_vectors: Callable[[Tensor], Tensor] | None = getattr(net, "class_vectors", None)
        self.clean: bool = getattr(net, "clean", False)
        self.sigma_min: float = getattr(net, "sigma_min", 0.0)
        self.sigma_max: float = getattr(net, "sigma_max", math.inf)


class Draw(Protocol):
    """The samples' own noise: fresh normals (B, *shape) float64 at every call; `sampling.seeds`."""

    device: torch.device

    def __call__(self) -> Tensor: ...

    def other(self, name: str, shape: tuple[int, ...] | None = None) -> "Draw":
        """Draws of another purpose, which leave these as they are."""
        ...


@dataclass(frozen=True)
class Guided:
    """A denoiser, and what it asks of whoever samples with it: what a guidance method returns.

    A plain function is one that asks nothing.
    begin_step  called with (i, sigma) by every sampler that has steps as number i of a trajectory
                starts; one without refuses a denoiser that asks for it
    keep_noise  called with k where the step is x <- D + k (x - D), plus fresh noise
    draw_from   called with the samples' own noise, a `Draw`, before a trajectory
    candidates  so many trajectories are made of each sample, and the one is kept
    log_p       whose end (x, c) has the largest of these, (B,)
    """

    denoise: Denoiser
    begin_step: Callable[[int, float], None] | None = None
    keep_noise: Callable[[float], None] | None = None
    draw_from: Callable[[Draw], None] | None = None
    candidates: int = 1
    log_p: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self):
        if self.candidates > 1 and self.log_p is None:
            raise UserError(f"candidates={self.candidates} need log_p, which says which is kept")

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return self.denoise(x, sigma, c)


def as_guided(denoise: Denoiser) -> Guided:
    """The denoiser as a Guided; a function may ask by attributes too, f.begin_step = ..."""
    if isinstance(denoise, Guided):
        return denoise
    names = [field.name for field in fields(Guided) if field.name != "denoise"]
    asked = {name: getattr(denoise, name) for name in names if hasattr(denoise, name)}
    return Guided(denoise, **asked)


@overload
def expand_like(sigma: Tensor, x: Tensor) -> Tensor: ...
@overload
def expand_like(sigma: float, x: Tensor) -> float: ...
def expand_like(sigma: Tensor | float, x: Tensor) -> Tensor | float:
    """A number per sample, (B,), shaped to multiply x of (B, *shape); one for all as it is."""
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


over = expand_like  # its name before, which methods of one's own may use
