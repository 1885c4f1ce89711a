"""`tune`: settings of a guidance method tried, and the one that errs least at matched distance."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import (
    AtLeast,
    Count,
    Data,
    Filled,
    Free,
    Guidance,
    Input,
    Metric,
    Scales,
    Seed,
    Verb,
    resolve,
)
from lightning_cfg.data.build import build_data
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.build import real_side, scorer_of
from lightning_cfg.evaluation.decoded import decoding_of
from lightning_cfg.evaluation.sample_sets import held
from lightning_cfg.evaluation.scorer import Scorer
from lightning_cfg.evaluation.tables import as_csv
from lightning_cfg.metrics.matched import at_matched
from lightning_cfg.metrics.meaning import meaning, path_of, show
from lightning_cfg.runs.files import output_of, write_text
from lightning_cfg.runs.manifests import read_table
from lightning_cfg.runs.names import TRIED, TUNED
from lightning_cfg.runs.parts import Parts
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.ranks import sharing
from lightning_cfg.runs.run import Run, content_of, verb
from lightning_cfg.sampling.batches import made
from lightning_cfg.sampling.guided import check_roles, check_together, with_scale
from lightning_cfg.sampling.network import Networks
from lightning_cfg.sampling.prepared import Prepared, pick_device, prepare
from lightning_cfg.sampling.seeds import check_seeds
from lightning_cfg.studies.chosen import choice_of
from lightning_cfg.studies.schema import Evaluation, Generation

PILOT = 64  # samples by which evaluations are counted before the others are made
BEYOND = 1.05  # of the evaluations that are asked for, at most

Reference = Annotated[str, Input(partial(output_of, inside=TRIED))]


def setting(*, models: Networks, guidance: Guidance) -> None:
    """A method with one choice of its parameters.

    models    its networks, as of `generate`
    guidance  its section, whose scale is set to each of `scales`
    """


Setting = Annotated[dict, Verb("lightning_cfg.verbs.tune.setting")]


def _tried(config: dict) -> dict[str, Any]:
    pick_device(config["generation"]["device"])
    _check(config)
    for one in _each_networks(config["settings"]):
        _prepared({**config, "generation": {**config["generation"], "device": "cpu"}}, one, 1.0)
    _scorer({**config["evaluation"], "device": "cpu"}, config)
    if config["reference"] is not None:
        output_of(config["reference"], TRIED)
    return {TRIED: [], TUNED: {"setting": 0, "steps": None}}


def _each_networks(settings: list[dict]) -> list[dict]:
    """The first setting with each choice of networks."""
    found: dict[str, dict] = {}
    for one in settings:
        found.setdefault(json.dumps(one["models"], sort_keys=True), one)
    return list(found.values())


def _check(config: dict) -> None:
    """UserError for what does not fit together."""
    check_seeds(config["seed"], config["n"])
    sampler, scales = config["generation"]["sampler"], config["scales"]
    for one in config["settings"]:
        check_roles(one["guidance"], one["models"])
        if with_scale(one["guidance"], 1.0) is None:
            raise UserError(f"guidance {one['guidance']['name']} has no scale")
        check_together(one["guidance"], sampler)
    if config["reference"] is None and (lacking := [s for s in config["at"] if s not in scales]):
        raise UserError(f"at has scale {lacking[0]:g}, which scales has not")
    counted = "steps" in sampler and not isinstance(sampler.get("levels"), list)
    if config["evaluations"] is not None and not counted:
        raise UserError(
            f"evaluations={config['evaluations']}: sampler {sampler['name']} has no number of "
            "steps that could be chosen so: another one, or evaluations=null"
        )


@verb(tried=_tried, one_process=True)
def tune(
    run: Run,
    /,
    *,
    settings: Annotated[list[Setting], Filled],
    scales: Scales,
    generation: Generation,
    data: Data,
    run_dir: str,
    n: Count = 2000,
    evaluations: Annotated[int, AtLeast(1)] | None = None,
    reference: Reference | None = None,
    at: Scales = [1.25, 1.5, 2.0],
    distance: Metric = {"name": "energy_distance"},
    error: Metric = {"name": "wrong_class"},
    evaluation: Evaluation = {},
    seed: Seed = 0,
    trust: Annotated[list[str], Free] = [],
    force: bool = False,
) -> Path:
    """Try each setting at each scale, and choose one; the run holds metrics/tuned.json, tried.csv.

    A setting's points (distance, error) over the scales are a curve. Limits are the distances that
    the reference has at the scales `at`. Chosen is the setting whose curve comes within most of
    them, and of these that of the smallest mean of its smallest errors within each; of equal ones,
    such as those that come within none, the nearest. All are made of the same seeds.

    settings     what is tried, {models, guidance} each
    scales       at which, and of what the curve is
    generation   how samples are made: keys of `generate`
    n            samples of each setting and scale, of the seeds seed, seed + 1, ...
    evaluations  of all networks together that a sample is to take: sampler.steps of each setting
                 is chosen so that it comes nearest to it, counted at its middle scale; one beyond
                 by more than 5 % is not chosen. Left out, the sampler's own steps
    reference    a run of `tune`, of whose choice the limits are; left out, those of its first
                 setting itself
    at           scales of the reference whose distances are the limits
    distance     a metric of which lower is nearer
    error        a metric that is to be small, or of which higher is better
    evaluation   how they are taken: keys of `evaluate`, with metrics of its own left out
    trust        modules of one's own that a checkpoint may name; see docs/security.md
    force        does a finished run again
    """
    asked = {"settings": settings, "scales": scales, "generation": generation, "data": data}
    asked |= {"n": n, "evaluations": evaluations, "reference": reference, "at": at, "seed": seed}
    asked |= {"distance": distance, "error": error, "evaluation": evaluation}
    _check(asked)
    if run.finished_already():
        return run.directory
    scorer = _scorer(evaluation, asked)
    with sharing() as ranks:
        device = pick_device(generation["device"])
        parts = Parts(run, ranks, batch_size=generation["batch_size"], device=device)
        total = len(settings) * len(scales)
        bar = progress(total, " points", shown=True, initial=parts.rows)
        with bar, parts.kept(total, "points"):
            rows = list(_rows(asked, scorer, parts, bar))
    d, e = (_column(metric, rows[0]) for metric in (distance, error))
    limits = _limits(reference, rows, at, d)
    chosen = _chosen(rows, limits, d, e, evaluations)
    run.begin()
    out = [
        write_text(run.directory / TRIED, json.dumps(rows)),
        write_text(run.directory / TRIED.replace(".json", ".csv"), as_csv(rows)),
        write_text(run.directory / TUNED, json.dumps({**chosen, "of": len(settings)})),
    ]
    run.finish(*out)
    best = ", ".join(f"{show(e, reached)} at {show(d, x)}" for x, reached in chosen["reached"])
    print(f"{run_dir}: of {len(settings)} settings number {chosen['setting']}, {e} {best}")
    return run.directory


def _rows(asked: dict, scorer: Scorer, parts: Parts, bar: Any) -> Any:
    """A row per setting and scale, as far as they are not there yet; what is tried is in order."""
    seeds, batch = torch.arange(asked["seed"], asked["seed"] + asked["n"]), asked["generation"]
    scales = sorted(asked["scales"])
    for k, one in enumerate(asked["settings"]):
        steps = None
        for scale in scales:
            name = f"{k} {scale!r}"
            if name not in parts:
                ready = _prepared(asked, one, scale)
                if asked["evaluations"] is not None:
                    steps = steps or _steps(_prepared(asked, one, _middle(scales)), asked, seeds)
                    ready = replace(ready, sampler={**ready.sampler, "steps": steps})
                before = _spent(ready)
                samples, _ = made(ready, seeds, batch_size=batch["batch_size"])
                found = _score(scorer, samples, asked["evaluation"])
                spent = (_spent(ready) - before) / len(seeds)
                numbers = {f"metric {column}": value for column, value in found.items()}
                own = ready.sampler.get("steps", 0)
                parts.keep(name, {"c": torch.empty(0)}, rows=1, steps=own, nfe=spent, **numbers)
                bar.update(1)
            facts = parts.facts(name)
            steps = facts["steps"] if asked["evaluations"] is not None else None
            metrics = {
                column.removeprefix("metric "): value
                for column, value in facts.items()
                if column.startswith("metric ")
            }
            front = {"setting": k, "scale": scale, "steps": facts["steps"], "nfe": facts["nfe"]}
            yield {**front, **metrics}


def _middle(scales: list[float]) -> float:
    return scales[len(scales) // 2]


def _prepared(asked: dict, one: dict, scale: float) -> Prepared:
    """The networks of a setting, guided at this scale."""
    generation = asked["generation"]
    keys = ("sampler", "weights", "device", "precision", "compile")
    return prepare(
        models=one["models"],
        guidance=with_scale(one["guidance"], scale) or one["guidance"],
        data=asked["data"],
        class_label=_drawn(json.dumps(asked["data"]), content_of(asked["data"])[1]),
        **{key: generation[key] for key in keys},
    )


@cache
def _drawn(data: str, content: tuple[str, ...]) -> list[int | str] | None:
    """The classes that samples are drawn of, where the data set names them."""
    drawn = build_data(json.loads(data)).drawn
    return None if drawn is None else list(drawn.tolist())


def _spent(ready: Prepared) -> int:
    """Evaluations of all networks together."""
    return sum(ready.spent().values())


def _steps(ready: Prepared, asked: dict, seeds: Tensor) -> int:
    """How many steps of the sampler take as many evaluations as are asked for, or nearly so."""
    few, counted = seeds[:PILOT], {}

    def taken(steps: int) -> float:
        if steps not in counted:
            own = replace(ready, sampler={**ready.sampler, "steps": steps})
            before = _spent(own)
            made(own, few, batch_size=len(few))
            counted[steps] = (_spent(own) - before) / len(few)
        return counted[steps]

    wanted = asked["evaluations"]
    low, high = 1, wanted + 2  # a step takes one at least
    try:
        taken(low)
    except UserError:  # most schedules have no single step
        low = 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) <= wanted else (low, middle)
    return min((low, high), key=lambda steps: (abs(taken(steps) - wanted), steps))


def _scorer(section: dict, asked: dict) -> Scorer:
    """What takes the two metrics."""
    device, data, reference = pick_device(section["device"]), asked["data"], section["reference"]
    keys = "real", "bank", "by_class"
    decode = decoding_of(section["decode"], device)
    side = real_side(json.dumps(data), content_of(data)[1], *(section[k] for k in keys), decode)
    return scorer_of(
        metrics=[asked["distance"], asked["error"]],
        reference=[reference] if isinstance(reference, str) else list(reference),
        real=side,
        device=device,
        **{k: section[k] for k in ("features", "statistics", "classifier", "cache", "batch_size")},
    )


def _score(scorer: Scorer, samples: dict[str, Tensor], section: dict) -> dict[str, float]:
    """The columns of the two metrics, classes averaged, weighted by their samples."""
    decode = decoding_of(section["decode"], pick_device(section["device"]))
    latent = decode is not None and decode.takes(tuple(samples["x"].shape[1:]))
    whole = held(samples["x"], samples["c"], {"source": "tuning"}, as_bytes=not latent)
    found, rows = scorer.gather(whole.decoded(decode)), []
    for group in scorer.groups:
        own = len(found.of(group).c)
        if own:
            rows.append((own, scorer.score(found, group)[0]))
    n = sum(own for own, _ in rows)
    return {name: sum(own * row[name] for own, row in rows) / n for name in rows[0][1]}


def _column(metric: dict, row: dict) -> str:
    """The first column of a metric; UserError of one that says none of its own by `@better`."""
    function = resolve("lightning_cfg.metrics", metric["name"])
    own = [column for column in row if path_of(function) in meaning(column).metrics]
    if not own:
        raise UserError(f"metric {metric['name']} does not say by @better which way is better")
    return own[0]


def _limits(reference: str | None, rows: list[dict], at: list[float], distance: str) -> list[float]:
    """The distances of the reference's choice at some scales."""
    chosen = 0
    if reference is not None:
        rows = read_table(output_of(reference, TRIED))
        chosen = choice_of(reference)["setting"]
    own = {row["scale"]: row for row in rows if row["setting"] == chosen}
    for scale in at:
        if scale not in own or distance not in own[scale]:
            raise UserError(f"reference {reference} has no {distance} at scale {scale:g}")
    return [own[scale][distance] for scale in at]


def _chosen(
    rows: list[dict], limits: list[float], d: str, e: str, evaluations: int | None
) -> dict[str, Any]:
    """The setting that comes within most limits, with the smallest mean error, and what it is."""
    higher = meaning(e).better == "higher"
    best: dict[str, Any] = {}  # loss: limits out of reach, mean error within the others, distance
    for k in sorted({row["setting"] for row in rows}):
        own = [row for row in rows if row["setting"] == k]
        spent = max(row["nfe"] for row in own)
        if evaluations is not None and spent > BEYOND * evaluations:
            continue
        curve = [(row[d], row[e]) for row in own]
        reached = [at_matched(curve, limit, e) for limit in limits]
        known = [-value if higher else value for value in reached if value is not None]
        nearest = min(distance for distance, _ in curve)
        loss = len(reached) - len(known), sum(known) / max(1, len(known)), nearest
        if not best or loss < best["loss"]:
            best = {"setting": k, "steps": own[0]["steps"] if evaluations is not None else None}
            best |= {"loss": loss, "nfe": spent, "distance": d, "error": e}
            best |= {"reached": list(zip(limits, reached, strict=True))}
    if not best:
        least = min(row["nfe"] for row in rows)
        raise UserError(
            f"evaluations={evaluations}: no setting comes down to it, the least is {least:.4g}"
        )
    return best
