"""What samplers make of a number of evaluations, on mixtures whose solutions are known.

    OMP_NUM_THREADS=1 python benchmarks/samplers.py

Two tables as docs/samplers.md has them. The first is of deterministic samplers: the root mean
square distance to the probability flow's own end, per coordinate, on the 2-D fractal (standard
deviation 0.5) from sigma 80. That end is rk4's of torchdiffeq in 1000 steps down to sigma 1e-5.
The second is of all: the first Wasserstein distance of 4000 samples to the exact distribution, of
three Gaussians on a line; beside it that of 4000 exact points. Every sampler has its own levels and
defaults unless named otherwise.
"""

import torch

from lightning_cfg.diffusion.mixture import GaussianMixture, fractal
from lightning_cfg.diffusion.samplers import fixed_step
from lightning_cfg.sampling.prepared import Counted
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

EVALUATIONS = (9, 18, 35, 70, 140)
PER_STEP = {"heun": 2, "edm_stochastic": 2, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
DETERMINISTIC = {
    "euler": {"name": "euler"},
    "ddim": {"name": "ddim"},
    "heun": {"name": "heun"},
    "dpmpp_2m": {"name": "dpmpp_2m"},
    "lms order 2": {"name": "lms", "order": 2},
    "lms": {"name": "lms"},
    "fixed_step midpoint": {"name": "fixed_step", "method": "midpoint"},
    "fixed_step heun3": {"name": "fixed_step", "method": "heun3"},
    "fixed_step rk4": {"name": "fixed_step", "method": "rk4"},
}
STOCHASTIC = {
    "euler": {"name": "euler"},
    "heun": {"name": "heun"},
    "dpmpp_2m": {"name": "dpmpp_2m"},
    "ddpm": {"name": "ddpm"},
    "ddim eta 0.5": {"name": "ddim", "eta": 0.5},
    "euler_ancestral": {"name": "euler_ancestral"},
    "dpmpp_2m_sde": {"name": "dpmpp_2m_sde"},
    "dpmpp_2m_sde eta 0.5": {"name": "dpmpp_2m_sde", "eta": 0.5},
    "edm_stochastic S_noise 1": {"name": "edm_stochastic", "S_noise": 1.0},
}


def with_evaluations(section: dict, n: int) -> dict:
    """As many steps as take about n evaluations."""
    each = PER_STEP.get(section.get("method", section["name"]), 1)
    last = section["name"] == "fixed_step"  # its last step, to 0, is one evaluation
    steps = (n - 1) // each + 1 if last else (n + each - 1) // each
    return {**section, "steps": max(2, steps), "sigma_max": 80.0, "sigma_min": 0.002}


def ends(section: dict, truth: GaussianMixture, seeds: int) -> tuple[torch.Tensor, float]:
    """Samples of class 0 and the evaluations of each."""
    noise, c, draw = seeded(list(range(seeds)), truth.shape, 2, class_label=0)
    denoise = Counted(truth)
    *_, (_, x) = sample(section, denoise, noise, c, draw)
    return x, denoise.evaluations / seeds


def table(sections: dict[str, dict], error) -> None:
    print(f"| evaluations | {' | '.join(map(str, EVALUATIONS))} |")
    print(f"|---|{'---|' * len(EVALUATIONS)}")
    for name, section in sections.items():
        cells = []
        for n in EVALUATIONS:
            value, spent = error(with_evaluations(section, n))
            cells.append(f"{value:.2g}" if spent == n else f"{value:.2g} ({spent:.0f})")
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


def main() -> None:
    truth, seeds = fractal(), 200
    noise, c, _ = seeded(list(range(seeds)), truth.shape, 2, class_label=0)
    *_, (_, exact) = fixed_step(truth, noise, c, steps=1000, sigma_min=1e-5, sigma_max=80.0)

    def rms(section: dict) -> tuple[float, float]:
        x, spent = ends(section, truth, seeds)
        return (x - exact).square().mean().sqrt().item(), spent

    print("Distance to the end of the probability flow\n")
    table(DETERMINISTIC, rms)

    line = GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[-0.6], [0.1], [0.7]]),
        torch.tensor([0.1, 0.2, 0.05])[:, None, None] ** 2, torch.tensor([0, 0, 0]),
    )  # fmt: skip
    many = 4000
    u = (torch.arange(many, dtype=torch.float64) + 0.5) / many
    quantiles = line.quantile(u, 0)

    def wasserstein(x: torch.Tensor) -> float:
        return (x.flatten().sort().values - quantiles).abs().mean().item()

    def distance(section: dict) -> tuple[float, float]:
        x, spent = ends(section, line, many)
        return wasserstein(x), spent

    own = wasserstein(line.sample(many, 0, torch.Generator().manual_seed(0)))
    print(f"\nDistance to the exact distribution; exact points have {own:.2g}\n")
    table(STOCHASTIC, distance)


if __name__ == "__main__":
    main()
