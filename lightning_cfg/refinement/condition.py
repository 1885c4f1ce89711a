"""What a flow on pairs is told beside the class: the guidance scale, or the distance to the data.

A condition with n values makes n classes of each of the K: class c at the j-th value is c + K j, so
that no network knows of it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.refinement.neighbours import nearest_in_class
from lightning_cfg.runs.pngs import quantised, signed

QUARTERS = (0.25, 0.5, 0.75)  # of the sources, by their distance to the data


@dataclass(frozen=True, eq=False)
class Condition:
    """All that is needed to put a sample where training would have put it.

    classes    K
    scales     those of the sources, rising; or
    edges      (n - 1,) distances between the n parts of the sources, each measured to the nearest
    targets    (M, *shape) of the sample's class, in plain coordinates
    targets_c  (M,) their classes
    """

    classes: int
    scales: list[float] | None = None
    edges: Tensor | None = None
    targets: Tensor | None = None
    targets_c: Tensor | None = None

    @property
    def values(self) -> int:
        """n."""
        return len(self.edges) + 1 if self.scales is None else len(self.scales)

    def told(self, x: Tensor, c: Tensor, scale: float | None) -> Tensor:
        """The classes (b,) by which the flow moves samples x (b, *shape) of classes c.

        scale  at which they were generated: the nearest of the sources' scales counts
        """
        if self.scales is not None:
            gaps = [abs(known - scale) for known in self.scales]
            return c + self.classes * gaps.index(min(gaps))
        distance = to_the_data(x.to(self.targets), c, self.targets, self.targets_c)
        return c + self.classes * torch.bucketize(distance, self.edges.to(distance))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; images as the bytes that they were."""
        held = {name: value for name, value in vars(self).items() if value is not None}
        if self.targets is not None:
            small = quantised(self.targets)
            held["targets"] = small if torch.equal(signed(small), self.targets) else self.targets
        return {**held, "values": self.values}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Condition":
        """The condition of such a state."""
        held = {name: value for name, value in state.items() if name != "values"}
        if "targets" in held and held["targets"].dtype == torch.uint8:
            held["targets"] = signed(held["targets"])
        return cls(**held)


def scale_condition(scales: list[float], source: Tensor) -> dict[str, Tensor]:
    """What a pairs file holds of the condition on the scale: its values, and each sample's bin.

    scales  of the sources; source (N,) the number of each sample's
    """
    values, number = torch.tensor(scales, dtype=torch.float64).unique(return_inverse=True)
    return {"scales": values, "bin": number[source]}


def distance_condition(x: Tensor, c: Tensor, targets: Tensor, of: Tensor) -> dict[str, Tensor]:
    """What a pairs file holds of the condition on the distance: edges, and each sample's bin.

    x (N, *shape) of classes c, targets (M, *shape) of classes `of`.
    """
    distance = to_the_data(x, c, targets, of)
    edges = distance.quantile(torch.tensor(QUARTERS, dtype=distance.dtype))
    return {"edges": edges, "bin": torch.bucketize(distance, edges), "targets_c": of}


def to_the_data(x: Tensor, c: Tensor, targets: Tensor, of: Tensor) -> Tensor:
    """Distances of x to the nearest target of its class, (N,)."""
    squared, _ = nearest_in_class(x, c, targets, of, k=1)
    return squared[:, 0].sqrt()
