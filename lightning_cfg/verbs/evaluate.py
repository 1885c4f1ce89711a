"""`evaluate`: samples become a table of metrics beside real data, each number with its making."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning_cfg.config import (
    AtLeast,
    Between,
    Count,
    Data,
    Decode,
    Features,
    Free,
    Metric,
    Seed,
    Verb,
)
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.build import (
    Statistics,
    check_set,
    fresh_points,
    gather_sets,
    guided_by,
    read_by,
    real_side,
    scored,
    scorer_of,
)
from lightning_cfg.evaluation.decoded import decoding_of
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import Generated, Samples, SampleSet, generated, read_set
from lightning_cfg.evaluation.scorer import Scorer
from lightning_cfg.evaluation.tables import as_csv, as_markdown, as_text, named, spread
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.files import write_text
from lightning_cfg.runs.inputs import Checkpoint
from lightning_cfg.runs.manifests import read_table
from lightning_cfg.runs.names import METRICS, RIGHT
from lightning_cfg.runs.parts import Parts
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import launched, sharing
from lightning_cfg.runs.run import Run, content_of, verb
from lightning_cfg.sampling.guided import check_roles
from lightning_cfg.sampling.network import Elsewhere
from lightning_cfg.sampling.prepared import pick_device
from lightning_cfg.sampling.seeds import check_seeds

Generation = Annotated[
    dict,
    Verb(
        "lightning_cfg.verbs.generate.generate",
        without=(
            *("run_dir", "force", "trust", "device"),
            *("trajectories", "images", "decode", "effective_scale"),
        ),
    ),
]


@dataclass(frozen=True)
class _Ready:
    """All that is needed to score: the real side, the scorer, the sets.

    others       what fresh real points are compared with, in place of all real points
    class_names  of the data, if they have any
    """

    scorer: Scorer
    sets: dict[str, SampleSet]
    others: Real | None
    class_names: list[str] | None


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["device"])
    _check(config)
    _ready({**config, "device": "cpu"}, _same_scorer)
    return {}


@lru_cache(maxsize=1)
def _scorer_again(asked: str, real: Real | None) -> Scorer:
    return scorer_of(**json.loads(asked), real=real)


def _same_scorer(*, real: Real | None, classifier: str | dict | None, **asked: Any) -> Scorer:
    """As `scorer_of`; a study tries many tables of the same metrics."""
    if classifier is not None:  # which may be to come, and is no mere text
        return scorer_of(real=real, classifier=classifier, **asked)
    asked["device"] = str(asked["device"])
    return _scorer_again(json.dumps({**asked, "classifier": None}), real)


def _ready(config: dict, scorer_of: Callable[..., Scorer]) -> _Ready:
    """The sets and what they are scored by; UserError for what does not fit together."""
    data, fresh, classifier = config["data"], config["fresh"], config["classifier"]
    by_class, reference, side = config["by_class"], config["reference"], None
    device = pick_device(config["device"])
    decode = decoding_of(config["decode"], device)
    if data is not None:
        content = content_of(data)[1]
        asked = json.dumps(data), content, config["real"], config["bank"], by_class
        side = real_side(*asked, decode)
    keys = ("metrics", "features", "statistics", "cache", "batch_size")
    scorer = scorer_of(
        real=side,
        classifier=classifier,
        reference=[reference] if isinstance(reference, str) else list(reference),
        device=device,
        **{key: config[key] for key in keys},
    )
    scorer.check_columns()
    data_set = None if side is None else side.data
    sets = {
        label: read_set(path, data_set, decode=decode) for label, path in config["samples"].items()
    }
    drawn = None if data_set is None else data_set.drawn
    for label, keys in config["generate"].items():
        if keys["class_label"] is None and drawn is not None:
            keys = {**keys, "class_label": drawn.tolist()}
        sets[label] = generated(**keys, device=config["device"]).decoded(decode)
    needs_classes = by_class or classifier is not None
    for label, held in sets.items():
        check_set(label, held, data_set, config["draws"], needs_classes=needs_classes)
    others = None
    if fresh is not None:
        sets["real"], others = fresh_points(side, fresh, config["seed"])
    return _Ready(scorer, sets, others, None if data_set is None else data_set.class_names)


@verb(tried=_tried)
def evaluate(
    run: Run,
    /,
    *,
    run_dir: str,
    samples: dict[str, Samples] = {},
    generate: dict[str, Generation] = {},
    data: Data | None = None,
    metrics: list[Metric] | None = None,
    features: Features | dict[str, Features] | None = None,
    statistics: dict[str, Statistics] = {},
    reference: str | list[str] = "held_out",
    classifier: Checkpoint | Elsewhere | None = None,
    real: Count | None = None,
    bank: Count | None = None,
    by_class: bool = True,
    fresh: Count | None = None,
    decode: Decode | None = None,
    draws: Annotated[int, Between(1, 1000)] = 1,
    batch_size: Annotated[int, AtLeast(1), Free] = 512,
    cache: Annotated[bool, Free] = True,
    device: Annotated[str, Free] = "auto",
    logger: Annotated[Literal["csv", "wandb"], Free] = "csv",
    seed: Seed = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Score samples; the run holds metrics/metrics.csv and .json, numbers.csv and .json, table.md.

    metrics.csv has a row per set and class. numbers.csv has a row per number, with all that it
    depends on: N, reference split and its M, extractor, resize, weights, sampler, seeds. right.json
    has of each class how many samples a classifier has read as it.

    samples     {label: run of `generate` or `refine`, sample file, or anyone's images: a folder,
                zip, .npz or .npy}
    generate    {label: keys of `generate`}: samples that are made while they are scored, not kept;
                of prompts that the data have pictures of, where they have none of others
    data        the real data; can be left out where `statistics` are all that is asked for
    metrics     functions of lightning_cfg.metrics, or dotted paths; left out, all that fit
    features    one feature space, or several by label: the metrics of features are taken in each
    statistics  {feature space: file of mu and sigma}: the real side of its Fréchet distances, as
                EDM publishes them (edm_cifar10 and so on, see lightning_cfg.assets) or `evaluate`
                keeps them; instead of the first reference
    reference   splits to compare with, held_out or bank (the training data, as is usual for FID);
                columns of the second bear its name, _vs_bank
    classifier  a run of `fit` of a clean classifier, for class_accuracy and confidence; or one by
                its section, as in `models` of `generate`: {name: clip, path: FOLDER} over the
                prompts that are the data, for text_alignment
    real, bank  points per class of either split; left out, all of them
    by_class    False scores all classes together, in one row named all
    fresh       real points per class that are scored too, as the floor of every metric; they are a
                fresh draw, or are taken out of the held-out points. As many as samples: some
                metrics depend on the number. Left out: no floor
    seed        which held-out points those are, where there is no density to draw from
    decode      what makes images of latents, samples and real ones: all is scored as images then
    draws       each set is scored in so many equal parts, generated ones as often anew, and then
                their minimum and mean: 3 of 50,000 is EDM's protocol
    cache       keep features and moments of real data in the user's cache
    logger      wandb: the scores are a run there too, as those of a sweep's agent have to be
    trust       modules of one's own that a checkpoint may name; see docs/security.md
    force       does a finished run again
    """
    asked = {"samples": samples, "generate": generate, "data": data, "metrics": metrics}
    asked |= {"features": features, "statistics": statistics, "reference": reference}
    asked |= {"classifier": classifier, "real": real, "bank": bank, "by_class": by_class}
    asked |= {"fresh": fresh, "draws": draws, "batch_size": batch_size, "cache": cache}
    asked |= {"decode": decode}
    _check(asked)
    if run.finished_already():
        _send(run)
        return run.directory

    ready = _ready({**asked, "device": device, "seed": seed}, scorer_of)
    scorer, sets, others = ready.scorer, ready.sets, ready.others
    _tell_guiding(run, samples, generate, classifier)
    parts = {label: 1 if label == "real" else draws for label in sets}
    with sharing() as ranks:
        total = _total(sets, draws)
        made = Parts(run, ranks, batch_size=batch_size, device=pick_device(device))
        bar = progress(total, " samples", shown=ranks.first, initial=made.rows * ranks.size)
        pieces = gather_sets(sets, parts, scorer, ranks, bar.update, made)
        if ranks.size > 1:  # all is gathered, and the ranks part, before the first one scores
            with made.kept(total, "samples"):
                pieces = list(pieces)
                made.flush()
            for label in sets:
                scorer.read_real(ranks, others if label == "real" else None)
    if not ranks.first:
        return run.directory
    with bar, made.kept(total, "samples"):
        rows, numbers, right = scored(pieces, scorer, others)
    rows, names = spread(rows), ready.class_names
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    asked_for = [metric.__name__ for metric, _ in scorer.metrics]
    made = {label: held.steps for label, held in sets.items() if isinstance(held, Generated)}
    steps = ({"generate": made} if made else {}) | scorer.steps
    facts = {"metrics": asked_for, "steps": steps}
    facts |= {} if names is None else {"class_names": names}
    run.finish(*_written(run.directory, rows, numbers, right, names), **facts)
    _send(run)
    if sys.stdout.isatty():
        print(as_text(named(rows, names)))
    print(f"{run_dir}: {len(rows)} rows of {len(scorer.metrics)} metrics")
    return run.directory


def _tell_guiding(run: Run, samples: dict, generate: dict, classifier: str | dict | None) -> None:
    """A line for each set that was guided by the classifier which measures it."""
    if classifier is None:
        return
    own = read_by(classifier)
    guiding = [label for label, path in samples.items() if guided_by(path, classifier)]
    for label, keys in generate.items():
        one = keys["models"].get("classifier")
        if one is not None and set(own.values()) & set(read_by(one).values()):
            guiding.append(label)
    for label in guiding:
        run.say(f"{label} was guided by this classifier: it says how far that was followed")


def _check(config: dict) -> None:
    """UserError for sets that are none, or bear the name of something else, or no data."""
    samples, generate, data = config["samples"], config["generate"], config["data"]
    draws, fresh = config["draws"], config["fresh"]
    if not samples and not generate and fresh is None:
        raise UserError("samples and generate name nothing to score")
    for label in (*samples, *generate):
        if label in ("data", "held_out", "features", "classifier", "real"):
            raise UserError(f"samples.{label} is the name of something else here: choose another")
    if both := set(samples) & set(generate):
        raise UserError(f"samples and generate both have {sorted(both)[0]}: choose another name")
    for label, keys in generate.items():
        check_roles(keys["guidance"], keys["models"], more=keys["spare_models"])
        check_seeds(keys["seed"], keys["n"] * draws, f"generate.{label}.seed")
    classifier, statistics = config["classifier"], config["statistics"]
    if data is None and (not statistics or fresh is not None or classifier is not None):
        raise UserError("data is missing: what samples are compared with, unless by `statistics`")
    if data is None and config["by_class"]:
        raise UserError("by_class=true needs data, which say what classes there are")


def _total(sets: dict[str, SampleSet], draws: int) -> int:
    """All samples, of which those of seeds are made anew for each draw."""
    drawn = {label: draws if isinstance(held, Generated) else 1 for label, held in sets.items()}
    return sum(len(held) * drawn[label] for label, held in sets.items())


def _written(
    directory: Path,
    rows: list[dict],
    numbers: list[dict],
    right: list[dict],
    names: list[str] | None,
) -> list[Path]:
    """The files of a table and of its numbers; metrics.json and right.json, which others read, by
    number alone."""
    folder, shown = directory / "metrics", named(rows, names)
    numbers = named(numbers, names)
    return [
        write_text(folder / "metrics.csv", as_csv(shown)),
        write_text(directory / METRICS, json.dumps(rows, indent=1)),
        write_text(folder / "numbers.csv", as_csv(numbers)),
        write_text(folder / "numbers.json", json.dumps(numbers, indent=1)),
        write_text(folder / "table.md", as_markdown(shown, numbers)),
        *([write_text(directory / RIGHT, json.dumps(right, indent=1))] if right else []),
    ]


def _send(run: Run) -> None:
    """The scores of a finished run to where else they are wanted."""
    if run.free["logger"] == "wandb" and launched().rank == 0:
        rows = read_table(run.directory / METRICS)
        wandb_run.log_scores(run.directory, {**run.identity["settings"], **run.free}, rows)
