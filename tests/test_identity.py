"""What makes two runs the same: marks in signatures, content of what is read, code of one's own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest

from lightning_cfg.config import Choice, Free, Input, Verb, identity_difference, identity_of
from lightning_cfg.config import checked as checked_config
from lightning_cfg.errors import UserError
from lightning_cfg.runs.run import FORMAT, Run, verb

TOOLS = """
from typing import Annotated
from lightning_cfg.config import Choice, Free, Input, Place

def reader(*, path: Annotated[str, Input()], root: Annotated[str, Place] = "data",
           memory: Annotated[float, Free] = 2.0, limit: int | None = None,
           below: Annotated[dict, Choice("tools")] | None = None): ...
"""
MINE = "def guide(model, *, scale: float = 1.0, path: str = ''):\n    return 1\n"

Tool = Annotated[dict, Choice("tools")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "mine.py").write_text(MINE)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("tools", "mine"):
        sys.modules.pop(name, None)


def work(
    *,
    run_dir: str = "run",
    tool: Tool | None = None,
    files: list[Annotated[str, Input()]] = (),
    models: dict[str, Annotated[str, Input(words=("exact",))]] = {},  # noqa: B006
    number: int = 3,
    device: Annotated[str, Free] = "cpu",
): ...


def told(**config: object):
    return identity_of(work, checked_config(work, config))


def test_what_bears_no_mark_is_a_setting_and_what_is_free_only_recorded():
    found = told(number=4, device="cuda")
    assert found.settings["number"] == 4
    assert "device" not in found.settings
    assert found.free == {"device": "cuda"}


def test_inputs_count_by_the_file_that_is_meant_wherever_they_stand():
    found = told(
        tool={"name": "reader", "path": "a", "below": {"name": "reader", "path": "b", "root": "x"}},
        files=["b", "a"],
        models={"model": "a", "weak": "exact"},
    )
    assert found.inputs == {
        "tool.path": Path("a"),
        "tool.below.path": Path("b"),
        "files.0": Path("b"),
        "files.1": Path("a"),
        "models.model": Path("a"),
    }
    assert found.settings["tool"] == {
        "name": "reader",
        "limit": None,
        "below": {"name": "reader", "limit": None, "below": None},
    }
    assert found.settings["models"] == {"weak": "exact"}
    assert found.free.keys() == {"tool", "files", "models", "device"}


def test_a_callable_of_ones_own_counts_by_its_source_and_by_what_its_path_names(here):
    def other(*, guide: Tool): ...

    config = checked_config(other, {"guide": {"name": "mine.guide", "path": "a"}})
    found = identity_of(other, config)
    assert found.code == {"guide.name": here / "mine.py"}
    assert found.inputs == {"guide.path": Path("a")}
    assert found.settings["guide"] == {"name": "mine.guide", "scale": 1.0}


def test_an_input_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"^gone: no such file or folder$"):
        told(files=["gone"])


def test_a_key_that_an_older_run_did_not_know_counts_by_its_default():
    found = told(tool={"name": "reader", "path": "a", "limit": 5})
    known = json.loads(json.dumps(found.settings))
    del known["number"]
    assert identity_difference(known, found.settings, found.usual) is None
    assert identity_difference(known, {**found.settings, "number": 4}) is not None
    another = told(tool={"name": "reader", "path": "a", "limit": 5}, number=4)
    assert identity_difference(known, another.settings, another.usual) == (
        "number: nothing there, 4 here"
    )
    del known["tool"]["limit"]
    assert identity_difference(known, found.settings, found.usual) == (
        "tool.limit: nothing there, 5 here"
    )


def test_nested_verbs_are_walked_too(here, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "work", work)

    def outer(*, inner: Annotated[dict, Verb(f"{__name__}.work", without=("run_dir",))]): ...

    found = identity_of(outer, checked_config(outer, {"inner": {"files": ["a"], "number": 7}}))
    assert found.inputs == {"inner.files.0": Path("a")}
    assert found.settings["inner"]["number"] == 7
    assert "device" not in found.settings["inner"]


def test_the_own_files_of_a_callable_of_ones_own_count_by_their_names(here):
    (here / "mine.py").write_text(
        "def space(*, weights: str = '', code: str = '', root: str = '', memory: float = 1.): ...\n"
        "def mixture(*, weights: list = (0.5, 0.5), held_out: str = 'none'): ...\n"
    )

    def other(*, one: Tool, two: Tool): ...

    one = {"name": "mine.space", "weights": "a", "code": "b", "root": "x", "memory": 3.0}
    found = identity_of(other, checked_config(other, {"one": one, "two": "mine.mixture"}))
    assert found.inputs == {"one.weights": Path("a"), "one.code": Path("b")}
    assert found.settings["one"] == {"name": "mine.space"}
    assert found.settings["two"]["weights"] == [0.5, 0.5]
    assert found.settings["two"]["held_out"] == "none"


def test_real_data_below_a_discriminators_count_too(here):
    from lightning_cfg.runs.run import identity
    from lightning_cfg.verbs.fit import fit

    data = {
        "name": "RealOrGenerated",
        "real": {"name": "ImageZip", "path": "real.zip"},
        "path": "a",
    }
    config = {
        "data": data,
        "net": {"name": "Linear"},
        "model": {"name": "NoisyClassifier"},
        "learner": {"name": "Classification"},
        "batch_size": 2,
        "trainer": {"max_steps": 2},
        "run_dir": "run",
    }
    known = []
    for content in ("one", "other"):
        (here / "real.zip").write_text(content)
        known.append(identity(fit, checked_config(fit, config))[1])
    assert known[0].keys() == known[1].keys() == {"data.path", "data.real.path"}
    assert known[0]["data.path"] == known[1]["data.path"]
    assert known[0]["data.real.path"] != known[1]["data.real.path"]


# Runs


@verb()
def doing(
    run: Run,
    /,
    *,
    run_dir: str,
    guide: Tool = "mine.guide",
    files: list[Annotated[str, Input()]] = (),
    number: int = 3,
    device: Annotated[str, Free] = "cpu",
    force: bool = False,
) -> Path:
    """A verb that counts how often it has worked."""
    if run.finished():
        return run.directory
    run.begin()
    file = run.directory / "times"
    file.write_text(str(int(file.read_text()) + 1 if file.exists() else 1))
    run.finish(file)
    return run.directory


@pytest.fixture
def times() -> Callable[..., int]:
    def run(**config: object) -> int:
        return int((doing(run_dir="run", **config) / "times").read_text())

    return run


def test_from_python_a_verb_is_the_same_run_as_from_a_command_line(times, here):
    from lightning_cfg.cli import main

    (here / "x.yaml").write_text("{guide: mine.guide, files: [a]}\n")
    main(doing, ["--config", "x.yaml", "run_dir=run"])
    assert times(files=("a",)) == 1  # short forms, defaults and tuples are the same
    with pytest.raises(UserError, match="did you mean 'number'"):
        times(nubmer=4)
    with pytest.raises(UserError, match="number must be int"):
        times(number="4")


def test_a_changed_input_or_source_is_another_run(times, here):
    assert times(files=["a"]) == times(files=["a"], device="cuda") == 1
    (here / "copy").write_text("a")
    assert times(files=["copy"]) == 1
    (here / "a").write_text("other")
    with pytest.raises(UserError, match=r"inputs.files.0: .* there, .* here"):
        times(files=["a"])
    (here / "mine.py").write_text(MINE + "# edited\n")
    with pytest.raises(UserError, match=r"inputs.guide.name: .* there, .* here"):
        times(files=["copy"])


def test_force_does_a_finished_run_again_and_another_one_is_still_refused(times):
    assert times() == times() == 1
    assert times(force=True) == 2
    assert times() == 2
    with pytest.raises(UserError, match="number: 3 there, 4 here"):
        times(number=4, force=True)


def test_a_run_of_an_older_version_is_told_in_a_line_and_may_be_done_again(times, here):
    times()
    for name in ("identity.json", "manifest.json"):
        older = json.loads((here / "run" / name).read_text())
        assert older.pop("format") == FORMAT
        (here / "run" / name).write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"^run was made by an older version .* force=true"):
        times()
    assert times(force=True) == 2
    assert times() == 2


def test_the_manifest_says_by_which_commit_it_was_made(times, here):
    import subprocess

    times()
    told = json.loads((here / "run/manifest.json").read_text())["git"]
    package = Path(__file__).parent.parent
    asked = subprocess.run(
        ["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if asked.returncode == 0 and Path(sys.modules["lightning_cfg"].__file__).is_relative_to(
        package
    ):
        assert told["commit"] == asked.stdout.strip()
        assert isinstance(told["clean"], bool)
