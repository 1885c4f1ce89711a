"""What networks of diffusers predict, in our coordinates: their x_t is a x, and D follows of it.

In these coordinates DDIM (eta 0), Euler and flow-matching Euler are one and the same step, along
the levels of their schedulers.
"""

from typing import Any, Protocol

from torch import Tensor

from lightning_cfg.diffusion.noise import ddpm_time
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import expand_like

LEAST = 1e-16  # in the place of an abar of 0, zero terminal SNR, at which x_t is noise alone
LARGEST = 1e8  # the same of a flow's infinite sigma

KINDS = ("epsilon", "v_prediction", "sample")


class Prediction(Protocol):
    """The times of a network, what it is given, and the denoiser that its answer stands for."""

    sigma_min: float
    sigma_max: float

    def time(self, sigma: Tensor) -> Tensor:
        """The network's time of noise levels (B,), float64."""
        ...

    def level(self, t: Tensor) -> Tensor:
        """The noise level of times (B,), float64."""
        ...

    def scale(self, sigma: Tensor) -> Tensor:
        """a of x_t = a x at noise levels (B,), float64."""
        ...

    def denoised(self, x: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
        """D of the network's answer for a x, (B, *shape)."""
        ...

    def answer(self, x: Tensor, sigma: Tensor, D: Tensor) -> Tensor:
        """The network's answer that stands for D: the inverse of `denoised`."""
        ...


class VariancePreserving:
    """x_t = a x with a = 1 / sqrt(1 + sigma^2), times by a table of abar: sigma^2 = 1/abar - 1.

    epsilon       D = x - sigma e                (Ho et al. 2020)
    v_prediction  D = a^2 x - a sigma v          (Salimans & Ho 2022)
    sample        D is the answer
    Times between those of the table are interpolated in ln sigma.
    """

    def __init__(self, abar: Tensor, kind: str):
        if kind not in KINDS:
            raise UserError(f"prediction_type={kind} is not known; known are {', '.join(KINDS)}")
        abar = abar.double().cpu().clamp(min=LEAST)
        self.kind, self.sigmas = kind, ((1 - abar) / abar).sqrt()
        self.sigma_min, self.sigma_max = self.sigmas[0].item(), self.sigmas[-1].item()

    def time(self, sigma: Tensor) -> Tensor:
        """The network's time of noise levels (B,), float64."""
        return ddpm_time(sigma.double(), self.sigmas.to(sigma.device))

    def level(self, t: Tensor) -> Tensor:
        """The noise level of times (B,), float64."""
        logs = self.sigmas.to(t.device).log()
        below = t.long().clamp(0, len(logs) - 2)
        return (logs[below] + (t.double() - below) * (logs[below + 1] - logs[below])).exp()

    def scale(self, sigma: Tensor) -> Tensor:
        """a of x_t = a x at noise levels (B,), float64."""
        return (1 + sigma.double() ** 2).rsqrt()

    def denoised(self, x: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
        """D of the network's answer for a x, (B, *shape)."""
        a, s = expand_like(self.scale(sigma), x), expand_like(sigma, x)
        if self.kind == "epsilon":
            return x - s * answer
        return answer if self.kind == "sample" else a * a * x - a * s * answer

    def answer(self, x: Tensor, sigma: Tensor, D: Tensor) -> Tensor:
        """The network's answer that stands for D: the inverse of `denoised`."""
        a, s = expand_like(self.scale(sigma), x), expand_like(sigma, x)
        if self.kind == "epsilon":
            return (x - D) / s
        return D if self.kind == "sample" else (a * a * x - D) / (a * s)


class FlowMatching:
    """x_s = (1 - s) y + s n, the network's v = n - y at time `times` s: sigma = s / (1 - s).

    D = a x - s v, a = 1 - s (Lipman et al. 2023; SD3, Flux). A scheduler's shift multiplies sigma.
    """

    sigma_min, sigma_max = 0.0, LARGEST

    def __init__(self, times: float = 1000.0):
        self.times = times

    def time(self, sigma: Tensor) -> Tensor:
        """The network's time of noise levels (B,), float64."""
        return self.times * sigma.double() / (1 + sigma.double())

    def level(self, t: Tensor) -> Tensor:
        """The noise level of times (B,), float64; at most LARGEST."""
        s = t.double() / self.times
        return (s / (1 - s)).clamp(max=LARGEST)

    def scale(self, sigma: Tensor) -> Tensor:
        """a of x_t = a x at noise levels (B,), float64."""
        return 1 / (1 + sigma.double())

    def denoised(self, x: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
        """D of the network's answer for a x, (B, *shape)."""
        s = sigma.double() / (1 + sigma.double())
        return expand_like(1 - s, x) * x - expand_like(s, x) * answer

    def answer(self, x: Tensor, sigma: Tensor, D: Tensor) -> Tensor:
        """The network's answer that stands for D: the inverse of `denoised`."""
        s = sigma.double() / (1 + sigma.double())
        return (expand_like(1 - s, x) * x - D) / expand_like(s, x)


def prediction_of(scheduler: Any) -> Prediction:
    """What a network trained with this scheduler's noise predicts; UserError for another's."""
    config, name = scheduler.config, type(scheduler).__name__
    if "FlowMatch" in name:
        return FlowMatching(float(config.num_train_timesteps))
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, Tensor) or config.get("use_flow_sigmas"):
        raise UserError(
            f"scheduler {name} has no table of noise that is known here: those of DDPM, DDIM, "
            "PNDM, Euler, DPM-Solver++, UniPC, LMS, Heun, and of flow matching have"
        )
    return VariancePreserving(abar, config.get("prediction_type", "epsilon"))
