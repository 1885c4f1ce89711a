"""Fréchet distance: two sets of features, each summed up by its mean and covariance."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.files import write
from lightning_cfg.runs.inert_pickle import open_pickle
from lightning_cfg.runs.pickled import array, mapping, plain
from lightning_cfg.runs.tensors import kind_of


class Moments:
    """Count, mean and scatter of features, in float64, gathered batch by batch.

        scatter = sum_i (f_i - mean)(f_i - mean)^T

    Kept about the mean and merged as in Chan, Golub & LeVeque 1983, rather than as plain sums:
    the covariance is then exact to rounding however far from the origin the features lie. As long
    as they are few, the scatter is held as its `factor`: they take less memory than it, and so does
    their Fréchet distance.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # (d,), and d is 0 as long as count is
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # (d, d), unless there are factors
        self._factors: list[Tensor] = []  # (r_i, d) each, sum_i r_i <= d: sum_i F_i^T F_i = scatter

    @property
    def scatter(self) -> Tensor:
        """(d, d) float64."""
        return self._scatter if self.factor is None else gram(self.factor)

    @scatter.setter
    def scatter(self, value: Tensor) -> None:
        self._scatter, self._factors = value, []

    @property
    def factor(self) -> Tensor | None:
        """F (r, d) float64 of scatter = F^T F with r <= d; None where it is held as a whole."""
        if len(self._factors) > 1:
            self._factors = [torch.cat(self._factors)]
        return self._factors[0] if self._factors else None

    @classmethod
    def from_sums(cls, count: int, total: Tensor, outer: Tensor) -> "Moments":
        """Moments from sum_i f_i (d,) and sum_i f_i f_i^T (d, d)."""
        moments = cls()
        if count:
            moments.count, moments.mean = int(count), total / count
            moments.scatter = outer - torch.outer(total, moments.mean)
        return moments

    @classmethod
    def from_statistics(cls, mean: Tensor, covariance: Tensor, count: int = 10**9) -> "Moments":
        """Moments with this mean (d,) and covariance (d, d), of `count` samples.

        Left out, the count is one that no check finds too small: published statistics do not say
        theirs.
        """
        moments = cls()
        moments.count, moments.mean = count, mean.double()
        moments.scatter = covariance.double() * (count - 1)
        return moments

    def add(self, features: Tensor) -> "Moments":
        """Take in a batch of features (N, d); returns itself."""
        for part in features.split(8192):  # a float64 copy of all of them at once would be large
            part, batch = part.to(torch.float64, copy=True), Moments()
            batch.count, batch.mean = len(part), part.mean(0)
            part.sub_(batch.mean)
            if len(part) <= part.shape[1]:
                batch._factors = [part if len(part) > 1 else part[:0]]  # about its mean one is 0
            else:
                batch.scatter = gram(part)
            self.merge(batch)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another part of the same set gathered; returns itself.

        Raises UserError where the two have features of another size.
        """
        if other.count == 0:
            return self
        if self.count == 0:
            self.count, self.mean = other.count, other.mean
            self._scatter, self._factors = other._scatter, list(other._factors)
            return self
        _same_size(self, other)
        count, gap = self.count + other.count, other.mean.to(self.mean) - self.mean
        weight = self.count * other.count / count
        if _few([self._rows, other._rows, 1], len(gap)):
            self._factors += [*(f.to(gap) for f in other._factors), weight**0.5 * gap[None]]
        else:
            self.scatter = self.scatter + other.scatter.to(gap)
            self._scatter.addr_(gap, gap, alpha=weight)
        self.mean = self.mean + gap * (other.count / count)
        self.count = count
        return self

    def all_reduce(self) -> "Moments":
        """The moments of what all processes of the default group hold; returns itself.

        Collectives, which every process has to join: the sizes, the sums of count and of
        count * mean, then that of the scatter about the common mean; where they are few together,
        the sizes and what they hold. Without a process group it changes nothing. UserError where
        processes hold features of several sizes.
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        told: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(told, (len(self.mean), self._rows))
        sizes, rows = zip(*told, strict=True)
        d = max(sizes)
        if d == 0:
            return self
        if any(size not in (0, d) for size in sizes):
            raise UserError(f"the processes hold features of several sizes, {sorted(set(sizes))}")
        if _few([*rows, len(rows)], d):
            held: list[Any] = [None] * len(rows)
            distributed.all_gather_object(held, Moments().merge(self).cpu())
            self.count = 0
            for moments in held:
                self.merge(moments)
            return self
        cuda = distributed.get_backend() == "nccl"
        place = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        own = (self.mean if self.count else torch.zeros(d, dtype=torch.float64)).to(place)
        sums = torch.cat([own.new_tensor([self.count]), self.count * own])
        distributed.all_reduce(sums)
        mean, gap = sums[1:] / sums[0], own - sums[1:] / sums[0]
        scatter = self.count * torch.outer(gap, gap)
        if self.count:
            scatter += self.scatter.to(place)
        distributed.all_reduce(scatter)
        self.count, self.mean, self.scatter = round(sums[0].item()), mean, scatter
        return self

    def cpu(self) -> "Moments":
        """Bring them to the CPU; returns itself."""
        self.mean, self._scatter = self.mean.cpu(), self._scatter.cpu()
        self._factors = [factor.cpu() for factor in self._factors]
        return self

    @property
    def _rows(self) -> int | None:
        """Rows of the factors; None where the scatter is held as a whole."""
        whole = self.count and not self._factors
        return None if whole else sum(map(len, self._factors))

    def save(self, path: str | Path, about: dict) -> Path:
        """Write an npz of mu, sigma, count, and `about`, what they were taken of and how."""
        mu, sigma = self.mean.cpu().numpy(), self.covariance.cpu().numpy()
        count, text = np.int64(self.count), np.str_(json.dumps(about, sort_keys=True))

        def put(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # numpy would add .npz to another name
                np.savez(file, mu=mu, sigma=sigma, count=count, about=text)

        return write(path, put)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d) float64, that is divided by N - 1."""
        return self._unbiased(self.scatter)

    @property
    def total_variance(self) -> Tensor:
        """The trace of the covariance, () float64."""
        return self._unbiased(
            self._scatter.trace() if self.factor is None else self.factor.square().sum()
        )

    def _unbiased(self, total: Tensor) -> Tensor:
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        return total / (self.count - 1)


def frechet_distance(a: Moments, b: Moments, *, allow_few: bool = False) -> float:
    """Squared Fréchet distance of the Gaussians with these moments (Dowson & Landau 1982).

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is taken from the eigenvalues of the symmetric F^T S_b F, S_a = F F^T,
    which are those of S_a S_b. Of n samples, no more than the dimension d, F is (d, n): the numbers
    are the same for n^2 d in place of d^3. In squared units of the features; "FID" when they are
    Inception's (Heusel et al. 2017). With no more samples than d the covariance is singular and the
    distance far too large: a UserError unless `allow_few`. Also raises UserError on features that
    are not finite or of two sizes.
    """
    if not (a.count and b.count):
        raise UserError("a Fréchet distance needs samples on both sides, and one side has none")
    _same_size(a, b)
    few, d = min(a.count, b.count), len(a.mean)
    if few <= d and not allow_few:
        raise UserError(
            f"a Fréchet distance in {d} dimensions needs more than {d} samples a side, got {few}"
            " (allow_few=true computes it all the same)"
        )
    gap = a.mean - b.mean.to(a.mean.device)
    held = (m._scatter if m.factor is None else m.factor for m in (a, b))
    if not (gap.isfinite().all() and all(part.isfinite().all() for part in held)):
        raise UserError("a Fréchet distance needs finite features, and these have NaN or inf")
    distance = gap @ gap + a.total_variance + b.total_variance.to(gap) - 2 * _trace_of_root(a, b)
    return max(distance.item(), 0.0)


def _trace_of_root(a: Moments, b: Moments) -> Tensor:
    """tr (S_a S_b)^(1/2), ()."""
    if a.factor is None and b.factor is not None:
        a, b = b, a
    if a.factor is None:
        cov_a, cov_b = a.covariance, b.covariance.to(a.mean.device)
        factor, singular = torch.linalg.cholesky_ex(cov_a)
        if singular:
            values, vectors = torch.linalg.eigh(cov_a)
            factor = vectors * values.clamp(min=0).sqrt()
        product = factor.T @ cov_b @ factor
    else:
        rows = a.factor / (a.count - 1) ** 0.5  # S_a = rows^T rows
        if b.factor is not None:  # the singular values are the roots
            return torch.linalg.svdvals(rows @ b.factor.to(rows).T).sum() / (b.count - 1) ** 0.5
        product = rows @ b.covariance.to(rows) @ rows.T
    values = _eigenvalues((product + product.T) / 2)
    return values.clamp(min=0).sqrt().sum()  # rounding leaves some just below zero


def load_statistics(path: str | Path, name: str = "fid") -> tuple[Moments, dict | None]:
    """The moments in an npz of mu (d,) and sigma (d, d), and what the file says of itself.

    That is None for a published file, such as EDM's, which says nothing: its features are
    Inception's. A pickle in EDM2's layout, {name: {mu, sigma}}, has several: `name` is which of
    them. It is read without being run (`runs.inert_pickle`). UserError where there is no such file,
    or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".pkl" or (path.suffix != ".npz" and kind_of(path) == "a pickle"):
        mu, sigma, count = _of_pickle(path, name)
        about = None
    else:
        mu, sigma, count, about = _of_npz(path)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"{tuple(mu.shape)} and {tuple(sigma.shape)}"
        raise UserError(f"{path}: mu and sigma have shapes {shapes}, not (d,) and (d, d)")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"{path} holds NaN or infinity")
    if not torch.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * float(sigma.abs().max())):
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    return Moments.from_statistics(mu, sigma, count), about


def _of_npz(path: Path) -> tuple[Tensor, Tensor, int, dict | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                raise UserError(f"{path} has no mu and sigma; it holds {', '.join(file.files)}")
            mu, sigma = (torch.from_numpy(np.asarray(file[k], float)) for k in ("mu", "sigma"))
            count = int(file["count"]) if "count" in file.files else 10**9
            about = json.loads(str(file["about"])) if "about" in file.files else None
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes numpy and zipfile raise
        reason = one_line(error)
        raise UserError(f"{path} is truncated or no npz of mu and sigma: {reason}") from error
    return mu, sigma, count, about


def _of_pickle(path: Path, name: str) -> tuple[Tensor, Tensor, int]:
    held = mapping(open_pickle(path))
    found = {key: mapping(value) for key, value in held.items()}
    statistics = {key: value for key, value in found.items() if {"mu", "sigma"} <= value.keys()}
    if name not in statistics:
        have = ", ".join(map(str, statistics)) or "none"
        raise UserError(f"{path} has no statistics {name or 'of these features'}; it has {have}")
    try:
        mu, sigma = (array(statistics[name][key]) for key in ("mu", "sigma"))
        count = plain(held.get("num_images"))
    except Exception as error:  # of odd records several kinds
        raise UserError(f"{path}: its {name} is no mu and sigma: {one_line(error)}") from error
    count = count if type(count) is int and count > 1 else 10**9
    mu, sigma = (torch.from_numpy(a.astype(np.float64)) for a in (mu, sigma))
    return mu, sigma, count


def gram(f: Tensor) -> Tensor:
    """f^T f, (N, d) -> (d, d); numpy sees that it is symmetric and computes one half only."""
    if f.device.type != "cpu":
        return f.T @ f
    rows = f.numpy()
    return torch.from_numpy(rows.T @ rows)


def _eigenvalues(symmetric: Tensor) -> Tensor:
    """Eigenvalues (d,) of (d, d); numpy's, as the first of torch's on a CPU take a second more."""
    if symmetric.device.type != "cpu":
        return torch.linalg.eigvalsh(symmetric)
    return torch.from_numpy(np.linalg.eigvalsh(symmetric.numpy()))


def _few(rows: list[int | None], d: int) -> bool:
    """Whether factors of so many rows, None for one that is absent, take no more than (d, d)."""
    known = [n for n in rows if n is not None]
    return len(known) == len(rows) and sum(known) <= d


def _same_size(a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise UserError(f"features of two sizes, {len(a.mean)} and {len(b.mean)}, do not compare")
