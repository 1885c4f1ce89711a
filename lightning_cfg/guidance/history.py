"""What a method remembers of the steps before."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Guided


@dataclass
class History:
    """An average over the steps before, of which each step's first evaluation counts.

    name    of the method, in an error
    within  the method that is worked on, which hears of the steps too
    before  the average of the steps before; None in the first one
    """

    name: str
    within: Guided
    before: Tensor | None = None
    _latest: Tensor | None = None  # and with this one
    _begun: bool = False

    def begin_step(self, i: int, sigma: float) -> None:
        """What this step adds is of the past from the next one on."""
        if i == 0:
            self.before = None
        elif self._latest is not None:
            self.before = self._latest
        self._latest, self._begun = None, True
        if self.within.begin_step is not None:
            self.within.begin_step(i, sigma)

    def remember(self, average: Callable[[Tensor | None], Tensor]) -> Tensor | None:
        """`before`, once `average(before)` is this step's; UserError where none has begun."""
        if not self._begun:
            raise UserError(f"{self.name} is for a sampler with steps, which has not begun one")
        if self._latest is None:
            self._latest = average(self.before)
        return self.before
