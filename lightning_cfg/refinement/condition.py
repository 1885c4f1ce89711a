"""What a flow on pairs is told beside the class: the guidance scale, or the distance to the data.

A condition with n values makes n classes of each of the K: class c at the j-th value is c + K j, so
that no network knows of it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.refinement.neighbours import nearest_in_class
from lightning_cfg.runs.pngs import quantised, signed

QUARTERS = (0.25, 0.5, 0.75)  # of the sources, by their distance to the data


@dataclass(frozen=True)
class ByScale:
    """Told is the guidance scale at which a sample was generated.

    classes  K; scales  those of the sources, rising
    """

    classes: int
    scales: list[float]

    @property
    def values(self) -> int:
        """n."""
        return len(self.scales)

    def told(self, x: Tensor, c: Tensor, scale: float | None) -> Tensor:
        """The classes (b,) by which the flow moves x of classes c: the nearest scale's."""
        assert scale is not None  # who calls has looked
        gaps = [abs(known - scale) for known in self.scales]
        return c + self.classes * gaps.index(min(gaps))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"values": self.values, "classes": self.classes, "scales": self.scales}


@dataclass(frozen=True, eq=False)
class ByDistance:
    """Told is in which of n parts of the sources, by distance to the data, a sample would be.

    classes    K
    edges      (n - 1,) distances between the parts, each to the nearest target of the same class
    targets    (M, *shape), in plain coordinates, of classes
    targets_c  (M,)
    """

    classes: int
    edges: Tensor
    targets: Tensor
    targets_c: Tensor

    @property
    def values(self) -> int:
        """n."""
        return len(self.edges) + 1

    def told(self, x: Tensor, c: Tensor, scale: float | None) -> Tensor:
        """The classes (b,) by which the flow moves x (b, *shape) of classes c, of any scale."""
        distance = to_the_data(x.to(self.targets), c, self.targets, self.targets_c)
        return c + self.classes * torch.bucketize(distance, self.edges.to(distance))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; targets that are images, as the bytes that they were."""
        small = quantised(self.targets)
        targets = small if torch.equal(signed(small), self.targets) else self.targets
        return {**vars(self), "values": self.values, "targets": targets}


Condition = ByScale | ByDistance


def condition_of(state: dict[str, Any]) -> Condition:
    """The condition of such a state."""
    held = {name: value for name, value in state.items() if name != "values"}
    if "scales" in held:
        return ByScale(**held)
    if held["targets"].dtype == torch.uint8:
        held["targets"] = signed(held["targets"])
    return ByDistance(**held)


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
    """Distances of x to the nearest target of its class, (N,); UserError where it has none."""
    bare = sorted(set(c.tolist()) - set(of.tolist()))
    if bare:
        raise UserError(
            f"condition=distance: no real point of class {bare[0]} is a target of the pairs, so "
            "its samples have no distance to condition on (a smaller keep_close, same_class=true "
            "or sources of that class give it some)"
        )
    squared, _ = nearest_in_class(x, c, targets, of, k=1)
    return squared[:, 0].sqrt()
