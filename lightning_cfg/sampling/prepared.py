"""Networks restored and put together: all that seeds need to become samples."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.config import build, resolve
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.noise import SIGMA_MAX, SIGMA_MIN
from lightning_cfg.diffusion.samplers import Trajectory
from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.guidance.effective_scale import EffectiveScale
from lightning_cfg.interfaces import Denoiser, Known, Model, check_same
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.inputs import Weights
from lightning_cfg.runs.ranks import launched
from lightning_cfg.sampling.checked import check_answer
from lightning_cfg.sampling.decoded import of_decoded
from lightning_cfg.sampling.elsewhere import elsewhere
from lightning_cfg.sampling.faster import Precision, Speed
from lightning_cfg.sampling.guided import check_roles, guide, spare
from lightning_cfg.sampling.levels import ends_above, of_pipeline
from lightning_cfg.sampling.network import Networks, decodes, network_of, others
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

ROUNDING = 1e-6  # of levels that others have kept in float32
STRENGTH = "models.strength"  # what a learned strength of guidance stands as


@dataclass
class Prepared:
    """All that seeds need to become samples: networks, the guided denoiser, the sampler."""

    networks: dict[str, "Counted"]
    denoise: Denoiser
    sampler: dict  # within the model's limits
    shape: tuple[int, ...]
    classes: int
    class_label: int | list[int] | None
    device: torch.device
    class_names: list[str] | None = None
    start_scale: float = 1.0  # of the noise, where the levels are those of a model's own pipeline
    effective: EffectiveScale | None = None  # of the guidance, where it is asked for

    @property
    def steps(self) -> dict[str, int]:
        """At which step of its training each network was saved; exact ones have none."""
        steps = {role: net.step for role, net in self.networks.items()}
        return {role: step for role, step in steps.items() if step is not None}

    def spent(self) -> dict[str, int]:
        """The evaluations of each network so far, in samples, without those for measuring."""
        spent = {role: net.evaluations for role, net in self.networks.items()}
        if self.effective is not None:
            spent["model"] -= self.effective.evaluations
        return spent

    def start(
        self, seeds: Tensor, rows: int = 0, labels: Tensor | None = None
    ) -> tuple[Tensor, Trajectory]:
        """Classes (B,) and the sampler's steps (sigma, x), whose last x are the samples.

        rows    of how many samples, the first, the trajectory is wanted; see `sample`
        labels  (B,) their classes, in place of `class_label` and of what the seeds draw
        """
        told = self.class_label if labels is None else labels
        if isinstance(told, list):  # each seed draws one of them
            noise, c, draw = seeded(seeds.tolist(), self.shape, len(told), None, self.device)
            c = torch.tensor(told, device=c.device)[c]
        else:
            noise, c, draw = seeded(seeds.tolist(), self.shape, self.classes, told, self.device)
        noise = noise * self.start_scale if self.start_scale != 1 else noise
        return c, sample(self.sampler, self.denoise, noise, c, draw, rows)


def prepare(
    *,
    models: Networks,
    guidance: dict,
    sampler: dict,
    data: dict | None = None,
    class_label: int | str | list[int | str] | None = None,
    weights: Weights = "ema",
    device: str = "auto",
    precision: Precision = "32-true",
    compile: bool = False,
    spare_models: bool = False,
    effective_scale: bool = False,
) -> Prepared:
    """Restore the networks and put them together, as `generate` describes them.

    Raises UserError where they do not fit each other, the guidance, or the sampler.
    """
    check_roles(guidance, models, more=spare_models)
    left_out = spare(guidance, models)
    models = {role: named_so for role, named_so in models.items() if role not in left_out}
    place = pick_device(device)
    networks = _restored(models, data, weights, place, Speed(precision, compile))
    shape, classes = _agree(networks)
    names = networks["model"].class_names
    label = labels_of(class_label, classes, names)
    effective = EffectiveScale(networks["model"]) if effective_scale else None
    if effective is None:
        denoise = guide(guidance, networks)
    else:
        denoise = effective.of(guide(guidance, {**networks, "model": effective.model}))
    sampler, along = of_pipeline(sampler, networks["model"])
    limited = within_limits(sampler, networks["model"].net)
    denoise = ends_above(denoise, along)
    held = (networks, denoise, limited, shape, classes, label, place, names)
    return Prepared(*held, along.start, effective)


def labels_of(
    asked: int | str | list[int | str] | None, classes: int, names: list[str] | None
) -> int | list[int] | None:
    """The class of all samples, or those that they are drawn of; UserError where one is none."""
    if not isinstance(asked, list):
        return class_of(asked, classes, names)
    found = [class_of(one, classes, names) for one in asked]
    several = [one for one in found if one is not None]
    for one in several:
        if several.count(one) > 1:
            raise UserError(f"class_label has class {one} twice")
    return several


def class_of(
    label: int | str | None, classes: int, names: list[str] | None, key: str = "class_label"
) -> int | None:
    """The number of a class, by its number or name; UserError, naming the key, where it is none."""
    if isinstance(label, str):
        if names is None:
            raise UserError(
                f"{key}={label}: the model does not know its classes' names, only 0 ... "
                f"{max(1, classes) - 1}"
            )
        if label not in names:
            few = f"the classes are {', '.join(names[:20])}{', ...' * (len(names) > 20)}"
            raise UserError(f"{key}={label} is no class; {did_you_mean(label, names, few)}")
        return names.index(label)
    if label is not None and not 0 <= label < max(1, classes):
        raise UserError(f"{key}={label} is outside 0 ... {max(1, classes) - 1}")
    return label


def _restored(
    models: Networks, data: dict | None, weights: Weights, place: torch.device, speed: Speed
) -> dict:
    """The networks by role; a classifier of images with what makes them of the model's latents."""
    found = {}
    told = build_data(data) if data is not None and others(models) else None
    for role, named_so in models.items():
        path, own, weaken, _, section = network_of(named_so)
        classifies = role in CLASSIFIERS
        own = weights if own is None else own
        if section is None:
            net = network(f"models.{role}", path, data, own, classifies=classifies)
        else:
            net = elsewhere(f"models.{role}", section, told, classifies=classifies)
        if classifies and told is not None and net.confusable is None:
            net.confusable = told.confusable
        found[role] = net
        if weaken is not None and path == "exact":
            raise UserError(f"models.{role}.weaken: exact is no network that could be weakened")
        if weaken is not None:
            build("lightning_cfg.sampling.weakened", weaken, net)
    speed.give(*found.values())
    for net in found.values():
        if net.shape is None:  # of a classifier of whatever the model makes
            net.shape = found["model"].shape
    for role, section in decodes(models).items():
        found[role] = of_decoded(f"models.{role}", found[role], section, found["model"])
    return {
        role: Counted(net.to(place), f"models.{role}", classifies=role in CLASSIFIERS)
        for role, net in found.items()
    }


CLASSIFIERS = ("classifier", "discriminator")


class Counted(Known):
    """A network that counts its evaluations, in samples, and whose first answer is looked at.

    role     what it is called in an error, as models.weak; left out, nothing is looked at
    told_c   False of one without classes beside a model with some: it is told class 0, which is
             what data without any have, whatever it is asked with
    """

    told_c = True

    def __init__(self, net: Callable[..., Tensor], role: str = "", *, classifies: bool = False):
        super().__init__(net)
        self.role, self.classifies, self.evaluations = role, classifies, 0
        self._looked = not role

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        self.evaluations += len(x)
        if not self.told_c:
            args = (*args[:-1], torch.zeros(len(x), dtype=torch.long, device=x.device))
        out = self.net(x, *args)
        if not self._looked:
            shape = (len(x), self.num_classes or 0) if self.classifies else tuple(x.shape)
            check_answer(self.role, out, x, shape)
            self._looked = True
        return out


def within_limits(sampler: dict, model: Callable[..., Tensor]) -> dict:
    """The sampler section with the model's own noise limits where it names none.

    A list of levels has its own. Raises UserError for what the model was not trained for.
    """
    out, low, high = dict(sampler), Known(model).sigma_min, Known(model).sigma_max
    takes = inspect.signature(resolve("lightning_cfg.diffusion.samplers", sampler["name"]))
    levels = sampler.get("levels")
    given = [("levels", s) for s in levels if s != 0] if isinstance(levels, list) else []
    for name, own, default in (("sigma_min", low, SIGMA_MIN), ("sigma_max", high, SIGMA_MAX)):
        if sampler.get(name) is not None:
            given.append((name, sampler[name]))
        elif name in takes.parameters and not isinstance(levels, list):
            out[name] = own if 0 < own < float("inf") else default
    for name, level in given:
        if not low * (1 - ROUNDING) <= level <= high * (1 + ROUNDING):
            raise UserError(
                f"sampler.{name}={level} is outside the model's noise levels, "
                f"{low:.4g} ... {high:.4g}"
            )
    return out


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    if name == "meta":
        raise UserError("device=meta cannot be used: there are no numbers on it")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched().size > 1:  # a GPU for each rank, as far as they go
        name = f"cuda:{launched().local_rank % torch.cuda.device_count()}"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} cannot be used: {reason}") from error


def network(
    role: str, path: str, data: dict | None, weights: Weights, *, classifies: bool
) -> Model:
    """The trained network of a run, or for `exact` the closed form of `data`.

    classifies  whether a classifier is meant rather than a denoiser
    Raises UserError, naming the role, where it is the other, or there is no closed form.
    """
    if path == "exact":
        truth = None if data is None else build_data(data).truth
        if role == STRENGTH:
            raise UserError(f"{role}: exact has no strength, which of exact models is 1 anyway")
        if truth is None:
            raise UserError(f"{role}: exact needs `data` with a known density, such as Fractal")
        return ExactClassifier(truth) if classifies else truth
    model = checkpoints.restore(path, weights=weights)
    if model.refines:
        raise UserError(f"{role}: {path} refines samples and starts from no noise: use refine")
    if classifies != model.classifies:
        is_one = "no classifier" if classifies else "a classifier"
        raise UserError(f"{role} is {is_one}, a {type(model).__name__}")
    if model.weighs != (role == STRENGTH):
        raise UserError(
            f"{role} is a {type(model).__name__}, and a GuidanceWeight is for {STRENGTH} alone"
        )
    return model


class ExactClassifier(Model):
    """The exact noisy class posterior of a mixture, as a classifier."""

    classifies = True

    def __init__(self, truth: Any):
        super().__init__()
        self.truth, self.shape, self.num_classes = truth, truth.shape, truth.num_classes

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K): log p(x, c; sigma)."""
        return self.truth.logits(x, sigma)


def _agree(networks: dict[str, Counted]) -> tuple[tuple[int, ...], int]:
    model = networks["model"]
    for role, net in networks.items():
        discriminates = role == "discriminator"
        net.told_c = not (role == "weak" and net.num_classes == 0 and model.num_classes)
        same = net.told_c and not discriminates
        check_same(f"models.{role}", net, "models.model has", model, classes=same)
        if discriminates and net.num_classes != 2:
            raise UserError(
                f"models.discriminator has {net.num_classes} classes, not the two of generated and "
                "real: train it on data RealOrGenerated"
            )
    return tuple(model.shape or ()), model.num_classes or 0
