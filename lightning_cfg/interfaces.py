"""The few shapes that everything here agrees on.

Everything between noise and sample is a denoiser in variance-exploding coordinates
x = y + sigma n, n ~ N(0, I). EDM networks, DDPMs, rectified flows from noise, closed-form
mixtures and guided models are all denoisers.

    x      (B, *shape)  float, the noisy sample
    sigma  (B,)         noise level, in units of the data
    c      (B,)         long, the class; NULL = -1 means "no class"
    t      (B,)         flow time, from the source (0) to the data (1)
"""

from collections.abc import Callable

from torch import Tensor

NULL = -1  # the class "no class", which label dropout trains and classifier-free guidance asks for

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # D(x, sigma, c), the posterior mean of y
Classifier = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) of the noisy x at sigma
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # v(x, t, c)
Features = Callable[[Tensor], Tensor]  # x in [-1, 1] -> (B, d) float32


def over(sigma: Tensor, x: Tensor) -> Tensor:
    """A number per sample, (B,), shaped to multiply x of (B, *shape)."""
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
