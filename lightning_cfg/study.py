"""`study`: the whole way from one file, every verb in turn, and a report."""

from lightning_cfg.config import Data, Verb, check_arguments, main

check_arguments(__name__)  # a missing file answers before torch is imported

import difflib  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

from lightning_cfg.config import build, dump  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.evaluate import evaluate  # noqa: E402
from lightning_cfg.files import sha256, write_text  # noqa: E402
from lightning_cfg.fit import fit  # noqa: E402
from lightning_cfg.generate import (  # noqa: E402
    SAMPLES,
    SHEET,
    TRAJECTORIES,
    check_roles,
    check_together,
    generate,
    with_scale,
)
from lightning_cfg.generate import named as named_guidance  # noqa: E402
from lightning_cfg.network import path_and_weights, told  # noqa: E402
from lightning_cfg.pair import pair  # noqa: E402
from lightning_cfg.pngs import IMAGES  # noqa: E402
from lightning_cfg.refine import refine  # noqa: E402
from lightning_cfg.report import (  # noqa: E402
    Case,
    Traced,
    check_claims,
    summary,
    trends,
    write_report,
)
from lightning_cfg.trace import trace as trace_trajectories  # noqa: E402

FRESH = 1_000_000  # samples that are evaluated have seeds from here on, sources below
# What may change without the stage being another one: a longer training goes on where it stopped.
FREE = {
    "run_dir", "device", "resume", "trainer", "checkpoint_every", "keep", "keep_by", "log_every",
    "logger", "grids", "evaluation", "cache", "compile", "channels_last", "matmul_precision",
    "images",
}  # fmt: skip

NOTHING = {"nfe": None, "evaluations": None, "seconds": None}  # what a real sample has cost

Training = Annotated[dict, Verb("lightning_cfg.fit", without=("data", "seed", "run_dir"))]
Flow = Annotated[dict, Verb("lightning_cfg.fit", without=("data", "seed", "run_dir"))]
Generation = Annotated[
    dict,
    Verb(
        "lightning_cfg.generate",
        without=("models", "guidance", "data", "n", "seed", "run_dir", "class_label"),
    ),
]
Pairing = Annotated[
    dict, Verb("lightning_cfg.pair", without=("sources", "data", "n", "seed", "run_dir"))
]
Refining = Annotated[
    dict, Verb("lightning_cfg.refine", without=("flow", "samples", "seed", "run_dir"))
]
Evaluation = Annotated[
    dict,
    Verb("lightning_cfg.evaluate", without=("samples", "data", "seed", "run_dir", "fresh")),
]
Tracing = Annotated[
    dict, Verb("lightning_cfg.trace", without=("samples", "data", "seed", "run_dir"))
]
Method = Annotated[dict, Verb("lightning_cfg.method")]


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
    flows: dict[str, list[float]] = {},  # noqa: B006
    flow: Flow | None = None,
    sources: int = 0,
    pairs: Pairing = {},  # noqa: B006
    refinement: Refining = {},  # noqa: B006
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
    scales   guidance scales at which fresh samples are generated, refined and evaluated
    samples  fresh samples per method and scale to evaluate
    cases    instead of `data`: several data sets by name, with everything done on each
    flows    all: scales that share one flow's sources equally; dedicated: scales with a flow each;
             left out: nothing is refined
    flow     how each flow is trained
    sources  generated samples that train each flow
    trace    what the trajectories of the fresh samples are measured against, as many as
             generation.trajectories; a method's own classifier is added, named own
    stage    run this one only, which needs those before it to be done, and write no report: so
             that several machines share a study through its directory
    plan     print every stage and how it stands, and run none
    """
    _check(methods, fits, flows, scales, generation["sampler"])
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
    asked = {
        "title": title, "data": data, "cases": cases, "fits": fits, "methods": methods,
        "scales": scales, "flows": flows, "flow": flow, "generation": generation,
        "sources": sources, "samples": samples, "pairs": pairs, "refinement": refinement,
        "evaluation": evaluation, "trace": trace, "seed": seed,
    }  # fmt: skip
    root = Path(run_dir)
    data_sets = cases or {"": data}
    stages = Stages(root, seed, only="" if plan else stage)
    stages.claim(asked)
    _check_exact(data_sets, methods, trace)
    stages.expected = len(data_sets) * _stages_per_case(fits, methods, scales, flows, trace)
    print(cost(asked, stages.expected, len(data_sets)), flush=True)
    found = [_case(stages, name, {**asked, "data": part}) for name, part in data_sets.items()]
    if stages.only is not None:
        stages.tell()
        return root
    stages.close()
    config = {**asked, "methods": {name: _in_words(m) for name, m in methods.items()}}
    write_report(root, title=title or root.name, config=config, cases=found, stages=stages.done)
    print(summary([c for case in found for c in (*check_claims(case.rows), *trends(case))]))
    print(root / "report.html")
    return root


def _case(stages: "Stages", case: str, asked: dict) -> Case:
    """Everything that the study does on one data set."""
    data, flows, seed = asked["data"], asked["flows"], asked["seed"]
    sources, scales = asked["sources"], asked["scales"]
    shared, dedicated = flows.get("all", []), flows.get("dedicated", [])
    found = Case(case, build("lightning_cfg.data", data))

    def stage(name: str, verb: Callable, settings: dict) -> Path:
        return stages.run(f"{case} {name}".strip(), verb, settings)

    trained = {
        name: stage(f"fit {name}", fit, {**section, "data": data})
        for name, section in asked["fits"].items()
    }

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
                {**asked["generation"], **settings},
            )

        def flow_for(what: str, own: list[float]) -> Path:
            files = [str(source[scale]) for scale in own]  # noqa: B023
            made = {**named(asked["pairs"]), "sources": files, "n": sources, "data": data}
            paired = stage(f"pair {name} {what}", pair, made)  # noqa: B023
            on = {**asked["flow"], "data": {"name": "Pairs", "path": str(paired)}}
            return stage(f"fit flow {name} {what}", fit, on)  # noqa: B023

        source = {}
        for scale in sorted(set(shared) | set(dedicated)):
            n = sources if scale in dedicated else -(-sources // len(shared))
            source[scale] = generated(scale, n, 0, "sources", trajectories=0)
        one_for_all = flow_for("all", shared) if shared else None
        own_flow = {scale: flow_for(f"{scale:g}", [scale]) for scale in dedicated}

        for scale in scales:
            before = generated(scale, asked["samples"], FRESH, "fresh")
            scored = {("before", ""): before}
            for kind, trained_flow in (("all", one_for_all), ("dedicated", own_flow.get(scale))):
                if trained_flow is not None:
                    scored["after", kind] = stage(
                        f"refine {name} {scale:g} {kind}",
                        refine,
                        {
                            **asked["refinement"],
                            "flow": str(trained_flow),
                            "samples": str(before),
                        },
                    )
            spent |= {} if stages.only is not None else _spent(name, scale, scored)
            labels = {f"{when} {kind}".strip(): str(p) for (when, kind), p in scored.items()}
            table = stage(
                f"evaluate {name} {scale:g}",
                evaluate,
                {**named(asked["evaluation"]), "samples": labels, "data": data},
            )
            for when, kind in scored if stages.only is None else ():
                key = (name, scale, when, kind)
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


def _stages_per_case(
    fits: dict, methods: dict, scales: list[float], flows: dict, trace: dict | None
) -> int:
    shared, dedicated = flows.get("all", []), flows.get("dedicated", [])
    per_scale = 2 + bool(shared) + (trace is not None)  # generate, evaluate, refine, trace
    per_method = len({*shared, *dedicated}) + 2 * bool(shared) + 3 * len(dedicated)
    return len(fits) + len(methods) * (per_method + per_scale * len(scales)) + 1


class Stages:
    """The stages of a study, each a run directory named by what it is and depends on.

    So a stage is found again as long as its settings and inputs are the same, and a changed
    setting makes a new directory for it and for what depends on it, and for nothing else.

    only  the one stage to run; None: all of them, "": none, they are only looked at
    """

    def __init__(self, root: Path, seed: int, only: str | None = None):
        self.root, self.seed, self.only = root, seed, only
        self.states: dict[str, str] = {}  # of the stages that were looked at
        self.done: list[dict] = []
        self.expected = 0
        self._hashes: dict[str, str] = {}  # of the files of the data, which a study reads often

    def claim(self, asked: dict) -> None:
        """Write the study's config.yaml; UserError if the directory is something else's."""
        if self.root.exists() and (
            not self.root.is_dir()
            or (any(self.root.iterdir()) and not (self.root / "study.json").is_file())
        ):
            raise UserError(f"{self.root} exists and is no study: give another run_dir")
        if self.only is None or not (self.root / "study.json").is_file():
            write_text(self.root / "study.json", json.dumps({"stages": []}))
        write_text(self.root / "config.yaml", "# lightning_cfg.study\n" + dump(asked))

    def run(self, name: str, verb: Callable, settings: dict[str, Any]) -> Path:
        """Call the verb in its directory, which tells by itself whether it is done."""
        settings = {"seed": self.seed, **settings}
        waits = sorted(set(_waited_for(settings)))
        if waits:
            if name == self.only:
                raise UserError(f"stage={name} needs these to be done before: {', '.join(waits)}")
            self.states[name] = f"waits for {', '.join(waits)}"
            return Path(WAITING + name)
        kept = {k: v for k, v in settings.items() if k not in FREE}
        if kept.get("data") is not None:
            kept["data"] = self._data(kept["data"])
        # trajectories are there for `trace` only: more of them leave the other stages as they are,
        # and pictures are there to be looked at
        without = (*SHEET, *IMAGES.values())
        without += () if verb is trace_trajectories else (TRAJECTORIES,)
        content = self._content(kept, without)
        text = json.dumps([verb.__name__, content], sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        directory = self.root / "stages" / f"{name.replace(' ', '-')}-{digest}"
        manifest = directory / "manifest.json"
        if self.only not in (None, name):
            done = manifest.is_file()
            if done and verb is fit:  # which may be asked for more steps than it has
                steps = json.loads(manifest.read_text())["step"]
                done = steps == settings["trainer"].get("max_steps")
            self.states[name] = "done" if done else "ready"
            return directory if done else Path(WAITING + name)
        print(f"[{len(self.done) + 1}/{self.expected}] {name}", flush=True)
        before = manifest.stat().st_mtime_ns if manifest.is_file() else 0
        verb(**settings, run_dir=str(directory))
        reused = before != 0 and manifest.stat().st_mtime_ns == before
        self.done.append(
            {
                "name": name,
                "verb": verb.__name__,
                "seconds": json.loads(manifest.read_text())["seconds"],
                "directory": str(directory.relative_to(self.root)),
                "reused": reused,
                "hash": digest,
            }
        )
        return directory

    def tell(self) -> None:
        """Print how the stages stand; UserError where the one that was asked for is none."""
        if self.only and not self.done:
            near = difflib.get_close_matches(self.only, self.states, 1)
            hint = f"did you mean '{near[0]}'?" if near else "plan=true prints them"
            raise UserError(f"stage={self.only} is no stage of this study; {hint}")
        if not self.only:
            for name, state in self.states.items():
                print(f"{name}: {state}")

    def close(self) -> None:
        """Record which stage directories the report is made of."""
        write_text(self.root / "study.json", json.dumps({"stages": self.done}, indent=1))

    def _data(self, section: dict) -> dict:
        """A data section with the hashes of its files, wherever they lie."""
        kept = {k: v for k, v in section.items() if k not in ("root", "memory")}
        for key in ("path", "held_out"):
            place = kept.get(key)
            if isinstance(place, str) and Path(place).exists() and not _is_stage(place):
                if place not in self._hashes:
                    self._hashes[place] = sha256(place)
                kept[key] = self._hashes[place]
        return kept

    def _content(self, value: Any, without: tuple[str, ...]) -> Any:
        """Paths of stages become the files that they hold, with their content hashes."""
        if isinstance(value, dict):
            return {k: self._content(v, without) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._content(v, without) for v in value]
        if isinstance(value, str) and _is_stage(value):
            files = json.loads((Path(value) / "manifest.json").read_text())["outputs"]
            return {name: digest for name, digest in files.items() if name not in without}
        return value


WAITING = "waiting for stage "  # in place of the directory of a stage that is not done


def _waited_for(value: Any) -> Iterator[str]:
    """The stages whose results a setting needs and that are not there yet."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _waited_for(item)
    if isinstance(value, str) and value.startswith(WAITING):
        yield value.removeprefix(WAITING)


def cost(asked: dict, stages: int, cases: int) -> str:
    """What a study will take, in a line: what is done already is not taken off."""
    flows, scales, methods = asked["flows"], asked["scales"], asked["methods"]
    shared, dedicated = flows.get("all", []), flows.get("dedicated", [])
    trainings = [*asked["fits"].values()]
    trainings += [asked["flow"]] * len(methods) * (bool(shared) + len(dedicated))
    images = sum(t["batch_size"] * t["trainer"].get("max_steps", 0) for t in trainings) * cases
    sources = len(methods) * asked["sources"] * (bool(shared) + len(dedicated)) * cases
    fresh = len(methods) * asked["samples"] * len(scales) * cases
    refined = len(methods) * asked["samples"] * cases
    refined *= bool(shared) * len(scales) + len(dedicated)
    sampler, each = asked["generation"]["sampler"], ""
    if "steps" in sampler:
        steps = 2 * sampler["steps"] - 1 if sampler["name"] == "heun" else sampler["steps"]
        each = f" of {steps} evaluations of each network"
    data = asked["data"] or next(iter(asked["cases"].values()))
    size = math.prod(build("lightning_cfg.data", data).shape)
    disk = 4 * size * (sources * (2 + bool(flows)) + fresh + refined) / 2**30
    return (
        f"{stages} stages: {len(trainings) * cases} trainings on {images / 1e6:.3g} M images, "
        f"{sources + fresh:,} samples{each}, {refined:,} refined, about {disk:.2g} GiB of samples"
    )


def _is_stage(path: str) -> bool:
    return (Path(path) / "manifest.json").is_file()


def _check(methods: dict, fits: dict, flows: dict, scales: list[float], sampler: dict) -> None:
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
            check_together(section["guidance"], sampler)
        except UserError as error:
            raise UserError(f"methods.{name}: {error}") from None
    for kind in flows:
        if kind not in ("all", "dedicated"):
            raise UserError(f"flows.{kind} is neither flows.all nor flows.dedicated")
    for scale in flows.get("dedicated", []):
        if scale not in scales:
            raise UserError(f"flows.dedicated has scale {scale:g}, which scales has not")


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


if __name__ == "__main__":
    main(study)
