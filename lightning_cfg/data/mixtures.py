"""Data sets that are Gaussian mixtures, so that all about them is known exactly."""

from functools import cached_property
from math import isfinite
from typing import Annotated

import torch
from torch import Tensor

from lightning_cfg.config import AtLeast, Count, Filled, NonNegative, Positive, Real, Seed
from lightning_cfg.diffusion.draws import Draws, keyed
from lightning_cfg.diffusion.mixture import GaussianMixture, fractal, pick
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import DataSet


class Mixture(DataSet):
    """A data set that is a Gaussian mixture: every training batch is a fresh draw.

    limit    points per class that there are to train on, the bank; left out: no end of them

    means    one list of coordinates per component
    stds     one number per component: its deviation along every axis
    labels   the class of each component, from 0 without gaps
    weights  of each component, relative to their sum; equal when left out
    seed     of the real points in `real`, not of the training batches
    UserError for lists that do not describe a mixture.
    """

    def __init__(
        self,
        *,
        means: Annotated[list[Annotated[list[Annotated[float, Real]], Filled]], Filled],
        stds: list[Annotated[float, Positive]],
        labels: list[Annotated[int, AtLeast(0)]],
        weights: list[Annotated[float, NonNegative]] | None = None,
        seed: Seed = 0,
        limit: Count | None = None,
    ):
        _check(means, stds, labels, weights)
        eye = torch.eye(len(means[0]), dtype=torch.float64)
        covariances = torch.tensor(stds, dtype=torch.float64)[:, None, None] ** 2 * eye
        w = torch.tensor([1.0] * len(means) if weights is None else weights, dtype=torch.float64)
        at = torch.tensor(means, dtype=torch.float64)
        self._hold(GaussianMixture(w, at, covariances, torch.tensor(labels)), seed, limit)

    def _hold(self, truth: GaussianMixture, seed: int, limit: int | None) -> None:
        self.truth, self.seed, self.limit = truth, seed, limit
        self.shape, self.num_classes = truth.shape, truth.num_classes
        self.formula = formula(truth)

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """Points of this step, fresh unless there is a limit: y (b, d) float32 and c (b,)."""
        if self.limit is not None:
            y, c = self._bank
            rows = draws.permuted(len(c))
            return {"y": y[rows], "c": c[rows]}
        component = pick(self.truth.weights, draws.uniform().double())
        y = self.truth.at(component, draws.normal(*self.shape).double())
        return {"y": y.float(), "c": self.truth.labels[component]}

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """per_class points of each class, in turn: y (N, d) float32 and c (N,).

        split names the draw: "bank", "held_out" and "fresh" share no point. UserError for more of
        the bank than `limit`.
        """
        n = 20_000 if per_class is None else per_class
        drawn = n
        if split == "bank" and self.limit is not None:
            n = self.limit if per_class is None else per_class
            drawn = self.limit  # fewer are some of these, and not another draw
            if n > drawn:
                raise UserError(f"the bank has data.limit={self.limit} points a class, not {n}")
        ys = [
            self.truth.sample(drawn, c, keyed(split, self.seed, c))[:n].float()
            for c in range(self.num_classes)
        ]
        return torch.cat(ys), torch.arange(self.num_classes).repeat_interleave(n)

    @cached_property
    def _bank(self) -> tuple[Tensor, Tensor]:
        return self.real("bank")


def _check(means: list, stds: list, labels: list, weights: list | None) -> None:
    """UserError, naming the key, unless these lists describe a mixture."""
    if not means or not all(means):
        raise UserError("data.means must name one component, by one coordinate or more")
    for key, values in (("stds", stds), ("labels", labels), ("weights", weights)):
        if values is not None and len(values) != len(means):
            raise UserError(
                f"data.{key} has {len(values)} numbers, and data.means {len(means)} components: "
                "one is needed of each"
            )
    sizes = sorted({len(mean) for mean in means})
    if len(sizes) > 1:
        raise UserError(f"data.means has components in {sizes[0]} and in {sizes[1]} dimensions")
    coordinates = [number for mean in means for number in mean]
    for key, values in (("means", coordinates), ("stds", stds), ("weights", weights or [])):
        if not all(map(isfinite, values)):
            raise UserError(f"data.{key} must be finite numbers, not {values}")
    if min(stds) <= 0:
        raise UserError(f"data.stds must be above 0, and one is {min(stds):g}")
    if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
        raise UserError(f"data.weights must be 0 or more, and one above 0, not {weights}")
    if set(labels) != set(range(max(labels) + 1)):
        raise UserError(
            f"data.labels must be classes from 0 without gaps, not {sorted(set(labels))}"
        )
    if weights is not None:
        shares = dict.fromkeys(labels, 0.0)
        for label, weight in zip(labels, weights, strict=True):
            shares[label] += weight
        if nothing := [label for label, share in shares.items() if share == 0]:
            raise UserError(f"data.weights leave nothing to class {nothing[0]}")


class Fractal(Mixture):
    """The two-class fractal of Zhao & Schwing (2025, sec. C.2), after Karras et al. (2024, app. C).

    Each class is a binary tree of 127 branches with 8 Gaussians on each: 1016 per class. Classes
    are equally likely. `seed` is of the real points; the tree itself is always the same. `limit` as
    in `Mixture`.
    """

    def __init__(self, *, seed: Seed = 0, limit: Count | None = None):
        self._hold(fractal(), seed, limit)


def formula(truth: GaussianMixture) -> str:
    """Its components as N(mean, variance), class by class; nothing where they are many."""
    if len(truth.means) > 8:
        return ""
    parts = []
    for c in range(truth.num_classes):
        own = (truth.labels == c).nonzero().flatten().tolist()
        means = (", ".join(f"{m:g}" for m in truth.means[k].tolist()) for k in own)
        variances = (truth.variances[k].mean().item() for k in own)
        parts.append(" + ".join(f"N({m}, {v:.3g})" for m, v in zip(means, variances, strict=True)))
    return "; ".join(f"class {c}: {part}" for c, part in enumerate(parts))
