"""`study`: the whole way from one file, every verb in turn, and a report."""

from lightning_cfg.config import Data, Verb, check_arguments, main

check_arguments(__name__)  # a missing file answers before torch is imported

import hashlib  # noqa: E402
import json  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

from lightning_cfg.checkpoints import LAST  # noqa: E402
from lightning_cfg.config import build, dump  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.evaluate import evaluate  # noqa: E402
from lightning_cfg.files import output_of, sha256, write_text  # noqa: E402
from lightning_cfg.fit import fit  # noqa: E402
from lightning_cfg.generate import SAMPLES, check_roles, generate  # noqa: E402
from lightning_cfg.pair import PAIRS, pair  # noqa: E402
from lightning_cfg.refine import refine  # noqa: E402
from lightning_cfg.report import check_claims, summary, write_report  # noqa: E402

FRESH = 1_000_000  # samples that are evaluated have seeds from here on, sources below
# What may change without the stage being another one: a longer training goes on where it stopped.
FREE = {"trainer", "checkpoint_every", "log_every", "logger", "resume", "device", "run_dir"}
OUTPUTS = {"fit": LAST, "generate": SAMPLES, "pair": PAIRS, "refine": SAMPLES}

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
Method = Annotated[dict, Verb("lightning_cfg.method")]


def study(
    *,
    data: Data,
    fits: dict[str, Training],
    methods: dict[str, Method],
    scales: list[float],
    flows: dict[str, list[float]],
    flow: Flow,
    generation: Generation,
    sources: int,
    samples: int,
    run_dir: str,
    pairs: Pairing = {},  # noqa: B006  a default section, never changed
    refinement: Refining = {},  # noqa: B006
    evaluation: Evaluation = {},  # noqa: B006
    title: str = "",
    seed: int = 0,
) -> Path:
    """Run every stage that is not done yet, then write report.md, report.html and table.csv.

    fits     what is trained on the data, by name; a model of `methods` names one, a path or exact
    scales   guidance scales at which fresh samples are generated, refined and evaluated
    flows    all: scales that share one flow's sources equally; dedicated: scales with a flow each
    sources  generated samples that train each flow
    samples  fresh samples per method and scale to evaluate
    """
    _check(methods, fits, flows, scales)
    if not 1 <= sources <= FRESH or not 1 <= samples <= FRESH:
        raise UserError(f"{sources=} and {samples=} must be from 1 to {FRESH}")
    root = Path(run_dir)
    stages = Stages(root, seed)
    asked = {
        "title": title, "data": data, "fits": fits, "methods": methods, "scales": scales,
        "flows": flows, "flow": flow, "generation": generation, "sources": sources,
        "samples": samples, "pairs": pairs, "refinement": refinement,
        "evaluation": evaluation, "seed": seed,
    }  # fmt: skip
    stages.claim(asked)
    shared = flows.get("all", [])
    dedicated = flows.get("dedicated", [])
    per_scale = 2 + bool(shared)  # generate, evaluate, refine
    per_method = len({*shared, *dedicated}) + 2 * bool(shared) + 3 * len(dedicated)
    per_method += per_scale * len(scales)
    stages.expected = len(fits) + len(methods) * per_method + 1

    trained = {
        name: stages.run(f"fit {name}", fit, {**section, "data": data})
        for name, section in fits.items()
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

    sets: dict[tuple, Path] = {}
    rows: list[dict] = []
    spent: dict[tuple, float] = {}
    for name, section in methods.items():
        models = {role: str(trained.get(path, path)) for role, path in section["models"].items()}

        def generated(scale: float, n: int, first: int, what: str) -> Path:
            guidance = {**section["guidance"], "scale": scale}  # noqa: B023
            settings = {"models": models, "guidance": guidance, "n": n, "data": data}  # noqa: B023
            return stages.run(
                f"generate {name} {scale:g} {what}",  # noqa: B023
                generate,
                {**generation, **settings, "seed": first + 2 * FRESH * seed},
            )

        def flow_for(what: str, own: list[float]) -> Path:
            files = [str(source[scale]) for scale in own]  # noqa: B023
            made = {**named(pairs), "sources": files, "n": sources, "data": data}
            paired = stages.run(f"pair {name} {what}", pair, made)  # noqa: B023
            on = {**flow, "data": {"name": "Pairs", "path": str(paired)}}
            return stages.run(f"fit flow {name} {what}", fit, on)  # noqa: B023

        source = {}
        for scale in sorted(set(shared) | set(dedicated)):
            n = sources if scale in dedicated else -(-sources // len(shared))
            source[scale] = generated(scale, n, 0, "sources")
        one_for_all = flow_for("all", shared) if shared else None
        own_flow = {scale: flow_for(f"{scale:g}", [scale]) for scale in dedicated}

        for scale in scales:
            before = generated(scale, samples, FRESH, "fresh")
            scored = {("before", ""): before}
            for kind, trained_flow in (("all", one_for_all), ("dedicated", own_flow.get(scale))):
                if trained_flow is not None:
                    scored["after", kind] = stages.run(
                        f"refine {name} {scale:g} {kind}",
                        refine,
                        {**refinement, "flow": str(trained_flow), "samples": str(before)},
                    )
            spent |= _evaluations(name, scale, scored)
            labels = {f"{stage} {kind}".strip(): str(p) for (stage, kind), p in scored.items()}
            table = stages.run(
                f"evaluate {name} {scale:g}",
                evaluate,
                {**named(evaluation), "samples": labels, "data": data},
            )
            for stage, kind in scored:
                key = (name, scale, stage, kind)
                sets[key] = scored[stage, kind] / SAMPLES
                rows += _rows(table, f"{stage} {kind}".strip(), key, spent[key])
    fresh = samples // build("lightning_cfg.data", data).num_classes
    floor = stages.run(
        "evaluate real",
        evaluate,
        {**named(evaluation), "samples": {}, "data": data, "fresh": fresh},
    )
    rows += _rows(floor, "real", ("real", None, "real", ""), None)

    stages.close()
    write_report(
        root,
        title=title or root.name,
        config=asked,
        data_set=build("lightning_cfg.data", data),
        rows=rows,
        sets=sets,
        stages=stages.done,
    )
    print(summary(check_claims(rows)))
    print(root / "report.html")
    return root


class Stages:
    """The stages of a study, each a run directory named by what it is and depends on.

    So a stage is found again as long as its settings and inputs are the same, and a changed
    setting makes a new directory for it and for what depends on it, and for nothing else.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.seed = root, seed
        self.done: list[dict] = []
        self.expected = 0

    def claim(self, asked: dict) -> None:
        """Write the study's config.yaml; UserError if the directory is something else's."""
        if self.root.exists() and (
            not self.root.is_dir()
            or (any(self.root.iterdir()) and not (self.root / "study.json").is_file())
        ):
            raise UserError(f"{self.root} exists and is no study: give another run_dir")
        write_text(self.root / "study.json", json.dumps({"stages": []}))
        write_text(self.root / "config.yaml", "# lightning_cfg.study\n" + dump(asked))

    def run(self, name: str, verb: Callable, settings: dict[str, Any]) -> Path:
        """Call the verb in its directory, which tells by itself whether it is done."""
        settings = {"seed": self.seed, **settings}
        kept = {k: v for k, v in settings.items() if k not in FREE}
        text = json.dumps([verb.__name__, self._content(kept)], sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        directory = self.root / "stages" / f"{name.replace(' ', '-')}-{digest}"
        print(f"[{len(self.done) + 1}/{self.expected}] {name}", flush=True)
        manifest = directory / "manifest.json"
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

    def close(self) -> None:
        """Record which stage directories the report is made of."""
        write_text(self.root / "study.json", json.dumps({"stages": self.done}, indent=1))

    def _content(self, value: Any) -> Any:
        """Paths of stages become the content hashes of what they hold."""
        if isinstance(value, dict):
            return {k: self._content(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._content(v) for v in value]
        if isinstance(value, str) and (Path(value) / "manifest.json").is_file():
            verb = json.loads((Path(value) / "manifest.json").read_text())["verb"]
            return sha256(output_of(value, OUTPUTS[verb]))
        return value


def _check(methods: dict, fits: dict, flows: dict, scales: list[float]) -> None:
    for name, section in methods.items():
        check_roles(section["guidance"], section["models"])
        for role, model in section["models"].items():
            if model not in fits and model != "exact" and not Path(model).exists():
                raise UserError(
                    f"methods.{name}.models.{role}={model} is neither one of fits "
                    f"({', '.join(fits)}), nor exact, nor a path that exists"
                )
        if "scale" not in section["guidance"]:
            raise UserError(f"methods.{name}: guidance {section['guidance']['name']} has no scale")
    for kind in flows:
        if kind not in ("all", "dedicated"):
            raise UserError(f"flows.{kind} is neither flows.all nor flows.dedicated")
    for scale in flows.get("dedicated", []):
        if scale not in scales:
            raise UserError(f"flows.dedicated has scale {scale:g}, which scales has not")


def _evaluations(name: str, scale: float, scored: dict[tuple, Path]) -> dict[tuple, float]:
    """Network evaluations per sample from the noise on, all networks together."""
    own = {
        stage: sum(json.loads((p / "manifest.json").read_text())["evaluations"].values())
        for stage, p in scored.items()
    }
    base = own["before", ""]
    return {(name, scale, *s): n + (base if s[0] == "after" else 0) for s, n in own.items()}


def _rows(table: Path, label: str, key: tuple, nfe: float | None) -> list[dict]:
    """The rows of one sample set, with the study's columns in front."""
    name, scale, stage, kind = key
    out = []
    for row in json.loads((table / "metrics/metrics.json").read_text()):
        if row["samples"] == label:
            front = {"method": name, "scale": scale, "class": row["class"], "stage": stage}
            metrics = {k: v for k, v in row.items() if k not in ("samples", "class", "n")}
            out.append({**front, "flow": kind, "nfe": nfe, "n": row["n"], **metrics})
    return out


if __name__ == "__main__":
    main(study)
