"""Exponential moving averages of a network's weights, several half-lives at once."""

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a module's parameters with EDM's ramp-up (Karras et al. 2022, app. F.1).

    After each step of B images: average <- average + (1 - 0.5^(B / h)) (weight - average), where
    h = min(half_life, ramp x images seen so far).
    half_lives  in images;  ramp  as a fraction of the images seen, 0 for none
    """

    def __init__(self, module: nn.Module, half_lives: list[int], ramp: float = 0.05):
        self.half_lives, self.ramp = half_lives, ramp
        self.names = [name for name, _ in module.named_parameters()]
        self._weights = [p.detach() for p in module.parameters()]
        self.averages = {h: [p.clone() for p in self._weights] for h in half_lives}
        self._alike = True  # averages are of the weights' types

    def update(self, step: int, batch_size: int, good: Tensor | float = 1.0) -> None:
        """One optimiser step, number `step` counted from 1, of batch_size images.

        good  () of 1, or 0 to leave all as it is, which a look at the device need not decide
        """
        for half_life, averages in self.averages.items():
            ramped = step * batch_size * self.ramp if self.ramp else half_life
            weight = 1 - 0.5 ** (batch_size / min(half_life, ramped))
            if isinstance(good, float) and self._alike:
                torch._foreach_lerp_(averages, self._weights, good * weight)  # type: ignore
                continue
            difference = torch._foreach_sub(self._weights, averages)
            torch._foreach_mul_(difference, good * weight)
            torch._foreach_add_(averages, difference)

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """{half-life: {parameter name: average}}."""
        return {h: dict(zip(self.names, a, strict=True)) for h, a in self.averages.items()}

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        for half_life, averages in self.averages.items():
            for name, average in zip(self.names, averages, strict=True):
                average.copy_(state[half_life][name])

    def to(self, module: nn.Module) -> None:
        """Follow a module whose parameters were moved to another device or made of another type.

        Averages are as exact as the parameters, but no less than float32.
        """
        self._weights = [p.detach() for p in module.parameters()]
        self._alike = all(w.dtype.itemsize >= 4 for w in self._weights)
        for half_life, averages in self.averages.items():
            pairs = zip(averages, self._weights, strict=True)
            self.averages[half_life] = [
                a.to(w.device, torch.promote_types(w.dtype, torch.float32)) for a, w in pairs
            ]
