"""The words after a verb, the configs that come with the package, and what `--help` says."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from lightning_cfg import __main__ as commands
from lightning_cfg.config import Data, checked, from_arguments, help_of, load
from lightning_cfg.config.files import read, shipped
from lightning_cfg.config.meanings import meanings
from lightning_cfg.config.schema import choices, keys_of, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.runs.kept import cache_folder
from lightning_cfg.verbs.fit import fit

VERBS = ("fit", "generate", "pair", "refine", "evaluate", "trace", "tune", "study")
PARTS = (
    "lightning_cfg.nets", "lightning_cfg.diffusion.models", "lightning_cfg.training.learners",
    "lightning_cfg.data", "lightning_cfg.guidance", "lightning_cfg.diffusion.samplers",
    "lightning_cfg.metrics", "lightning_cfg.evaluation.features",
)  # fmt: skip
REST = {"net": "MLP", "model": "EDM", "learner": "Diffusion", "batch_size": 8,
        "trainer": {"max_steps": 1}}  # fmt: skip


def toy(*, lr: float, n: int) -> None:
    """Nothing."""


def test_a_file_without_config_and_values_without_equals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("lr: 0.5\n")
    for words in (
        ["--config", "a.yaml", "n=30"],
        ["a.yaml", "n=30"],
        ["a.yaml", "--n", "30"],
        ["--n=30", "a.yaml"],
        ["--n", "30", "--config=a.yaml"],
    ):
        assert from_arguments(toy, words) == {"lr": 0.5, "n": 30}
    for words, told in (
        (["a.yaml", "b.yaml"], "'b.yaml' is not an override; write key=value"),
        (["--config", "a.yaml", "b.yaml"], "'b.yaml' is not an override"),
        (["a.yaml", "--n"], "'n=' has no value"),
        (["--n", "30"], "needs --config FILE"),
    ):
        with pytest.raises(UserError, match=told):
            from_arguments(toy, words)


def test_configs_that_come_with_the_package(tmp_path, monkeypatch, capsys):
    """By name from any folder; a file of one's own of that name goes first, a folder is none."""
    monkeypatch.chdir(tmp_path)
    names = shipped()
    assert len(names) == len(list((ROOT / "conf").rglob("*.yaml"))) > 40
    assert "studies/fractal_quick" in names
    for word in ("fractal_base", "fractal_base.yaml", "conf/fractal_base.yaml"):
        assert read(word).values["data"] == {"name": "Fractal"}
        assert read(word).file.stem == "fractal_base"  # by which runs/ are called
    with pytest.raises(UserError, match=r"'fractal_bas'.*did you mean 'fractal_base', which comes"):
        read("fractal_bas")
    (tmp_path / "fractal_base").write_text("lr: 0.5\n")
    assert read("fractal_base").values == {"lr": 0.5}
    (tmp_path / "pictures").mkdir()  # of the data, perhaps
    assert read("pictures").values["data"]["name"] == "ImageFolder"
    commands.main(["--configs"])
    assert capsys.readouterr().out.split() == list(names)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "a.yaml").write_text("data: {name: MNIST, root: ~/mnist}\n")
    found = checked(fit, {**yaml.safe_load(Path("a.yaml").read_text()), **REST, "run_dir": "~/r"})
    assert found["data"]["root"] == "/home/somebody/mnist"
    assert found["run_dir"] == "/home/somebody/r"


def test_a_tilde_is_the_home_directory_wherever_a_text_stands(tmp_path, monkeypatch):
    """In lists and sections, in what others annotate or take as **keys, in an interpolation."""
    monkeypatch.setenv("HOME", "/home/somebody")

    def verb(*, data: Data, many: list[str], by: dict[str, str], theirs: object, either: str | int):
        """A verb."""

    folder = {"name": "torchvision.datasets.ImageFolder", "root": "~/pets"}
    asked = {"data": folder, "many": ["~", "a~/b"], "by": {"x": "~/x"}, "either": "~/e"}
    asked["theirs"] = [{"deep": ("~/d", 1)}]
    found = checked(verb, asked)
    home = "/home/somebody"
    assert found["data"]["root"] == f"{home}/pets"
    assert (found["many"], found["by"]) == ([home, "a~/b"], {"x": f"{home}/x"})
    assert (found["either"], found["theirs"]) == (f"{home}/e", [{"deep": (f"{home}/d", 1)}])
    (tmp_path / "a.yaml").write_text("data: {name: MNIST, root: '${run_dir}/mnist'}\n")
    values = {**read(tmp_path / "a.yaml").values, **REST, "run_dir": "~nobody-here/r"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    assert load(fit, read(tmp_path / "a.yaml"))["data"]["root"] == "~nobody-here/r/mnist"
    found = load(fit, read(tmp_path / "a.yaml", ["run_dir=~/r", "data.limit=3"]))
    assert (found["run_dir"], found["data"]["root"]) == (f"{home}/r", f"{home}/r/mnist")
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", "~/kept")
    assert str(cache_folder()) == f"{home}/kept"


def test_help_says_what_keys_mean():
    """Of every key of every verb and part there is a meaning, which is its docstring's line."""
    out = help_of(fit, {"data": "MNIST", "net": "MLP"})
    at = out.index("  checkpoint_every  int of at least 1; default 1000\n")
    assert out[at:].splitlines()[1] == "      steps between checkpoints"
    assert "      over all ranks and accumulated micro-batches\n" in out
    bare = []
    for verb in VERBS:
        function = getattr(importlib.import_module(f"lightning_cfg.verbs.{verb}"), verb)
        bare += [f"{verb}.{key}" for key in keys_of(function)[0] if key not in meanings(function)]
    for module in PARTS:
        for name in choices(module):
            part = resolve(module, name)
            bare += [f"{name}.{key}" for key in keys_of(part)[0] if key not in meanings(part)]
    assert not bare


def test_meanings_of_lines():
    def function(*, lr: float, width: int, first: int, second: int) -> None:
        """In a sentence.

        lr             how fast,
                       and no faster
        first, second  of two
        A line that begins with lr  is none where it is in a sentence.
        """

    found = meanings(function)
    assert found["lr"] == "how fast, and no faster"
    assert found["first"] == found["second"] == "of two"
    assert "width" not in found


def test_a_library_that_a_slim_installation_lacks_is_named(monkeypatch, capsys):
    from lightning_cfg.cli import answered

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit) as stop, answered():
        from torchvision import datasets  # noqa: F401
    assert stop.value.code == 2
    line = "lightning_cfg: error: this needs torchvision, which is not installed: pip install"
    assert capsys.readouterr().err.startswith(line)
    with pytest.raises(ModuleNotFoundError), answered():
        import no_such_module_of_ours  # noqa: F401
