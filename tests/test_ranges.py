"""Every number that a config can name has a range, which is checked with its type and told."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import torch

from lightning_cfg import config
from lightning_cfg.config import Keywords, checked, help_of, load, resolve
from lightning_cfg.config.check import MAPPINGS, SEQUENCES, UNIONS, describe, known
from lightning_cfg.config.domain import Between, Infinite, domains_of
from lightning_cfg.config.files import Document
from lightning_cfg.config.schema import Choice, choices, keys_of, section_of
from lightning_cfg.diffusion.samplers import ddpm, euler
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import LAST
from lightning_cfg.runs.checkpoints import load as load_checkpoint
from lightning_cfg.training.trainer import REFUSED
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.study import study

VERBS = [
    f"lightning_cfg.verbs.{v}.{v}"
    for v in "fit generate pair refine evaluate trace study adopt encode".split()
]
REGISTRIES = [
    "data", "nets", "diffusion.models", "training.learners", "guidance", "guidance.schedules",
    "diffusion.samplers", "diffusion.noise", "evaluation.features", "metrics", "latents",
]  # fmt: skip

Way = tuple  # to a number inside a value: list, dict, and so on from the outside in


# The walk: from the verbs through every section to every callable that a config can name


def kinds_of(callable_: str, every: bool) -> dict[str, Any]:
    """{key: annotation}; of Lightning's Trainer those that have an effect here."""
    if callable_ == "lightning.Trainer":
        keys = section_of(keys_of(fit)[0]["trainer"][0]).keys()[0]
        return {key: kind for key, (kind, _) in keys.items() if key not in REFUSED}
    return {key: kind for key, (kind, _) in keys_of(resolve("", callable_), every)[0].items()}


def sections_in(kind: Any) -> Iterator[Any]:
    if section_of(kind) is not None:
        yield section_of(kind)
    for arg in get_args(kind):
        if known(arg):
            yield from sections_in(arg)


@functools.cache
def reached() -> dict[str, bool]:
    """{dotted path of a callable: whether all of its parameters are keys}."""
    found, ahead = {}, [(verb, False) for verb in VERBS]
    while ahead:
        callable_, every = ahead.pop()
        if callable_ in found:
            continue
        found[callable_] = every
        for kind in kinds_of(callable_, every).values():
            for section in sections_in(kind):
                if isinstance(section, Choice):
                    names = choices(section.module)
                    ahead += [(f"{section.module}.{name}", False) for name in names]
                else:
                    ahead.append((section.callable, isinstance(section, Keywords)))
    return found


def numbers_in(kind: Any, way: Way = (), domains: tuple = ()) -> Iterator[tuple[Way, Any, tuple]]:
    """(way, int or float, the ranges beside it) of every number in an annotation."""
    base, args = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        if section_of(kind) is None:
            yield from numbers_in(args[0], way, tuple(domains_of(kind)))
    elif base in UNIONS:
        for arg in args:
            yield from numbers_in(arg, way)
    elif base in SEQUENCES and args:
        yield from numbers_in(args[0], (*way, list))
    elif base in MAPPINGS and args:
        yield from numbers_in(args[1], (*way, dict))
    elif kind in (int, float):
        yield way, kind, domains


def all_numbers() -> list:
    found = []
    for callable_, every in sorted(reached().items()):
        for key, kind in kinds_of(callable_, every).items():
            for way, number, domains in numbers_in(kind):
                found.append(
                    pytest.param(
                        callable_,
                        key,
                        way,
                        number,
                        domains,
                        id=f"{callable_.removeprefix('lightning_cfg.')}.{key}",
                    )
                )
    return found


def wrapped(value: Any, way: Way) -> Any:
    for outer in reversed(way):
        value = [value] if outer is list else {"a": value}
    return value


def inside(value: Any, way: Way) -> Any:
    for outer in way:
        value = value[0] if outer is list else value["a"]
    return value


def loaded(callable_: str, section: dict) -> tuple[dict | None, str]:
    """The section of a callable's keys as `load` has it, or what it says."""
    if callable_ == "lightning.Trainer":
        mark = section_of(config.TrainerKeys)
    else:
        mark = Keywords(callable_)

    def verb(*, part: Annotated[dict, mark]): ...

    try:
        return load(verb, Document(Path("x.yaml"), {"part": section}))["part"], ""
    except UserError as error:
        return None, str(error)


def test_every_registry_is_reached():
    for module in REGISTRIES:
        for name in choices(f"lightning_cfg.{module}"):
            assert f"lightning_cfg.{module}.{name}" in reached()
    assert {
        "lightning_cfg.studies.schema.method",
        "lightning_cfg.studies.schema.discriminator",
        "lightning_cfg.studies.schema.variant",
        "lightning_cfg.studies.schema.published",
        "lightning_cfg.training.grids.Grids",
        "lightning_cfg.training.evaluate_samples.EvaluateSamples",
        "lightning_cfg.sampling.network.network",
        "lightning.Trainer",
    } <= set(reached())
    assert len(all_numbers()) > 150


@pytest.mark.parametrize("callable_, key, way, number, domains", all_numbers())
def test_every_number_has_a_range(callable_, key, way, number, domains):
    assert any(isinstance(domain, Between) for domain in domains), (
        f"{callable_}: {key} has no range: Annotated[{number.__name__}, Positive], or Real where "
        "any number may be meant (config/domain.py)"
    )


FUZZ = [0, -1, 1, 0.5, 1e30, 1e308, 10**400, -(10**30), math.nan, math.inf, -math.inf, "many", True,
        None, [[]], {"a": {}}, b"x"]  # fmt: skip


@pytest.mark.parametrize("callable_, key, way, number, domains", all_numbers())
def test_a_number_is_in_its_range_or_one_line_says_so(callable_, key, way, number, domains):
    for value in FUZZ:
        section, refused = loaded(callable_, {key: wrapped(value, way)})
        if section is None:
            assert "\n" not in refused
            # of a section in the place of a number
            assert refused.startswith(("x.yaml: part.", f"x.yaml: unknown key 'part.{key}."))
            assert key in refused
            continue
        found = inside(section[key], way)
        if type(found) in (int, float):
            assert all(domain.holds(found) for domain in domains), (value, found)
            assert type(found) is int or math.isfinite(found) or Infinite in domains
            assert type(found) is float or abs(found) < 2**63 or key in ("seed", "seeds")
        else:  # another kind of a union, such as "ema" or null
            assert found is None or type(value) is type(found)
            assert type(found) not in (int, float)


# The ranges


@pytest.mark.parametrize(
    "kind, words, within, beyond",
    [
        (Annotated[float, config.Positive], "float above 0", [1e-300, 1e300], [0.0, -1e-300]),
        (Annotated[float, config.NonNegative], "float of at least 0", [0.0, 1.0], [-1e-300]),
        (Annotated[float, config.Share], "float from 0 to 1", [0.0, 1.0], [-0.1, 1.0000001]),
        (
            Annotated[float, config.Between(0, 1, below=True)],
            "float from 0 to below 1",
            [0.0],
            [1.0],
        ),
        (
            Annotated[float, config.Between(0, 1, above=True, below=True)],
            "float above 0 and below 1",
            [0.5],
            [0.0, 1.0],
        ),
        (
            Annotated[float, config.Between(0, 1e6, above=True)],
            "float above 0 and at most 1e+06",
            [1e6],
            [0.0, 2e6],
        ),
        (Annotated[float, config.Real], "float", [-1e300, 0.0], [math.nan, math.inf, -math.inf]),
        (
            Annotated[float, config.Positive, config.Infinite],
            "float above 0 or .inf",
            [math.inf],
            [-math.inf, math.nan, 0.0],
        ),
        (Annotated[int, config.AtLeast(2)], "int of at least 2", [2, 2**62], [1, 2**63]),
        (
            Annotated[int, config.AtLeast(1), config.Odd],
            "int of at least 1 and odd",
            [1, 3],
            [0, 2, -1],
        ),
        (Annotated[int, config.MultipleOf(32)], "int and a multiple of 32", [0, 64], [33]),
        (config.Scales, "list of float that is not empty", [[1.0], [-1.0, 2.0]], [[]]),
        (
            list[Annotated[float, config.Positive]] | None,
            "list of float above 0 or null",
            [[1.0], [], None],
            [[0.0], [1.0, math.nan]],
        ),
        (
            dict[str, Annotated[int, config.AtLeast(1)] | None],
            "section of int of at least 1 or null",
            [{"a": 1, "b": None}],
            [{"a": 0}],
        ),
    ],
)
def test_ranges(kind, words, within, beyond):
    def verb(*, n: kind): ...

    assert describe(kind) == words
    for value in within:
        assert checked(verb, {"n": value}) == {"n": value}
    for value in beyond:
        with pytest.raises(UserError, match=r"^n(\[\d\]|\.a)? must be "):
            checked(verb, {"n": value})


def test_the_range_is_told_by_help():
    text = help_of(fit, {"learner": "Diffusion", "model": "EDM", "net": "MLP"})
    rows = [line for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    lines = dict(line.split(None, 1) for line in rows)
    assert lines["learner.lr"] == "float above 0; default 0.001"
    assert lines["learner.gradient_clip"] == "float of at least 0 or null; default null"
    assert lines["model.label_dropout"] == "float from 0 to 1; default 0.1"
    assert lines["model.P_mean"] == "float; default -1.2"
    assert lines["net.width"] == "int from 1 to 16_384; default 128"


def test_callables_of_ones_own(tmp_path, monkeypatch):
    Path(tmp_path, "my_own.py").write_text(
        "from typing import Annotated\n"
        "from lightning_cfg.config import Positive, Share, ordered\n"
        "@ordered('low', 'high')\n"
        "def dampened(model, *, damping: Annotated[float, Share] = 0.5,\n"
        "             low: float = 1.0, high: Annotated[float, Positive] = 2.0): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def verb(*, guidance: config.Guidance): ...

    def of(**keys: float) -> dict:
        return checked(verb, {"guidance": {"name": "my_own.dampened", **keys}})

    assert of(low=-1)["guidance"]["low"] == -1.0
    for keys, message in [
        ({"damping": 2}, "guidance.damping must be float from 0 to 1, not 2"),
        ({"low": 3}, "guidance.low=3.0 must be below high=2.0"),
        ({"high": 1.0}, "guidance.low=1.0 must be below high=1.0"),
        ({"low": math.nan}, "guidance.low must be float, not nan (it has to be finite)"),
    ]:
        with pytest.raises(UserError) as error:
            of(**keys)
        assert str(error.value) == message


# The cases that were taken, or answered by a traceback


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.label_dropout=10", "model.label_dropout must be float from 0 to 1, not 10"),
        (
            "learner.ema_half_life=[-5]",
            "learner.ema_half_life[0] must be int of at least 1, not -5",
        ),
        ("learner.ema_half_life=[0]", "learner.ema_half_life[0] must be int of at least 1, not 0"),
        ("learner.ema_ramp=-1", "learner.ema_ramp must be float of at least 0, not -1"),
        ("learner.lr=-1", "learner.lr must be float above 0, not -1"),
        ("learner.lr=0", "learner.lr must be float above 0, not 0"),
        ("learner.lr=.nan", "learner.lr must be float above 0, not nan (it has to be finite)"),
        ("learner.gradient_clip=-1", "learner.gradient_clip must be float of at least 0 or null"),
        ("learner.max_bad_steps=0", "learner.max_bad_steps must be int of at least 1, not 0"),
        ("model.sigma_min=90", "model.sigma_min=90.0 must be below sigma_max=80.0"),
        ("model.P_std=-1", "model.P_std must be float above 0, not -1"),
        ("model.sigma_data=1e300", "model.sigma_data must be float above 0 and at most 1e+06"),
        ("net.width=0", "net.width must be int from 1 to 16_384, not 0"),
        ("net.blocks=-1", "net.blocks must be int from 0 to 1000, not -1"),
        ("net.width=1e12", "net.width must be int from 1 to 16_384, not 1000000000000.0"),
        ("net={name: UnshuffleUNet, dropout: 2}", "net.dropout must be float from 0 to below 1"),
        (
            "net={name: UnshuffleUNet, channel_mult: []}",
            "net.channel_mult must be list of int from",
        ),
        ("net={name: ADMUNet, channels: 33}", "channels must be int from 1 to 16_384 and a multip"),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches must be int of at least 1, not 0",
        ),
        ("trainer.max_steps=0", "trainer.max_steps must be int of at least 1, not 0"),
        ("trainer.num_nodes=0", "trainer.num_nodes must be int from 1 to 100_000, not 0"),
        ("trainer.devices=1e9", "trainer.devices must be "),
        ("keep=-1", "keep must be int of at least 0, not -1"),
        (f"keep={'9' * 5000}", "not a number: Exceeds the limit"),
        ("data.stds=[0.1, 0.2, -1, 0.2]", "data.stds[2] must be float above 0, not -1"),
        ("data.limit=0", "data.limit must be int from 1 to 100_000_000 or null, not 0"),
        ("grids={every: 0}", "grids.every must be int of at least 1, not 0"),
        ("grids={scales: [.nan]}", "grids.scales[0] must be float, not nan"),
        ("grids={sampler: {name: heun, steps: 0}}", "grids.sampler.steps must be int from 1"),
        ("evaluation={rtol: -1}", "evaluation.rtol must be float of at least 0, not -1"),
        (
            "evaluation={metrics: [{name: recall, k: 0}]}",
            "evaluation.metrics[0].k must be int of at",
        ),
    ],
)
def test_fit_refuses(call, training, override, message):
    outcome = call(fit, training(), override)
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert message in outcome.err
    assert not Path("runs").exists()


GENERATING = {"models": {"model": "exact"}, "guidance": "unguided", "sampler": "heun", "n": 4}
FOLLOWED = {"sources": ["a"], "data": "Fractal"}
SCORED = {"samples": {"a": "b"}, "data": "Fractal"}


@pytest.mark.parametrize(
    "verb, settings, change, message",
    [
        (generate, GENERATING, {"n": 1e30}, "n must be int from 1 to 100_000_000, not 1e+30"),
        (
            generate,
            GENERATING,
            {"batch_size": 1e30},
            "batch_size must be int of at least 1, not 1e+30 (64 bits cannot hold it)",
        ),
        (
            generate,
            GENERATING,
            {"class_label": -1},
            "class_label must be int of at least 0, str, list of int of at least 0 or str that is",
        ),
        (generate, GENERATING, {"weights": 0}, "weights must be str, int of at least 1 or keys of"),
        (
            generate,
            GENERATING,
            {"sampler": {"name": "heun", "steps": 1e9}},
            "sampler.steps must be int from 1 to 100_000, not 1000000000.0",
        ),
        *[
            (
                generate,
                GENERATING,
                {"sampler": {"name": name, "sigma_min": 2, "sigma_max": 1}},
                "sampler.sigma_min=2.0 must be below sigma_max=1.0",
            )
            for name in ("euler", "heun", "ddim", "ddpm", "dopri5")
        ],
        *[
            (
                generate,
                GENERATING,
                {"sampler": {"name": name, "rho": 0}},
                "sampler.rho must be float from 0.1 to 1000, not 0",
            )
            for name in ("euler", "heun")
        ],
        (
            generate,
            GENERATING,
            {"sampler": {"name": "ddim", "levels": {"name": "karras", "rho": -7}}},
            "sampler.levels.rho must be float from 0.1 to 1000, not -7",
        ),
        (
            generate,
            GENERATING,
            {"sampler": {"name": "dopri5", "rtol": -1}},
            "sampler.rtol must be float of at least 0, not -1",
        ),
        (
            generate,
            GENERATING,
            {"guidance": {"name": "classifier_free", "scale": math.nan}},
            "guidance.scale must be float or a name",
        ),
        (
            generate,
            GENERATING,
            {"guidance": {"name": "apg", "norm": 0}},
            "guidance.norm must be float above 0 or null, not 0",
        ),
        (
            generate,
            GENERATING,
            {"guidance": {"name": "cads", "tau_1": 0.95}},
            "guidance.tau_1=0.95 must be below tau_2=0.9",
        ),
        (
            generate,
            GENERATING,
            {"guidance": {"name": "interval", "of": "apg", "sigma_low": 2, "sigma_high": 1}},
            "guidance.sigma_low=2.0 must be below sigma_high=1.0",
        ),
        (
            generate,
            GENERATING,
            {"guidance": {"name": "apg", "scale": {"name": "linear", "sigma_low": 90}}},
            "guidance.scale.sigma_low=90.0 must be below sigma_high=80.0",
        ),
        (pair, FOLLOWED, {"bank": 0}, "bank must be int from 1 to 100_000_000 or null, not 0"),
        (pair, FOLLOWED, {"k": 0}, "k must be int of at least 1, not 0"),
        (
            pair,
            FOLLOWED,
            {"memory": math.nan},
            "memory must be float above 0 and at most 1e+06, not nan",
        ),
        (pair, FOLLOWED, {"memory": 0}, "memory must be float above 0 and at most 1e+06, not 0"),
        (pair, FOLLOWED, {"keep_close": 1}, "keep_close must be float from 0 to below 1, not 1"),
        (evaluate, SCORED, {"real": -1}, "real must be int from 1 to 100_000_000 or null, not -1"),
        (evaluate, SCORED, {"bank": 0}, "bank must be int from 1 to 100_000_000 or null, not 0"),
        (evaluate, SCORED, {"fresh": 0}, "fresh must be int from 1 to 100_000_000 or null, not 0"),
        (
            evaluate,
            SCORED,
            {"metrics": [{"name": "near_copies", "quantile": 1}]},
            "metrics[0].quantile must be float above 0 and below 1, not 1",
        ),
        (
            evaluate,
            SCORED,
            {"metrics": [{"name": "precision_recall", "k": 0}]},
            "metrics[0].k must be int of at least 1, not 0",
        ),
        (
            evaluate,
            SCORED,
            {"metrics": [{"name": "kernel_distance", "subsets": 0}]},
            "metrics[0].subsets must be int of at least 1, not 0",
        ),
        *[
            (
                refine,
                {"flow": "a", "samples": "b"},
                {key: value},
                f"{key} must be {told}, not {value}",
            )
            for key, value, told in [
                ("rtol", -1, "float of at least 0"),
                ("atol", 0, "float above 0"),
                ("strength", 5, "float from 0 to 1"),
                ("steps", 0, "int from 1 to 100_000"),
                ("max_evaluations", 0, "int of at least 1"),
                ("scale", math.inf, "float"),
            ]
        ],
    ],
)
def test_verbs_refuse(verb, settings, change, message):
    """From Python as from a config."""
    with pytest.raises(UserError) as error:
        verb(**settings | change, run_dir="absent")
    assert message in str(error.value)
    assert not Path("absent").exists()


STUDY = {
    "data": "Fractal",
    "fits": {},
    "methods": {"cfg": {"models": {"model": "exact"}, "guidance": "classifier_free"}},
    "scales": [1.0],
    "generation": {"sampler": "heun"},
    "samples": 10,
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scales": []}, "scales must be list of float that is not empty, not []"),
        ({"scales": [math.nan]}, "scales[0] must be float, not nan"),
        ({"samples": 0}, "samples must be int from 1 to 1_000_000, not 0"),
        ({"sources": -1}, "sources must be int from 0 to 1_000_000, not -1"),
        ({"refinement": {"strength": 5}}, "refinement.strength must be float from 0 to 1, not 5"),
        ({"pairs": {"k": 0}}, "pairs.k must be int of at least 1, not 0"),
        ({"flows": {"all": [math.inf]}}, "flows.all[0] must be float, not inf"),
    ],
)
def test_a_study_refuses(tmp_path, change, message):
    with pytest.raises(UserError) as error:
        study(**STUDY | change, run_dir=str(tmp_path / "run"))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_sampler_within_a_model_whose_limits_it_leaves():
    """One limit is the sampler's, the other the model's or the usual: no two keys to compare."""
    noise = torch.zeros(1, 2)
    for sampler in (euler, ddpm):
        with pytest.raises(
            UserError, match=r"sampler.sigma_min=100 must be below sampler.sigma_max=80"
        ):
            next(sampler(lambda x, *_: x, noise, noise[:, 0], sigma_min=100.0))


def test_gradient_clip_0_is_off(tmp_path, training):
    """As in Lightning: the weights move, and as far as without clipping."""

    def trained(name: str, clip: float | None) -> dict:
        sections = training(trainer={"max_steps": 3})
        learner = {**sections["learner"], "gradient_clip": clip}
        run = fit(**sections | {"learner": learner}, run_dir=str(tmp_path / name))
        return load_checkpoint(run / LAST)["state_dict"]

    off, never, tight = trained("off", 0.0), trained("never", None), trained("tight", 1e-12)
    assert all(torch.equal(off[key], never[key]) for key in off)
    # Adam's epsilon is 1e-8: with gradients so short the weights hardly leave where they began
    moved = max(float((off[key] - tight[key]).abs().max()) for key in off)
    assert moved > 1e-3


# Within the ranges, at their ends: a number that is allowed ends in a result or in one line

EXTREMES = [
    "learner.lr=1e300", "learner.lr=1e-300", "learner.weight_decay=1e300", "learner.warmup=1e18",
    "learner.ema_half_life=[1]", "learner.ema_half_life=[1e18]", "learner.ema_ramp=1e-300",
    "learner.ema_ramp=1e300", "learner.ema_ramp=0", "learner.gradient_clip=1e-300",
    "learner.gradient_clip=1e300", "learner.max_bad_steps=1e18", "model.label_dropout=1",
    "model.P_mean=1e300", "model.P_mean=-1e300", "model.P_std=1e300", "model.P_std=1e-300",
    "model.sigma_data=1e-300", "model.sigma_data=1e6", "model.sigma_min=1e-300",
    "net={name: MLP, width: 1}", "net={name: MLP, width: 3, blocks: 0}", "net.outputs=1",
    "net.fourier_std=1e300", "net.fourier_std=1e-300", "net.fourier=1", "batch_size=1",
    "checkpoint_every=1e18", "keep=1e18", "log_every=1e18", "seed=4294967295",
    "data.limit=1", "data.stds=[1e-300, 1e-300, 1e300, 1]", "data.weights=[0, 0, 1, 1e300]",
    "data.means=[[1e300, 0], [0, 0], [0, 0], [0, 0]]", "data.seed=4294967295",
    "trainer.accumulate_grad_batches=1e18", "trainer.accumulate_grad_batches=32",
    "trainer.devices=0", "trainer.fast_dev_run=1", "trainer.max_time={seconds: 0}",
    "trainer.max_time={weeks: 1e18}", "trainer.devices=[0]", "trainer.devices=[7]",
]  # fmt: skip


@pytest.mark.parametrize("override", EXTREMES)
def test_fit_at_the_ends(call, training, override):
    outcome = call(fit, training(trainer={"max_steps": 2}), "run_dir=run", override)
    assert outcome.status in (0, 1, 2)  # 1: it diverged, and says so
    if outcome.status:
        assert len([x for x in outcome.err.splitlines() if "error: " in x]) == 1, outcome.err
    assert "Traceback" not in outcome.err


SAMPLERS = [
    {"name": "heun", "steps": 2, "rho": 0.1}, {"name": "heun", "steps": 2, "rho": 1000},
    {"name": "euler", "steps": 1}, {"name": "euler", "steps": 1, "levels": "uniform_t"},
    {"name": "heun", "steps": 2, "sigma_min": 0}, {"name": "ddim", "steps": 2, "sigma_min": 0},
    {"name": "heun", "steps": 2, "sigma_min": 1e-300},
    {"name": "heun", "steps": 2, "sigma_max": 1e6, "rho": 0.1},
    {"name": "ddpm", "steps": 1000, "sigma_min": 99}, {"name": "ddpm", "steps": 100_000},
    {"name": "dopri5", "rtol": 0}, {"name": "dopri5", "atol": 1e-300, "rtol": 0},
    {"name": "dopri5", "rtol": 1e300, "atol": 1e300}, {"name": "dopri5", "max_evaluations": 1},
    {"name": "dopri5", "sigma_min": 1e-300, "max_evaluations": 500},
    {"name": "dopri5", "points": 1000, "rtol": 0.1}, {"name": "heun", "levels": [0]},
    {"name": "heun", "levels": []}, {"name": "heun", "levels": [1e300, 1]},
]  # fmt: skip
METHODS = [
    {"name": "classifier_free", "scale": 1e300}, {"name": "classifier_free", "scale": -1e300},
    {"name": "apg", "eta": 1e300, "norm": 1e-300, "momentum": -1e300},
    {"name": "cfg_zero_star", "zero_steps": 1_000_000}, {"name": "cfg_plus_plus", "scale": -1e9},
    {"name": "interval", "of": "apg", "sigma_low": 0, "sigma_high": math.inf},
    {"name": "classifier_free", "scale": {"name": "exponential", "rate": 1e300}},
    {"name": "classifier_free", "scale": {"name": "linear", "sigma_low": 1e-300}},
    {"name": "classifier_free", "scale": {"name": "step", "sigma_high": math.inf}},
    {"name": "classifier_free", "scale": {"name": "cosine", "sigma_high": 1e300}},
    {"name": "rescale", "of": "apg", "phi": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"sampler": sampler} for sampler in SAMPLERS]
    + [{"guidance": method} for method in METHODS]
    + [{"seed": 2**32 - 4}, {"trajectories": 4}, {"batch_size": 2**62}, {"class_label": 1}]
    + [{"class_label": 2**62}, {"weights": 2**62}],
)
def test_generate_at_the_ends(call, mixture, change):
    usual = {"sampler": {"name": "heun", "steps": 3}, "data": mixture, "device": "cpu"}
    outcome = call(generate, GENERATING | usual | change, "run_dir=run")
    assert outcome.status in (0, 2)
    assert outcome.status == 0 or len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "Traceback" not in outcome.err


NETS = [
    ("ConvNet", {"channels": 1}), ("ConvNet", {"channels": 3}),
    ("UnshuffleUNet", {"channels": 1}), ("UnshuffleUNet", {"channels": 3, "channel_mult": [64]}),
    ("SongUNet", {"channels": 4, "channel_mult": [1], "attention_resolutions": []}),
    ("SongUNet", {"channels": 12, "channel_mult": [1, 3], "attention_resolutions": [8]}),
    ("SongUNet", {"channels": 4, "channel_mult": [1], "resample_filter": [0, 1]}),
    ("SongUNet", {"channels": 4, "channel_mult": [1] * 40}),
    ("EDM2UNet", {"channels": 1, "channel_mult": [1], "attention": [], "channels_per_head": 1}),
    ("EDM2UNet", {"channels": 4, "channel_mult": [1] * 40}),
    ("EDM2UNet", {"channels": 3, "channel_mult": [1], "attention": [8], "channels_per_head": 2,
                  "filter": [0, 1], "noise_channels": 1, "embedding_channels": 1, "clip": 1e-300}),
    ("ADMUNet", {"channels": 32, "channel_mult": [1], "attention_resolutions": [], "num_heads": 3}),
    ("ADMUNet", {"channels": 32, "channel_mult": [1] * 9, "attention_resolutions": [3]}),
    ("ADMEncoder", {"channels": 32, "channel_mult": [1], "head_channels": 5}),
    ("DiT", {"channels": 4, "blocks": 1, "num_heads": 1, "patch": 8}),
    ("DiT", {"channels": 4, "blocks": 1, "num_heads": 3}), ("DiT", {"channels": 2, "patch": 3}),
    ("MLP", {"width": 1, "blocks": 0}), ("MLP", {"width": 2, "fourier": 1}),
]  # fmt: skip


@pytest.mark.parametrize("name, keys", NETS)
def test_nets_at_the_ends(name, keys):
    net_class = resolve("lightning_cfg.nets", name)
    keys, _ = loaded(f"lightning_cfg.nets.{name}", keys)
    try:
        net = net_class((3, 8, 8), 2, **keys)
        answer = net(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 1]))
    except UserError:
        return
    assert answer.isfinite().all()
