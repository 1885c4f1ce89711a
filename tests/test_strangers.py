"""Files from strangers: they run no code, and what is odd in them is one line."""

import json
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_cfg.config import trust as trusting
from lightning_cfg.data.pairs import Pairs
from lightning_cfg.errors import UserError
from lightning_cfg.runs.checkpoints import LAST, restore
from lightning_cfg.runs.tensors import save_tensors
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit
from lightning_cfg.verbs.generate import generate
from lightning_cfg.verbs.pair import pair
from lightning_cfg.verbs.refine import refine
from lightning_cfg.verbs.trace import trace

HEUN = {"name": "heun", "steps": 2}
CLASSIFIER = {
    "net": {"name": "Linear"},
    "model": {"name": "NoisyClassifier"},
    "learner": {"name": "Classification"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, training, mixture) -> SimpleNamespace:
    """Runs of every kind, sample files and pairs, as small as they get."""
    root = tmp_path_factory.mktemp("made")

    def trained(name: str, **sections: object) -> str:
        config = training(**{"trainer": {"max_steps": 1, "logger": False}, **sections})
        return str(fit(**config, run_dir=str(root / name)))

    samples = {"x": torch.randn(8, 2), "c": torch.arange(8) % 2, "seed": torch.arange(8)}
    pairs = {"x": samples["x"], "c": samples["c"], "targets": torch.zeros(3, 2)}
    pairs |= {"neighbours": torch.arange(16).reshape(8, 2) % 3, "num_classes": torch.tensor(2)}
    moves = {"path": torch.randn(6, 3, 2), "c": torch.arange(6) % 2, "seed": torch.arange(6)}
    moves |= {"sigma": torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64)}
    on_pairs = {"name": "Pairs", "path": str(save_tensors(root / "pairs.safetensors", **pairs))}
    clean = {**CLASSIFIER, "model": {"name": "NoisyClassifier", "clean": True}}
    return SimpleNamespace(
        root=root,
        data=mixture,
        pairs=pairs,
        samples=str(save_tensors(root / "samples.safetensors", **samples)),
        moves=str(save_tensors(root / "moves.safetensors", **moves)),
        base=trained("base"),
        noisy=trained("noisy", **CLASSIFIER),
        clean=trained("clean", **clean),
        flow=trained(
            "flow", data=on_pairs, model={"name": "Flow"}, learner={"name": "Refinement"}
        ),
    )  # fmt: skip


def content(run: str) -> dict:
    return torch.load(Path(run, LAST), weights_only=True)


def asked(verb: Callable, file: str, made: SimpleNamespace, training: Callable) -> dict:
    """A call of the verb that restores the network of this file."""
    return {
        generate: {"models": {"model": file}, "guidance": "unguided", "sampler": HEUN, "n": 2},
        refine: {"flow": file, "samples": made.samples},
        pair: {
            "sources": [made.samples], "data": made.data, "bank": 20, "k": 2,
            "features": {"name": "classifier", "path": file},
        },
        evaluate: {"samples": {"a": made.samples}, "data": made.data, "classifier": file},
        trace: {"samples": {"a": made.moves}, "classifiers": {"b": file}},
        fit: training(evaluation={"every": 1, "n": 4, "flow": file}),
    }[verb]  # fmt: skip


VERBS = [generate, refine, pair, evaluate, trace, fit]


@pytest.fixture
def nothing_trusted():
    """As in a process that has just begun."""
    with trusting.only([]):
        yield


@pytest.fixture
def refused(call) -> Callable[..., str]:
    """Call a verb that has to refuse, writing nothing, and return its one line."""

    def run(verb: Callable, config: dict, *overrides: object) -> str:
        done = call(verb, config, *overrides)
        assert (done.status, len(done.err.strip().splitlines())) == (2, 1), done
        assert "Traceback" not in done.err
        assert not Path("runs").exists()
        return done.err

    return run


# A checkpoint's config is a stranger's


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec", "evil.Net"])
@pytest.mark.parametrize("section", ["net", "model"])
def test_no_code_is_run_that_a_file_names(
    verb, name, section, made, training, refused, tmp_path, monkeypatch, nothing_trusted
):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    state = content(made.base)
    state["config"][section] = {"name": name}
    for shape in ([2], ["touch", str(canary)]):
        state["shape"] = shape
        torch.save(state, tmp_path / "their.ckpt")
        line = refused(verb, asked(verb, str(tmp_path / "their.ckpt"), made, training))
        assert "their.ckpt" in line
        assert not canary.exists()
        if shape == [2]:  # it says what to write
            module = name.rpartition(".")[0]
            assert f"names {name}, which would run code" in line
            assert f"trust: [{module}]" in line
        else:
            assert "its shape must be a list of whole numbers" in line
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name, trusted", [("builtins.exec", False), ("mine.Net", True)])
@pytest.mark.usefixtures("nothing_trusted")
def test_a_name_of_pythons_own_in_a_config_trusts_nothing(name, trusted):
    trusting.trust_as_asked({"net": {"name": name}})
    with trusting.names_of("their.ckpt"), nullcontext() if trusted else pytest.raises(UserError):
        trusting.check_trusted(name)


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec"])
def test_what_is_trusted_must_still_be_a_class_of_networks(
    name, made, refused, tmp_path, nothing_trusted
):
    state = content(made.base)
    state["config"]["net"] = {"name": name}
    torch.save(state, tmp_path / "their.ckpt")
    config = asked(generate, str(tmp_path / "their.ckpt"), made, dict)
    line = refused(generate, config, f"trust=[{name.rpartition('.')[0]}]")
    assert "net.name is no class of networks" in line


@pytest.mark.parametrize(
    "name, said",
    [
        ("Popen", "net.name: no 'Popen' in lightning_cfg.nets"),
        ("lightning_cfg.runs.files.write_text", "trust: [lightning_cfg.runs.files]"),
        ("lightning_cfg.nets.layers.torch", "has no function or class 'torch'"),
        ("lightning_cfg.nets.song_unet.from_edm", "net.name is no class of networks"),
    ],
)
def test_names_of_the_package_are_those_of_networks(name, said, made, refused, tmp_path):
    state = content(made.base)
    state["config"]["net"] = {"name": name}
    torch.save(state, tmp_path / "their.ckpt")
    config = asked(generate, str(tmp_path / "their.ckpt"), made, dict)
    line = refused(generate, config)
    assert "their.ckpt" in line
    assert said in line


MINE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.layer = nn.Linear(shape[0], shape[0])

    def forward(self, x, noise, c):
        return self.layer(x)

def tiny(shape, num_classes) -> nn.Module:
    return Tiny(shape, num_classes)

def unsaid(shape, num_classes):
    return Tiny(shape, num_classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch, training, nothing_trusted) -> Callable[..., dict]:
    """A run with a network of one's own, as a later process finds it: nothing is trusted yet."""
    (tmp_path / "mine_of_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def trained(name: str) -> dict:
        net = {"name": f"mine_of_test.{name}"}
        config = training(net=net, trainer={"max_steps": 1, "logger": False})
        with trusting.only([]):
            run = fit(**config, run_dir=str(tmp_path / "run"))
        return {"models": {"model": str(run)}, "guidance": "unguided", "sampler": HEUN, "n": 2}

    yield trained
    sys.modules.pop("mine_of_test", None)


@pytest.mark.parametrize("name", ["Tiny", "tiny"])
def test_the_key_the_variable_and_the_own_config_trust_a_module(
    name, own, call, refused, monkeypatch
):
    config = own(name)
    line = refused(generate, config)
    assert "trust: [mine_of_test]" in line
    with trusting.only([]):
        assert call(generate, config, "trust=[mine_of_test]", "run_dir=by_key").status == 0
    monkeypatch.setenv("LIGHTNING_CFG_TRUST", "other, mine_of_test")
    assert call(generate, config, "run_dir=by_variable").status == 0
    monkeypatch.delenv("LIGHTNING_CFG_TRUST")
    with pytest.raises(UserError, match="mine_of_test"):
        restore(config["models"]["model"])
    trusting.trust(["mine_of_test"])  # from Python
    assert restore(config["models"]["model"]).step == 1


def test_a_config_that_names_the_module_goes_on_with_the_own_run(own, call, training):
    own("Tiny")
    net = {"name": "mine_of_test.Tiny"}
    again = call(fit, training(net=net, trainer={"max_steps": 2, "logger": False}), "run_dir=run")
    assert again.status == 0, again.err


def test_a_function_has_to_say_that_it_makes_a_network(own, refused):
    assert "net.name is no class of networks" in refused(
        generate, own("unsaid"), "trust=[mine_of_test]"
    )


def test_a_trusted_module_is_not_another_that_begins_alike():
    with trusting.only(["mine"]), trusting.names_of("a.ckpt"):
        for name in ("mine.Net", "mine.nets.Net", "lightning_cfg.nets.MLP"):
            trusting.check_trusted(name)
        for name in ("mines.Net", "lightning_cfg.runs.files.write", "lightning_cfg.nets_of.Net"):
            with pytest.raises(UserError, match="trust"):
                trusting.check_trusted(name)
    trusting.check_trusted("os.system")  # of the user's own config


# Odd checkpoints


def deleted(*path: str) -> Callable[[dict], object]:
    def change(state: dict) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def put(value: object, *path: str) -> Callable[[dict], object]:
    def change(state: dict) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def poisoned(state: dict) -> None:
    for average in state["ema"].values():
        next(iter(average.values())).view(-1)[0] = torch.nan


ODD = {
    "config": put([], "config"),
    "net": put("MLP", "config", "net"),
    "name": put(3, "config", "net", "name"),
    "no net": deleted("config", "net"),
    "no model": deleted("config", "model"),
    "no learner": deleted("config", "learner"),
    "unknown key": put(3, "config", "net", "widht"),
    "type of a key": put("wide", "config", "net", "width"),
    "negative": put(-3, "config", "net", "width"),
    "no class": put("Popen", "config", "net", "name"),
    "shape text": put("ab", "shape"),
    "shape of text": put(["touch"], "shape"),
    "shape 0": put([0], "shape"),
    "shape empty": put([], "shape"),
    "shape large": put([2**20, 2**20], "shape"),
    "shape of floats": put([2.0], "shape"),
    "num_classes text": put("2", "num_classes"),
    "num_classes none": put(None, "num_classes"),
    "num_classes below": put(-1, "num_classes"),
    "num_classes large": put(2**40, "num_classes"),
    "state list": put([], "state_dict"),
    "state of numbers": put({"model.a": 3}, "state_dict"),
    "ema list": put([], "ema"),
    "ema empty": put({}, "ema"),
    "ema of numbers": put({100: 3}, "ema"),
    "ema by text": put({"100": {}}, "ema"),
    "ema whole": put({100: {"a": torch.zeros(2, dtype=torch.long)}}, "ema"),
    "ema others": put({100: {"a": torch.zeros(2)}}, "ema"),
    "step": put("many", "global_step"),
    "conditioned": put([], "conditioned"),
    "conditioned by nothing": put({"values": 2}, "conditioned"),
    "conditioned by more": put({"values": 2, "classes": 1, "scales": "ab"}, "conditioned"),
    "NaN": poisoned,
    **{f"no {key}": deleted(key) for key in ("shape", "num_classes", "state_dict", "ema")},
    "no step": deleted("global_step"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("verb", [generate, refine])
def test_an_odd_checkpoint_is_one_line(kind, verb, made, training, refused, tmp_path):
    state = content(made.base if verb is generate else made.flow)
    ODD[kind](state)
    torch.save(state, tmp_path / "odd.ckpt")
    line = refused(verb, asked(verb, str(tmp_path / "odd.ckpt"), made, training))
    assert "odd.ckpt" in line


HUGE = {
    "width": put(16_384, "config", "net", "width"),  # 1000 blocks of it: 3 TB
    "classes": put(2**30, "num_classes"),
    "shape": put([2**30], "shape"),
}


@pytest.mark.parametrize("model", ["EDM", "DDPM", "Flow"])
@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_network_is_not_made(kind, model, made, refused, tmp_path):
    """A small file may ask for it; it is told before it takes memory, in less than a second."""
    state = content(made.base)
    state["config"]["model"] = {"name": model}
    if kind == "width":
        state["config"]["net"]["blocks"] = 1000
    HUGE[kind](state)
    torch.save(state, tmp_path / "huge.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        line = refused(generate, asked(generate, str(tmp_path / "huge.ckpt"), made, dict))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "huge.ckpt does not fit the network of its config: that has " in line
    assert "numbers, and the file holds 1," in line


@pytest.mark.parametrize(
    "change", [deleted("optimizer_states"), deleted("loops"), put([], "lr_schedulers"),
               deleted("config", "data"), put({"name": "os.system"}, "config", "data"),
               put({"name": "Mixture", "means": 3}, "config", "data")]
)  # fmt: skip
def test_a_training_goes_on_from_no_odd_checkpoint(change, made, training, refused, tmp_path):
    state = content(made.base)
    change(state)
    torch.save(state, tmp_path / "odd.ckpt")
    assert "odd.ckpt" in refused(fit, training(), f"resume={tmp_path / 'odd.ckpt'}")


@pytest.mark.parametrize("held", [[], {}, 3, None, {"state_dict": {}}])
def test_what_is_no_checkpoint_is_one_line(held, made, refused, tmp_path):
    torch.save(held, tmp_path / "odd.ckpt")
    line = refused(generate, asked(generate, str(tmp_path / "odd.ckpt"), made, dict))
    assert "odd.ckpt is a checkpoint, but not one that `fit` here has written" in line


# Judges


def test_a_judge_is_a_classifier_of_clean_samples(made, training, call, refused):
    config = asked(evaluate, made.base, made, training)
    assert "must be one of clean samples" in refused(evaluate, config)
    config["classifier"] = made.noisy
    assert "reads noisy samples" in refused(evaluate, config)
    config |= {"classifier": made.clean, "metrics": ["class_accuracy"]}
    done = call(evaluate, config, "run_dir=run")
    assert done.status == 0, done.err
    assert "class_accuracy" in json.loads(Path("run/metrics/metrics.json").read_text())[0]


def test_a_judge_with_nan_is_none(made, refused, tmp_path):
    state = content(made.clean)
    poisoned(state)
    torch.save(state, tmp_path / "judge.ckpt")
    line = refused(evaluate, asked(evaluate, str(tmp_path / "judge.ckpt"), made, dict))
    assert "judge.ckpt: its weights" in line
    assert "NaN" in line


# Trainings that have not finished


def test_an_unfinished_training_is_told_and_its_step_is_recorded(made, call, tmp_path):
    shutil.copytree(made.base, tmp_path / "base")
    config = asked(generate, str(tmp_path / "base"), made, dict)
    done = call(generate, config, "run_dir=whole")
    assert (done.status, done.err) == (0, "")
    (tmp_path / "base/manifest.json").unlink()
    done = call(generate, config, "run_dir=cut_off")
    assert done.status == 0
    assert done.err.count("\n") == 1
    assert "base has not finished: its network is the one of step 1" in done.err
    for run in ("whole", "cut_off"):
        assert json.loads(Path(run, "manifest.json").read_text())["steps"] == {"model": 1}
    done = call(refine, asked(refine, made.flow, made, dict), "run_dir=refined")
    assert json.loads(Path("refined/manifest.json").read_text())["steps"] == {"flow": 1}
    made_anew = {**asked(generate, made.base, made, dict), "n": 32}
    sets = {"generate": {"made": made_anew}, "data": made.data, "metrics": ["class_accuracy"]}
    done = call(evaluate, {**sets, "classifier": made.clean}, "run_dir=scores")
    assert (done.status, done.err) == (0, "")
    steps = json.loads(Path("scores/manifest.json").read_text())["steps"]
    assert steps == {"generate": {"made": {"model": 1}}, "classifier": 1}


# Manifests


BROKEN = {
    "empty": "", "cut": '{"verb": "gen', "list": "[]", "nothing": "{}", "null": "null",
    "number": "3", "bytes": "\udcff\udcfe", "deep": "[" * 100_000, "settings": '{"verb": "fit"}',
    "kinds": '{"verb": [], "settings": {}, "outputs": {}}', "no verb": '{"settings": {}}',
    "outputs": '{"verb": "generate", "settings": {}, "outputs": []}',
}  # fmt: skip


@pytest.fixture
def sampled(made, tmp_path) -> Path:
    """A finished run of generate."""
    return generate(**asked(generate, made.base, made, dict), run_dir=str(tmp_path / "there/run"))


def written(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "name, kind",
    [("manifest.json", kind) for kind in BROKEN]
    + [("identity.json", kind) for kind in BROKEN if kind != "outputs"],  # which it has not
)
def test_a_broken_record_is_one_line_to_who_goes_on(kind, name, made, sampled, refused):
    written(sampled / name, BROKEN[kind])
    config = asked(generate, made.base, made, dict)
    line = refused(generate, config, f"run_dir={sampled}")
    assert str(sampled) in line


@pytest.mark.parametrize("kind", [k for k in BROKEN if k != "no verb"])
def test_a_broken_manifest_is_one_line_to_who_reads(kind, made, sampled, training, refused):
    written(sampled / "manifest.json", BROKEN[kind])
    for verb, key in ((evaluate, "samples.a"), (pair, "sources"), (refine, "samples")):
        file = {evaluate: made.clean, pair: made.clean, refine: made.flow}[verb]
        value = f"[{sampled}]" if verb is pair else sampled
        assert "manifest.json" in refused(verb, asked(verb, file, made, training), f"{key}={value}")


def test_manifests_that_say_odd_things(made, sampled, training, refused, tmp_path):
    """Or refer to themselves."""
    manifest = json.loads((sampled / "manifest.json").read_text())
    config = asked(evaluate, made.clean, made, training) | {"samples": {"a": str(sampled)}}
    odd = [
        {"settings": {}},
        {"settings": {"guidance": 3, "sampler": [], "weights": 1}},
        {"evaluations": {"model": "many"}},
        {"verb": "refine", "free": {}},
        {"verb": "refine", "free": {"samples": str(sampled)}},
        {"settings": {**manifest["settings"], "guidance": {"name": "a", "scale": "large"}}},
    ]
    for change in odd:
        (sampled / "manifest.json").write_text(json.dumps({**manifest, **change}))
        assert "manifest.json" in refused(evaluate, config), change


# Pairs


@pytest.mark.parametrize(
    "change",
    [
        {"neighbours": torch.full((8, 2), 3)},
        {"neighbours": torch.full((8, 2), -1)},
        {"neighbours": torch.zeros(8, dtype=torch.long)},
        {"neighbours": torch.zeros(8, 0, dtype=torch.long)},
        {"neighbours": torch.zeros(8, 2)},
        {"c": torch.full((8,), 2)},
        {"c": torch.full((8,), -1)},
        {"c": torch.zeros(7, dtype=torch.long)},
        {"c": torch.zeros(8, dtype=torch.bool)},
        {"targets": torch.zeros(3, 5)},
        {"targets": torch.zeros(3, 2, dtype=torch.complex64)},
        {"x": torch.zeros(0, 2), "c": torch.zeros(0).long()},
        {"num_classes": torch.tensor([2, 2])},
        {"num_classes": torch.tensor(-1)},
        {"weights": torch.zeros(8, 2)},
        {"weights": -torch.ones(8, 2)},
        {"weights": torch.ones(8, 3)},
        {"scales": torch.ones(2)},
        {"scales": torch.ones(2), "bin": torch.full((8,), 2)},
        {"edges": torch.ones(2), "bin": torch.zeros(8).long()},
    ],
)
def test_odd_pairs_are_one_line(change, made, training, refused, tmp_path):
    path = save_tensors(tmp_path / "odd.safetensors", **{**made.pairs, **change})
    sections = {"model": {"name": "Flow"}, "learner": {"name": "Refinement"}}
    config = training(data={"name": "Pairs", "path": str(path)}, **sections)
    told = refused(fit, config)
    kind = any(key in change and f"odd.safetensors: {key} is " in told for key in change)
    assert kind or "odd.safetensors holds no pairs" in told
    Pairs(path=str(save_tensors(tmp_path / "whole.safetensors", **made.pairs))).shape  # noqa: B018


def test_flipped_bytes_of_pairs_are_refused_or_harmless(made, tmp_path):
    """Each byte of the header: the numbers themselves are the manifest's to know."""
    file = tmp_path / "pairs.safetensors"
    whole = save_tensors(file, **made.pairs).read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for at in range(0, length, 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << (at % 8)
        file.write_bytes(flipped)
        with suppress(UserError):
            held = Pairs(path=str(file))
            assert (held.shape, held.num_classes) == ((2,), 2)
