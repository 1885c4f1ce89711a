"""Ordinary differential equations dx/dt = v(x, t, c), from one time to another."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Velocity
from lightning_cfg.runs.precision import matmul


def integrate_in_steps(
    velocity: Velocity, x: Tensor, c: Tensor, t0: float, t1: float, *, steps: int, order: int
) -> Tensor:
    """x at t1 from x at t0, in equal steps of Euler (order 1) or Heun (2).

    steps * order evaluations. Heun: x + h (v(x, t) + v(x + h v(x, t), t + h)) / 2.
    """
    h = (t1 - t0) / steps
    for i in range(steps):
        slope = velocity(x, per_sample(t0 + i * h, x), c)
        if order == 2:
            slope = (slope + velocity(x + h * slope, per_sample(t0 + (i + 1) * h, x), c)) / 2
        x = x + h * slope
    return x


def integrate(
    velocity: Velocity,
    x: Tensor,
    c: Tensor,
    times: Tensor | Sequence[float],
    *,
    rtol: float,
    atol: float,
    max_evaluations: int,
) -> Tensor:
    """x at every one of `times` (n,), rising: (n, B, *shape), the first of them x itself.

    By torchdiffeq's dopri5, within rtol and atol and at most so many evaluations of the batch.
    Without TF32, whose rounding the tolerance would take for the field's own roughness.
    Raises UserError past max_evaluations, and where no step is short enough: the tolerance is too
    tight or the field too rough.
    """
    from torchdiffeq import odeint

    evaluations = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > max_evaluations:
            raise UserError(
                f"dopri5 needed more than max_evaluations={max_evaluations} from t={times[0]:.4g} "
                f"(stopped at t={float(t):.4g}): raise it, or rtol={rtol} and atol={atol}"
            )
        return velocity(x, t.to(x).expand(len(x)), c)

    kind = torch.float32 if x.dtype == torch.float32 else torch.float64
    times = torch.as_tensor(times, dtype=kind, device=x.device)
    # A step ends at t1 and is not interpolated back to it: beyond it the field need not exist.
    options = {"step_t": times[-1:]}
    try:
        with matmul("highest"):
            path = odeint(field, x, times, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # torchdiffeq's word for a step of length 0, or for NaN
        raise UserError(f"dopri5 stopped after {evaluations} evaluations: {error}") from error
    assert isinstance(path, Tensor)  # as it is where x is one, and not a tuple of several
    return path


def integrate_along(
    velocity: Velocity,
    x: Tensor,
    c: Tensor,
    times: Tensor,
    *,
    method: str,
    each: Callable[[int], None],
) -> Tensor:
    """x at every one of `times` (n,), rising, by a method of torchdiffeq with a step between two.

    (n, B, *shape), the first of them x itself.
    each  called with the number of a step as it starts
    """
    from torchdiffeq import odeint

    if len(times) == 1:
        return x[None]
    numbers = count()

    def field(t: Tensor, x: Tensor) -> Tensor:
        return velocity(x, t.to(x).expand(len(x)), c)

    field.callback_step = lambda *_: each(next(numbers))  # type: ignore[attr-defined]
    kind = torch.float32 if x.dtype == torch.float32 else torch.float64
    path = odeint(field, x, times.to(x.device, kind), method=method)
    assert isinstance(path, Tensor)
    return path


def per_sample(value: float, x: Tensor) -> Tensor:
    """One number for all samples as one for each, (B,), in x's dtype."""
    return torch.full((len(x),), value, dtype=x.dtype, device=x.device)
