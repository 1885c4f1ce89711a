"""Layers that keep the magnitude of activations at 1 (Karras et al. 2024, EDM2, app. B).

Written from the paper's equations; rms is the root mean square. Names of parameters are those of
the published weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-4  # beside every rms that is divided by
SILU_RMS = 0.596  # of silu(n), n ~ N(0, 1)


def normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x / (1e-4 + rms of x over these dimensions), the rms in float32 or more."""
    exact = torch.promote_types(x.dtype, torch.float32)
    n = math.prod(x.shape[dim] for dim in dims)
    rms = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=exact) / math.sqrt(n)
    return x / (EPSILON + rms).to(x.dtype)


def normalised_rows(w: Tensor) -> Tensor:
    """u(w) of a weight (out, in, ...): every row divided by its rms over all that is in it."""
    return normalised(w, tuple(range(1, w.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, of magnitude 1 where x ~ N(0, 1)."""
    return F.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a and b side by side on dimension 1, each with its share 1 - t and t of the magnitude.

    [s (1 - t) / sqrt(N_a) a, s t / sqrt(N_b) b] with s = sqrt((N_a + N_b) / ((1 - t)^2 + t^2)),
    N_a and N_b channels.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    s = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([s * (1 - t) / math.sqrt(n_a) * a, s * t / math.sqrt(n_b) * b], 1)


class MPFourier(nn.Module):
    """sqrt(2) cos(freqs a + phases): a (B,) -> (B, n); freqs = 2 pi N(0, 1), phases = 2 pi U."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, n: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(n))
        self.register_buffer("phases", 2 * math.pi * torch.rand(n))

    def forward(self, a: Tensor) -> Tensor:
        a = a.to(self.freqs.dtype)
        return math.sqrt(2) * (a[:, None] * self.freqs + self.phases).cos()


class MPLayer(nn.Module):
    """A linear layer (kernel 0) or a convolution of odd kernel, without bias and magnitude.

    y = u(w) gain / sqrt(n) applied to x, n = numbers in a row of w; see `normalised_rows`. In
    training mode w <- u(w) comes first, in place and without gradient (forced normalisation), so
    that its length neither grows nor matters to the optimiser.
    """

    def __init__(self, before: int, after: int, kernel: int = 0):
        super().__init__()
        square = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(torch.randn(after, before, *square))

    def unit(self) -> Tensor:
        """u(w), after forced normalisation in training mode."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalised_rows(self.weight))
        w = self.weight
        return normalised_rows(w.to(torch.promote_types(w.dtype, torch.float32)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.unit()
        w = (w * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        if w.ndim == 2:
            return F.linear(x, w)
        return F.conv2d(x, w, padding=w.shape[-1] // 2)
