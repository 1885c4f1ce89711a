"""A right call of some verb for every callable that a config can name, to be made wrong."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.latents import latent_zip, vae_folder
from lightning_cfg.config import resolve
from lightning_cfg.config.schema import choices
from lightning_cfg.metrics.needs import OF_A_SPACE, needs
from lightning_cfg.verbs.adopt import adopt
from lightning_cfg.verbs.encode import encode
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study

PUBLISHED = Path(__file__).parents[1] / "reference/edm2/edm1_snapshot_trap.pkl"
HEUN = {"name": "heun", "steps": 2}
MIXTURE = {
    "name": "Mixture", "means": [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],
    "stds": [0.1, 0.2, 0.1, 0.2], "labels": [0, 0, 1, 1],
}  # fmt: skip
LINE = {"name": "Mixture", "means": [[-1.0], [1.0]], "stds": [0.2, 0.2], "labels": [0, 1]}
HALVES = {"name": "helpers.toys.Halves"}
TRAINING = {
    "data": MIXTURE, "net": {"name": "MLP", "width": 8, "blocks": 1, "fourier": 4},
    "model": {"name": "EDM", "label_dropout": 0.2},
    "learner": {"name": "Diffusion", "warmup": 2, "ema_half_life": [100], "ema_std": [0.1]},
    "batch_size": 8,
    "checkpoint_every": 1, "log_every": 1,
    "trainer": {"max_steps": 2, "accelerator": "cpu"},
}  # fmt: skip
CLASSIFICATION = {
    "net": {"name": "Linear"}, "model": {"name": "NoisyClassifier"},
    "learner": {"name": "Classification", "ema_half_life": [100]},
}  # fmt: skip
JUDGE = {**CLASSIFICATION, "model": {"name": "NoisyClassifier", "clean": True}}
EYE = {**JUDGE, "data": HALVES, "net": {"name": "ConvNet", "channels": 4}}
PICTURES = {**TRAINING, "data": HALVES, "net": {"name": "UnshuffleUNet", "channels": 4}}
PICTURES["net"]["channel_mult"] = [1]
REFINEMENT = {
    "model": {"name": "Flow"}, "learner": {"name": "Refinement", "ema_half_life": [100]},
}  # fmt: skip
GENERATION = {"models": {"model": "exact"}, "guidance": "unguided", "sampler": HEUN, "n": 4}
GENERATION |= {"data": MIXTURE}
EVALUATION = {"every": 1, "n": 8, "metrics": ["negative_log_density"], "sampler": HEUN}
STUDY = {
    "data": MIXTURE, "fits": {}, "scales": [1.0], "generation": {"sampler": HEUN}, "samples": 4,
    "methods": {"cfg": {"models": {"model": "exact"}, "guidance": "classifier_free"}},
    "evaluation": {"metrics": ["negative_log_density"], "real": 8, "bank": 8}, "plan": True,
}  # fmt: skip
SMALL = {  # networks of images, as small as they get
    "ADMUNet": {"channels": 32, "channel_mult": [1], "blocks": 1, "attention_resolutions": []},
    "ADMEncoder": {"channels": 32, "channel_mult": [1, 1], "blocks": 1},
    "ConvNet": {"channels": 4},
    "DiT": {"channels": 8, "blocks": 1, "num_heads": 2},
    "EDM2UNet": {
        "channels": 8,
        "channel_mult": [1],
        "blocks": 1,
        "attention": [],
        "channels_per_head": 8,
        "null_class": True,
    },
    "SongUNet": {"channels": 4, "channel_mult": [1], "blocks": 1, "attention_resolutions": []},
    "UnshuffleUNet": {"channels": 4, "channel_mult": [1]},
}

Base = tuple[Callable, dict, tuple]  # verb, config, and where in it the callable's section is


def elsewhere(root: Path, name: str) -> Base:
    """A network of others, whose folder is not there: a number out of its range is told first."""
    section = {"name": name, "path": str(root / "no_folder")}
    role = "classifier" if name == "clip" else "model"
    models = {"model": str(root / "base"), role: section}
    guidance = {"name": "gfcg"} if name == "clip" else {"name": "unguided"}
    return generate, {**GENERATION, "models": models, "guidance": guidance}, ("models", role)


def all_bases(root: Path, runs: dict[str, tuple[Callable, dict]]) -> dict[str, Base]:
    """{dotted path of a callable: its base}.

    root, runs  what `faults.chain` makes there
    """
    images(root / "images")
    vae(root)
    makers = {
        "data": data, "nets": net, "diffusion.models": model, "training.learners": learner,
        "guidance": method, "guidance.schedules": at("guidance", "scale"),
        "diffusion.samplers": at("sampler"), "diffusion.noise": at("sampler", "levels"),
        "metrics": metric, "evaluation.features": features, "latents": latents,
        "diffusers": elsewhere,
    }  # fmt: skip
    found = {
        f"lightning_cfg.{module}.{name}": make(root, name)
        for module, make in makers.items()
        for name in choices(f"lightning_cfg.{module}")
    }
    for verb, config in reversed(runs.values()):  # of a verb that runs twice the first
        found[f"lightning_cfg.verbs.{verb.__name__}.{verb.__name__}"] = (verb, config, ())
    return found | training_parts() | study_parts(root) | {
        "lightning_cfg.sampling.network.network": (
            generate, {**GENERATION, "models": {"model": {"path": str(root / "base")}}},
            ("models", "model"),
        ),
        **{
            f"lightning_cfg.sampling.weakened.{name}": (
                generate,
                {**GENERATION, "models": {"model": {"path": str(root / "base"),
                                                    "weaken": {"name": name}}}},
                ("models", "model", "weaken"),
            )
            for name in choices("lightning_cfg.sampling.weakened")
        },
        "lightning_cfg.runs.inputs.average": (
            generate,
            {**GENERATION, "models": {"model": str(root / "base")}, "weights": {"std": 0.1}},
            ("weights",),
        ),
        "lightning_cfg.verbs.refine.leg": (
            refine,
            {"flow": [{"path": str(root / "flow"), "method": "heun"}],
             "samples": str(root / "samples")},
            ("flow", 0),
        ),
        "lightning_cfg.verbs.encode.encode": (*latents(root, "EDM2VAE")[:2], ()),
        "lightning_cfg.verbs.adopt.adopt": (adopt, {"file": str(PUBLISHED)}, ()),
    }  # fmt: skip


def vae(root: Path) -> None:
    """A VAE, colour images of two classes, and latents in a zip."""
    if (root / "vae").exists():
        return
    for label in ("a", "b"):
        (root / "colours" / label).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(root / f"colours/{label}/0.png")
    vae_folder(root / "vae")
    latent_zip(root / "latents.zip", torch.ones(4, 8, 8, 8), [0, 1, 0, 1])


def images(folder: Path) -> None:
    """A few grey images of two classes, and the same in a zip."""
    if folder.exists():
        return
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / label / f"{i}.png")
    shutil.make_archive(str(folder), "zip", folder)


def data(root: Path, name: str) -> Base:
    """MNIST and CIFAR-10, which would be downloaded, have no base that is answered."""
    section = {"name": name}
    config = {**TRAINING, "data": section}
    if name in ("ImageFolder", "ImageZip"):
        section["path"] = str(root / ("images" if name == "ImageFolder" else "images.zip"))
        config |= {"net": {"name": "UnshuffleUNet", **SMALL["UnshuffleUNet"]}}
    elif name == "LatentZip":
        section["path"] = str(root / "latents.zip")
        config |= {"net": {"name": "UnshuffleUNet", **SMALL["UnshuffleUNet"]}}
    elif name == "Described":
        section |= {"shape": [2], "num_classes": 2}
    elif name == "Mixture":
        section |= MIXTURE
    elif name == "Pairs":
        section["path"] = str(root / "pairs")
        config |= REFINEMENT
    elif name == "Reflow":
        section |= {"path": str(root / "pairs"), "flow": str(root / "flow")}
        config |= REFINEMENT
    elif name == "RealOrGenerated":
        section |= {"real": MIXTURE, "path": str(root / "samples")}
        config |= CLASSIFICATION
    return fit, config, ("data",)


def latents(root: Path, name: str) -> Base:
    """Diffusers' VAEs; where it is not installed they are refused."""
    section = {"name": name, "path": str(root / "vae")}
    data = {"name": "ImageFolder", "path": str(root / "colours")}
    return encode, {"data": data, "decode": section}, ("decode",)


def net(root: Path, name: str) -> Base:
    section = {"name": name, **SMALL.get(name, {})}
    config = {**TRAINING, "data": HALVES if name in SMALL else MIXTURE}
    if name in ("ADMEncoder", "ConvNet", "Linear", "ResNet"):
        config |= CLASSIFICATION
    return fit, {**config, "net": section}, ("net",)


def model(root: Path, name: str) -> Base:
    config = {**TRAINING, **(CLASSIFICATION if name == "NoisyClassifier" else {})}
    if name in ("FewSteps", "OneStep", "Shortcut"):
        config |= {"data": {"name": "Pairs", "path": str(root / "pairs")}, **REFINEMENT}
    section = {"name": name} | ({"of": str(root / "base")} if name == "GuidanceWeight" else {})
    return fit, {**config, "model": section}, ("model",)


def learner(root: Path, name: str) -> Base:
    pairs = {"data": {"name": "Pairs", "path": str(root / "pairs")}, **REFINEMENT}
    others = {"Classification": CLASSIFICATION, "Refinement": pairs}
    section = {"name": name, "ema_half_life": [100]}
    return fit, {**TRAINING, **others.get(name, {}), "learner": section}, ("learner",)


def method(root: Path, name: str) -> Base:
    section = {"name": name}
    parameters = inspect.signature(resolve("lightning_cfg.guidance", name)).parameters.values()
    roles = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if any(p.name == "of" for p in parameters):
        section["of"] = {"name": "classifier_free"}
        roles += ["model"]
    if name == "interval":
        section |= {"sigma_low": 0.1, "sigma_high": 9.0}
    network = str(root / "base") if name == "cads" else "exact"
    models = dict.fromkeys(roles, network)
    if name == "frequency_decoupled":
        models["model"] = str(root / "pictures")
    if name == "guidance_free":
        models["model"] = str(root / "free")
    if "strength" in models:
        models["strength"] = str(root / "strength")
    config = {**GENERATION, "guidance": section, "models": models}
    if name == "cfg_plus_plus":
        config["sampler"] = {"name": "ddim", "steps": 2}
    if name == "feynman_kac":
        config["sampler"] = {"name": "ddpm", "steps": 2}
    return generate, config, ("guidance",)


def at(*way: str) -> Callable[[Path, str], Base]:
    """A sampler, its levels, or the schedule of a scale."""

    def made(root: Path, name: str) -> Base:
        config = {**GENERATION, "guidance": {"name": "classifier_free"}}
        part = config
        for key in way[:-1]:
            part[key] = dict(part[key])
            part = part[key]
        part[way[-1]] = {"name": name}
        return generate, config, way

    return made


def metric(root: Path, name: str) -> Base:
    """The Inception score, of a space with a head, has no base that is answered."""
    function = resolve("lightning_cfg.metrics", name)
    real = LINE if name == "wasserstein" else MIXTURE
    config = {"generate": {"a": {**GENERATION, "data": real, "n": 80}}, "data": real}
    own = {"kernel_distance": {"size": 10, "subsets": 2}, "near_copies": {"quantile": 0.1}}
    config |= {"real": 40, "bank": 40, "metrics": [{"name": name, **own.get(name, {})}]}
    if needs(function) & OF_A_SPACE:
        config["features"] = {"name": "pixels"}
    if "logits" in needs(function):
        config["classifier"] = str(root / "judge")
    return evaluate, config, ("metrics", 0)


def features(root: Path, name: str) -> Base:
    """Inception and DINOv2, whose weights are large, have no base that is answered."""
    section = {"name": name} | ({"path": str(root / "eye")} if name == "classifier" else {})
    images = {"name": "ImageFolder", "path": str(root / "images")}
    images["held_out"] = images["path"]
    config = {"samples": {"a": str(root / "images")}, "data": images, "features": section}
    config |= {"by_class": False, "metrics": [{"name": "frechet_features", "allow_few": True}]}
    return evaluate, config, ("features",)


def training_parts() -> dict[str, Base]:
    """Sections of `fit` that are of one kind."""
    trainer, grids = TRAINING["trainer"], {"every": 1, "columns": 1, "sampler": HEUN}
    pictures = {**net(Path(), "UnshuffleUNet")[1], "grids": grids}
    of_training = "lightning_cfg.training"
    return {
        "lightning.Trainer": (fit, {**TRAINING, "trainer": trainer}, ("trainer",)),
        f"{of_training}.grids.Grids": (fit, pictures, ("grids",)),
        f"{of_training}.evaluate_samples.EvaluateSamples": (
            fit, {**TRAINING, "evaluation": EVALUATION}, ("evaluation",),
        ),
    }  # fmt: skip


def study_parts(root: Path) -> dict[str, Base]:
    """Sections of a study, which is planned and not run."""
    schema = "lightning_cfg.studies.schema"
    flow = {k: v for k, v in {**TRAINING, **REFINEMENT}.items() if k != "data"}
    repaired = {**STUDY, "flow": flow, "flows": {"all": [1.0]}, "sources": 4}
    repaired |= {"pairs": {"k": 2, "bank": 20}, "variants": {"v": {"scales": [1.0]}}}
    base = {k: v for k, v in TRAINING.items() if k != "data"}
    judge = {k: v for k, v in {**TRAINING, **CLASSIFICATION}.items() if k != "data"}
    told = {
        "models": {"model": "base", "discriminator": "told"},
        "guidance": "discriminator_gradient",
    }
    discriminated = {**STUDY, "fits": {"base": base}, "methods": {"m": told}}
    discriminated["discriminators"] = {"told": {"of": "base", "n": 8, "fit": judge}}
    table = {"source": "a paper", "metric": "negative_log_density", "rows": {"before": {"1": 2.0}}}
    low = {"min": 0.1, "max": 1.0, "log": True}
    tuned = {**STUDY, "methods": {**STUDY["methods"], "interval": {
        "models": {"model": "exact"},
        "guidance": {"name": "interval", "of": "classifier_free",
                     "sigma_low": 0.1, "sigma_high": 9.0},
        "ranges": {"sigma_low": low, "sigma_high": [5.0, 9.0]},
    }}}  # fmt: skip
    tuned |= {"scales": [1.0, 2.0], "tuning": {"settings": 2, "samples": 8, "at": [1.0]}}
    tuned["evaluation"] = {"metrics": ["energy_distance", "wrong_class"], "real": 8, "bank": 8}
    return {
        f"{schema}.tuning": (study, tuned, ("tuning",)),
        "lightning_cfg.studies.ranges.between": (
            study,
            tuned,
            ("methods", "interval", "ranges", "sigma_low"),
        ),
        "lightning_cfg.verbs.study.study": (study, STUDY, ()),
        f"{schema}.method": (study, STUDY, ("methods", "cfg")),
        f"{schema}.variant": (study, repaired, ("variants", "v")),
        f"{schema}.published": (study, {**repaired, "published": [table]}, ("published", 0)),
        f"{schema}.discriminator": (study, discriminated, ("discriminators", "told")),
    }
