"""Gaussian mixtures: data whose density, score, denoiser and class posterior are known exactly.

Adding noise of level sigma to a mixture gives a mixture with covariances Sigma_k + sigma^2 I, so
everything below is exact at every noise level.
"""

import copy
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.interfaces import NULL, Model

BLOCK = 500_000  # points x components held at once: small enough to stay in the cache


class GaussianMixture(Model):
    """p(y, c) = sum over the components k of class c of weight_k N(y; mean_k, covariance_k).

    weights (K,), means (K, d), covariances (K, d, d), labels (K,) long. All in float64.
    """

    weights: Tensor
    means: Tensor
    axes: Tensor  # (K, d, d), eigenvectors in columns
    variances: Tensor  # (K, d)
    labels: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, labels: Tensor):
        super().__init__()
        variances, axes = torch.linalg.eigh(covariances.double())
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double())
        self.register_buffer("axes", axes)
        self.register_buffer("variances", variances)
        self.register_buffer("labels", labels.long())
        self.shape = (means.shape[1],)
        self.num_classes = int(labels.max()) + 1

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """The exact denoiser, so that the truth can stand where a trained model could."""
        return self.denoise(x, sigma, c)

    def denoise(self, x: Tensor, sigma: Tensor | float, c: Tensor | None = None) -> Tensor:
        """D = E[y | x, c] = sum_k r_k (mu_k + Sigma_k (Sigma_k + sigma^2 I)^-1 (x - mu_k)).

        x (B, d), sigma (B,) or a number, c (B,) with NULL for "any class" -> (B, d) in x's dtype.
        """

        def posterior_mean(zs: list[Tensor], joint: Tensor, variance: Tensor) -> Tensor:
            r = joint.softmax(1)  # (B, K)
            mean = r @ self.means
            for z, along, own in zip(zs, self.axes.unbind(2), self.variances.T, strict=True):
                mean = mean + (r * z * (own / (own + variance[:, None]))) @ along
            return mean

        return self._by_component(x, sigma, c, posterior_mean).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float, c: Tensor | None = None) -> Tensor:
        """grad_x log p(x | c; sigma) = (D(x; sigma, c) - x) / sigma^2, (B, d); sigma > 0."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return (self.denoise(x, sigma, c) - x) / sigma[:, None] ** 2

    def log_density(
        self, x: Tensor, c: Tensor | None = None, sigma: Tensor | float = 0.0
    ) -> Tensor:
        """log p(x | c; sigma), (B,) float64; c None or NULL: log p(x; sigma)."""
        c = self._classes(x, c)
        one = len(c) > 0 and bool((c == c[0]).all()) and int(c[0]) != NULL
        among = self._of_class(int(c[0])) if one else self  # the others would add zeros
        joint = among._by_component(x, sigma, c, lambda z, joint, variance: joint.logsumexp(1))
        return joint - torch.where(c == NULL, 0.0, self.class_weights.log()[c])

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p(x, c; sigma) for every class, (B, classes): their softmax is the posterior."""
        order = self.labels.argsort(stable=True)
        sizes = self.labels.bincount(minlength=self.num_classes).tolist()
        alike = len(set(sizes)) == 1  # then all classes are summed at once, which may be many

        def per_class(z: Tensor, joint: Tensor, variance: Tensor) -> Tensor:
            sorted_ = joint[:, order]
            if alike:
                return sorted_.unflatten(1, (self.num_classes, sizes[0])).logsumexp(2)
            return torch.stack([own.logsumexp(1) for own in sorted_.split(sizes, 1)], 1)

        return self._by_component(x, sigma, None, per_class)

    def sample(self, n: int, c: int, generator: torch.Generator) -> Tensor:
        """n points of class c, (n, d) float64."""
        own = self.labels.eq(c).nonzero().flatten()
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        return self._place(own[pick(self.weights[own].cpu(), u).to(own.device)], generator)

    def _place(self, component: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(component), self.shape[0])
        z = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.means.device)
        return self.at(component, z)

    def at(self, component: Tensor, z: Tensor) -> Tensor:
        """The point of a component that standard normals z, (n, d), stand for."""
        offset = self.axes[component] @ (self.variances[component].sqrt() * z)[..., None]
        return self.means[component] + offset[..., 0]

    @cached_property
    def class_weights(self) -> Tensor:
        """p(c), (classes,)."""
        total = torch.zeros(self.num_classes, dtype=torch.float64, device=self.weights.device)
        return total.index_add(0, self.labels, self.weights)

    def mean_and_covariance(self, c: int) -> tuple[Tensor, Tensor]:
        """The exact first two moments of a class, (d,) and (d, d)."""
        own = self.labels == c
        w, mu = self.weights[own] / self.weights[own].sum(), self.means[own]
        within = self.axes[own] @ torch.diag_embed(self.variances[own]) @ self.axes[own].mT
        mean = w @ mu
        centred = mu - mean
        return mean, torch.einsum("k,kij->ij", w, within) + (w[:, None] * centred).mT @ centred

    def cdf(self, x: Tensor, c: int) -> Tensor:
        """P(y <= x | c) in one dimension, (n,) -> (n,) float64."""
        own = self.labels == c
        z = (x.double()[:, None] - self.means[own, 0]) / self.variances[own, 0].sqrt()
        return torch.special.ndtr(z) @ (self.weights[own] / self.weights[own].sum())

    def quantile(self, u: Tensor, c: int) -> Tensor:
        """x with P(y <= x | c) = u in one dimension, (n,) -> (n,) float64, 0 < u < 1."""
        own = self.labels == c
        z = torch.special.ndtri(u.double())[:, None] * self.variances[own, 0].sqrt()
        low, high = (self.means[own, 0] + z).amin(1), (self.means[own, 0] + z).amax(1)
        for _ in range(60):  # the quantile lies between those of the components
            middle = (low + high) / 2
            below = self.cdf(middle, c) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _of_class(self, c: int) -> "GaussianMixture":
        """The components of one class alone, with the weights that they have among all."""
        own, part = self.labels == c, copy.copy(self)
        part._buffers = {name: value[own] for name, value in self.named_buffers()}
        return part

    def _classes(self, x: Tensor, c: Tensor | None) -> Tensor:
        return torch.full((len(x),), NULL, device=x.device) if c is None else c.to(x.device)

    def _by_component(
        self, x: Tensor, sigma: Tensor | float, c: Tensor | None, result: Callable
    ) -> Tensor:
        """result(x - mu_k along k's own axes, log joint, sigma^2) over blocks of points."""
        c = self._classes(x, c)
        x = x.double()
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
        one_level = bool((sigma == sigma[:1]).all())  # then its logarithms are taken once
        rows = max(1, BLOCK // len(self.means))
        blocks = zip(x.split(rows), sigma.split(rows), c.split(rows), strict=True)
        return torch.cat(
            [
                result(*self._log_joint(x, sigma[:1] if one_level else sigma, c))
                for x, sigma, c in blocks
            ]
        )

    def _log_joint(
        self, x: Tensor, sigma: Tensor, c: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        variance = sigma**2  # (B,) or (1,)
        joint = self.weights.log() - 0.5 * self.shape[0] * math.log(2 * math.pi)
        zs = []
        for along, own in zip(self.axes.unbind(2), self.variances.T, strict=True):  # (K, d), (K,)
            z = x @ along.T - (along * self.means).sum(1)  # x - mu_k along k's own axis, (B, K)
            total = own + variance[:, None]
            joint = joint - 0.5 * (z**2 / total + total.log())
            zs.append(z)
        other = (c[:, None] != NULL) & (c[:, None] != self.labels)
        return zs, joint.masked_fill(other, -math.inf), variance


def pick(weights: Tensor, u: Tensor) -> Tensor:
    cumulative = weights.cumsum(0) / weights.sum()
    return torch.searchsorted(cumulative, u, right=True).clamp(max=len(weights) - 1)


def fractal(depth: int = 6) -> GaussianMixture:
    """The fractal's mixture, with the constants of Karras et al. (2024, app. C)."""
    random = np.random.RandomState(2)
    scale = np.array([1.3136, 1.3844])
    weights, means, covariances, labels = [], [], [], []

    def grow(start: np.ndarray, angle: float, d: int, label: int) -> None:
        length = 0.292 * 0.8**d * (1 + 0.2 * random.randn())
        along = np.array([math.cos(angle), math.sin(angle)])
        thick = 0.2 * 0.8**d / length  # width over length of a Gaussian
        across = np.eye(2) - np.outer(along, along)
        s = scale * 0.06 * length
        covariance = (np.outer(along, along) + thick**2 * across) * np.outer(s, s)
        for position in np.linspace(0.07, 0.93, 8):
            weights.append(length * 0.5**d)
            means.append((start + position * length * along) * scale)
            covariances.append(covariance)
            labels.append(label)
        for sign in (1, -1):  # at the tips too, where nothing grows, two angles are drawn
            turn = sign * 0.7**d * (1 + 0.2 * random.randn())
            if d < depth:
                grow(start + length * along, angle + turn, d + 1, label)

    for label, angle in enumerate((math.pi / 4, 5 * math.pi / 4)):
        grow(np.array([0.0030, 0.0325]), angle, 0, label)

    w, c = torch.tensor(weights, dtype=torch.float64), torch.tensor(labels)
    for label in (0, 1):  # the raw weights alone would give class 0 a share of .477
        w[c == label] *= 0.5 / w[c == label].sum()
    return GaussianMixture(w, torch.tensor(np.array(means)), torch.tensor(np.array(covariances)), c)
