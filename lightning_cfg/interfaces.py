"""The few shapes that everything here agrees on, and what may be asked of networks, models, data.

Everything between noise and sample is a denoiser in variance-exploding coordinates
x = y + sigma n, n ~ N(0, I). EDM networks, DDPMs, rectified flows from noise, closed-form
mixtures and guided models are all denoisers.

    x      (B, *shape)  float, the noisy sample
    sigma  (B,)         noise level, in units of the data
    c      (B,)         long, the class; NULL = -1 means "no class"
    t      (B,)         flow time, from the source (0) to the data (1)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from lightning_cfg.errors import UserError

NULL = -1  # the class "no class", which label dropout trains and classifier-free guidance asks for

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # D(x, sigma, c), the posterior mean of y
Classifier = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) of the noisy x at sigma
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # v(x, t, c)
Features = Callable[[Tensor], Tensor]  # x in [-1, 1] -> (B, d) float32


@dataclass(frozen=True)
class Along:
    """How a model's own pipeline steps: along these noise levels, which fall and are above 0.

    start  of the trajectory: x = start levels[0] n of unit normals n
    end    the level that the last step goes to, and
    scale  the sample is scale x there
    """

    levels: list[float]
    start: float = 1.0
    end: float = 0.0
    scale: float = 1.0


class Known:
    """What guidance may know of a network, and the answer of one that does not say.

    shape          of a sample
    num_classes    0 where the data have no classes
    class_names    of the data that it was trained on; None: numbers are all that is known
    label_dropout  0 where it never learned the class "no class"
    class_vectors  its embedding of classes, (B,) -> (B, d), which it also takes as c
    scaled_classes the same of (B,) and scales of guidance (B,), of a model that is told them too
    clean          a classifier that was trained on clean samples only
    sigma_min      the noise levels that it was trained for, up to sigma_max
    step           of its training, at which it was saved; None of what is in closed form
    along          of so many steps what its own pipeline does, for a sampler's `levels: model`
    confusable     (K, K) bool, of a classifier: which classes may be taken for which; None: all
    """

    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    label_dropout: float = 1.0
    class_vectors: Callable[[Tensor], Tensor] | None = None
    scaled_classes: Callable[[Tensor, Tensor], Tensor] | None = None
    clean: bool = False
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    step: int | None = None
    along: Callable[[int], Along] | None = None
    confusable: Tensor | None = None

    def __init__(self, net: Callable[..., Tensor]):
        self.net = net
        for name in Known.__annotations__:  # a function, or a Model, of which most say it all
            setattr(self, name, getattr(net, name, getattr(Known, name)))


class Draw(Protocol):
    """The samples' own noise: fresh normals (B, *shape) float64 at every call; `sampling.seeds`."""

    device: torch.device

    def __call__(self) -> Tensor: ...

    def other(self, name: str, shape: tuple[int, ...] | None = None) -> "Draw":
        """Draws of another purpose, which leave these as they are."""
        ...

    def particles(self, n: int) -> "Draw":
        """Draws (B n, *shape) of n particles of each sample."""
        ...


@dataclass(frozen=True)
class Guided:
    """A denoiser, and what it asks of whoever samples with it: what a guidance method returns.

    A plain function is one that asks nothing.
    take_levels called with the noise levels, which fall to 0, before a trajectory along them
    begin_step  called with (i, sigma) by every sampler that has steps as number i of a trajectory
                starts; one without refuses a denoiser that asks for it
    keep_noise  called with k where the step is x <- D + k (x - D), plus fresh noise
    draw_from   called with the samples' own noise, a `Draw`, before a trajectory
    candidates  so many trajectories are made of each sample, and the one is kept
    log_p       whose end (x, c) has the largest of these, (B,)
    particles   so many trajectories of each sample go along together, rows i * particles + j being
                those of sample i; the first of them is kept at the end
    resample    called with (s, t) after a step from s to t: which rows (B,) go on, None for all;
                at t = 0 it makes the one that is kept the first. Only for steps with fresh noise
    restarts    (sigma, steps) each: once a trajectory has ended, noise of this level is added and
                it goes on from there in so many steps; the last one is the sample's
    begin_round called with 0 as the first of them begins, and with 1, 2, ... at every restart
    of_model    which is guided, and says what is known of its samples: see `Known`
    """

    denoise: Denoiser
    take_levels: Callable[[list[float]], None] | None = None
    begin_step: Callable[[int, float], None] | None = None
    keep_noise: Callable[[float], None] | None = None
    draw_from: Callable[[Draw], None] | None = None
    candidates: int = 1
    log_p: Callable[[Tensor, Tensor], Tensor] | None = None
    particles: int = 1
    resample: Callable[[float, float], Tensor | None] | None = None
    restarts: tuple[tuple[float, int], ...] = ()
    begin_round: Callable[[int], None] | None = None
    of_model: Denoiser | None = None

    def __post_init__(self):
        if self.candidates > 1 and self.log_p is None:
            raise UserError(f"candidates={self.candidates} need log_p, which says which is kept")
        if self.restarts and self.particles > 1:
            raise UserError("particles and restarts do not go together: one guidance asks for each")

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return self.denoise(x, sigma, c)


def as_guided(denoise: Denoiser) -> Guided:
    """The denoiser as a Guided; a function may ask by attributes too, f.begin_step = ..."""
    if isinstance(denoise, Guided):
        return denoise
    names = [field.name for field in fields(Guided) if field.name != "denoise"]
    asked = {name: getattr(denoise, name) for name in names if hasattr(denoise, name)}
    return Guided(denoise, **asked)


@overload
def expand_like(sigma: Tensor, x: Tensor) -> Tensor: ...
@overload
def expand_like(sigma: float, x: Tensor) -> float: ...
def expand_like(sigma: Tensor | float, x: Tensor) -> Tensor | float:
    """A number per sample, (B,), shaped to multiply x of (B, *shape); one for all as it is."""
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


over = expand_like  # its name before, which methods of one's own may use


class Net:
    """What may be asked of a network net(x (B, *shape), noise (B,), c (B,)), a torch.nn.Module.

    It is built with (shape, num_classes). None has to derive from this: `complete` gives it what it
    leaves out, as it does for models and data sets.
    """

    null_class: bool = True  # it has an embedding for NULL
    augment_dim: int = 0  # augmentation labels (B, augment_dim) that it takes after c; 0: none
    # classes (B,) -> the vectors (B, d) that it embeds them as and also takes in their place
    class_vectors: Callable[[Tensor], Tensor] | None = None
    # whether it answers by a second head inside of it, and goes no farther; None: it has none
    inside: bool | None = None
    features: Features | None = None  # of a classifier: what its last layer sees of clean x
    head: Callable[[Tensor], Tensor] | None = None  # that layer
    # called with the classes' names, before anything is asked, of a network that reads them
    take_class_names: Callable[[list[str]], None] | None = None


class Model(nn.Module):
    """What may be asked of a model: a denoiser D(x, sigma, c), or a classifier's logits(x, sigma).

    A model of one's own is a torch.nn.Module that is built with its network, and has `forward` and
    `loss`; `shape` and `num_classes` are set from the data.
    """

    shape: tuple[int, ...]  # of one sample
    num_classes: int  # 0: its data have no classes
    class_names: list[str] | None = None  # its data's
    sigma_min, sigma_max = 0.0, float("inf")  # the noise levels that it knows
    classifies: bool = False  # forward(x, sigma) gives logits (B, num_classes)
    weighs: bool = False  # forward(x, sigma, c) gives a strength of guidance, shaped like x
    clean: bool = False  # a classifier of finished samples, at sigma = 0 only
    label_dropout: float = 1.0  # 0: it never learned the class NULL
    augment_dim: int | None = None  # labels that `loss` takes as `augment`; None: it takes none
    takes_x0: bool = False  # `loss` takes the sources of pairs as x0
    refines: bool = False  # it starts from samples instead of noise
    step: int | None = None  # of its training, at which its checkpoint was written
    conditioned: dict | None = None  # the state of its `refinement.condition.Condition`
    autocast: torch.dtype | None = None  # in which its network's products are, in sampling
    along: Callable[[int], Along] | None = None  # as `Known` has it, and
    confusable: Tensor | None = None
    # called with the run's data, None without, by a model that is not of a run of ours
    take_data: Callable[[Any], None] | None = None

    @property
    def class_vectors(self) -> Callable[[Tensor], Tensor] | None:
        """Its network's; see `Net`."""
        return None

    def loss(self, y: Tensor, c: Tensor, draws: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of each sample, (B,), of y (B, *shape) and c (B,); see `diffusion.draws`."""
        raise UserError(f"model {type(self).__name__} lacks loss: it cannot be trained")


class DataSet:
    """What may be asked of a data set. One of one's own has shape and num_classes, and
    `batch` to train on it, `real` to pair or compare with it."""

    shape: tuple[int, ...]  # of one point; (): that of whatever a model makes
    num_classes: int  # 0: it has none
    truth: Any = None  # its density in closed form, a `diffusion.mixture.GaussianMixture`
    formula: str = ""  # that density in words
    path: Path | None = None  # the file or folder by whose content a run knows it
    class_names: list[str] | None = None
    doubts: tuple[str, ...] = ()  # what is odd about what it has read, which `fit` tells
    augment_dim: int = 0  # numbers in batch["augment"] that say how a point was augmented
    has_points: bool = True  # False: nothing of it is here but shape and classes
    has_sources: bool = False  # batches have x0, of which y is the target
    confusable: Tensor | None = None  # (K, K) bool: which classes may be taken for which
    drawn: Tensor | None = None  # the classes that samples are drawn of, where not all
    parts: Tensor | None = None  # (K, n) long: of things side by side, which class each one is
    reads_files: bool = False  # `batch` does, which is then called in a thread, while a step runs
    condition: Any = None  # a `refinement.condition.Condition`: what a flow on it is told too
    # of images the bytes of a split, the rows that are in it, and their classes; see `Images.rows`
    rows: Callable[..., tuple[Any, Tensor, Tensor]] | None = None

    def batch(self, draws: Any) -> dict[str, Tensor]:
        """This process' rows of a training batch: y (b, *shape) float32, c (b,) long; all that is
        random in it comes from `draws`, a `diffusion.draws.Draws`."""
        raise UserError(f"data {type(self).__name__} lacks batch: it cannot be trained on")

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """Points y (N, *shape) float32 and classes c (N,) of a split, "bank" or "held_out"."""
        raise UserError(f"data {type(self).__name__} lacks real: it has no points to compare with")

    def to(self, device: Any) -> None:
        """Keep on this device what training reads, where that pays."""


def complete(made: Any, contract: type, who: str, *needed: str) -> Any:
    """An object of anyone's with the contract's defaults for what it leaves out.

    UserError, in the name of `who`, where it lacks what is needed.
    """
    for name in needed:
        unwritten = getattr(nn.Module, name, made)  # such as the `forward` of every Module
        known = name in dir(made) or hasattr(made, name)  # dir: a property may read files
        if not known or getattr(type(made), name, None) is unwritten:
            raise UserError(f"{who} lacks {name}")
    for name, default in vars(contract).items():
        if name.startswith("_") or isinstance(made, contract) or hasattr(made, name):
            continue
        own = default.__get__(made) if hasattr(default, "__get__") else default
        object.__setattr__(made, name, own)  # a frozen dataclass too
    return made


def check_same(who: str, one: Any, of: str, other: Any, *, classes: bool = True) -> None:
    """UserError unless both have the same shape and, if asked for, the same number of classes."""
    if other.shape and tuple(one.shape) != tuple(other.shape):
        raise UserError(f"{who} has shape {tuple(one.shape)}, but {of} {tuple(other.shape)}")
    if classes and one.num_classes != other.num_classes:
        raise UserError(f"{who} has num_classes {one.num_classes}, but {of} {other.num_classes}")
