"""Moving averages of a network's weights, several half-lives and power functions at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_cfg.runs.power_ema import beta, exponent_of


class EMA:
    """Averages of a module's parameters: average <- average + (1 - beta) (weight - average).

    After each step of B images beta = 0.5^(B / h) with EDM's ramp-up (Karras et al. 2022, app.
    F.1), h = min(half_life, ramp x images seen so far); or, of a power function, EDM2's (Karras et
    al. 2024, eq. 6) beta = (1 - B / images seen)^(gamma + 1), which forgets where it began.
    half_lives  in images;  ramp  as a fraction of the images seen, 0 for none
    stds        relative widths of power functions, which gamma follows from; see `power_ema`
    """

    def __init__(
        self,
        module: nn.Module,
        half_lives: Sequence[int],
        ramp: float = 0.05,
        stds: Sequence[float] = (),
    ):
        self.ramp = ramp
        self.exponents = {std: exponent_of(std) for std in stds}
        self.names = [name for name, _ in module.named_parameters()]
        self._weights = [p.detach() for p in module.parameters()]
        # an int is a half-life, a float is a std
        self.averages = {key: [p.clone() for p in self._weights] for key in (*half_lives, *stds)}
        self._alike = True  # averages are of the weights' types

    def update(self, step: int, batch_size: int, good: Tensor | float = 1.0) -> None:
        """One optimiser step, number `step` counted from 1, of batch_size images.

        good  () of 1, or 0 to leave all as it is, which a look at the device need not decide
        """
        for key, averages in self.averages.items():
            if key in self.exponents:
                weight = 1 - beta(step, self.exponents[key])
            else:
                ramped = step * batch_size * self.ramp if self.ramp else key
                weight = 1 - 0.5 ** (batch_size / min(key, ramped))
            if isinstance(good, float) and self._alike:
                torch._foreach_lerp_(averages, self._weights, good * weight)  # type: ignore
                continue
            difference = torch._foreach_sub(self._weights, averages)
            torch._foreach_mul_(difference, good * weight)
            torch._foreach_add_(averages, difference)

    def state_dict(self) -> dict[int | float, dict[str, Tensor]]:
        """{half-life or std: {parameter name: average}}."""
        return {key: dict(zip(self.names, a, strict=True)) for key, a in self.averages.items()}

    def load_state_dict(self, state: dict[int | float, dict[str, Tensor]]) -> None:
        for key, averages in self.averages.items():
            for name, average in zip(self.names, averages, strict=True):
                average.copy_(state[key][name])

    def to(self, module: nn.Module) -> None:
        """Follow a module whose parameters were moved to another device or made of another type.

        Averages are as exact as the parameters, but no less than float32.
        """
        self._weights = [p.detach() for p in module.parameters()]
        self._alike = all(w.dtype.itemsize >= 4 for w in self._weights)
        for key, averages in self.averages.items():
            pairs = zip(averages, self._weights, strict=True)
            self.averages[key] = [
                a.to(w.device, torch.promote_types(w.dtype, torch.float32)) for a, w in pairs
            ]
