"""What figures and pages call things: names that a person would write, in the place of keys."""

from collections import Counter
from collections.abc import Iterable

from lightning_cfg.metrics.meaning import kind_of, meaning, percent

NAMES = {  # keys of methods and of guidances
    "classifier_free": "CFG",
    "classifier_guidance": "classifier guidance",
    "classifier_gradient": "classifier guidance",
    "unguided": "no guidance",
    "gfcg_mixed": "GFCG, mixed",
    "gfcg_autoguidance": "GFCG + autoguidance",
    "interval": "CFG in an interval",
    "schedule": "CFG by a schedule",
    "cfg_plus_plus": "CFG++",
    "cfg_zero_star": "CFG-Zero*",
    "rescale": "CFG, rescaled",
    "rejection": "best of several",
    "discriminator": "discriminator guidance",
    "discriminator_gradient": "discriminator guidance",
    "feedback": "feedback guidance",
    "learned_weight": "learned strength",
    "higs": "HiGS",
    "feynman_kac": "CFG + Feynman-Kac",
    "self_guidance": "S² guidance",
    "tangential": "TCFG",
    "gibbs": "Gibbs-like guidance",
    "guidance_free": "guidance-free training",
    "frequency_decoupled": "FDG",
}
EXACT = "exact_"  # before a method's key: the same with the exact denoiser
SHORT = ("apg", "atg", "cads", "cfg", "cg", "edm", "fbg", "fdg", "gfcg", "gft", "mlp", "ode", "sde")
COLUMNS = {  # kinds of metrics: what an axis calls them, with the unit where there is one
    "wasserstein": "Wasserstein-1 distance",
    "outliers": "outliers",
    "nll_mean": "mean -log p / nats",
    "nll_median": "median -log p / nats",
    "nearest_real": "distance to nearest real point",
    "nearest_train": "distance to nearest training point",
    "near_copies": "near copies",
    "wrong_class": "wrong class",
    "class_accuracy": "read as their class",
    "class_confidence": "probability of their class",
    "frechet": "Fréchet distance",
    "energy_distance": "energy distance",
    "fd_classifier": "Fréchet distance, classifier",
    "fd": "Fréchet distance",
    "fid": "FID",
    "fd_dinov2": "FD, DINOv2",
    "kd": "kernel distance",
    "kid": "KID",
    "is": "Inception score",
}


def distinct(keys: Iterable[str], own: dict[str, str]) -> dict[str, str]:
    """{key: name}, no two names alike: a study's own, else the usual one, else the key in words."""
    names = {key: own.get(key) or usual(key) for key in keys}
    often = Counter(names.values())
    return {
        key: name if often[name] == 1 else f"{name} ({key})"  # both names may be meant
        for key, name in names.items()
    }


def usual(key: str) -> str:
    """The name of a method's key: "GFCG + autoguidance", and "CG MLP" of `cg_mlp`."""
    if key in NAMES:
        return NAMES[key]
    if key.startswith(EXACT) and len(key) > len(EXACT):
        return f"{usual(key.removeprefix(EXACT))}, exact"
    words = [word.upper() if word in SHORT else word for word in key.split("_") if word]
    return " ".join(words) or key


def of_methods(config: dict) -> dict[str, str]:
    """The names of a study's methods, by key."""
    return distinct(config["methods"], config.get("names", {}))


def of_flows(config: dict) -> dict[str, str]:
    """The names of a study's flows; "" stands for samples before refinement."""
    known = {"": "before", "dedicated": "after, own flow", "all": "after, one for all"}
    return distinct(known | config["variants"], known | config.get("names", {}))


def of_column(column: str) -> str:
    """What an axis calls a column: `recall_k3_pixels_vs_bank` is "recall, k 3, pixels, to bank"."""
    kind = next((k for k in (column, kind_of(column)) if k in COLUMNS), kind_of(column))
    rest, _, other = column.removeprefix(kind).strip("_").partition("vs_")
    parts = [COLUMNS.get(kind, kind.replace("_", " "))]
    for word in filter(None, rest.split("_")):
        parts.append(f"k {word[1:]}" if word[:1] == "k" and word[1:].isdigit() else word)
    return ", ".join(parts + ([f"to {other}"] if other else []))


def is_share(column: str) -> bool:
    """Whether its values are shares, which are written in per cent."""
    return meaning(column).format is percent


def way(column: str) -> str:
    """What a title adds: which way is better."""
    return {"lower": " ↓", "higher": " ↑"}.get(meaning(column).better or "", "")
