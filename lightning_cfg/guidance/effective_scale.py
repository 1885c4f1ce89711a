"""The effective guidance scale of any method: the scale of CFG that does most nearly the same."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_cfg.guidance.needs import require_null
from lightning_cfg.interfaces import NULL, Denoiser, Guided, Known, as_guided

COLUMNS = ("sigma", "samples", "guided", "along", "length")  # of what is kept of a level


class EffectiveScale:
    """w_eff = 1 + <D_w - D_c, d> / |d|^2, d = D_c - D_u, averaged along the path.

    At each noise level both products are summed over the samples before they are divided, so that
    w_eff there is the scale whose CFG comes closest to the method in the mean square, and samples
    of which both models say the same do not count. Then the mean over all evaluations of the
    sampler: for CFG it is w, without guidance 1, of a schedule the mean of w(sigma). Where nothing
    is guided it is 1 and no further pass is made; D_c and D_u are taken from the passes that the
    method made itself, and those that it did not make are made, and counted.

    Written after Xie et al. (2026), "Guidance Matters" (arXiv 2602.22570), of which the abstract
    and the description in the authors' repository could be read, the paper's equations not. Their
    code has |D_w - D_u| / |d| for what adds to CFG, averaged over the steps of a sample, and says
    to project on d first whatever does not: that is what this does, always. The sums over samples
    are ours.

    model        the network of the method, which gets `EffectiveScale.model` in its place
    evaluations  of the model that were made for this alone so far, in samples
    Raises UserError for a model without classes, or trained without label dropout.
    """

    def __init__(self, model: Denoiser):
        require_null(model, "effective_scale")
        self.model = _Passes(model)
        self.evaluations = self._told = 0
        self._levels: dict[float, list[float]] = {}

    def of(self, denoise: Denoiser) -> Guided:
        """The guided denoiser as it is, which is listened to."""
        guided = as_guided(denoise)

        def heard(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
            self.model.made.clear()
            D_w = guided.denoise(x, sigma, c)
            self._add(x, sigma, c, D_w)
            return D_w

        return replace(guided, denoise=heard)

    def take(self) -> tuple[Tensor, int]:
        """(levels, 5) float64 of all since it was taken last, a row of COLUMNS each; evaluations.

        samples  that were asked for there, of which so many are of batches that were `guided`
        along    the sum of <D_w - D_c, d> over these, and `length` that of |d|^2
        """
        rows = [[sigma, *sums] for sigma, sums in self._levels.items()]
        spent, self._levels, self._told = self.evaluations - self._told, {}, self.evaluations
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(COLUMNS)), spent

    @torch.no_grad()
    def _add(self, x: Tensor, sigma: Tensor, c: Tensor, D_w: Tensor) -> None:
        D_c = self._pass(x, sigma, c)
        sums = self._levels.setdefault(float(sigma[0]), [0.0] * 4)
        sums[0] += len(x)
        if torch.equal(D_w, D_c):
            return
        d = (D_c - self._pass(x, sigma, torch.full_like(c, NULL))).double()
        sums[1] += len(x)
        sums[2] += ((D_w - D_c) * d).sum().item()
        sums[3] += d.square().sum().item()

    def _pass(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """The model's answer, of which only those samples are evaluated that were not."""
        D, known = self.model.heard(x, sigma, c)
        if not known.all():
            D[~known] = self.model.net(x[~known], sigma[~known], c[~known]).to(D.dtype)
            self.evaluations += int((~known).sum())
        return D


class _Passes(Known):
    """A model that remembers what it has answered."""

    def __init__(self, net: Denoiser):
        super().__init__(net)
        self.made: list[tuple[Tensor, Tensor]] = []  # what was asked, a row a sample; answers

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        D = self.net(x, sigma, c)
        if c.ndim == 1 and not c.is_floating_point():  # a label, and not vectors in its place
            self.made.append((_asked(x, sigma, c), D.detach()))
        return D

    def heard(self, x: Tensor, sigma: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Of the samples that it has answered what it said, (B, *shape), and which (B,) these are.

        Rows are found by all that was asked: a method may ask of some samples only.
        """
        asked = _asked(x, sigma, c)
        D, known = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for rows, answers in self.made:
            same = torch.cat([asked, rows]).unique(dim=0, return_inverse=True)[1]
            place = torch.full((int(same.max()) + 1,), -1, device=x.device)
            place[same[len(x) :]] = torch.arange(len(rows), device=x.device)
            place = place[same[: len(x)]]
            found = place >= 0
            D[found], known = answers[place[found]].to(D.dtype), known | found
        return D, known


def _asked(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
    """(B, d + 2): a row is all that a denoiser is asked of one sample."""
    return torch.cat([x.detach().flatten(1).double(), sigma[:, None], c[:, None]], 1)


def of_levels(rows: Tensor) -> list[tuple[float, float]]:
    """(sigma, w_eff) of each noise level by what `take` gave, of several batches one after another.

    Levels at which both models say the same of all samples have none.
    """
    sums: dict[float, Tensor] = {}
    for sigma, *own in rows.tolist():
        sums[sigma] = sums.get(sigma, torch.zeros(4, dtype=torch.float64)) + torch.tensor(own)
    return [(sigma, _scale(*own.tolist())) for sigma, own in sums.items() if own[1] == 0 or own[3]]


def mean(rows: Tensor) -> float | None:
    """w_eff averaged over all evaluations; None where no level has one."""
    by_level = dict(of_levels(rows))
    known = torch.tensor([sigma in by_level for sigma in rows[:, 0].tolist()], dtype=torch.bool)
    rows = rows[known]
    if not len(rows):
        return None
    w = torch.tensor([by_level[sigma] for sigma in rows[:, 0].tolist()], dtype=torch.float64)
    return float((w * rows[:, 1]).sum() / rows[:, 1].sum())


def _scale(samples: float, guided: float, along: float, length: float) -> float:
    return 1 + (along / length * guided / samples if guided else 0.0)
