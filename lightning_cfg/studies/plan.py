"""What a study will take, counted before it starts."""

import json
import math

from lightning_cfg.data.build import build_data


def _distinct(recipes: dict[str, dict], *keys: str) -> int:
    """How many recipes for all scales differ in these keys: the others share what they make."""
    shared = [recipe for kind, recipe in recipes.items() if kind != "dedicated"]
    return len({json.dumps([recipe[key] for key in keys], default=list) for recipe in shared})


def _refined(recipes: dict[str, dict], flows: dict, scales: list[float]) -> int:
    """How often the samples of a method are refined, which has these scales."""
    own = [recipe["scales"] for kind, recipe in recipes.items() if kind != "dedicated"]
    own.append(flows.get("dedicated", []))
    return sum(len(set(scales) & set(some)) for some in own)


def sources_of(section: dict, flows: dict, scales: list[float]) -> list[float]:
    """Scales of the sources of a method's flow for all scales: its own where it has its own."""
    shared = flows.get("all", [])
    return shared if not shared or section["scales"] == scales else section["scales"]


def stages_per_case(asked: dict, recipes: dict[str, dict]) -> int:
    """Stages of a study on one data set, each once: stages that are shared count once."""
    flows, total = asked["flows"], len(asked["fits"]) + 2 * len(asked["discriminators"]) + 1
    per_scale = 2 + (asked["trace"] is not None)  # generate, evaluate, trace
    for section in asked["methods"].values():
        dedicated = set(flows.get("dedicated", [])) & set(section["scales"])
        shared = sources_of(section, flows, asked["scales"])
        total += len({*shared, *dedicated}) + 2 * len(dedicated)
        total += _distinct(recipes, "pairs") + _distinct(recipes, "pairs", "flow")
        total += per_scale * len(section["scales"])
        total += _refined(recipes, flows, section["scales"])
    return total


def cost(asked: dict, recipes: dict[str, dict], stages: int, cases: int) -> str:
    """What a study will take, in a line: what is done already is not taken off."""
    flows, n = asked["flows"], asked["samples"]
    discriminators = asked["discriminators"].values()
    trainings = [*asked["fits"].values(), *(section["fit"] for section in discriminators)]
    sources, fresh, refined = sum(section["n"] for section in discriminators) * cases, 0, 0
    for section in asked["methods"].values():
        own = len(set(flows.get("dedicated", [])) & set(section["scales"]))
        trainings += [asked["flow"]] * (_distinct(recipes, "pairs", "flow") + own)
        sources += asked["sources"] * (bool(flows.get("all")) + own) * cases
        fresh += n * len(section["scales"]) * cases
        refined += n * _refined(recipes, flows, section["scales"]) * cases
    images = sum(t["batch_size"] * t["trainer"].get("max_steps", 0) for t in trainings) * cases
    sampler, each = asked["generation"]["sampler"], ""
    if "steps" in sampler:
        steps = 2 * sampler["steps"] - 1 if sampler["name"] == "heun" else sampler["steps"]
        each = f" of {steps} evaluations of each network"
    data = asked["data"] or next(iter(asked["cases"].values()))
    size = math.prod(build_data(data).shape)
    disk = 4 * size * (sources * (2 + bool(flows)) + fresh + refined) / 2**30
    return (
        f"{stages} stages: {len(trainings) * cases} trainings on {images / 1e6:.3g} M images, "
        f"{sources + fresh:,} samples{each}, {refined:,} refined, about {disk:.2g} GiB of samples"
    )
