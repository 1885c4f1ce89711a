"""The stages of a study, from its file."""

from typing import Any

from lightning_cfg.config import Data, Model, changed, replaced
from lightning_cfg.runs.inputs import CHECKPOINT
from lightning_cfg.sampling.guided import with_scale
from lightning_cfg.sampling.network import Networks, path_and_weights
from lightning_cfg.studies.chosen import Chosen
from lightning_cfg.studies.graph import Graph, Output, Scored, Tuned
from lightning_cfg.studies.ranges import Setting, tried
from lightning_cfg.studies.schema import FRESH, Evaluation, Pairing, Tracing

UNWATCHED = {"trajectories": 0, "effective_scale": False}  # how samples are made that train others


def graphs_of(
    asked: dict,
    recipes: dict[str, dict],
    *,
    case: str,
    data: dict,
    classes: int,
    real: bool = True,
    drawn: list[int] | None = None,
    known: dict[str, str] | None = None,
) -> list[Graph]:
    """A graph for each of the study's seeds; the keys as of `graph_of`.

    A fit that makes nothing and only measures is the first seed's in all of them, as those of
    `once` are.
    """
    known = {} if known is None else known
    graphs: list[Graph] = []
    tuned: dict[str, Tuned] = {}
    if asked["tuning"] is not None:
        seed = asked["tuning"]["seed"]
        one, own = {**asked, "seed": seed}, drawn_by(seed, data)
        graphs.append(tuning_of(one, recipes, Graph(case, seed, "tuning"), own))
        tuned = graphs[0].tuned
    for seed in asked["seeds"] or [asked["seed"]]:
        one = {**asked, "seed": seed}
        first = next((graph for graph in graphs if graph.scored), None)
        graphs.append(
            graph_of(
                one,
                recipes,
                case=case,
                data=drawn_by(seed, data),
                classes=classes,
                real=real,
                drawn=drawn,
                known=known,
                first=first,
                tuned=tuned,
            )
        )
    return graphs


def drawn_by(seed: int, data: dict) -> dict:
    """A data section by a study's seed: real points that are drawn by a seed are drawn anew."""
    own = data.get("seed")
    return {**data, "seed": own + seed} if isinstance(own, int) else data


def graph_of(
    asked: dict,
    recipes: dict[str, dict],
    *,
    case: str,
    data: dict,
    classes: int,
    real: bool = True,
    drawn: list[int] | None = None,
    known: dict[str, str] | None = None,
    first: Graph | None = None,
    tuned: dict[str, Tuned] | None = None,
) -> Graph:
    """The stages of a study on one data set, of so many classes, by one seed.

    asked    the study's keys, its methods with their own scales and generation
    recipes  {kind of flow: its pairs, flow, refinement and scales}
    case     the data set's name, which leads those of its stages
    real     whether real points are scored beside the samples
    drawn    the classes that samples are drawn of, where not all
    known    the stages of other graphs, by verb and settings
    first    of the study's first seed, where this is another one
    tuned    by which stage each method's setting is chosen
    """
    seeded = f"seed {asked['seed']}" if len(asked["seeds"]) > 1 else ""
    judges = {} if first is None else first.judges
    graph = Graph(case, asked["seed"], seeded, judges, known={} if known is None else known)
    built = _Builder(asked, recipes, graph, data, drawn, tuned)
    for name, section in asked["methods"].items():
        built.method(name, section)
    if first is None:
        alike = [*judging(asked, recipes), *asked["once"]]
        graph.judges = {name: built.fits[name] for name in alike}
    if real:
        fresh = max(1, asked["samples"] // max(1, classes if drawn is None else len(drawn)))
        built.graph.real = built.evaluate("real", {}, fresh=fresh).stage
    return built.graph


def tuning_of(asked: dict, recipes: dict[str, dict], graph: Graph, data: dict) -> Graph:
    """The stages in which a study's methods are tuned, and no others: the reference's first."""
    built, methods = _Builder(asked, recipes, graph, data), asked["methods"]
    first = asked["tuning"]["reference"] or next(iter(methods))
    for name in (first, *(name for name in methods if name != first)):
        built.tune(name, methods[name], None if name == first else graph.tuned[first])
    needed = [tuned.stage for tuned in graph.tuned.values()]
    for name in needed:
        needed += [other for other in graph.stages[name].needs if other not in needed]
    graph.stages = {name: stage for name, stage in graph.stages.items() if name in needed}
    return graph


class _Builder:
    """Goes through a study's sections in the order of the work."""

    def __init__(
        self,
        asked: dict,
        recipes: dict[str, dict],
        graph: Graph,
        data: dict,
        drawn: list[int] | None = None,
        tuned: dict[str, Tuned] | None = None,
    ):
        self.asked, self.recipes, self.graph, self.data = asked, recipes, graph, data
        self.labels = {} if drawn is None else {"class_label": drawn}
        self.tuned = tuned or {}
        self.first_seed = 2 * FRESH * asked["seed"]
        self.fits: dict[str, Output] = dict(graph.judges)
        for name, section in asked["fits"].items():
            if name not in self.fits:
                own = changed(Data, data, asked["fit_data"].get(name, {}), f"fit_data.{name}")
                self.fits[name] = self.fit(name, section, own)
        for name, section in asked["discriminators"].items():
            self.discriminator(name, section)

    def add(self, name: str, verb: str, settings: dict) -> Output:
        return self.graph.add(name, verb, {"seed": self.asked["seed"], **settings})

    def fit(self, name: str, section: dict, data: dict) -> Output:
        trainer = section["trainer"]
        if trainer.get("devices") in (None, "auto"):
            trainer = {**trainer, "devices": 1}  # not all that there are
        section = {**section, "model": self.named(Model, section["model"])}
        return self.add(f"fit {name}", "fit", {**section, "trainer": trainer, "data": data})

    def named(self, annotation: Any, section: Any) -> Any:
        """A section in which names of fits stand for their checkpoints."""

        def visit(mark: Any, value: Any, path: str) -> Any:
            return self.fits.get(value, value) if mark == CHECKPOINT else value

        return replaced(annotation, section, visit)

    def discriminator(self, name: str, section: dict) -> None:
        settings = {"models": {"model": self.fits[section["of"]]}, "guidance": {"name": "unguided"}}
        settings |= {"n": section["n"], "data": self.data, **UNWATCHED}
        settings |= {"seed": self.first_seed, **self.labels}
        made = self.add(
            f"generate for {name}", "generate", {**self.asked["generation"], **settings}
        )
        data = {"name": "RealOrGenerated", "real": self.data, "path": made}
        self.fits[name] = self.fit(name, section["fit"], data)

    def tune(self, name: str, section: dict, reference: Tuned | None) -> None:
        """Settings of a method tried, by the limits of another one."""
        tuning, generation = self.asked["tuning"], section["generation"]
        settings = tried(name, section, tuning["settings"], tuning["seed"])
        keys = {
            "settings": [self.of(setting) for setting in settings],
            "scales": section["scales"],
            "generation": {**generation, **UNWATCHED},
            "evaluation": self.named(Evaluation, {**self.asked["evaluation"], "metrics": None}),
            "data": self.data,
            "n": tuning["samples"],
            "reference": None if reference is None else Output(reference.stage),
            "seed": self.first_seed,
        }
        keys |= {key: tuning[key] for key in ("evaluations", "at", "distance", "error")}
        self.graph.tuned[name] = Tuned(self.add(f"tune {name}", "tune", keys).stage, settings)

    def of(self, setting: Setting) -> dict:
        """The sections of a setting, with this seed's networks."""
        return {"models": self.named(Networks, setting.models), "guidance": setting.guidance}

    def method(self, name: str, section: dict) -> None:
        section = {**section, "models": self.named(Networks, section["models"])}
        flows = self.flows(name, section)
        for scale in section["scales"]:
            before = self.generate(name, section, scale, self.asked["samples"], "fresh")
            sets = {("before", ""): before}
            for (kind, of), flow in flows.items():
                recipe = self.recipes[kind]
                if scale == of or (of is None and scale in recipe["scales"]):
                    settings = {**recipe["refinement"], "flow": flow, "samples": before}
                    stage = f"refine {name} {scale:g} {kind}"
                    sets["after", kind] = self.add(stage, "refine", settings)
            labels = {f"{when} {kind}".strip(): made for (when, kind), made in sets.items()}
            table = self.evaluate(f"{name} {scale:g}", labels)
            found = Scored(
                name, scale, {key: made.stage for key, made in sets.items()}, table.stage
            )
            if self.asked["trace"] is not None:
                found.traced = self.trace(name, section, scale, before).stage
            self.graph.scored.append(found)

    def flows(
        self, name: str, section: dict
    ) -> dict[tuple[str, float | None], Output | list[dict]]:
        """{(kind, its scale; None where it is for all): a method's flow, or several in a row}."""
        shared = sources_of(section, self.asked)
        dedicated = [s for s in self.asked["flows"].get("dedicated", []) if s in section["scales"]]
        n, source = self.asked["sources"], {}
        for scale in sorted({*shared, *dedicated}):
            own = n if scale in dedicated else -(-n // len(shared))
            source[scale] = self.generate(name, section, scale, own, "sources")
        found: dict[tuple[str, float | None], Output | list[dict]] = {}
        for kind, recipe in self.recipes.items():
            if recipe.get("then") or recipe.get("after") or recipe.get("reflow"):
                continue
            for scale in dedicated if kind == "dedicated" else [None] if shared else []:
                scales = shared if scale is None else [scale]
                found[kind, scale] = self.flow(name, kind, scale, [source[s] for s in scales])
        for kind, recipe in self.recipes.items() if shared else ():
            if (teacher := recipe.get("reflow")) is not None:
                sources = [source[s] for s in shared]
                ends = {"name": "Reflow", "path": self.pairs(name, teacher, None, sources)}
                data = {**ends, "flow": found[teacher, None]}
                found[kind, None] = self.fit(f"flow {name} {kind}", recipe["flow"], data)
        for kind, recipe in self.recipes.items() if shared else ():
            parts = {part: found[part, None] for part in recipe.get("then", [])}
            if (first := recipe.get("after")) is not None:
                parts[first] = found[first, None]
                moved = [self.moved(name, s, source[s], first, parts[first]) for s in shared]
                parts[kind] = self.flow(name, kind, None, moved)
            if parts:
                found[kind, None] = [self.leg(flow, part, recipe) for part, flow in parts.items()]
        return found

    def flow(self, name: str, kind: str, scale: float | None, sources: list[Output]) -> Output:
        """A flow that is trained on these sources by a recipe."""
        data = {"name": "Pairs", "path": self.pairs(name, kind, scale, sources)}
        what = kind if scale is None else f"{scale:g}"
        return self.fit(f"flow {name} {what}", self.recipes[kind]["flow"], data)

    def pairs(self, name: str, kind: str, scale: float | None, sources: list[Output]) -> Output:
        """These sources, paired by a recipe."""
        settings = {"sources": sources, "n": self.asked["sources"], "data": self.data}
        settings = {**self.named(Pairing, self.recipes[kind]["pairs"]), **settings}
        what = kind if scale is None else f"{scale:g}"
        return self.add(f"pair {name} {what}", "pair", settings)

    def moved(self, name: str, scale: float, source: Output, kind: str, flow: Any) -> Output:
        """Sources that have followed another recipe's flow."""
        settings = {**self.recipes[kind]["refinement"], "flow": flow, "samples": source}
        return self.add(f"refine {name} {scale:g} {kind} sources", "refine", settings)

    def leg(self, flow: Any, kind: str, recipe: dict) -> dict:
        """One of several flows in a row: followed as by itself but for what the row changes."""
        own = {**self.recipes[kind]["refinement"], **recipe["change"]}
        keys = ("weights", "method", "steps", "strength", "scale")
        return {"path": flow, **{key: own[key] for key in keys if key in own}}

    def generate(self, name: str, section: dict, scale: float, n: int, what: str) -> Output:
        settings = {"models": section["models"], "n": n, "data": self.data}
        settings |= self.labels
        settings |= {"guidance": with_scale(section["guidance"], scale)}
        settings |= {"seed": self.first_seed + (FRESH if what == "fresh" else 0)}
        settings |= UNWATCHED if what == "sources" else {}
        settings = {**section["generation"], **settings}
        if (tuned := self.tuned.get(name)) is not None:
            every = [self.of(setting) for setting in tuned.settings]
            models, guided = ([one[key] for one in every] for key in ("models", "guidance"))
            guided = [with_scale(guidance, scale) for guidance in guided]
            settings["models"] = Chosen(tuned.stage, tuple(models))
            settings["guidance"] = Chosen(tuned.stage, tuple(guided))
            samplers = (settings["sampler"],) * len(every)
            settings["sampler"] = Chosen(tuned.stage, samplers, counts=True)
        return self.add(f"generate {name} {scale:g} {what}", "generate", settings)

    def evaluate(self, what: str, samples: dict[str, Output], **others: int) -> Output:
        section = self.named(Evaluation, self.asked["evaluation"])
        settings = {**section, "samples": samples, "data": self.data, **others}
        return self.add(f"evaluate {what}", "evaluate", settings)

    def trace(self, name: str, section: dict, scale: float, before: Output) -> Output:
        asked = self.named(Tracing, self.asked["trace"])
        against = asked["classifiers"]
        if "classifier" in section["models"]:
            own, _ = path_and_weights(section["models"]["classifier"])
            against = {"own": own, **against}
        settings = {"classifiers": against, "samples": {"before": before}, "data": self.data}
        return self.add(f"trace {name} {scale:g}", "trace", {**asked, **settings})


def judging(asked: dict, recipes: dict[str, dict]) -> list[str]:
    """The fits that make nothing and only measure: `evaluation` or `trace` alone names them."""
    measure = _named(Evaluation, asked["evaluation"]) | _named(Tracing, asked["trace"])
    make = {section["of"] for section in asked["discriminators"].values()}
    for section in asked["methods"].values():
        make |= _named(Networks, section["models"])
        weak = section["ranges"].get("models.weak", [])
        make |= {name for one in weak for name in _named(Networks, {"weak": one})}
    for recipe in recipes.values():
        make |= _named(Pairing, recipe["pairs"])
    return [name for name in asked["fits"] if name in measure - make]


def _named(annotation: Any, section: Any) -> set[str]:
    """What stands in a section where a checkpoint does."""
    found: set[str] = set()

    def visit(mark: Any, value: Any, path: str) -> Any:
        if mark == CHECKPOINT:
            found.add(value)
        return value

    replaced(annotation, section, visit)
    return found


def sources_of(section: dict, asked: dict) -> list[float]:
    """Scales of the sources of a method's flow for all scales: its own where it has its own."""
    shared = asked["flows"].get("all", [])
    return shared if not shared or section["scales"] == asked["scales"] else section["scales"]
