"""Classifiers of noisy samples, by which a denoiser is guided."""

from typing import Annotated

from torch import Tensor, nn

from lightning_cfg.config import Between, Real
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.noise import DDPM_SIGMAS, DDPMSchedule, ddpm_time
from lightning_cfg.diffusion.of_net import OfNet
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import expand_like


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
        self.register_buffer("sigmas", DDPM_SIGMAS[schedule](), persistent=False)
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
