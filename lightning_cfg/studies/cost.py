"""What a study will take, counted before it starts."""

import json
import math

from lightning_cfg.sampling.sample import evaluations_of
from lightning_cfg.studies.chosen import at_first
from lightning_cfg.studies.graph import Stage


def cost(stages: dict[str, Stage], sampler: dict, shape: tuple[int, ...]) -> str:
    """What the stages will take, in a line: what is done already is not taken off.

    sampler  the study's, of generations that have none of their own
    shape    of a sample, float32 each
    """
    of = {
        verb: [at_first(stage.settings) for stage in stages.values() if stage.verb == verb]
        for verb in ("fit", "generate", "pair", "refine", "tune")
    }
    images = sum(fit["batch_size"] * fit["trainer"].get("max_steps", 0) for fit in of["fit"])
    made = sum(settings["n"] for settings in of["generate"])
    refined = sum(stages[one["samples"].stage].settings["n"] for one in of["refine"])
    on_disk = made + 2 * sum(settings["n"] for settings in of["pair"]) + refined
    samplers = [settings.get("sampler", sampler) for settings in of["generate"]]
    told = {json.dumps(one, sort_keys=True): one for one in samplers}  # each once
    numbers = sorted({n for n in map(evaluations_of, told.values()) if n is not None})
    each = " to ".join(map(str, dict.fromkeys([*numbers[:1], *numbers[-1:]])))
    each = each and f" of {each} evaluations of each network"
    for wanted in {one["evaluations"] for one in of["tune"]} - {None}:
        each = f" of about {wanted} evaluations, all networks together"
    tried = [(len(one["settings"]), len(one["scales"]) * one["n"]) for one in of["tune"]]
    tuned = sum(settings * samples for settings, samples in tried)
    tuning = f"{sum(n for n, _ in tried)} settings tuned on {tuned:,} samples, " if tried else ""
    return (
        f"{len(stages)} stages: {len(of['fit'])} trainings on {images / 1e6:.3g} M images, "
        f"{tuning}{made:,} samples{each}, {refined:,} refined, "
        f"about {4 * math.prod(shape) * on_disk / 2**30:.2g} GiB of samples"
    )
