"""What blocks cost transport: its bias, and its time, by the block's size and solver.

    python benchmarks/transport.py [--n 8192]

Of Gaussians a shift apart the best way is that shift, |m|^2 = 1 for each sample; a plan between two
draws of them has longer ways, the more the smaller the blocks and the more dimensions. Of the
fractal, samples that CFG at scale 2 has made with the exact denoiser go to real points of class 0.
Each line: the mean squared way, its ratio to that of one block, the share of samples that go where
one block sends them, and the seconds of solving alone.
"""

import argparse
import time

import torch
from torch import Tensor

from lightning_cfg.data import Fractal
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.diffusion.samplers import heun
from lightning_cfg.guidance import classifier_free
from lightning_cfg.refinement.transport import (
    assigned,
    blocks,
    largest,
    sinkhorn,
    squared_distances,
)


def shifted(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two draws of N(0, I) in d dimensions, the second a step of length 1 away."""
    x = torch.randn(n, d, generator=keyed("transport", "x", d), dtype=torch.float64)
    y = torch.randn(n, d, generator=keyed("transport", "y", d), dtype=torch.float64)
    return x, y + d**-0.5


def guided(n: int) -> tuple[Tensor, Tensor]:
    """Samples of the fractal's class 0 at CFG scale 2, and as many real points."""
    truth = Fractal().truth
    noise = torch.randn(n, 2, generator=keyed("transport", "noise"), dtype=torch.float64)
    c = torch.zeros(n, dtype=torch.long)
    levels = {"steps": 32, "sigma_min": 0.002, "sigma_max": 5.0}
    *_, (_, x) = heun(classifier_free(truth, scale=2.0), noise, c, **levels)
    return x, truth.sample(n, 0, keyed("transport", "real"))


def solved(x: Tensor, y: Tensor, size: int, epsilon: float | None) -> tuple[Tensor, Tensor, float]:
    """Where each sample goes (most of it), how far on average, and the seconds."""
    nothing = torch.zeros(len(x), dtype=torch.long)
    to, way, seconds = nothing.clone(), torch.zeros(len(x), dtype=torch.float64), 0.0
    for block in blocks(nothing, nothing, nothing, size=size, seed=0, one_to_one=True):
        cost = squared_distances(x[block.samples], y[block.points])
        began = time.perf_counter()
        if epsilon is None:
            column = assigned(cost)
            mean = cost.gather(1, column[:, None])[:, 0]
        else:
            plan = sinkhorn(cost, epsilon * float(cost.median()))
            column, mean = largest(plan, 1)[0][:, 0], (plan * cost).sum(1) * len(cost)
        seconds += time.perf_counter() - began
        to[block.samples], way[block.samples] = block.points[column], mean
    return to, way, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=8192, help="samples, and real points")
    n = parser.parse_args().n
    print(f"{'data':<22}{'block':>7}{'solver':>16}{'|way|^2':>10}{'ratio':>8}{'same':>7}{'s':>8}")
    for name, (x, y) in {
        "fractal, CFG 2": guided(n),
        "Gaussians, d = 2": shifted(n, 2),
        "Gaussians, d = 784": shifted(n, 784),
    }.items():
        whole, best, seconds = solved(x, y, n, None)
        line(name, n, "exact", best, best, 1.0, seconds)
        for size in (2048, 512):
            to, way, seconds = solved(x, y, size, None)
            line(name, size, "exact", way, best, (to == whole).double().mean().item(), seconds)
        to, way, seconds = solved(x, y, 2048, 0.05)
        same = (to == whole).double().mean().item()
        line(name, 2048, "Sinkhorn .05", way, best, same, seconds)


def line(
    name: str, size: int, solver: str, way: Tensor, best: Tensor, same: float, seconds: float
) -> None:
    mean, ratio = way.mean().item(), (way.mean() / best.mean()).item()
    text = f"{name:<22}{size:>7}{solver:>16}{mean:>10.4g}{ratio:>8.2f}{same:>7.1%}{seconds:>8.1f}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
