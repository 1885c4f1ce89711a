"""`study`: the whole way from one file, every verb in turn, and a report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from lightning_cfg.config import Data, Verb, build, changed
from lightning_cfg.errors import UserError
from lightning_cfg.reports.case import Case, Traced
from lightning_cfg.reports.claims import check_claims, summary
from lightning_cfg.reports.rows import Cell
from lightning_cfg.reports.study import write_report
from lightning_cfg.reports.trajectories import trends
from lightning_cfg.runs.names import SAMPLES, TRAJECTORIES
from lightning_cfg.runs.ranks import alone
from lightning_cfg.sampling.guided import check_roles, check_together, with_scale
from lightning_cfg.sampling.guided import named as named_guidance
from lightning_cfg.sampling.network import path_and_weights, told
from lightning_cfg.studies.discriminator import Training
from lightning_cfg.studies.plan import cost, sources_of, stages_per_case
from lightning_cfg.studies.stages import Stages
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.trace import trace as trace_trajectories

FRESH = 1_000_000  # samples that are evaluated have seeds from here on, sources below
NOTHING = {"nfe": None, "evaluations": None, "seconds": None}  # what a real sample has cost

Flow = Annotated[dict, Verb("lightning_cfg.verbs.fit", without=("data", "seed", "run_dir"))]
Generation = Annotated[
    dict,
    Verb(
        "lightning_cfg.verbs.generate",
        without=("models", "guidance", "data", "n", "seed", "run_dir", "class_label"),
    ),
]
Pairing = Annotated[
    dict, Verb("lightning_cfg.verbs.pair", without=("sources", "data", "n", "seed", "run_dir"))
]
Refining = Annotated[
    dict, Verb("lightning_cfg.verbs.refine", without=("flow", "samples", "seed", "run_dir"))
]
Evaluation = Annotated[
    dict,
    Verb("lightning_cfg.verbs.evaluate", without=("samples", "data", "seed", "run_dir", "fresh")),
]
Tracing = Annotated[
    dict, Verb("lightning_cfg.verbs.trace", without=("samples", "data", "seed", "run_dir"))
]
Method = Annotated[dict, Verb("lightning_cfg.studies.method")]
Discriminator = Annotated[dict, Verb("lightning_cfg.studies.discriminator")]
Variant = Annotated[dict, Verb("lightning_cfg.studies.variant")]
Published = Annotated[dict, Verb("lightning_cfg.studies.published")]


def study(
    *,
    fits: dict[str, Training],
    methods: dict[str, Method],
    scales: list[float],
    generation: Generation,
    samples: int,
    run_dir: str,
    data: Data | None = None,
    cases: dict[str, Data] = {},  # noqa: B006  a default section, never changed
    discriminators: dict[str, Discriminator] = {},  # noqa: B006
    flows: dict[str, list[float]] = {},  # noqa: B006
    flow: Flow | None = None,
    sources: int = 0,
    pairs: Pairing = {},  # noqa: B006
    refinement: Refining = {},  # noqa: B006
    variants: dict[str, Variant] = {},  # noqa: B006
    published: list[Published] = [],  # noqa: B006
    evaluation: Evaluation = {},  # noqa: B006
    trace: Tracing | None = None,
    title: str = "",
    stage: str | None = None,
    plan: bool = False,
    seed: int = 0,
) -> Path:
    """Run every stage that is not done yet, then write report.md, report.html and table.csv.

    Before it starts it says what that will take: trainings, samples, evaluations, disk.

    fits     what is trained on the data, by name; a model of `methods` names one, a path or exact
    discriminators  what learns to tell a fit's samples from the data, by name, for `methods`
    scales   guidance scales at which fresh samples are generated, refined and evaluated
    samples  fresh samples per method and scale to evaluate
    cases    instead of `data`: several data sets by name, with everything done on each
    flows    all: scales that share one flow's sources equally; dedicated: scales with a flow each;
             left out: nothing is refined
    flow     how each flow is trained
    sources  generated samples that train each flow
    variants changes of pairs, flow and refinement by name: each is a flow for all scales of
             flows.all too, and refines and is scored beside the study's own recipe
    published  what a paper has in the place of our rows, shown beside them
    trace    what the trajectories of the fresh samples are measured against, as many as
             generation.trajectories; a method's own classifier is added, named own
    stage    run this one only, which needs those before it to be done, and write no report: so
             that several machines share a study through its directory
    plan     print every stage and how it stands, and run none
    """
    alone("study")
    written = methods
    methods = {
        name: {
            **section,
            "scales": scales if section.get("scales") is None else section["scales"],
            "generation": changed(
                Generation, generation, section.get("generation", {}), f"methods.{name}.generation"
            ),
        }
        for name, section in methods.items()
    }
    for path, section in [*((f"fits.{name}", part) for name, part in fits.items()), ("flow", flow)]:
        _check_devices(path, section)
    for name, section in discriminators.items():
        if section["of"] not in fits or name in fits or not 1 <= section["n"] <= FRESH:
            raise UserError(
                f"discriminators.{name} needs a name that is not in fits, of={section['of']} among "
                f"fits ({', '.join(fits)}), and n={section['n']} from 1 to {FRESH}"
            )
    _check(methods, [*fits, *discriminators], flows)
    if (data is None) == (not cases):
        raise UserError("a study needs either data, one data set, or cases, several by name")
    if not 1 <= samples <= FRESH:
        raise UserError(f"{samples=} must be from 1 to {FRESH}")
    if flows and (flow is None or not 1 <= sources <= FRESH):
        raise UserError(f"flows needs flow, and {sources=} from 1 to {FRESH}")
    kept = generation.get("trajectories", 0)
    if not 0 <= kept <= samples:
        raise UserError(f"generation.trajectories={kept} must be from 0 to {samples=}")
    if trace is not None:
        _check_trace(trace, kept, methods, fits)
    for name in cases:
        if not name.replace("_", "").isalnum():
            raise UserError(f"cases.{name}: letters, digits and _ only, it names folders and files")
    tried = sorted({scale for section in methods.values() for scale in section["scales"]})
    own = {"pairs": pairs, "flow": flow, "refinement": refinement, "scales": tried}
    recipes = _recipes(variants, flows, own)
    for section in published:
        _check_published(section, methods, recipes)
    asked = {
        "title": title, "data": data, "cases": cases, "fits": fits, "methods": methods,
        "discriminators": discriminators,
        "scales": scales, "flows": flows, "flow": flow, "generation": generation,
        "sources": sources, "samples": samples, "pairs": pairs, "refinement": refinement,
        "evaluation": evaluation, "trace": trace, "variants": variants, "published": published,
        "seed": seed,
    }  # fmt: skip
    root = Path(run_dir)
    data_sets = cases or {"": data}
    stages = Stages(root, seed, only="" if plan else stage)
    stages.claim({**asked, "methods": written})
    _check_exact(data_sets, methods, trace)
    stages.expected = len(data_sets) * stages_per_case(asked, recipes)
    print(cost(asked, recipes, stages.expected, len(data_sets)), flush=True)
    found = [
        _case(stages, name, {**asked, "data": part}, recipes) for name, part in data_sets.items()
    ]
    if stages.only is not None:
        stages.tell()
        return root
    stages.close()
    config = {**asked, "methods": {name: _in_words(m) for name, m in methods.items()}}
    write_report(root, title=title or root.name, config=config, cases=found, stages=stages.done)
    print(summary([c for case in found for c in (*check_claims(case.rows), *trends(case))]))
    print(root / "report.html")
    return root


def _case(stages: Stages, case: str, asked: dict, recipes: dict[str, dict]) -> Case:
    """Everything that the study does on one data set."""
    data, flows, seed = asked["data"], asked["flows"], asked["seed"]
    sources = asked["sources"]
    found = Case(case, build("lightning_cfg.data", data))

    def stage(name: str, verb: Callable, settings: dict) -> Path:
        return stages.run(f"{case} {name}".strip(), verb, settings)

    trained = {
        name: stage(f"fit {name}", fit, {**section, "data": data})
        for name, section in asked["fits"].items()
    }

    for name, section in asked["discriminators"].items():
        models = {"model": str(trained[section["of"]])}
        settings = {"models": models, "guidance": {"name": "unguided"}}
        settings |= {"n": section["n"], "data": data, "seed": 2 * FRESH * seed, "trajectories": 0}
        made = stage(f"generate for {name}", generate, {**asked["generation"], **settings})
        on = {"data": {"name": "RealOrGenerated", "real": data, "path": str(made)}}
        trained[name] = stage(f"fit {name}", fit, {**section["fit"], **on})

    def named(section: dict) -> dict:
        """Names of fits in a section become their run directories."""
        return {
            key: named(value)
            if isinstance(value, dict)
            else str(trained[value])
            if key != "name" and isinstance(value, str) and value in trained
            else value
            for key, value in section.items()
        }

    spent: dict[tuple, dict] = {}
    for name, section in asked["methods"].items():
        models = named(section["models"])

        def generated(scale: float, n: int, first: int, what: str, **others: int) -> Path:
            guidance = with_scale(section["guidance"], scale)  # noqa: B023
            settings = {"models": models, "guidance": guidance, "n": n, "data": data}  # noqa: B023
            settings |= {**others, "seed": first + 2 * FRESH * seed}
            return stage(
                f"generate {name} {scale:g} {what}",  # noqa: B023
                generate,
                {**section["generation"], **settings},  # noqa: B023
            )

        def flow_for(what: str, own: list[float], recipe: dict) -> Path:
            files = [str(source[scale]) for scale in own]  # noqa: B023
            made = {**named(recipe["pairs"]), "sources": files, "n": sources, "data": data}
            paired = stage(f"pair {name} {what}", pair, made)  # noqa: B023
            on = {**recipe["flow"], "data": {"name": "Pairs", "path": str(paired)}}
            return stage(f"fit flow {name} {what}", fit, on)  # noqa: B023

        shared = sources_of(section, flows, asked["scales"])
        dedicated = [scale for scale in flows.get("dedicated", []) if scale in section["scales"]]
        source = {}
        for scale in sorted(set(shared) | set(dedicated)):
            n = sources if scale in dedicated else -(-sources // len(shared))
            source[scale] = generated(scale, n, 0, "sources", trajectories=0)
        trained_flows = {}
        for kind, recipe in recipes.items():
            for scale in dedicated if kind == "dedicated" else [None] if shared else []:
                what, own = (kind, shared) if scale is None else (f"{scale:g}", [scale])
                trained_flows[kind, scale] = flow_for(what, own, recipe)

        for scale in section["scales"]:
            before = generated(scale, asked["samples"], FRESH, "fresh")
            scored = {("before", ""): before}
            for (kind, of), trained_flow in trained_flows.items():
                if scale == of or (of is None and scale in recipes[kind]["scales"]):
                    how = {"flow": str(trained_flow), "samples": str(before)}
                    scored["after", kind] = stage(
                        f"refine {name} {scale:g} {kind}",
                        refine,
                        {**recipes[kind]["refinement"], **how},
                    )
            spent |= {} if stages.only is not None else _spent(name, scale, scored)
            labels = {f"{when} {kind}".strip(): str(p) for (when, kind), p in scored.items()}
            table = stage(
                f"evaluate {name} {scale:g}",
                evaluate,
                {**named(asked["evaluation"]), "samples": labels, "data": data},
            )
            for when, kind in scored if stages.only is None else ():
                key = Cell(name, scale, when, kind)
                found.sets[key] = scored[when, kind] / SAMPLES
                found.rows.extend(_rows(table, f"{when} {kind}".strip(), key, spent[key]))
            if asked["trace"] is not None:
                against = named(asked["trace"]["classifiers"])
                if "classifier" in models:
                    against = {"own": path_and_weights(models["classifier"])[0], **against}
                settings = {"classifiers": against, "samples": {"before": str(before)}}
                seen = stage(
                    f"trace {name} {scale:g}",
                    trace_trajectories,
                    {**asked["trace"], **settings, "data": data},
                )
                if stages.only is None:
                    found.traced[name, scale] = Traced.read(before / TRAJECTORIES, seen)
    fresh = max(1, asked["samples"] // max(1, found.data_set.num_classes))
    floor = stage(
        "evaluate real",
        evaluate,
        {**named(asked["evaluation"]), "samples": {}, "data": data, "fresh": fresh},
    )
    if stages.only is None:
        found.rows.extend(_rows(floor, "real", ("real", None, "real", ""), NOTHING))
    return found


def _recipes(variants: dict, flows: dict, own: dict) -> dict[str, dict]:
    """{kind of flow: its pairs, flow and refinement}: the study's own, then its variants'."""
    recipes = {kind: own for kind in ("all", "dedicated") if flows.get(kind)}
    if variants and "all" not in recipes:
        raise UserError("variants are flows for all scales: they need flows.all")
    kinds = {"pairs": Pairing, "flow": Flow, "refinement": Refining}
    for name, section in variants.items():
        if not name.replace("_", "").isalnum() or name in ("all", "dedicated", "before"):
            raise UserError(
                f"variants.{name}: letters, digits and _ only, and not all, dedicated or before"
            )
        recipes[name] = {
            key: changed(kind, own[key], section[key], f"variants.{name}.{key}")
            for key, kind in kinds.items()
        }
        recipes[name]["scales"] = own["scales"] if section["scales"] is None else section["scales"]
        if beyond := set(recipes[name]["scales"]) - set(own["scales"]):
            raise UserError(f"variants.{name} has scale {min(beyond):g}, which scales has not")
    return recipes


def _check_devices(path: str, section: dict | None) -> None:
    """UserError for a training on several: Lightning would start the study once for each."""
    devices = 1 if section is None else section["trainer"].get("devices", 1)
    if devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError(
            f"{path}.trainer.devices={devices}: a study trains on one device; train on several by "
            "`fit`, and name the run in `models` of its methods"
        )


def _check(methods: dict, fits: list[str], flows: dict) -> None:
    for name, section in methods.items():
        check_roles(section["guidance"], section["models"])
        for role, network in section["models"].items():
            model, _ = path_and_weights(network)
            if model not in fits and model != "exact" and not Path(model).exists():
                raise UserError(
                    f"methods.{name}.models.{role}={model} is neither one of fits "
                    f"({', '.join(fits)}), nor exact, nor a path that exists"
                )
        if with_scale(section["guidance"], 1.0) is None:
            method = named_guidance(section["guidance"])
            raise UserError(f"methods.{name}: guidance {method} has no scale")
        try:
            check_together(section["guidance"], section["generation"]["sampler"])
        except UserError as error:
            raise UserError(f"methods.{name}: {error}") from None
    for kind in flows:
        if kind not in ("all", "dedicated"):
            raise UserError(f"flows.{kind} is neither flows.all nor flows.dedicated")
    for scale in flows.get("dedicated", []):
        if not any(scale in section["scales"] for section in methods.values()):
            raise UserError(f"flows.dedicated has scale {scale:g}, which scales has not")


def _check_published(section: dict, methods: dict, recipes: dict) -> None:
    """UserError unless a published number has a place in the report."""
    if section["method"] not in (None, *methods) or (
        section["method"] is None and len(methods) > 1
    ):
        raise UserError(
            f"published: method={section['method']} must be one of methods ({', '.join(methods)})"
        )
    for name, row in section["rows"].items():
        if name not in ("before", *recipes):
            raise UserError(
                f"published: rows.{name} is neither before nor a flow ({', '.join(recipes)})"
            )
        for scale in row:
            try:
                float(scale)
            except ValueError:
                raise UserError(f"published: rows.{name}.{scale} is no guidance scale") from None


def _check_exact(data_sets: dict, methods: dict, trace: dict | None) -> None:
    named = [
        (f"methods.{name}.models.{role}", path_and_weights(network)[0])
        for name, section in methods.items()
        for role, network in section["models"].items()
    ]
    if trace is not None:
        named += [(f"trace.classifiers.{k}", path) for k, path in trace["classifiers"].items()]
    for section in data_sets.values():
        for role, path in named:
            if path == "exact" and build("lightning_cfg.data", section).truth is None:
                raise UserError(f"{role}: exact needs data with a known density, such as Fractal")


def _check_trace(trace: dict, kept: int, methods: dict, fits: dict) -> None:
    if not kept:
        raise UserError("trace needs generation.trajectories, the number of them to keep")
    if "own" in trace["classifiers"]:
        raise UserError("trace.classifiers.own is the name of a method's own: choose another")
    for name, path in trace["classifiers"].items():
        if path not in fits and path != "exact" and not Path(path).exists():
            raise UserError(
                f"trace.classifiers.{name}={path} is neither one of fits ({', '.join(fits)}), "
                "nor exact, nor a path that exists"
            )
    for name, section in methods.items():
        if not trace["classifiers"] and "classifier" not in section["models"]:
            raise UserError(f"trace.classifiers is empty, and methods.{name} has none of its own")


def _in_words(method: dict) -> dict:
    """A method for the report: its guidance with what that changes, its networks as texts."""
    guidance = {**method["guidance"], "name": named_guidance(method["guidance"])}
    models = {role: told(network) for role, network in method["models"].items()}
    return {**method, "guidance": guidance, "models": models}


def _spent(name: str, scale: float, scored: dict[tuple, Path]) -> dict[tuple, dict]:
    """What a sample has cost from the noise on: the columns nfe, evaluations and seconds."""
    out = {}
    for stage, directory in scored.items():
        runs = [scored["before", ""]] + ([directory] if stage[0] == "after" else [])
        manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
        counts = [(role, n) for m in manifests for role, n in m["evaluations"].items()]
        seconds = [m.get("seconds_per_sample") for m in manifests]  # older runs do not say
        out[name, scale, *stage] = {
            "nfe": sum(n for _, n in counts),
            "evaluations": ", ".join(f"{role} {n:.4g}" for role, n in counts),
            "seconds": None if None in seconds else sum(seconds),
        }
    return out


def _rows(table: Path, label: str, key: tuple, spent: dict) -> list[dict]:
    """The rows of one sample set, with the study's columns in front."""
    name, scale, stage, kind = key
    out = []
    for row in json.loads((table / "metrics/metrics.json").read_text()):
        if row["samples"] == label:
            front = {"method": name, "scale": scale, "class": row["class"], "stage": stage}
            metrics = {k: v for k, v in row.items() if k not in ("samples", "class", "n")}
            out.append({**front, "flow": kind, **spent, "n": row["n"], **metrics})
    return out
