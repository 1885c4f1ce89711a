"""What a flow on pairs is told beside the class: the guidance scale, or the distance to the data.

A condition with n values makes n classes of each of the K: class c at the j-th value is c + K j, so
that no network knows of it.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.refinement.neighbours import nearest_in_class
from lightning_cfg.runs.pngs import quantised, signed

ClassVectors = Callable[[Tensor], Tensor]  # classes (b,) -> the vectors (b, d) they are embedded as
QUARTERS = (0.25, 0.5, 0.75)  # of the sources, by their distance to the data


@dataclass(frozen=True)
class ByScale:
    """Told is the guidance scale at which a sample was generated.

    classes  K
    scales   those of the sources, rising
    method   whose scales they are, in words; None where that is not known
    """

    classes: int
    scales: list[float]
    method: str | None = None

    @property
    def values(self) -> int:
        """n."""
        return len(self.scales)

    def knows(self, scale: float) -> bool:
        """Whether it lies among those of the sources."""
        return self.scales[0] <= scale <= self.scales[-1]

    def told(
        self, x: Tensor, c: Tensor, scale: float | None, vectors: ClassVectors | None = None
    ) -> Tensor:
        """What the flow moves x of classes c (b,) by: classes (b,), or vectors (b, d) of such.

        Between two of the sources' scales a < s < b the vectors are e_a + (s - a) / (b - a) (e_b -
        e_a), e_a the network's own of class and scale a; beyond them the nearest scale's are taken.
        vectors  the network's `class_vectors`
        """
        assert scale is not None  # who calls has looked
        upper = bisect_left(self.scales, scale)
        if upper == self.values or scale == self.scales[upper] or upper == 0:
            return c + self.classes * min(upper, self.values - 1)
        if vectors is None:
            raise UserError(
                f"the flow's network has no class_vectors, so it knows the scales {self.scales} "
                f"only, and not {scale:g}"
            )
        low, high = self.scales[upper - 1], self.scales[upper]
        first = vectors(c + self.classes * (upper - 1))
        second = vectors(c + self.classes * upper)
        return torch.lerp(first, second, (scale - low) / (high - low))

    def beside(self, at: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The scale beside each sample's own, by numbers (b,), and how far it is told toward it.

        at (b,) numbers of the samples' scales, u (b,) uniform. Up or down, each with probability
        1/2, and a share s of the way with density 2 (1 - s); where there is none beside, none of
        it. So at a told scale between two, samples of both are drawn in proportion to how near
        they are, and a flow learns there what lies between theirs.
        """
        up = u < 0.5
        share = 1 - (1 - torch.where(up, 2 * u, 2 * u - 1)).sqrt()
        beside = at + torch.where(up, 1, -1)
        there = (beside >= 0) & (beside < self.values)
        return torch.where(there, beside, at), torch.where(there, share, 0.0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {**vars(self), "values": self.values}


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

    def told(
        self, x: Tensor, c: Tensor, scale: float | None, vectors: ClassVectors | None = None
    ) -> Tensor:
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


def scale_condition(
    scales: list[float], source: Tensor, *, between: bool = False
) -> dict[str, Tensor]:
    """What a pairs file holds of the condition on the scale: its values, and each sample's bin.

    scales  of the sources; source (N,) the number of each sample's
    """
    values, number = torch.tensor(scales, dtype=torch.float64).unique(return_inverse=True)
    told = {"between": torch.ones(1)} if between else {}
    return {"scales": values, "bin": number[source], **told}


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
