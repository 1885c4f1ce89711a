"""Several trajectories of each sample that go along together, of which some end on the way."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import torch
from torch import Tensor

from lightning_cfg.diffusion.samplers import Trajectory
from lightning_cfg.interfaces import Denoiser, Draw, Guided

Run = Callable[[Denoiser, Tensor, Tensor, Draw], Trajectory]  # (denoise, start, c, draw)


def of_particles(
    run: Run, guided: Guided, start: Tensor, c: Tensor, draw: Draw, wanted: int
) -> Trajectory:
    """The trajectory of each sample's kept particle, and what led to it.

    The first particle starts where the sample would without the others; the others' noise is of
    the sample's own seed too, so a sample depends on no other sample of its batch.

    wanted  of so many samples, the first, the trajectory; of all the end
    """
    n, path = guided.particles, []
    noise, first = draw.particles(n), torch.arange(len(start), device=start.device) * n
    starts = noise.other("start")()
    starts[first] = start

    asked = guided.resample or (lambda s, t: None)

    @wraps(asked)  # so that an error names the method
    def resample(s: float, t: float) -> Tensor | None:
        nonlocal path
        rows = asked(s, t)
        if rows is not None:  # what ends here has no past any more
            path = [(sigma, x[rows[: wanted * n]]) for sigma, x in path]
        return rows

    x = starts
    for sigma, state in run(
        replace(guided, resample=resample), starts, c.repeat_interleave(n), noise
    ):
        x = state
        path.append((sigma, x[: wanted * n]))
    yield from ((sigma, x[first[:wanted]]) for sigma, x in path[:-1])
    yield path[-1][0], x[first]
