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

# What a guided denoiser may ask of whoever samples with it, as attributes that most do not have:
#     begin_step(i, sigma)  told by every sampler that has steps as number i of a trajectory starts
#     keep_noise(share)     told too, where the step is x <- D + share (x - D), plus fresh noise
#     draw_from(draw)       given the samples' own noise before a trajectory, a `generate.Draw`
#     candidates            so many trajectories are made of each sample, and the one is kept
#     log_p(x, c)           whose end has the largest of these, (B,)
HOOKS = ("begin_step", "keep_noise", "draw_from", "candidates", "log_p")


def over(sigma: Tensor | float, x: Tensor) -> Tensor | float:
    """A number per sample, (B,), shaped to multiply x of (B, *shape); one for all as it is."""
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
