"""How samples were made and what they cost, in the words of a result."""

from pathlib import Path

from lightning_cfg.runs.inputs import told_weights
from lightning_cfg.runs.manifests import MANIFEST, as_written, read_manifest
from lightning_cfg.sampling.guided import scale_of
from lightning_cfg.sampling.network import own_weights


def told(settings: dict) -> dict[str, str]:
    """The settings of a generation in the words of a result."""
    # older runs say it by itself
    named = settings.get("own_weights") or own_weights(settings.get("models", {}))
    own = [f"{role} {told_weights(weights)}" for role, weights in named.items()]
    for role, network in settings.get("models", {}).items():
        if isinstance(network, dict) and network.get("weaken") is not None:
            own.append(f"{role} weakened by {in_words(network['weaken'])}")
    return {
        "sampler": in_words(settings["sampler"]),
        "guidance": in_words(settings["guidance"]),
        "model_weights": ", ".join([told_weights(settings["weights"]), *own]),
    }


def cost(evaluations: dict[str, float], seconds: float) -> dict[str, str]:
    """What a sample has cost, in the words of a result: evaluations per network, wall time."""
    return {
        "evaluations": ", ".join(f"{role} {n:.4g}" for role, n in evaluations.items()),
        "seconds_per_sample": f"{seconds:.3g}",
    }


def in_words(section: dict) -> str:
    """{name: heun, steps: 18} as "heun steps=18"; what is inside, in parentheses."""
    unsaid = {"name"}
    if isinstance(section.get("levels"), list):  # beside which the others stand at their defaults
        unsaid |= {"steps", "points", "rho"}
    numbers = (
        f"{k}=({in_words(v)})" if isinstance(v, dict) else f"{k}={v}"
        for k, v in section.items()
        if k not in unsaid and v is not None
    )
    return " ".join([section["name"], *numbers])


def of_run(run: Path) -> dict[str, str]:
    """What the manifest of a run of `generate` or `refine` says of its samples."""
    with as_written(run / MANIFEST):
        manifest = read_manifest(run, "verb", "settings")
        return _told_of(manifest) if manifest else {}


def _told_of(manifest: dict) -> dict[str, str]:
    settings = manifest["settings"]
    seconds = manifest.get("seconds_per_sample")  # which older runs do not say
    if manifest["verb"] == "generate":
        spent = {} if seconds is None else cost(manifest["evaluations"], seconds)
        effective = manifest.get("effective_scale", {}).get("mean")
        spent |= {} if effective is None else {"effective_scale": f"{effective:.4g}"}
        return told(settings) | spent
    if manifest["verb"] != "refine":
        return {}
    source = of_run(Path(manifest["free"]["samples"]))
    step = f"refined by dopri5 rtol={settings['rtol']:g} atol={settings['atol']:g}"
    if settings.get("method", "dopri5") != "dopri5":
        step = f"refined by {settings['method']} steps={settings['steps']}"
    for key in ("strength", "scale"):
        step += f" {key}={settings[key]:g}" if settings.get(key, 1) != 1 else ""
    sampler = ", ".join(filter(None, [source.get("sampler"), step]))
    about = {**source, "sampler": sampler, "model_weights": told_weights(settings["weights"])}
    if seconds is None or "evaluations" not in source:
        return about
    own, before = cost(manifest["evaluations"], seconds), float(source["seconds_per_sample"])
    evaluations = f"{source['evaluations']}, {own['evaluations']}"
    return {**about, "evaluations": evaluations, "seconds_per_sample": f"{before + seconds:.3g}"}


def guidance_of(run: Path) -> dict | None:
    """The guidance of a run of `generate`, or of what a run of `refine` refined."""
    with as_written(run / MANIFEST):
        manifest = read_manifest(run, "verb", "settings")
        if manifest.get("verb") == "refine":
            return guidance_of(Path(manifest["free"]["samples"]))
        if manifest.get("verb") != "generate":
            return None
        guidance = manifest["settings"]["guidance"]
        float(scale_of(guidance) or 0)  # a number, as its readers take it to be
        return guidance
