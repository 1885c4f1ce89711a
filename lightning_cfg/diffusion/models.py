"""A network, its parametrisation and its loss: what turns `net(x, noise, c)` into a denoiser.

Every model computes in the dtype of x and runs its network in the network's own.
"""

from typing import Annotated, Literal

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
from lightning_cfg.diffusion.coupling import Coupling, coupled
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.guidance_weight import GuidanceWeight
from lightning_cfg.diffusion.magnitude import MPFourier, MPLayer
from lightning_cfg.diffusion.noise import cosine_sigmas, ddpm_time, linear_beta_sigmas
from lightning_cfg.diffusion.of_net import OfNet
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import NULL, Denoiser, Velocity, expand_like

__all__ = [  # what a config can name
    "DDPM",
    "EDM",
    "EDM2",
    "Contrastive",
    "Flow",
    "GuidanceFree",
    "GuidanceWeight",
    "MisledClassifier",
    "NoisyClassifier",
    "OneStep",
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


TABLES = {"linear": linear_beta_sigmas, "cosine": cosine_sigmas}  # of a DDPM's levels
DDPMSchedule = Literal["linear", "cosine"]


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
        self.register_buffer("sigmas", TABLES[schedule](self.T), persistent=False)
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
    one_step = False  # known at every t, and not only at 0

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


class OneStep(Flow):
    """A flow that is known at t = 0 alone, for one Euler step: x1 = x0 + v(x0, 0, c).

    Regressed on the ends that the data give: of `Reflow` those of another flow, whose many steps it
    then is (distillation, Liu et al. 2023, sec. 2.2). Its v at t = 0 is not said of any other t, so
    that `refine` takes it in one step.
    """

    one_step = True

    def __init__(self, net: nn.Module):
        super().__init__(net)

    def loss(
        self,
        y: Tensor,
        c: Tensor,
        draws: Draws,
        x0: Tensor | None = None,
        toward: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """|v(x0, 0, c) - (y - x0)|^2 per sample, (B,); see `Flow.loss`."""
        if x0 is None:
            raise UserError("model OneStep goes from samples: train it by learner Refinement")
        start = torch.zeros(len(y)).to(y)
        draws.level = "t", start
        v = self.velocity(x0, start, self.told(c, toward, share))
        return (v - (y - x0)).square().flatten(1).sum(1)


class NoisyClassifier(OfNet):
    """p(c | x; sigma) of the noisy x: logits = net(x / sqrt(1 + sigma^2), t(sigma) / T).

    Trained by cross-entropy at the levels of the DDPM, t uniform (Dhariwal & Nichol 2021, sec. 4).
    clean     True trains and reads it at sigma = 0 only: a classifier of finished samples
    schedule  of those levels, as of `DDPM`
    """

    classifies = True
    num_classes = 0  # not known, until it is built for data
    sigmas: Tensor

    def __init__(self, net: nn.Module, *, clean: bool = False, schedule: DDPMSchedule = "linear"):
        super().__init__(net)
        self.clean = clean
        self.register_buffer("sigmas", TABLES[schedule](), persistent=False)
        self.sigma_min = 0.0 if clean else self.sigmas[0].item()
        self.sigma_max = 0.0 if clean else self.sigmas[-1].item()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits: x (B, *shape), sigma (B,) -> (B, classes)."""
        s = expand_like(sigma, x)
        noise = ddpm_time(sigma, self.sigmas) / len(self.sigmas)
        return self.run(x / (1 + s**2).sqrt(), noise, None)

    def features(self, x: Tensor) -> Tensor:
        """The network's penultimate layer on clean x, (B, d)."""
        return self.net.features(x.to(next(self.net.parameters()).dtype))

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """Cross-entropy per sample, (B,)."""
        if self.clean:
            return self.cross_entropy(self(y, y.new_zeros(len(y))), c)
        sigma = self.sigmas[onto(draws.integers(len(self.sigmas)), y.device)].to(y)
        draws.level = "sigma", sigma
        x = y + expand_like(sigma, y) * onto(draws.normal(*y.shape[1:]), y.device).to(y)
        return self.cross_entropy(self(x, sigma), c)

    def cross_entropy(self, logits: Tensor, c: Tensor) -> Tensor:
        """-log p(c), (B,)."""
        return nn.functional.cross_entropy(logits, c, reduction="none")


class MisledClassifier(NoisyClassifier):
    """A noisy classifier that is wrong on purpose, to see how far guidance follows it.

    logits(x) = those of a NoisyClassifier at x - shift, trained on labels of which a share `flip`
    is another class, drawn uniformly: where it was certain it now is to 1 - flip.
    flip   share of the labels that are wrong
    shift  by which its decision boundary is moved along every axis, units of the data
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        flip: Annotated[float, Between(0, 0.5, below=True)] = 0.2,
        shift: Annotated[float, Real] = 0.0,
    ):
        super().__init__(net)
        if not 0 <= flip < 0.5:
            raise UserError(f"model.flip={flip} is a share of the labels, from 0 to below 0.5")
        self.flip, self.shift = flip, shift

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits: x (B, *shape), sigma (B,) -> (B, classes)."""
        return super().forward(x - self.shift, sigma)

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """Cross-entropy per sample, (B,)."""
        return super().loss(y + self.shift, c, draws)  # so that the network reads y as it is

    def cross_entropy(self, logits: Tensor, c: Tensor) -> Tensor:
        """That of flipped labels in expectation, which is that of smoothed ones, (B,)."""
        K = logits.shape[1]
        return nn.functional.cross_entropy(
            logits, c, reduction="none", label_smoothing=self.flip * K / (K - 1)
        )


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


def drop_labels(c: Tensor, rate: float, draws: Draws) -> Tensor:
    """Each sample's class becomes NULL with probability `rate` (Ho & Salimans 2021)."""
    return c if rate == 0 else torch.where(onto(draws.uniform(), c.device) < rate, NULL, c)
