"""`study`: the whole way from one file, every verb in turn, and a report."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning_cfg.config import Between, Data, Real, Scales, Seed, changed, completed
from lightning_cfg.data.build import build_data
from lightning_cfg.errors import UserError
from lightning_cfg.reports.case import SETTING, Case, Traced, joined
from lightning_cfg.reports.claims import check_claims, left_out, summary
from lightning_cfg.reports.rows import Cell
from lightning_cfg.reports.study import write_report
from lightning_cfg.reports.trajectories import trends
from lightning_cfg.reports.tuned import AS_WRITTEN
from lightning_cfg.runs.manifests import MANIFEST, as_written, read_manifest, read_table
from lightning_cfg.runs.names import METRICS, RIGHT, SAMPLES, TRAJECTORIES
from lightning_cfg.runs.ranks import alone
from lightning_cfg.sampling.guided import named as named_guidance
from lightning_cfg.sampling.network import told
from lightning_cfg.studies import checks
from lightning_cfg.studies.absent import absent
from lightning_cfg.studies.built import drawn_by, graphs_of
from lightning_cfg.studies.chosen import choice_of
from lightning_cfg.studies.cost import cost
from lightning_cfg.studies.flops import forecast
from lightning_cfg.studies.graph import Graph, Scored, Stage
from lightning_cfg.studies.schema import (
    FRESH,
    Discriminator,
    Evaluation,
    Fresh,
    Generation,
    Method,
    Pairing,
    Published,
    Refining,
    Tracing,
    Training,
    Tuning,
    Variant,
)
from lightning_cfg.studies.stages import Stages, as_plan
from lightning_cfg.studies.work import in_all, work
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.trace import trace as trace_trajectories
from lightning_cfg.verbs.tune import tune

VERBS = {"fit": fit, "generate": generate, "pair": pair, "refine": refine}
VERBS |= {"evaluate": evaluate, "trace": trace_trajectories, "tune": tune}
NOTHING = {"nfe": None, "evaluations": None, "seconds": None}  # what a real sample has cost


@completed
def study(
    *,
    fits: dict[str, Training],
    methods: dict[str, Method],
    scales: Scales,
    generation: Generation,
    samples: Fresh,
    run_dir: str,
    data: Data | None = None,
    cases: dict[str, Data] = {},
    fit_data: dict[str, dict] = {},
    once: list[str] = [],
    discriminators: dict[str, Discriminator] = {},
    flows: dict[str, list[Annotated[float, Real]]] = {},
    flow: Training | None = None,
    sources: Annotated[int, Between(0, FRESH)] = 0,
    pairs: Pairing = {},
    refinement: Refining = {},
    variants: dict[str, Variant] = {},
    published: list[Published] = [],
    evaluation: Evaluation = {},
    trace: Tracing | None = None,
    tuning: Tuning | None = None,
    title: str = "",
    names: dict[str, str] = {},
    stage: str | None = None,
    plan: bool | Literal["json"] = False,
    seed: Seed | None = None,
    seeds: list[Seed] = [],
    trust: list[str] = [],
    force: bool = False,
) -> Path:
    """Run every stage that is not done yet, then write report.md, report.html and table.csv.

    Before it starts it says what that will take: trainings, samples, evaluations, disk.

    fits            what is trained on the data, by name; a model of `methods` names one, a path
                    or exact
    fit_data        {fit: keys of the data set that are different for it}, such as half: first for
                    what judges and half: second for a classifier in whose features samples are
                    paired
    once            fits that the first seed trains for all, as a classifier that guides them all
    discriminators  what learns to tell a fit's samples from the data, by name, for `methods`
    methods         guidances by name, each with its networks
    scales          guidance scales at which fresh samples are generated, refined and evaluated
    samples         fresh samples per method and scale to evaluate
    generation      how samples are made: keys of `generate`
    cases           instead of `data`: several data sets by name, with everything done on each; what
                    is trained on the same data is trained once
    flows           all: scales that share one flow's sources equally; dedicated: scales with a
                    flow each; left out: nothing is refined
    sources         generated samples that train each flow
    pairs           how sources are paired: keys of `pair`; the study's own recipe
    flow            how each flow is trained
    refinement      how samples follow the flow: keys of `refine`
    variants        changes of pairs, flow and refinement by name: each is a flow for all scales
                    of flows.all too, and refines and is scored beside the study's own recipe
    evaluation      what is measured: keys of `evaluate`
    published       what a paper has in the place of our rows, shown beside them
    trace           what the trajectories of the fresh samples are measured against, as many as
                    generation.trajectories; a method's own classifier is added, named own
    tuning          how the parameters of each method are chosen from its `ranges`, by networks,
                    samples and a seed that are never scored; left out, they are as written
    names           what figures and the page call methods and variants, by key; left out, the usual
                    names of methods, such as CFG for classifier_free
    stage           run this one only, which needs those before it to be done, and write no
                    report: so that several machines share a study through its directory
    plan            print every stage and how it stands, and run none; json: as a list for
                    programs, {name, verb, needs, state: done, damaged, ready or waits}
    seed            of all that is drawn; left out, and without seeds, 0
    seeds           in the place of seed, several: everything is done by each and shown as mean
                    and 95 % interval over them, and what is compared is paired by seed. Stages of
                    one seed are those of a study of that seed, so that seeds can be added; a fit
                    that `evaluation` or `trace` alone names is the first seed's in all. A data
                    set that draws by a seed of its own has its real points anew for each: its
                    seed is data.seed + the study's
    trust           modules of one's own that a checkpoint may name; see docs/security.md
    force           does every stage again
    """
    alone("study")
    written = methods
    methods = _whole(methods, scales, generation)
    asked = {
        "title": title, "data": data, "cases": cases, "fits": fits, "fit_data": fit_data,
        "names": names, "once": once, "methods": methods, "discriminators": discriminators,
        "scales": scales, "flows": flows, "flow": flow, "generation": generation,
        "sources": sources, "samples": samples, "pairs": pairs, "refinement": refinement,
        "evaluation": evaluation, "trace": trace, "variants": variants, "published": published,
        "tuning": tuning, "seed": seed,
        "seeds": seeds, "trust": trust,
    }  # fmt: skip
    recipes = _check(asked)
    asked["seed"] = None if seeds else seed or 0
    root = Path(run_dir)
    stages = Stages(root, VERBS, only="" if plan else stage, force=force)
    data_sets = _data_sets(asked)
    checks.check_exact(list(data_sets.values()), methods, trace)
    graphs = _graphs(asked, recipes, data_sets)
    every = {name: stage for graph in graphs for name, stage in graph.stages.items()}
    shape = next(iter(data_sets.values())).shape
    if not (not_here := absent(asked, [*fits, *discriminators])):
        stages.check(every, stage)
    if plan != "json":
        print(cost(every, generation["sampler"], shape), *forecast(every, shape), sep="\n")
    if not_here:
        return _without(not_here, root, plan)
    if plan:
        stages.run(every)
        _print_plan(every, stages, None if plan == "json" else next(iter(data_sets.values())))
        return root
    with stages.claimed({**asked, "methods": written}):
        stages.run(every)
        if stage is not None:
            return root
        stages.close({**asked, "methods": written})
        found = [
            _found_by_all(graphs, name, part, stages.places) for name, part in data_sets.items()
        ]
        config = {**asked, "methods": {name: _in_words(m) for name, m in methods.items()}}
        write_report(root, title=title or root.name, config=config, cases=found, stages=stages.done)
    claims = [c for case in found for c in (*check_claims(case.rows), *trends(case))]
    print(summary(claims, [c for case in found for c in left_out(case.rows)]))
    print(root / "report.html")
    return root


def _whole(methods: dict, scales: list[float], generation: dict) -> dict[str, dict]:
    """The methods with all that they leave out to the study."""
    return {
        name: {
            **section,
            "scales": scales if section["scales"] is None else section["scales"],
            "generation": changed(
                Generation, generation, section["generation"], f"methods.{name}.generation"
            ),
        }
        for name, section in methods.items()
    }


def _without(not_here: dict[str, str], root: Path, plan: bool | str) -> Path:
    """A plan says what is to be brought first; UserError where the study is to start."""
    name, how = next(iter(not_here.items()))
    if not plan:
        more = f"; {len(not_here) - 1} more are listed by plan=true" if len(not_here) > 1 else ""
        raise UserError(f"{name} is not here: {how}{more}")
    if plan == "json":
        raise UserError(f"{name} is not here, so no stage can be told by what it depends on: {how}")
    print("not here, and to be brought before the stages can be told:")
    for name, how in not_here.items():
        print(f"  {name}: {how}")
    return root


def _print_plan(every: dict[str, Stage], stages: Stages, data_set: Any | None) -> None:
    """For people, with what the stages take on this data set, or as JSON where there is none."""
    if data_set is None:
        print(json.dumps(as_plan(every.values(), stages.states), indent=1))
        return
    works = work(every, data_set)
    for name, state in stages.states.items():
        print(f"{name}: {state}" + (f" ({works[name]})" if name in works else ""))
    if works:
        print(in_all(works))
    if stages.left:
        print(f"left: {stages.left}, by what the stages that are done have taken")


def _data_sets(asked: dict) -> dict[str, Any]:
    """By case, those of the first seed."""
    first = (asked["seeds"] or [asked["seed"]])[0]
    return {name: build_data(drawn_by(first, part)) for name, part in _cases(asked).items()}


def _cases(asked: dict) -> dict[str, dict]:
    """The data sets of a study by name, "" for a single one."""
    return asked["cases"] or {"": asked["data"]}


def _check(asked: dict) -> dict[str, dict]:
    """UserError for sections that do not fit each other; the recipes of the flows, by kind."""
    fits, methods, flows = asked["fits"], asked["methods"], asked["flows"]
    checks.check_names(asked)
    for path, section in [(f"fits.{name}", part) for name, part in fits.items()]:
        checks.check_devices(path, section)
    checks.check_devices("flow", asked["flow"])
    checks.check_fits(fits, asked["discriminators"], asked["fit_data"], asked["once"])
    known = [*fits, *asked["discriminators"]]
    checks.check_methods(methods, known, flows)
    if (asked["data"] is None) == (not asked["cases"]):
        raise UserError("a study needs either data, one data set, or cases, several by name")
    samples, sources = asked["samples"], asked["sources"]
    checks.check_seeds(asked["seed"], asked["seeds"])
    if flows and (asked["flow"] is None or not sources):
        raise UserError(f"flows needs flow, and {sources=} from 1 to {FRESH}")
    kept = asked["generation"]["trajectories"]
    if kept > samples:
        raise UserError(f"generation.trajectories={kept} must be at most {samples=}")
    if asked["tuning"] is not None:
        scored = asked["seeds"] or [asked["seed"] or 0]
        checks.check_tuning(asked["tuning"], methods, known, scored)
    if asked["trace"] is not None:
        checks.check_trace(asked["trace"], kept, methods, list(fits))
    tried = sorted({scale for section in methods.values() for scale in section["scales"]})
    own = {key: asked[key] for key in ("pairs", "flow", "refinement")}
    recipes = checks.recipes_of(asked["variants"], flows, {**own, "scales": tried})
    for section in asked["published"]:
        checks.check_published(section, methods, recipes)
    return recipes


def _graphs(asked: dict, recipes: dict[str, dict], data_sets: dict[str, Any]) -> list[Graph]:
    """One for each case and seed."""
    out, known = [], {}
    for name, data in _cases(asked).items():
        classes, real = data_sets[name].num_classes, data_sets[name].has_points
        drawn = data_sets[name].drawn
        drawn = None if drawn is None else drawn.tolist()
        out += graphs_of(
            asked, recipes, case=name, data=data, classes=classes, real=real, drawn=drawn,
            known=known,
        )  # fmt: skip
    return out


def _found_by_all(graphs: list[Graph], case: str, data_set: Any, places: dict[str, Path]) -> Case:
    """What the report shows of one data set, by every seed."""
    own = [graph for graph in graphs if graph.case == case]
    found = joined([_found(graph, data_set, places) for graph in own if not graph.tuned])
    for method, tuned in ((m, t) for graph in own for m, t in graph.tuned.items()):
        choice = choice_of(places[tuned.stage])
        found.tuned[method] = {**choice, "told": str(tuned.settings[choice["setting"]])}
    if found.tuned:  # the last column of table.csv
        told = {method: choice["told"] or AS_WRITTEN for method, choice in found.tuned.items()}
        found.rows = [{**row, SETTING: told.get(row["method"], "")} for row in found.rows]
    return found


def _found(graph: Graph, data_set: object, places: dict[str, Path]) -> Case:
    """What the report shows of one data set and one seed, read from its stages."""
    found = Case(graph.case, data_set, seeds=[graph.seed])
    for scored in graph.scored:
        name, scale = scored.method, scored.scale
        spent = _spent(scored, places)
        for when, kind in scored.sets:
            key = Cell(name, scale, when, kind)
            found.sets[key] = places[scored.sets[when, kind]] / SAMPLES
            label = f"{when} {kind}".strip()
            measured = _effective(places[scored.sets[when, kind]])
            found.rows.extend(_rows(places[scored.table], label, key, spent[when, kind], measured))
            found.right |= _right(places[scored.table], label, key)
        if scored.traced is not None:
            paths = places[scored.sets["before", ""]] / TRAJECTORIES
            found.traced[name, scale] = Traced.read(paths, places[scored.traced])
    if graph.real:
        found.rows.extend(_rows(places[graph.real], "real", ("real", None, "real", ""), NOTHING))
    return found


def _spent(scored: Scored, places: dict[str, Path]) -> dict[tuple[str, str], dict]:
    """What a sample has cost from the noise on: the columns nfe, evaluations and seconds."""
    out = {}
    for key, stage in scored.sets.items():
        runs = list(dict.fromkeys([scored.sets["before", ""], stage]))
        needed = "evaluations", "seconds_per_sample"
        manifests = [read_manifest(places[run], *needed) for run in runs]
        counts = [(role, n) for m in manifests for role, n in m["evaluations"].items()]
        out[key] = {
            "nfe": sum(n for _, n in counts),
            "evaluations": ", ".join(f"{role} {n:.4g}" for role, n in counts),
            "seconds": sum(m["seconds_per_sample"] for m in manifests),
        }
    return out


def _in_words(method: dict) -> dict:
    """A method for the report: its guidance with what that changes, its networks as texts."""
    guidance = {**method["guidance"], "name": named_guidance(method["guidance"])}
    models = {role: told(network) for role, network in method["models"].items()}
    return {**method, "guidance": guidance, "models": models}


def _effective(run: Path) -> dict[str, float | None]:
    """The effective guidance scale, as a column of its own, where a run has measured it."""
    with as_written(run / MANIFEST):
        found = read_manifest(run).get("effective_scale")
        return {} if found is None else {"effective_scale": found["mean"]}


def _right(table: Path, label: str, key: Cell) -> dict[Cell, list[list[dict]]]:
    """Of each class how many samples of a set were read as it, where a classifier has read them."""
    if not (table / RIGHT).is_file():
        return {}
    return {key: [[row for row in read_table(table / RIGHT) if row["samples"] == label]]}


def _rows(table: Path, label: str, key: tuple, spent: dict, measured: dict = {}) -> list[dict]:
    """The rows of one sample set, with the study's columns in front."""
    name, scale, stage, kind = key
    out = []
    for row in read_table(table / METRICS):
        if row["samples"] == label:
            front = {"method": name, "scale": scale, "class": row["class"], "stage": stage}
            metrics = {k: v for k, v in row.items() if k not in ("samples", "class", "n")}
            out.append({**front, "flow": kind, **spent, "n": row["n"], **measured, **metrics})
    return out
