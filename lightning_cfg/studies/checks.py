"""What a study's sections have to be to each other, said before anything is run."""

from pathlib import Path

from lightning_cfg.config import changed
from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.sampling.guided import check_roles, check_together, with_scale
from lightning_cfg.sampling.guided import named as named_guidance
from lightning_cfg.sampling.network import path_and_weights
from lightning_cfg.sampling.seeds import SEEDS
from lightning_cfg.studies.ranges import check_ranges
from lightning_cfg.studies.schema import FRESH, Pairing, Refining, Training

LONGEST = 64  # characters of a name, several of which are in that of a folder


def check_name(path: str, name: str, *taken: str) -> None:
    """UserError for a name that cannot be a file's, or is something else's."""
    fits = name[:1] != "_" and name.replace("_", "").isalnum() and len(name) <= LONGEST
    if not fits or name in taken:
        also = f", and not {', '.join(taken[:-1])} or {taken[-1]}" if len(taken) > 1 else ""
        also = also or f", and not {taken[0]}" if taken else ""
        said = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
        raise UserError(
            f"{path}.{said}: letters, digits and _ only, {LONGEST} at most and no _ first{also}, "
            "it names folders and files"
        )


def check_names(asked: dict) -> None:
    """UserError for a name of a study's sections that cannot be a file's."""
    for path in ("fits", "discriminators", "methods", "cases"):
        for name in asked[path]:
            check_name(path, name)
    for name in () if asked["trace"] is None else asked["trace"]["classifiers"]:
        check_name("trace.classifiers", name)
    known = [*asked["methods"], *asked["variants"]]
    for key, name in asked["names"].items():
        if key not in known:
            hint = did_you_mean(key, known, "methods and variants have names")
            raise UserError(f"names.{key} is no method and no variant of the study; {hint}")
        if not (name.strip() and name.isprintable() and len(name) <= LONGEST):
            raise UserError(f"names.{key} must be one line of 1 to {LONGEST} letters, not {name!r}")


def recipes_of(variants: dict, flows: dict, own: dict) -> dict[str, dict]:
    """{kind of flow: its pairs, flow and refinement}: the study's own, then its variants'."""
    recipes = {kind: own for kind in ("all", "dedicated") if flows.get(kind)}
    if variants and "all" not in recipes:
        raise UserError("variants are flows for all scales: they need flows.all")
    kinds = {"pairs": Pairing, "flow": Training, "refinement": Refining}
    for name, section in variants.items():
        check_name("variants", name, "all", "dedicated", "before")
        _check_row(name, section, variants)
        recipes[name] = {
            key: changed(kind, own[key], section[key], f"variants.{name}.{key}")
            for key, kind in kinds.items()
        }
        recipes[name] |= {key: section[key] for key in ("then", "after", "reflow")}
        recipes[name]["change"] = section["refinement"]
        recipes[name]["scales"] = own["scales"] if section["scales"] is None else section["scales"]
        if beyond := set(recipes[name]["scales"]) - set(own["scales"]):
            raise UserError(f"variants.{name} has scale {min(beyond):g}, which scales has not")
    for name, section in variants.items():
        kinds = (name, *section["then"], *filter(None, [section["after"]]))
        refinements = [recipes[kind]["refinement"] for kind in kinds]
        beyond = any(refinement["extrapolate"] for refinement in refinements)
        recipes[name]["refinement"] = {**recipes[name]["refinement"], "extrapolate": beyond}
    return recipes


def _check_row(name: str, section: dict, variants: dict) -> None:
    """UserError where flows in a row, or of which one is made, are not other flows, or a row says
    how to make one."""
    alone = [kind for kind, part in variants.items() if not (part["then"] or part["after"])]
    single, paired = ["all", *alone], [kind for kind in alone if not variants[kind]["reflow"]]
    others = {"then": section["then"], "after": [section["after"]], "reflow": [section["reflow"]]}
    others = {key: parts for key, parts in others.items() if parts and parts != [None]}
    for key, parts in others.items():
        known = ["all", *paired] if key == "reflow" else single
        for part in parts:
            if part not in known:
                raise UserError(f"variants.{name}.{key}: {part} must be one of {', '.join(known)}")
    if len(others) > 1:
        raise UserError(
            f"variants.{name}: then makes no flow and after makes one of what another leaves, "
            "reflow one of where another goes: give one of them"
        )
    if section["reflow"] and section["pairs"]:
        raise UserError(f"variants.{name}.pairs says how sources are paired: reflow pairs none")
    for key in ("pairs", "flow"):
        if section["then"] and section[key]:
            raise UserError(f"variants.{name}.{key} says how a flow is made: then makes none")


def check_seeds(seed: int | None, seeds: list[int]) -> None:
    """UserError for seed and seeds at once, one twice, and one with another study's samples."""
    if seeds and seed is not None:
        raise UserError(
            f"{seed=} and {seeds=} are both given: give one of them (seed=null takes a file's back)"
        )
    for one in seeds:
        if seeds.count(one) > 1:
            raise UserError(f"{seeds=} has {one} twice: the same study again is no further seed")
    for one in seeds or [seed or 0]:
        _check_seed(one)


def _check_seed(seed: int, key: str = "seed") -> None:
    last = SEEDS // (2 * FRESH) - 1
    if not 0 <= seed <= last:
        raise UserError(
            f"{key}={seed} must be from 0 to {last}: a study's samples have seeds from "
            f"{2 * FRESH} * seed on, and there are 2**32 of them"
        )


def check_devices(path: str, section: dict | None) -> None:
    """UserError for a training on several: Lightning would start the study once for each."""
    devices = 1 if section is None else section["trainer"].get("devices", 1)
    if devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError(
            f"{path}.trainer.devices={devices}: a study trains on one device; train on several by "
            "`fit`, and name the run in `models` of its methods"
        )


def check_fits(fits: dict, discriminators: dict, fit_data: dict, once: list[str]) -> None:
    """UserError for a name that means something else, or a discriminator or data of nothing."""
    for name in once:
        if name not in fits:
            raise UserError(f"once: {name} is none of fits ({', '.join(fits)})")
    for name in fit_data:
        if name not in fits:
            raise UserError(f"fit_data.{name} is none of fits ({', '.join(fits)})")
    for name in (*fits, *discriminators):
        if name == "exact":
            raise UserError("fits.exact: exact is the closed form of the data, choose another name")
    for name, section in discriminators.items():
        if section["of"] not in fits or name in fits:
            raise UserError(
                f"discriminators.{name} needs a name that is not in fits, and of={section['of']} "
                f"among fits ({', '.join(fits)})"
            )


def check_methods(methods: dict, fits: list[str], flows: dict) -> None:
    """UserError unless the networks are there and guidance, sampler and flows fit each other."""
    for name, section in methods.items():
        check_roles(section["guidance"], section["models"])
        for role, network in section["models"].items():
            model, _ = path_and_weights(network)
            _check_network(f"methods.{name}.models.{role}", model, fits)
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


def check_tuning(tuning: dict, methods: dict, fits: list[str], scored: list[int]) -> None:
    """UserError unless each method has ranges, and what it is tuned on and by is not scored."""
    if tuning["seed"] in scored:
        raise UserError(
            f"tuning.seed={tuning['seed']} is scored too: methods are tuned on another seed"
        )
    _check_seed(tuning["seed"], "tuning.seed")
    reference = tuning["reference"] or next(iter(methods))
    if reference not in methods:
        raise UserError(f"tuning.reference={reference} is none of methods ({', '.join(methods)})")
    for scale in tuning["at"]:
        if scale not in methods[reference]["scales"]:
            raise UserError(f"tuning.at has scale {scale:g}, which {reference} has not")
    for name, section in methods.items():
        check_ranges(name, section)
        for weak in section["ranges"].get("models.weak", []):
            path, _ = path_and_weights(weak)
            _check_network(f"methods.{name}.ranges.models.weak", path, fits)


def _check_network(role: str, path: str, fits: list[str]) -> None:
    # a path that is not there is told with how it comes, see `absent`
    if path not in fits and path != "exact" and not Path(path).exists() and "/" not in path:
        raise UserError(
            f"{role}={path} is neither one of fits ({', '.join(fits)}), nor exact, nor a path that "
            "exists"
        )


def check_trace(trace: dict, kept: int, methods: dict, fits: list[str]) -> None:
    """UserError unless there are trajectories, and classifiers to see them by."""
    if not kept:
        raise UserError("trace needs generation.trajectories, the number of them to keep")
    if "own" in trace["classifiers"]:
        raise UserError("trace.classifiers.own is the name of a method's own: choose another")
    for name, path in trace["classifiers"].items():
        _check_network(f"trace.classifiers.{name}", path, fits)
    for name, section in methods.items():
        if not trace["classifiers"] and "classifier" not in section["models"]:
            raise UserError(f"trace.classifiers is empty, and methods.{name} has none of its own")


def check_exact(data_sets: list, methods: dict, trace: dict | None) -> None:
    """UserError where exact is meant of data whose density is not known."""
    named = [
        (f"methods.{name}.models.{role}", path_and_weights(network)[0])
        for name, section in methods.items()
        for role, network in section["models"].items()
    ]
    if trace is not None:
        named += [(f"trace.classifiers.{k}", path) for k, path in trace["classifiers"].items()]
    for role, path in named:
        if path == "exact" and any(data_set.truth is None for data_set in data_sets):
            raise UserError(f"{role}: exact needs data with a known density, such as Fractal")


def check_published(section: dict, methods: dict, recipes: dict) -> None:
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
