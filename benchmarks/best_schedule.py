"""The best schedules w(sigma) of CFG on a mixture whose truth is known, as methods of a study.

    python benchmarks/best_schedule.py conf/studies/schedule_front.yaml \\
        --sampler '{name: euler_ancestral, steps: 23}' --name best_ancestral

With the exact denoiser of the study's data, along the levels of its sampler, the 8 heights of a
schedule `knots` are learned for each of several prices: they minimise

    energy distance to real points, per class  -  price * mean log p(c | x)

by L-BFGS through the sampler, to its convergence or `--rounds`, from several starts: what the price
before ended with, CFG at a constant scale, and CFG at low noise only. The best end is kept, and all
are printed, as the cost has more than one valley. Samples are of seed 100, their noise the same at
every step, and real points are drawn with them: neither is scored by the study. What is printed
last stands in the study's `methods`, where other samples are scored; the points over the prices are
its front of certainty against distance.
"""

import argparse
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.mixture import GaussianMixture
from lightning_cfg.guidance import classifier_free
from lightning_cfg.guidance.schedules import knots
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

SEED, KNOTS, LEAST = 100_000_000, 8, 0.02  # beyond a study's seeds; the lowest knot's noise level


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """As `metrics.energy_distance`, with a gradient to x."""
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return 2 * torch.cdist(x, y).mean() - within[0] - within[1]


def cost(truth: GaussianMixture, x: Tensor, c: Tensor, real: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(energy distance, certainty), classes averaged."""
    distance = torch.stack([energy_distance(x[c == k], y) for k, y in enumerate(real)]).mean()
    log_p = truth.logits(x, 0.0).log_softmax(1).gather(1, c[:, None])
    return distance, log_p.mean()


def learned(
    truth: GaussianMixture,
    sampler: dict,
    sigmas: list[float],
    prices: list[float],
    *,
    n: int,
    rounds: int,
) -> list[tuple[float, list[float], float, float]]:
    """(price, heights, distance, certainty) of each price, of the samples that it learned on."""
    classes = truth.num_classes
    generator = torch.Generator().manual_seed(SEED)
    real = [truth.sample(n // classes, k, generator) for k in range(classes)]
    level = torch.tensor(sigmas, dtype=torch.float64)
    # not from 0, where there is no second pass and so no gradient
    constant, low = torch.full_like(level, 0.5), torch.where(level < 0.5, 1.0, 0.05)

    def measured(heights: Tensor) -> tuple[Tensor, Tensor]:
        def schedule(sigma: Tensor) -> Tensor:
            return knots(sigmas=sigmas, heights=heights)(sigma)  # type: ignore[arg-type]

        noise, c, draw = seeded(range(SEED, SEED + n), truth.shape, classes)
        *_, (_, x) = sample(sampler, classifier_free(truth, scale=schedule), noise, c, draw)
        return cost(truth, x, c, real)

    def ended(start: Tensor, price: float) -> tuple[float, float, Tensor]:
        heights = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [heights], max_iter=rounds, line_search_fn="strong_wolfe", history_size=20
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            distance, certainty = measured(heights)
            loss = distance - price * certainty
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            distance, certainty = map(float, measured(heights))
        return distance, certainty, heights.detach()

    out, before = [], []
    for price in prices:
        ends = [ended(start, price) for start in (*before, constant, low)]
        costs = [distance - price * certainty for distance, certainty, _ in ends]
        distance, certainty, heights = ends[costs.index(min(costs))]
        before = [heights]
        out.append((price, heights.tolist(), distance, certainty))
        tried = ", ".join(f"{loss:.5f}" for loss in costs)
        print(
            f"# price {price:g}: distance {distance:.5f}, certainty {certainty:.4f}; "
            f"costs from {len(ends)} starts {tried}",
            flush=True,
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--sampler", default="{}", help="keys of the sampler that are different")
    parser.add_argument("--prices", type=float, nargs="+", default=[0.003, 0.01, 0.03, 0.06, 0.1])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=60, help="of L-BFGS from each start")
    parser.add_argument("--name", default="best")
    asked = parser.parse_args()
    config = yaml.safe_load(asked.study.read_text())
    sampler = {**config["generation"]["sampler"], **yaml.safe_load(asked.sampler)}
    truth = build_data(config["data"]).truth
    high = torch.tensor([LEAST, sampler["sigma_max"]]).log()
    sigmas = torch.linspace(*high.tolist(), KNOTS).exp().tolist()
    sigmas = [float(f"{sigma:.3g}") for sigma in sigmas]
    found = learned(truth, sampler, sigmas, asked.prices, n=asked.n, rounds=asked.rounds)
    for i, (_, heights, _, _) in enumerate(found, 1):
        numbers = ", ".join(f"{height:.3f}" for height in heights)
        print(f"  {asked.name}_{i}:\n    models: {{model: exact}}")
        print(f"    guidance: {{name: classifier_free, scale: {{name: knots, sigmas: {sigmas},")
        print(f"               heights: [{numbers}]}}}}\n    scales: [2]")


if __name__ == "__main__":
    main()
