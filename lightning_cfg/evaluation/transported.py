"""Pairs by transport: samples and real points that are read, and matched, a block at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.real_features import RealFeatures
from lightning_cfg.refinement.transport import (
    Block,
    assigned,
    largest,
    sinkhorn,
    squared_distances,
)
from lightning_cfg.runs.progress import progress


@dataclass(frozen=True)
class Transport:
    """How a block is solved.

    space    in which ways are long or short
    epsilon  of the entropy, as a share of the block's median squared distance; None: none, and the
             samples are matched one to one
    k        real points that are kept of each sample's plan where there is an entropy
    """

    space: Space
    epsilon: float | None
    k: int

    @property
    def one_to_one(self) -> bool:
        return self.epsilon is None

    def columns(self, blocks: list[Block]) -> int:
        """Real points of each sample."""
        return 1 if self.one_to_one else min(self.k, *(len(block.points) for block in blocks))

    def solved(
        self, blocks: list[Block], k: int, x: Tensor, points: RealFeatures, shown: bool
    ) -> Tensor:
        """The blocks' samples in their order, a row each, (n, 2 + 3 k) float64.

        It is the sample's number, k squared distances, k numbers of real points, k weights, and
        the mass that was left out.
        """
        rows = [torch.zeros(0, 2 + 3 * k, dtype=torch.float64)]
        with progress(sum(len(block.samples) for block in blocks), " samples", shown=shown) as bar:
            for block in blocks:
                rows.append(self._block(block, x, points, k))
                bar.update(len(block.samples))
        return torch.cat(rows)

    def _block(self, block: Block, x: Tensor, points: RealFeatures, k: int) -> Tensor:
        ours = self.space(x[block.samples]).flatten(1)
        theirs = points[block.points].flatten(1).to(ours.device)
        cost = squared_distances(ours, theirs)
        if not cost.isfinite().all():
            raise UserError("coupling=transport: samples and real points must be finite")
        if self.epsilon is None:
            column = assigned(cost)[:, None]
            weights, left = torch.ones_like(column, dtype=torch.float64), cost.new_zeros(len(cost))
        else:
            # of points that all coincide every plan costs the same
            epsilon = self.epsilon * float(cost.median()) or 1.0
            column, weights, left = largest(sinkhorn(cost, epsilon), k)
        numbers = block.points[column.cpu()].double()
        parts = [block.samples[:, None].double(), cost.gather(1, column).cpu(), numbers]
        return torch.cat([*parts, weights.cpu(), left[:, None].cpu()], 1)

    def check_memory(self, blocks: list[Block], size: int, d: int, memory: float) -> str:
        """What it takes, in words; UserError where that is more than so many GiB.

        size  numbers of a sample; d  of its features
        """
        n, m, taken = self._largest(blocks, size, d)
        gib = taken / 2**30
        if gib > memory:
            raise UserError(
                f"coupling=transport: a block of {n:,} samples and {m:,} real points needs "
                f"{gib:.2g} GiB, more than memory={memory:g}: make block smaller"
            )
        how = "matched one to one" if self.one_to_one else f"by Sinkhorn, epsilon={self.epsilon:g}"
        return f"{len(blocks)} blocks of up to {n:,} x {m:,} {how}, {gib:.2g} GiB of memory"

    def spare(self, blocks: list[Block], size: int, d: int, memory: float) -> float:
        """Bytes beside that of so many GiB."""
        return memory * 2**30 - self._largest(blocks, size, d)[2]

    def _largest(self, blocks: list[Block], size: int, d: int) -> tuple[int, int, int]:
        """Samples and real points of the largest block, and the bytes that it takes."""
        most = max(blocks, key=lambda block: len(block.samples) * len(block.points))
        n, m = len(most.samples), len(most.points)
        matrices = 2 if self.one_to_one else 5
        return n, m, 8 * matrices * n * m + (n + m) * (4 * size + 16 * d)
