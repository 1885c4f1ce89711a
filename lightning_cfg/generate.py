"""`generate`: seeds become samples under a guidance method."""

from lightning_cfg.config import Data, Guidance, Sampler, build, check_arguments, main, resolve

check_arguments(__name__)  # a missing file answers before torch is imported

import inspect  # noqa: E402
import itertools  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Literal  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lightning_cfg import checkpoints, figures  # noqa: E402
from lightning_cfg.draws import keyed  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.files import load_tensors, output_of, save_tensors  # noqa: E402
from lightning_cfg.interfaces import Denoiser  # noqa: E402
from lightning_cfg.network import Networks, own_weights, path_and_weights  # noqa: E402
from lightning_cfg.pngs import IMAGES, check_images, drawable, save_images  # noqa: E402
from lightning_cfg.ranks import Ranks, launched, sharing  # noqa: E402
from lightning_cfg.runs import Run, content_of  # noqa: E402

SAMPLES = "samples/samples.safetensors"
TRAJECTORIES = "samples/trajectories.safetensors"
SHEET = ("figures/samples.png", "figures/samples.pdf")


def generate(
    *,
    models: Networks,
    guidance: Guidance,
    sampler: Sampler,
    run_dir: str,
    n: int,
    seed: int = 0,
    data: Data | None = None,
    class_label: int | None = None,
    weights: str | int = "ema",
    batch_size: int = 1000,
    trajectories: int = 0,
    images: Literal["folder", "zip"] | None = None,
    device: str = "auto",
) -> Path:
    """Generate n samples, of the seeds seed, seed + 1, ...; the run holds samples/.

    Of images, figures/samples.png shows the first ones.

    models       {model, weak, classifier, discriminator}: run directories or checkpoints, as the
                 guidance needs them; exact: the closed form of `data`. With weights of its own:
                 weak: {path: runs/base/checkpoints/best_001000.ckpt, weights: 100_000}
    class_label  of all samples; left out, each seed draws its own
    weights      ema, raw, or the half-life in images of the average wanted
    trajectories of the first so many samples are kept: samples/trajectories.safetensors with
                 path (trajectories, steps + 1, *shape), sigma (steps + 1,) falling to 0, c, seed
    images       also as 8-bit PNGs (`save_images`), in samples/images/ or samples/images.zip; a
                 finished run makes them of its samples
    """
    paths = {role: path_and_weights(network)[0] for role, network in models.items()}
    inputs = {
        f"models.{role}": output_of(path, checkpoints.LAST)
        for role, path in paths.items()
        if path != "exact"
    }
    exact = {role: path for role, path in paths.items() if path == "exact"}
    section = data
    if data is not None:
        section, files = content_of(data, build("lightning_cfg.data", data))
        inputs |= files if exact else {}
    settings = {"guidance": guidance, "sampler": sampler, "n": n, "seed": seed, "data": section}
    settings |= {"class_label": class_label, "weights": weights, "batch_size": batch_size}
    settings |= {"trajectories": trajectories, "models": exact}
    settings |= {"own_weights": own} if (own := own_weights(models)) else {}
    check_roles(guidance, models)
    free = {"models": models, "data": data, "images": images, "device": device}
    run = Run(run_dir, "generate", settings, inputs, free)
    if run.finished():
        missing = images is not None and IMAGES[images] not in run.manifest["outputs"]
        if missing and launched().rank == 0:
            held = load_tensors(run.directory / SAMPLES, "x", "c", "seed")
            check_images(images, tuple(held["x"].shape[1:]))
            labelled = run.manifest.get("num_classes") != 0
            run.add(save_images(run.directory / IMAGES[images], **held, labelled=labelled))
        run.say(f"finished already, {n} samples")
        return run.directory

    ready = prepare(
        models=models,
        guidance=guidance,
        sampler=sampler,
        data=data,
        class_label=class_label,
        weights=weights,
        device=device,
    )
    shape, classes = ready.shape, ready.classes
    check_images(images, shape)
    if n < 1 or batch_size < 1:
        raise UserError(f"n={n} and batch_size={batch_size} must be at least 1")
    if not 0 <= trajectories <= n:
        raise UserError(f"trajectories={trajectories} must be from 0 to n={n}")

    with sharing() as ranks:
        ranks.check(n, f"n={n}")
        seeds = torch.arange(seed, seed + n)
        began = time.monotonic()
        made = ranks.together(lambda: _made(ready, ranks, seeds, batch_size, trajectories))
        levels = list(itertools.chain(*ranks.told(made[3])))  # of all batches with trajectories
        if any(sigmas != levels[0] for sigmas in levels):
            raise UserError(
                f"sampler {sampler['name']} takes other steps in each batch, so its trajectories "
                f"must be of one: batch_size={trajectories} or more, and one process"
            )
        seconds = ranks.total({"seconds": time.monotonic() - began})["seconds"] / n
        evaluations = {role: net.evaluations / n for role, net in ready.networks.items()}
        evaluations = ranks.total(evaluations)
        x, c, path = (None if part is None else ranks.collect(part) for part in made[:3])
    if not ranks.first:
        return run.directory
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    out = [save_tensors(run.directory / SAMPLES, x=x, c=c, seed=seeds)]
    if trajectories:
        kept = {"path": path, "sigma": torch.tensor(levels[0], dtype=torch.float64)}
        kept |= {"c": c[:trajectories], "seed": seeds[:trajectories]}
        out.append(save_tensors(run.directory / TRAJECTORIES, **kept))
    if images is not None:
        place = run.directory / IMAGES[images]
        out.append(save_images(place, x=x, c=c, seed=seeds, labelled=classes > 0))
    if drawable(shape):
        rows = classes if class_label is None else 0
        sheet = figures.contact_sheet({"samples": (x, c)}, rows, columns=10)
        figures.save(sheet, run.directory / "figures/samples", colours=32 if shape[0] == 1 else 0)
        out += [run.directory / name for name in SHEET]
    facts = {"evaluations": evaluations, "seconds_per_sample": seconds}
    facts |= {"weights": weights, "num_classes": classes}
    run.finish(*out, **facts, solver_dtype="float64")
    run.say(f"{n} samples, {sum(evaluations.values()):.0f} evaluations each")
    return run.directory


@torch.no_grad()
def _made(
    ready: "Prepared", ranks: Ranks, seeds: Tensor, batch_size: int, trajectories: int
) -> tuple[Tensor, Tensor, Tensor | None, list[list[float]]]:
    """This rank's samples and classes; its wanted trajectories' paths and each batch's levels.

    trajectories  so many are wanted of all seeds, the first ones
    """
    xs, cs, paths, levels = [], [], [], []
    own, wanted = ranks.share(seeds), len(ranks.share(seeds[:trajectories]))
    hidden = not (ranks.first and sys.stderr.isatty())
    with tqdm(total=len(seeds), unit="sample", disable=hidden) as bar:
        for some in own.split(batch_size):
            rows = min(max(0, wanted - sum(map(len, xs))), len(some))
            c, steps = ready.start(some, rows)
            path, sigmas = [], []
            for sigma, x in steps:
                if trajectories:
                    path.append(x[:rows].float().cpu())
                    sigmas.append(sigma)
            check_finite(x, some)
            xs.append(x.float().cpu())
            cs.append(c.cpu())
            if trajectories and (rows or not paths):
                paths.append(torch.stack(path, 1))
                levels.append(sigmas)
            bar.update(len(some) * ranks.size)
    path = torch.cat(paths) if trajectories else None
    return torch.cat(xs), torch.cat(cs), path, levels


@dataclass
class Prepared:
    """All that seeds need to become samples: networks, the guided denoiser, the sampler."""

    networks: dict[str, "Counted"]
    denoise: Denoiser
    sampler: dict  # within the model's limits
    shape: tuple[int, ...]
    classes: int
    class_label: int | None
    device: torch.device

    def start(self, seeds: Tensor, rows: int = 0) -> tuple[Tensor, Iterator[tuple[float, Tensor]]]:
        """Classes (B,) and the sampler's steps (sigma, x), whose last x are the samples.

        rows  of how many samples, the first, the trajectory is wanted; see `sample`
        """
        noise, c, draw = seeded(
            seeds.tolist(), self.shape, self.classes, self.class_label, self.device
        )
        return c, sample(self.sampler, self.denoise, noise, c, draw, rows)


def prepare(
    *,
    models: Networks,
    guidance: dict,
    sampler: dict,
    data: dict | None = None,
    class_label: int | None = None,
    weights: str | int = "ema",
    device: str = "auto",
) -> Prepared:
    """Restore the networks and put them together, as `generate` describes them.

    Raises UserError where they do not fit each other, the guidance, or the sampler.
    """
    check_roles(guidance, models)
    place = pick_device(device)
    networks = {}
    for role, named_so in models.items():
        path, own = path_and_weights(named_so)
        net = network(
            f"models.{role}",
            path,
            data,
            weights if own is None else own,
            classifies=role in ("classifier", "discriminator"),
        )
        networks[role] = Counted(net.to(place))
    shape, classes = _agree(networks)
    if class_label is not None and not 0 <= class_label < max(1, classes):
        raise UserError(f"class_label={class_label} is outside 0 ... {max(1, classes) - 1}")
    denoise = guide(guidance, networks)
    limited = within_limits(sampler, networks["model"].net)
    return Prepared(networks, denoise, limited, shape, classes, class_label, place)


def check_finite(x: Tensor, seeds: Tensor) -> None:
    """UserError, naming the seeds, where samples have diverged."""
    if not x.isfinite().all():
        raise UserError(
            f"the samples of seeds {int(seeds[0])} ... {int(seeds[-1])} are not finite: "
            "a smaller guidance.scale or more sampler.steps may help; nothing was written"
        )


class Counted:
    """A network that counts its evaluations, in samples; everything else is the network's own."""

    def __init__(self, net: nn.Module):
        self.net, self.evaluations = net, 0

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        self.evaluations += len(x)
        return self.net(x, *args)

    def __getattr__(self, name: str) -> object:
        return getattr(self.net, name)


def seeded(
    seeds: list[int],
    shape: tuple[int, ...],
    classes: int,
    class_label: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, "Draw"]:
    """Noise (B, *shape) float64, labels (B,) and later noise, each from its seed alone.

    EDM's convention: a CPU generator per seed draws the noise in float32, then the label, which
    is drawn even if it is overridden, and is 0 where there are no classes.
    """
    generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
    labels = torch.stack([torch.randint(max(1, classes), (), generator=g) for g in generators])
    if class_label is not None:
        labels.fill_(class_label)
    return noise.double().to(device), labels.to(device), Draw(generators, shape, device)


class Draw:
    """Fresh normals (B, *shape) float64 at every call, each row from its sample's generator."""

    BLOCK = 32  # draws made at once per sample: part of what a seed means, so never change it

    def __init__(self, generators: list[torch.Generator], shape: tuple[int, ...], device: object):
        self._generators, self._shape, self.device = generators, tuple(shape), device
        self._left: list[Tensor] = []

    def __call__(self) -> Tensor:
        if not self._left:
            block = (self.BLOCK, *self._shape)
            rows = torch.stack([torch.randn(block, generator=g) for g in self._generators], 1)
            self._left = list(rows)
        return self._left.pop(0).double().to(self.device)

    def other(self, name: str, shape: tuple[int, ...] | None = None) -> "Draw":
        """Draws of another purpose: of the same seeds, and leaving these here as they are."""
        generators = [keyed(name, g.initial_seed()) for g in self._generators]
        return Draw(generators, self._shape if shape is None else shape, self.device)


def sample(
    sampler: dict, denoise: Denoiser, noise: Tensor, c: Tensor, draw: Draw, rows: int = 0
) -> Iterator[tuple[float, Tensor]]:
    """The generator of a sampler section, with the samples' own noise if it is stochastic.

    rows  of how many samples, the first, the trajectory is wanted: where several candidates are
          made of each, only these have one
    """
    function = resolve("lightning_cfg.samplers", sampler["name"])
    stochastic = "draw" in inspect.signature(function).parameters

    def steps(noise: Tensor, draw: Draw) -> Iterator[tuple[float, Tensor]]:
        if hasattr(denoise, "draw_from"):
            denoise.draw_from(draw)
        return build("lightning_cfg.samplers", sampler, denoise, noise, c, *[draw] * stochastic)

    if hasattr(denoise, "candidates"):
        return _most_probable(denoise, steps, noise, c, draw, rows)
    return steps(noise, draw)


def _most_probable(
    denoise: Denoiser, steps: Callable, noise: Tensor, c: Tensor, draw: Draw, rows: int
) -> Iterator[tuple[float, Tensor]]:
    """The trajectory of each sample whose end is the most probable of its candidates.

    The first candidate is the sample that there would be without the others.
    """
    path, best = [], None
    for j in range(denoise.candidates):
        own = draw if j == 0 else draw.other(f"candidate {j}")
        new = []
        for sigma, x in steps(noise if j == 0 else own(), own):
            new.append((sigma, x[:rows]))
        log_p = denoise.log_p(x, c)
        if best is None:
            path, end, best = new, x, log_p
            continue
        better = log_p > best
        best = torch.where(better, log_p, best)
        end = _chosen(better, x, end)
        path = [
            (sigma, _chosen(better[:rows], y, x))
            for (sigma, x), (_, y) in zip(path, new, strict=True)
        ]
    yield from path[:-1]
    yield path[-1][0], end


def _chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def guide(guidance: dict, networks: dict[str, Denoiser]) -> Denoiser:
    """The guided denoiser: a method's positional parameters name the networks it gets.

    A section `scale` is a schedule; a section `of` is another method, with the same networks but
    the model that this one gives it.
    """
    function = resolve("lightning_cfg.guidance", guidance["name"])
    keys = {key: value for key, value in guidance.items() if key != "name"}
    if isinstance(keys.get("scale"), dict):
        keys["scale"] = build("lightning_cfg.guidance.schedules", keys["scale"])
    inner = keys.get("of")
    if isinstance(inner, dict):
        keys["of"] = lambda model: guide(inner, {**networks, "model": model})
    return function(*(networks[role] for role in _own_roles(guidance)), **keys)


def with_scale(guidance: dict, scale: float) -> dict | None:
    """The section with another scale: its own, a schedule's, or that of the method it changes.

    None where there is no scale to set.
    """
    for key in ("scale", "of"):
        if isinstance(guidance.get(key), dict):
            inner = with_scale(guidance[key], scale)
            return None if inner is None else {**guidance, key: inner}
        if key == "scale" and key in guidance:
            return {**guidance, "scale": scale}
    return None


def scale_of(guidance: dict) -> float | None:
    """The scale that `with_scale` sets; None where there is none."""
    for key in ("scale", "of"):
        if isinstance(guidance.get(key), dict):
            return scale_of(guidance[key])
        if key == "scale" and key in guidance:
            return guidance["scale"]
    return None


def check_roles(guidance: dict, models: dict) -> None:
    """UserError unless `models` has just the networks that the guidance asks for."""
    roles = _roles(guidance)
    for role in roles:
        if role not in models:
            raise UserError(
                f"guidance {named(guidance)} needs models.{role}, which the run does not have"
            )
    for role in models:
        if role not in roles:
            raise UserError(
                f"models.{role} is not used by guidance {named(guidance)}, which takes "
                + " and ".join(f"models.{r}" for r in roles)
            )


def check_together(guidance: dict, sampler: dict) -> None:
    """UserError where a sampler cannot do what a guidance asks of it, before there is a network.

    Methods from elsewhere, of which nothing is known, are left to the run itself.
    """
    inner = guidance
    while isinstance(inner, dict):
        if "." in inner["name"]:
            return
        inner = inner.get("of")
    asks = guide(guidance, {role: _StandIn() for role in _roles(guidance)})

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        return x

    for hook in ("begin_step", "keep_noise", "draw_from"):
        if hasattr(asks, hook):
            setattr(denoise, hook, getattr(asks, hook))
    for _ in sample(sampler, denoise, *seeded([0], (1,), 1)):
        pass


class _StandIn:
    """In place of a network that is not there yet: it answers nothing, but embeds classes."""

    def class_vectors(self, c: Tensor) -> Tensor:
        return torch.zeros(len(c), 1)


def named(guidance: dict) -> str:
    """A method's name, and that of the method which it changes: "interval of classifier_free"."""
    inner = guidance.get("of")
    return guidance["name"] + (f" of {named(inner)}" if isinstance(inner, dict) else "")


def _roles(guidance: dict) -> list[str]:
    roles, inner = _own_roles(guidance), guidance.get("of")
    if not isinstance(inner, dict):
        return roles
    if "model" not in _own_roles(inner):
        raise UserError(
            f"guidance {guidance['name']} changes what its `of` does with `model`, and "
            f"{inner['name']} has no parameter of this name"
        )
    return list(dict.fromkeys([*roles, *_roles(inner)]))


def _own_roles(guidance: dict) -> list[str]:
    function = resolve("lightning_cfg.guidance", guidance["name"])
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def within_limits(sampler: dict, model: nn.Module) -> dict:
    """The sampler section with the model's own noise limits where it names none.

    Raises UserError for limits that the model was not trained for.
    """
    out = dict(sampler)
    takes = inspect.signature(resolve("lightning_cfg.samplers", sampler["name"])).parameters
    for name, default in (("sigma_min", 0.002), ("sigma_max", 80.0)):
        if name not in takes:
            continue
        own = getattr(model, name)
        if sampler.get(name) is None:
            out[name] = own if 0 < own < float("inf") else default
        elif not model.sigma_min <= sampler[name] <= model.sigma_max:
            raise UserError(
                f"sampler.{name}={sampler[name]} is outside the model's noise levels, "
                f"{model.sigma_min:.4g} ... {model.sigma_max:.4g}"
            )
    return out


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
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
    role: str, path: str, data: dict | None, weights: str | int, *, classifies: bool
) -> nn.Module:
    """The trained network of a run, or for `exact` the closed form of `data`.

    classifies  whether a classifier is meant rather than a denoiser
    Raises UserError, naming the role, where it is the other, or there is no closed form.
    """
    if path == "exact":
        truth = None if data is None else build("lightning_cfg.data", data).truth
        if truth is None:
            raise UserError(f"{role}: exact needs `data` with a known density, such as Fractal")
        return ExactClassifier(truth) if classifies else truth
    model = checkpoints.restore(path, weights=weights)
    if model.refines:
        raise UserError(f"{role}: {path} refines samples and starts from no noise: use refine")
    if classifies != (len(inspect.signature(model.forward).parameters) == 2):
        is_one = "no classifier" if classifies else "a classifier"
        raise UserError(f"{role} is {is_one}, a {type(model).__name__}")
    return model


class ExactClassifier(nn.Module):
    """The exact noisy class posterior of a mixture, as a classifier."""

    def __init__(self, truth: nn.Module):
        super().__init__()
        self.truth, self.shape, self.num_classes = truth, truth.shape, truth.num_classes

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K): log p(x, c; sigma)."""
        return self.truth.logits(x, sigma)


def _agree(networks: dict[str, Counted]) -> tuple[tuple[int, ...], int]:
    model = networks["model"]
    for role, net in networks.items():
        for what in ("shape", "num_classes"):
            own, other = getattr(model, what), getattr(net, what)
            if role == "discriminator" and what == "num_classes":
                if other != 2:
                    raise UserError(
                        f"models.discriminator has {other} classes, not the two of generated and "
                        "real: train it on data RealOrGenerated"
                    )
            elif own != other:
                raise UserError(f"models.{role} has {what} {other}, but models.model has {own}")
    return tuple(model.shape), model.num_classes


if __name__ == "__main__":
    main(generate)
