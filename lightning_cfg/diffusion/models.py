"""A network, its parametrisation and its loss: what turns `net(x, noise, c)` into a denoiser.

Every model computes in the dtype of x and runs its network in the network's own.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import (
    Between,
    Newer,
    NonNegative,
    Positive,
    Real,
    Share,
    Sigma,
    Width,
    ordered,
)
from lightning_cfg.diffusion.contrastive import Contrastive
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.guidance_weight import GuidanceWeight
from lightning_cfg.diffusion.magnitude import MPFourier, MPLayer
from lightning_cfg.diffusion.noise import DDPM_SIGMAS, DDPMSchedule, ddpm_time
from lightning_cfg.diffusion.noisy_classifier import MisledClassifier, NoisyClassifier
from lightning_cfg.diffusion.of_net import OfNet, drop_labels
from lightning_cfg.diffusion.rectified_flow import FewSteps, Flow, OneStep
from lightning_cfg.diffusion.shortcut import Shortcut
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL, expand_like

__all__ = [  # what a config can name
    "DDPM",
    "EDM",
    "EDM2",
    "Contrastive",
    "FewSteps",
    "Flow",
    "GuidanceFree",
    "GuidanceWeight",
    "MisledClassifier",
    "NoisyClassifier",
    "OneStep",
    "Shortcut",
]


@ordered("sigma_min", "sigma_max")
class EDM(OfNet):
    """The preconditioned denoiser of Karras et al. (2022, sec. 5), with label dropout for CFG.

    D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c); loss = lambda(sigma) |D - y|^2 with
    ln sigma ~ N(P_mean, P_std^2).

    inner_weight  lambda of internal guidance (Zhou et al. 2025): beside it, lambda times the same
                  loss of D_i, the answer of the head inside the network; 0: it has none
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        label_dropout: Annotated[float, Share] = 0.1,
        sigma_data: Sigma = 0.5,
        P_mean: Annotated[float, Real] = -1.2,
        P_std: Annotated[float, Positive] = 1.2,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        inner_weight: Annotated[float, NonNegative, Newer] = 0.0,
    ):
        super().__init__(net, label_dropout, inner_weight)
        self.inner_weight = inner_weight
        self.augment_dim, self.sigma_data = self.net.augment_dim, sigma_data
        self.P_mean, self.P_std = P_mean, P_std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        """D(x, sigma, c): x (B, *shape), sigma (B,), c (B,) -> (B, *shape).

        augment  (B, 9) labels of `data.augment.AugmentPipe` for networks that take them
        """
        s, sd = expand_like(sigma, x), self.sigma_data
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / (s**2 + sd**2).sqrt()
        c_in = 1 / (s**2 + sd**2).sqrt()
        c_noise = sigma.log() / 4
        labels = () if augment is None else (augment,)
        return c_skip * x + c_out * self.run(c_in * x, c_noise, c, *labels)

    def loss(self, y: Tensor, c: Tensor, draws: Draws, augment: Tensor | None = None) -> Tensor:
        """Weighted squared error per sample, summed over dimensions, (B,)."""
        sigma = onto((self.P_mean + self.P_std * draws.normal()).exp(), y.device).to(y)
        draws.level = "sigma", sigma
        x = y + expand_like(sigma, y) * onto(draws.normal(*y.shape[1:]), y.device).to(y)
        c = drop_labels(c, self.label_dropout, draws)
        loss = self.weighted((self(x, sigma, c, augment) - y).square(), sigma)
        if self.inner_weight == 0:
            return loss
        D_i = self.inner(x, sigma, c, augment)
        return loss + self.inner_weight * self.weighted((D_i - y).square(), sigma)

    def inner(self, x: Tensor, sigma: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        """D_i(x, sigma, c): what `forward` would be by the head inside the network."""
        self.net.inside = True
        try:
            return self(x, sigma, c, augment)
        finally:
            self.net.inside = False

    def weighted(self, squares: Tensor, sigma: Tensor) -> Tensor:
        """lambda(sigma) times squared errors (B, *shape), summed over dimensions, (B,)."""
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight * squares.flatten(1).sum(1)


@ordered("sigma_min", "sigma_max")
class EDM2(EDM):
    """EDM with an uncertainty u(sigma), which weighs the noise levels (Karras et al. 2024, sec. 2).

    loss = sum over dimensions of lambda(sigma) / e^u (D - y)^2 + u, u = w . fourier(c_noise), which
    is the logarithm of the weighted error where it is trained. Sampling does not ask for it.
    logvar_channels  Fourier features of u

    The defaults are those for latents of ImageNet-512; for ImageNet-64 P_mean is -0.8, P_std 1.6.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        label_dropout: Annotated[float, Share] = 0.0,
        sigma_data: Sigma = 0.5,
        P_mean: Annotated[float, Real] = -0.4,
        P_std: Annotated[float, Positive] = 1.0,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        logvar_channels: Width = 128,
    ):
        super().__init__(
            net,
            label_dropout=label_dropout,
            sigma_data=sigma_data,
            P_mean=P_mean,
            P_std=P_std,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
        )
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPLayer(logvar_channels, 1)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """u(sigma): (B,) -> (B,)."""
        with torch.autocast(sigma.device.type, enabled=False):  # exp(u) is of no use in 8 bits
            return self.logvar_linear(self.logvar_fourier(sigma.log() / 4)).squeeze(1)

    def weighted(self, squares: Tensor, sigma: Tensor) -> Tensor:
        """Squared errors (B, *shape) summed with their weight and uncertainty, (B,)."""
        u = self.uncertainty(sigma)
        return super().weighted(squares, sigma) / u.exp() + u * squares[0].numel()


@ordered("sigma_min", "sigma_max")
class GuidanceFree(EDM):
    """EDM trained without guidance to be sampled without: GFT (Chen et al. 2025).

    The network is told w = 1 / beta beside the class, and beta D(x, c, beta) + (1 - beta) sg D(x,
    NULL) is trained as EDM's D is. So its answer is D_u + w (D_c - D_u), CFG's, in one pass, by the
    guidance `guidance_free`; told 1, as by every other, it is the conditional model. For "no class"
    beta is 1. Written from the paper's abstract and accounts of its loss.

    How w is told is ours: the vector of the class plus A [ln w, (ln w)^2], of which nothing is left
    at w = 1; so it takes a network that embeds classes.
    scale_max  beta is uniform from 1 / scale_max to 1 in training
    Raises UserError without label dropout, or for a network that embeds no classes.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scale_max: Annotated[float, Between(1, 1000, above=True)] = 5.0,
        label_dropout: Annotated[float, Share] = 0.1,
        sigma_data: Sigma = 0.5,
        P_mean: Annotated[float, Real] = -1.2,
        P_std: Annotated[float, Positive] = 1.2,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
    ):
        super().__init__(
            net,
            label_dropout=label_dropout,
            sigma_data=sigma_data,
            P_mean=P_mean,
            P_std=P_std,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
        )
        if label_dropout == 0:
            raise UserError("model.label_dropout must be above 0: GuidanceFree learns from D_u")
        if self.class_vectors is None:
            raise UserError(f"GuidanceFree: net {type(net).__name__} embeds no classes")
        self.scale_max, self.augment_dim = scale_max, None
        size = self.class_vectors(torch.zeros(1, dtype=torch.long)).shape[1]
        self.tell = nn.Linear(2, size, bias=False)

    def scaled_classes(self, c: Tensor, w: Tensor) -> Tensor:
        """What the network is told in the place of classes c (B,), at scales w (B,): (B, d)."""
        assert self.class_vectors is not None
        log = w.log().to(self.tell.weight.dtype)
        return self.class_vectors(c) + self.tell(torch.stack([log, log**2], 1))

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """Weighted squared error per sample, summed over dimensions, (B,)."""
        sigma = onto((self.P_mean + self.P_std * draws.normal()).exp(), y.device).to(y)
        draws.level = "sigma", sigma
        x = y + expand_like(sigma, y) * onto(draws.normal(*y.shape[1:]), y.device).to(y)
        c = drop_labels(c, self.label_dropout, draws)
        low = 1 / self.scale_max
        beta = low + (1 - low) * onto(draws.uniform(), y.device).to(y)
        beta = torch.where(c == NULL, 1.0, beta)
        with torch.no_grad():
            D_u = self(x, sigma, torch.full_like(c, NULL))
        D = self(x, sigma, self.scaled_classes(c, 1 / beta))
        return self.weighted((torch.lerp(D_u, D, expand_like(beta, y)) - y).square(), sigma)


class DDPM(OfNet):
    """Noise prediction over T = 1000 levels (Ho et al. 2020), as a denoiser.

    D(x; sigma, c) = x - sigma eps(x / sqrt(1 + sigma^2), t(sigma), c), where sigma_t^2 =
    (1 - abar_t) / abar_t and t is interpolated in log sigma; loss = |eps - n|^2, t uniform.
    schedule  "linear" betas, as in that paper, or "cosine" (Nichol & Dhariwal 2021)
    """

    T = 1000
    sigmas: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        label_dropout: Annotated[float, Share] = 0.1,
        schedule: DDPMSchedule = "linear",
    ):
        super().__init__(net, label_dropout)
        self.register_buffer("sigmas", DDPM_SIGMAS[schedule](self.T), persistent=False)
        self.sigma_min, self.sigma_max = self.sigmas[0].item(), self.sigmas[-1].item()

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """D(x, sigma, c): x (B, *shape), sigma (B,), c (B,) -> (B, *shape)."""
        s = expand_like(sigma, x)
        noise = ddpm_time(sigma, self.sigmas) / self.T
        return x - s * self.run(x / (1 + s**2).sqrt(), noise, c)

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """|eps - n|^2 per sample, summed over dimensions, (B,)."""
        t = onto(draws.integers(self.T), y.device)
        draws.level = "sigma", self.sigmas[t]
        s = expand_like(self.sigmas[t], y)
        n = onto(draws.normal(*y.shape[1:]), y.device).to(y)
        c = drop_labels(c, self.label_dropout, draws)
        eps = self.run((y + s * n) / (1 + s**2).sqrt(), t / self.T, c)
        return (eps - n).square().flatten(1).sum(1)
