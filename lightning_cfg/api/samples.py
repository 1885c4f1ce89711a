"""`lc.sample` and `lc.refined`: seeds become samples, and samples follow a flow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cfg import verbs
from lightning_cfg.api.networks import device_of
from lightning_cfg.api.pictures import Pictures, pictured
from lightning_cfg.config import Sampler, asked
from lightning_cfg.config.schema import keys_of
from lightning_cfg.errors import UserError
from lightning_cfg.guidance import require_null
from lightning_cfg.interfaces import NULL, Denoiser, Known, Model, as_guided
from lightning_cfg.refinement.solver import Solver
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.sampling.batches import made
from lightning_cfg.sampling.flows import check_alike, leg_of, moved, told_scale
from lightning_cfg.sampling.guided import looked_at
from lightning_cfg.sampling.levels import ends_above, of_pipeline
from lightning_cfg.sampling.prepared import Prepared, class_of, pick_device, within_limits
from lightning_cfg.sampling.seeds import SEEDS


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """What was sampled, on the CPU; in a notebook, images and points of the plane are shown.

    x (n, *shape) float32, c (n,) their classes, seed (n,)
    """

    x: Tensor
    c: Tensor
    seed: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Samples({len(self)} of shape {tuple(self.x.shape[1:])})"

    def save(self, path: str | Path) -> Path:
        """Write a file, .safetensors, that every verb reads as samples."""
        return save_tensors(path, x=self.x, c=self.c, seed=self.seed)

    def _repr_png_(self) -> bytes | None:
        shape = tuple(self.x.shape[1:])
        shown = len(self) > 0 and (shape == (2,) or drawable(shape))
        return pictures({"": self})._repr_png_() if shown else None


Labels = int | str | Iterable[int | str] | Tensor  # of all samples, or of each
Held = Samples | Tensor | tuple[Tensor, Tensor]  # samples, x alone, or x and c


def as_samples(held: Held, labels: Labels | None = None) -> Samples:
    """Samples of anyone's: x alone has the class NULL, unless labels say another."""
    if isinstance(held, Samples):
        found = held
    else:
        x, c = held if isinstance(held, tuple) else (held, None)
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise UserError(f"samples are a tensor (n, *shape), not {_told(x)}")
        c = torch.full((len(x),), NULL) if c is None else _labels(c, len(x))
        found = Samples(x.detach().float().cpu(), c, torch.arange(len(x)))
    return found if labels is None else replace(found, c=_labels(labels, len(found)))


def pictures(sets: Held | Mapping[str, Held], *, columns: int = 10) -> Pictures:
    """Samples side by side, {title: samples}: images, a row per class, or points of the plane.

    Images are in [-1, 1]. columns  of images of each set
    UserError for samples of another kind, or of several shapes.
    """
    named = sets if isinstance(sets, Mapping) else {"": sets}
    held = {title: as_samples(some) for title, some in named.items()}
    return pictured({title: (some.x, some.c) for title, some in held.items()}, columns)


@torch.inference_mode(False)
def sample(
    denoiser: Denoiser,
    seeds: Iterable[int] | Tensor,
    *,
    sampler: str | dict[str, Any] = "heun",
    labels: Labels | None = None,
    like: Model | None = None,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
) -> Samples:
    """Samples of these seeds by a denoiser D(x, sigma, c), such as one that lc.guidance made.

    A sample is its seed: it is what `lc.verbs.generate` writes for it, whatever the batch.
    seeds    such as range(16)
    sampler  a name, or {name: heun, steps: 18, ...}; docs/samplers.md has them
    labels   the class of all samples, or of each, by number or name; left out, each seed draws its
             own; -1: no class
    like     the model whose shape, classes and noise levels the samples have, where a function of
             one's own does not say them
    device   where it is sampled; left out, where the model is
    UserError for what does not fit together, and where samples diverge.
    """
    ready, own = ready_for(denoiser, sampler, like, device), seeds_of(seeds)
    told = labels_of(labels, len(own), ready, like or denoiser)
    found, _ = made(ready, own, batch_size=batch_size, labels=told)
    return Samples(found["x"], found["c"], own)


@torch.inference_mode(False)
def refined(
    x: Held,
    flow: Model | list[Model],
    *,
    labels: Labels | None = None,
    method: str = "dopri5",
    steps: int = 8,
    strength: float = 1.0,
    scale: float = 1.0,
    at: float | None = None,
    extrapolate: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 2000,
    batch_size: int = 1000,
) -> Samples:
    """Samples taken along a flow on pairs, dx/dt = v(x, t, c), as by `lc.verbs.refine`.

    x       what `lc.sample` gives, or a tensor (n, *shape), whose classes `labels` say
    flow    as `lc.load` gives it, or several in a row
    method  dopri5, adaptive, by rtol and atol; euler or heun in equal `steps`
    at      the guidance scale of x, for a flow that is told it; beyond its sources' it is refused,
            or with extrapolate=True the nearest of them is told
    The others are keys of `refine`. UserError for what does not fit together.
    """
    held = as_samples(x, labels)
    if bool((held.c == NULL).any()):
        raise UserError("refined: x says no classes, and the flow moves samples by class: labels=")
    numbers = {"method": method, "steps": steps, "strength": strength, "scale": scale}
    numbers |= {"rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
    solver = Solver(**_checked("refine", numbers))
    flows = flow if isinstance(flow, list) else [flow]
    legs = [leg_of("refined: flow", one, solver) for one in flows]
    check_alike(legs)
    _check_fits(held, legs[0].model)
    told, _ = told_scale(legs, "refined: x", None, None, at=at, beyond=extrapolate)
    ends = []
    with progress(len(held), "sample") as bar:
        for rows in torch.arange(len(held)).split(batch_size):
            ends.append(moved(legs, held.x[rows], held.c[rows], told)[0])
            bar.update(len(rows))
    return replace(held, x=torch.cat(ends))


def ready_for(
    denoiser: Denoiser,
    sampler: str | dict[str, Any],
    like: Model | None,
    device: str | torch.device | None,
) -> Prepared:
    """All that seeds need to become samples; UserError for what does not fit together."""
    guided = as_guided(denoiser)
    model = like if like is not None else guided.of_model or denoiser
    known = Known(model)
    if known.shape is None:
        raise UserError(
            "this denoiser does not say of which shape its samples are: like=MODEL names the model "
            "that it is made of"
        )
    if getattr(model, "classifies", False) or getattr(model, "refines", False):
        what = "a classifier" if getattr(model, "classifies", False) else "a flow: use lc.refined"
        raise UserError(f"samples are made by a denoiser, and this is {what}")
    place = device_of(model) if device is None else torch.device(device)
    section, along = of_pipeline(asked(Sampler, sampler, "sampler"), known)
    return Prepared(
        {},
        ends_above(looked_at(guided, "the denoiser"), along),
        within_limits(section, model),
        tuple(known.shape),
        known.num_classes or 0,
        None,
        pick_device(str(place)),
        start_scale=along.start,
    )


def seeds_of(seeds: Iterable[int] | Tensor) -> Tensor:
    """Seeds (n,); UserError for what is none."""
    try:
        found = torch.tensor([int(seed) for seed in seeds], dtype=torch.long)
    except (TypeError, ValueError):
        told = f"seeds are several integers, such as range(16), not {_told(seeds)}"
        raise UserError(told) from None
    if not len(found):
        raise UserError("seeds are none: range(16), say")
    if not 0 <= int(found.min()) <= int(found.max()) < SEEDS:
        raise UserError(f"seeds are from 0 to {SEEDS - 1}: others would repeat these")
    return found


def labels_of(labels: Labels | None, n: int, ready: Prepared, model: Denoiser) -> Tensor | None:
    """The classes (n,) that are asked for; UserError for one that the model does not know."""
    if labels is None:
        return None
    names = Known(as_guided(model).of_model or model).class_names

    def numbered(one: Any) -> Any:
        return class_of(one, ready.classes, names, "labels") if isinstance(one, str) else one

    each: Any = labels
    if isinstance(labels, str):
        each = numbered(labels)
    elif isinstance(labels, list | tuple):
        each = [numbered(one) for one in labels]
    c, last = _labels(each, n), max(1, ready.classes) - 1
    if not NULL <= int(c.min()) <= int(c.max()) <= last:
        raise UserError(f"labels: {int(c.max())} is outside 0 ... {last}, or -1 for no class")
    if int(c.min()) == NULL:
        require_null(as_guided(model).of_model or model, "labels=-1")
    return c


def _labels(labels: Labels, n: int) -> Tensor:
    try:
        c = torch.as_tensor(labels if isinstance(labels, int | Tensor) else list(labels)).cpu()
    except (TypeError, ValueError):
        c = torch.empty(0)
    if c.is_floating_point() or c.ndim > 1 or (c.ndim == 1 and len(c) != n):
        told = f"labels are one class, or one of each of the {n} samples, not {_told(labels)}"
        raise UserError(told)
    return c.long().expand(n).clone()


def _check_fits(held: Samples, model: Model) -> None:
    """UserError unless the flow moves samples of this shape and these classes."""
    shape = tuple(held.x.shape[1:])
    if shape != tuple(model.shape):
        raise UserError(f"refined: x has samples of shape {shape}, the flow {tuple(model.shape)}")
    low, high, last = int(held.c.min()), int(held.c.max()), max(1, model.num_classes) - 1
    if not 0 <= low <= high <= last:
        raise UserError(f"refined: x has classes {low} ... {high}, and the flow knows 0 ... {last}")


def _checked(verb: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Keys of a verb, as its schema has them."""
    kinds = keys_of(getattr(verbs, verb))[0]
    return {key: asked(kinds[key][0], value, key) for key, value in numbers.items()}


def _told(value: object) -> str:
    shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"
