"""What a search for neighbours takes, before it starts."""

from dataclasses import dataclass

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.sample_sets import SampleSet
from lightning_cfg.refinement.neighbours import AT_ONCE


@dataclass(frozen=True)
class Size:
    """What a search takes, in numbers of float32 where it does not say otherwise."""

    n: int  # samples
    m: int  # real points
    point: int  # numbers of one point
    d: int  # its features
    k: int
    groups: int  # classes that are searched one by one
    shared: bool  # features are the points themselves

    @classmethod
    def of(cls, x: Tensor, points: SampleSet, space: Space, k: int, *, same_class: bool) -> "Size":
        features = space(x[:1])
        groups = len(points.c.unique()) if same_class else 1
        shared = features.data_ptr() == x.data_ptr()
        return cls(len(x), len(points), x[0].numel(), features.shape[1], k, groups, shared)

    @property
    def fixed(self) -> int:
        """Bytes that are there whatever the shard: samples, their features, results, blocks."""
        own = 0 if self.shared else self.d
        copies = self.n * self.d // self.groups if self.groups > 1 else 0  # one class's queries
        return 4 * (self.n * (self.point + own + 8 * self.k) + copies) + 8 * AT_ONCE

    @property
    def row(self) -> int:
        """Bytes of a real point: itself, its features, copies of one class and in the index."""
        copies = 2 / self.groups if self.groups > 1 else 1
        return int(4 * (self.point + (0 if self.shared else self.d) + copies * self.d))

    def shard(self, memory: float) -> int:
        """Real points that are searched at once; UserError where not even a thousand fit."""
        room = memory * 2**30 - self.fixed
        rows = min(self.m, int(room // self.row))
        if rows < self.fewest:
            needed = (self.fixed + self.fewest * self.row) / 2**30
            raise UserError(
                f"pairing {self.n:,} samples with {self.m:,} real points in {self.d} dimensions "
                f"needs {needed:.2g} GiB at least, more than memory={memory:g}"
            )
        return rows

    @property
    def fewest(self) -> int:
        """Real points that are searched at once at least."""
        return min(self.m, 1000)

    def spare(self, memory: float) -> float:
        """Bytes beside the smallest search."""
        return memory * 2**30 - self.fixed - self.fewest * self.row

    @property
    def least(self) -> int:
        """Bytes of the pairs, without the targets, of which there may be few."""
        return 4 * self.point * self.n + 12 * self.n * self.k

    def told(self, rows: int) -> str:
        """The estimate, before the work starts."""
        work = 2 * self.n * self.m * self.d / self.groups / 1e12
        targets = min(self.m, self.n * self.k)
        file = (4 * self.point * (self.n + targets) + 12 * self.n * self.k) / 2**30
        parts = -(-self.m // rows)
        return (
            f"pairing {self.n:,} samples with {self.m:,} real points in {self.d} dimensions: "
            f"{work:.3g} TFLOP, {(self.fixed + rows * self.row) / 2**30:.2g} GiB of memory"
            + (f" in {parts} parts" if parts > 1 else "")
            + f", a file of up to {file:.2g} GiB"
        )
