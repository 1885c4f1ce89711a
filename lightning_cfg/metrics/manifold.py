"""What nearest neighbours in a feature space tell: whether samples lie where real points do, how
much of these they cover, and whether they are copies of training data."""

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, Between
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.cached import cached_on
from lightning_cfg.metrics.meaning import better, percent
from lightning_cfg.refinement.neighbours import nearest
from lightning_cfg.runs.precision import matmul


@better(
    "higher",
    "share of samples within reach of real points (improved precision)",
    column="precision",
    format=percent,
)
@better(
    "higher",
    "share of real points within reach of samples (improved recall)",
    column="recall",
    format=percent,
)
def precision_recall(
    features_x: Tensor, features_y: Tensor, *, k: Annotated[int, AtLeast(1)] = 3
) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), with balls of k neighbours.

        precision  share of samples in some real point's ball, recall the reverse;
        a ball's radius is the distance from its centre to the k-th of the others on its side

    Both depend on n and m: compare them at one size only. Raises UserError for k points or fewer.
    """
    radius_x, radius_y = radii(features_x, k), radii(features_y, k)
    inside, covered = [], features_y.new_zeros(len(features_y), dtype=torch.bool)
    for rows, within in _compared(features_x, features_y):
        inside.append(within(radius_y[None], torch.le).any(1))
        covered |= within(radius_x[rows, None], torch.le).any(0)
    return {f"precision_k{k}": _share(torch.cat(inside)), f"recall_k{k}": _share(covered)}


@better(
    "real", "samples within reach of a real point, over k; about 1 for real data", column="density"
)
@better(
    "higher",
    "share of real points with a sample within their reach",
    column="coverage",
    format=percent,
)
def density_coverage(
    features_x: Tensor, features_y: Tensor, *, k: Annotated[int, AtLeast(1)] = 5
) -> dict[str, float]:
    """Density and coverage (Naeem et al. 2020), with balls of k neighbours around real points.

        density   1 / (k n) sum_ij [x_i in ball j], about 1 for a fresh real draw, not bounded by it
        coverage  share of real points with a sample in their ball

    Coverage rises with n and falls with m. Raises UserError for k real points or fewer.
    """
    radius = radii(features_y, k)
    hits, covered = 0, features_y.new_zeros(len(features_y), dtype=torch.bool)
    for _, within in _compared(features_x, features_y):
        inside = within(radius[None], torch.lt)
        hits += int(inside.sum())
        covered |= inside.any(0)
    return {
        f"density_k{k}": hits / (k * len(features_x)),
        f"coverage_k{k}": _share(covered),
    }


@better("real", "mean distance to the nearest training point in this space")
@better(
    "lower",
    "share of samples three times nearer to one training point than to the next",
    column="memorised",
    format=percent,
)
def nearest_train(features_x: Tensor, features_bank: Tensor) -> dict[str, float]:
    """Distance to the nearest training point, and the share that is memorised.

        nearest_train  mean_i d1(x_i), the distance to the nearest training point
        memorised      share with d1 < d2 / 3 (Yoon et al. 2023), d2 the distance to the nearest one
                       that differs from it, as a copy of it says nothing; meant for plain pixels

    In units of the features. Raises UserError for fewer than 2 different training points.
    """
    if len(features_bank) < 2:
        raise UserError(f"nearest_train needs 2 training points, got {len(features_bank)}")
    d1, d2 = _nearest_different(features_x, features_bank).unbind(1)
    return {"nearest_train": d1.mean().item(), "memorised": _share(d1 < d2 / 3)}


@better(
    "real",
    "share of samples nearer to a training point than all but the quantile, 1 % unless the column "
    "says another, of held-out real ones",
    format=percent,
)
def near_copies(
    features_x: Tensor,
    features_held_out: Tensor,
    features_bank: Tensor,
    *,
    quantile: Annotated[float, Between(0, 1, above=True, below=True)] = 0.01,
) -> dict[str, float]:
    """Share of samples nearer to a training point than all but 1 % of held-out real points are.

        mean_i [d1(x_i) <= q],   q the quantile of d1(y) over held-out y

    0.01 for fresh real data, whatever the space: what is more has been copied, or is too typical.
    Raises UserError for a quantile outside (0, 1) or fewer held-out points than it can tell.
    """
    if not 0 < quantile < 1:
        raise UserError(f"near_copies: quantile={quantile} must be between 0 and 1")
    if len(features_held_out) * quantile < 1:
        raise UserError(
            f"near_copies: {len(features_held_out)} held-out points are too few for the "
            f"quantile {quantile:g}"
        )
    own = _to_bank(features_held_out, features_bank, k=1)[0][:, 0]
    limit = own.sort().values[int(len(own) * quantile) - 1]
    d1 = _to_bank(features_x, features_bank, k=min(2, len(features_bank)))[0][:, 0]
    return {"near_copies": _share(d1 <= limit)}


def radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of each point to the k-th of the others, (N,) float64."""
    if len(points) <= k or k < 1:
        raise UserError(
            f"balls of k = {k} neighbours need more than {max(k, 0)} points and k of 1 or more, "
            f"got {len(points)} points"
        )
    # the first neighbour is the point itself (or a copy of it); one search serves k = 3 and k = 5,
    # the defaults of precision_recall and density_coverage
    most = min(max(k, 5), len(points) - 1)
    found = cached_on(points, ("radii", most), lambda: nearest(points, points, k=most + 1)[0])
    return found[:, k]


def _to_bank(points: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Distances (N, k) to the nearest points of the bank, and which they are."""

    def found() -> tuple[Tensor, Tensor, Tensor]:
        squared, index = nearest(points, bank, k=k)
        return bank, squared.sqrt(), index  # the bank too: its id stays its own

    version = 0 if bank.is_inference() else bank._version
    return cached_on(points, ("to bank", id(bank), version, k), found)[1:]


SAME = 1e-6  # of the bank's extent: what a network's rounding makes of one image in two batches


def _nearest_different(points: Tensor, bank: Tensor) -> Tensor:
    """Distances (N, 2) to the nearest point of the bank and to the nearest that differs from it.

    Where the second is a copy of the first, more and more of them are looked at.
    """
    found, index = _to_bank(points, bank, k=2)
    found, k = found.clone(), 2
    rows = (~_others(bank, index)[:, 1]).nonzero()[:, 0]
    while len(rows):
        if k == len(bank):
            raise UserError("nearest_train needs 2 different training points, and all are alike")
        k = min(4 * k, len(bank))
        squared, index = nearest(points[rows], bank, k=k)
        others = _others(bank, index)
        known = others.any(1)
        second = others.byte().argmax(1)[:, None]
        found[rows[known], 1] = squared.gather(1, second)[known, 0].sqrt()
        rows = rows[~known]
    return found


def _others(bank: Tensor, index: Tensor) -> Tensor:
    """Which of a query's neighbours (b, k) are not copies of its first one."""
    near = SAME * bank.flatten(1).var(0).sum().sqrt().item()
    size = max(1, (1 << 22) // (index.shape[1] * max(1, bank[0].numel())))  # 32 MiB in float64
    others = []
    for some in index.split(size):
        gap = bank[some].double() - bank[some[:, :1]].double()
        others.append(gap.flatten(2).norm(dim=2) > near)
    return torch.cat(others)


Within = Callable[[Tensor, Callable], Tensor]


def _compared(x: Tensor, y: Tensor, rows: int = 512) -> Iterator[tuple[slice, Within]]:
    """For block after block of x, (b, d): within(limit, compare) -> (b, m) bool, exactly.

    `limit` are squared distances, (1, m) or (b, 1), and `compare` is torch.le or torch.lt. A matrix
    product in float32 decides where its rounding cannot matter (see `neighbours.nearest`), and
    float64 differences decide the rest.
    """
    if x.shape[1:] != y.shape[1:] or not len(x):
        raise UserError(f"features of {tuple(x.shape)} and {tuple(y.shape)} do not compare")
    for name, points in (("samples", x), ("real points", y)):
        if not points.isfinite().all():
            raise UserError(f"features of the {name} have NaN or inf, and lie in no ball")
    centre = y.mean(0, dtype=torch.float64).to(torch.promote_types(y.dtype, torch.float32))
    near_y = (y - centre).float()
    length_y = near_y.square().sum(1)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        near_x = (block - centre).float()
        length_x = near_x.square().sum(1)[:, None]
        with matmul("highest"):  # what the slack is for
            squared = torch.addmm(length_y, near_x, near_y.T, alpha=-2).add_(length_x)
        reach = length_x.sqrt() + length_y.max().sqrt()
        slack = (x.shape[1] + 8) * 6e-8 * reach.square() + 1e-30

        def within(
            limit: Tensor, compare: Callable, block=block, squared=squared, slack=slack
        ) -> Tensor:
            near = limit.float()
            inside = squared < near - slack
            unsure = (~((squared - near).abs_() > slack)).nonzero()  # and NaN, of overflow
            limit = limit.expand(squared.shape)
            for i, j in (part.T for part in unsure.split(1 << 12)):
                exact = (block[i].double() - y[j].double()).square_().sum(-1)
                inside[i, j] = compare(exact, limit[i, j])
            return inside

        yield slice(start, start + rows), within


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
