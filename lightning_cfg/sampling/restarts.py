"""A trajectory that is noised at its end and taken again."""

from collections.abc import Callable

from torch import Tensor

from lightning_cfg.diffusion.samplers import Trajectory
from lightning_cfg.interfaces import Draw, Guided


def restarted(
    run: Callable[..., Trajectory], guided: Guided, start: Tensor, c: Tensor, draw: Draw
) -> Trajectory:
    """The last of the trajectories that a guided denoiser asks for.

    run  (denoise, start, c, draw, **keys of the sampler) -> trajectory
    """

    def begin(i: int) -> None:
        if guided.begin_round is not None:
            guided.begin_round(i)

    begin(0)
    path = run(guided, start, c, draw)
    for i, (sigma, steps) in enumerate(guided.restarts, 1):
        *_, (_, x) = path
        begin(i)
        noise = draw.other(f"restart {i}")()
        path = run(guided, x / sigma + noise, c, draw, sigma_max=sigma, steps=steps)
    yield from path
