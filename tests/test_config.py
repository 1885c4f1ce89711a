"""Configuration: every spelling, type and mistake, on toy verbs and toy modules."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from lightning_cfg import cli, config
from lightning_cfg.config import Choice, Keywords, Verb, build, dump, identity_difference, load
from lightning_cfg.config.schema import choices
from lightning_cfg.errors import Diverged, UserError

TOY = '''
from __future__ import annotations
from collections.abc import Iterable
from pathlib import Path

LIMIT = 3

def unguided(model): return model

def classifier_free(model, *, scale: float = 1.5, interval: tuple[float, ...] = (0.0, 1.0)):
    return model, scale, interval

def autoguidance(model, weak, *, scale: float, power: int = 2): return model, weak, scale

class Interval:
    def __init__(self, model, *, low: float = 0.1, inner: bool | None = None, key=print): ...

def open_ended(model, *, scale: float = 2.0, **others): return scale, others

def _hidden(model): ...

class Machine:
    def __init__(self, *, steps: int = -1, batches: int | float | None = None,
                 fast: bool = False, logger: Path | Iterable[Path] | bool | None = None,
                 strategy: str | Path = "auto"): ...

def toy_train(*, lr: float = 1e-3, guide: Annotated[dict, Choice("toy")] = "classifier_free",
              seed: int = 0, steps: int):
    """Train."""
'''

NOT_A_TEXT = (
    "write it without quotes, or where it comes from the environment ${oc.decode:${oc.env:NAME}}"
)
Guide = Annotated[dict, Choice("toy")]
Machine = Annotated[dict, Keywords("toy.Machine")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with the toy modules, from which everything is run."""
    (tmp_path / "toy.py").write_text(
        TOY.replace(
            "from pathlib",
            "from typing import Annotated\nfrom lightning_cfg.config import Choice\nfrom pathlib",
            1,
        )
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "idea.py").write_text(
        "def guide(model, *, strength: float = 3.0): return model, strength\n"
    )
    (tmp_path / "mine" / "broken.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "toy_train.py").write_text("from toy import toy_train\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("toy", "toy_train", "mine", "mine.idea", "mine.broken"):
        sys.modules.pop(name, None)


def read(verb, text, *overrides):
    with open("x.yaml", "w") as file:
        file.write(text)
    return load(verb, "x.yaml", list(overrides))


def refused(verb, text, *overrides):
    with pytest.raises(UserError) as caught:
        read(verb, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def numbers(
    *,
    lr: float = 0.1,
    steps: int = 5,
    flag: bool = False,
    text: str = "a",
    maybe: int | None = None,
    either: int | float = 1,
    mode: Literal["ema", "raw", 3] = "ema",
    lengths: list[int] = (1, 2),
    widths: tuple[float, ...] = (1.0,),
    pair: tuple[int, str] = (1, "a"),
    table: dict[str, float] | None = None,
    free: dict | None = None,
    anything: Any = None,
    endless: Annotated[float, config.Positive, config.Infinite] = 1.0,
):
    """All kinds of numbers.

    A second paragraph.
    """


def study(
    *,
    run_dir: str,
    seed: int = 0,
    guide: Guide = "unguided",
    fits: dict[str, Annotated[dict, Verb("toy_train.toy_train", without=("seed",))]],
    list_of: list[Guide] = (),
    other: Guide | None = None,
    trainer: Machine,
):
    """A study of toys."""


# Types


def test_defaults_come_from_the_signature():
    got = read(numbers, "")
    assert got == {
        "lr": 0.1,
        "steps": 5,
        "flag": False,
        "text": "a",
        "maybe": None,
        "either": 1,
        "mode": "ema",
        "lengths": [1, 2],
        "widths": (1.0,),
        "pair": (1, "a"),
        "table": None,
        "free": None,
        "anything": None,
        "endless": 1.0,
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        ("lr=1e-3", 1e-3),
        ("lr=3", 3.0),
        ("endless=.inf", float("inf")),
        ("endless=2", 2.0),
        ("lr=1_000.5", 1000.5),
        ("steps=400_000", 400000),
        ("steps=1e5", 100000),
        ("steps=2.0", 2),
        ("steps=-3", -3),
        ("flag=true", True),
        ("text=heun", "heun"),
        ("text='12'", "12"),
        ("text=''", ""),
        ("text=a=b", "a=b"),
        ("maybe=null", None),
        ("maybe=4", 4),
        ("either=1.0", 1.0),
        ("either=1", 1),
        ("mode=raw", "raw"),
        ("mode=3", 3),
        ("lengths=[3,4]", [3, 4]),
        ("lengths=[]", []),
        ("widths=[1, 2.5]", (1.0, 2.5)),
        ("pair=[2,b]", (2, "b")),
        ("table={a: 1}", {"a": 1.0}),
        ("table.a=1", {"a": 1.0}),
        ("table={5: 1}", {"5": 1.0}),
        ("free={a: [1, b]}", {"a": [1, "b"]}),
        ("anything=[1, x]", [1, "x"]),
    ],
)
@pytest.mark.parametrize("form", ["command", "dashes", "file"])
def test_a_value_is_read_as_its_type(given, expected, form):
    key, _, text = given.partition("=")
    if form == "file" and "." not in key:
        got = read(numbers, f"{key}: {text}\n")[key]
    else:
        got = read(numbers, "", ("--" if form == "dashes" else "") + given)[key.split(".")[0]]
    assert got == expected
    assert type(got) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert list(map(type, got)) == list(map(type, expected))


@pytest.mark.parametrize(
    "given, message",
    [
        ("lr=fast", "lr must be float, not 'fast'"),
        ("lr=true", "lr must be float, not True"),
        ("lr=.inf", "lr must be float, not inf (it has to be finite)"),
        ("lr=.nan", "lr must be float, not nan (it has to be finite)"),
        ("endless=.nan", "endless must be float above 0 or .inf, not nan"),
        ("endless=-.inf", "endless must be float above 0 or .inf, not -inf"),
        ("maybe=.nan", "maybe must be int or null, not nan"),
        ("lr=null", "lr must be float, not null"),
        ("steps=2.5", "steps must be int, not 2.5"),
        ("steps=true", "steps must be int, not True"),
        ("steps='3'", f"steps must be int, not the text '3': {NOT_A_TEXT}"),
        ("steps=.inf", "steps must be int, not inf"),
        ("flag=1", "flag must be bool, not 1"),
        ("text=12", "text must be str, not 12 (put it in quotes)"),
        ("text=off", "text must be str, not False (put it in quotes)"),
        ("maybe=x", "maybe must be int or null, not 'x'"),
        ("mode=rwa", "mode must be one of 'ema', 'raw', 3, not 'rwa'"),
        ("mode=true", "mode must be one of 'ema', 'raw', 3, not True"),
        ("lengths=3", "lengths must be list of int, not 3"),
        ("lengths=[1, x]", "lengths[1] must be int, not 'x'"),
        ("pair=[1, b, 3]", "pair must have 2 items, not [1, 'b', 3]"),
        ("table={a: {b: x}}", "table.a must be float, not {'b': 'x'}"),
        ("table=3", "table must be section of float or null, not 3"),
    ],
)
def test_a_wrong_type_names_the_key_and_where_it_stands(given, message):
    assert refused(numbers, "", given) == f"command line: {message}"
    key, _, text = given.partition("=")
    assert refused(numbers, f"{key}: {text}\n") == f"x.yaml: {message}"


# Keys and overrides


def test_unknown_key_names_the_nearest():
    assert refused(numbers, "stepz: 3") == "x.yaml: unknown key 'stepz'; did you mean 'steps'?"
    message = refused(numbers, "", "--stepz=3")
    assert message == "command line: unknown key 'stepz'; did you mean 'steps'?"
    message = refused(numbers, "zzz: 3")
    assert message.startswith("x.yaml: unknown key 'zzz'; numbers has the keys lr, steps, ")


def test_last_override_wins_over_file_and_default():
    assert read(numbers, "steps: 6")["steps"] == 6
    assert read(numbers, "steps: 6", "steps=7", "--steps=8")["steps"] == 8


@pytest.mark.parametrize("override", ["steps", "--steps", "=3", "a..b=3", ".a=3", "a.=3"])
def test_malformed_override(override):
    assert f"'{override}' is not an override; write key=value" in refused(numbers, "", override)


def test_override_without_value_or_with_broken_yaml():
    message = refused(numbers, "", "text=")
    assert message.startswith("command line: 'text=' has no value; write text=null")
    message = refused(numbers, "", "lengths=[1")
    assert message.startswith("command line: 'lengths=[1', line 1: not yaml")


def test_override_below_a_number():
    assert refused(numbers, "steps: 3", "steps.a=1") == (
        "command line: 'steps.a': steps is 3, not a section"
    )


# Choices


def one(*, guide: Guide, weak: int = 0):
    """One choice."""


def test_choice_fills_in_the_defaults_of_what_it_names():
    expected = {"name": "classifier_free", "scale": 1.5, "interval": (0.0, 1.0)}
    assert read(one, "guide: {name: classifier_free}")["guide"] == expected
    assert read(one, "guide: classifier_free")["guide"] == expected
    assert read(one, "", "guide=classifier_free")["guide"] == expected
    assert read(one, "", "guide.name=classifier_free")["guide"] == expected
    assert read(one, "guide: classifier_free", "guide.scale=3")["guide"]["scale"] == 3.0


def test_choice_of_a_class_leaves_defaults_that_yaml_cannot_hold_to_it():
    got = read(one, "guide: {name: Interval, low: 1}")["guide"]
    assert got == {"name": "Interval", "low": 1.0, "inner": None}


def test_choice_with_open_keywords_passes_them_on():
    got = read(one, "guide: {name: open_ended, extra: [1]}")["guide"]
    assert got == {"name": "open_ended", "scale": 2.0, "extra": [1]}
    assert build("toy", got, "model") == (2.0, {"extra": [1]})


def test_choice_may_be_anyones_own():
    got = read(one, "guide: {name: mine.idea.guide}")["guide"]
    assert got == {"name": "mine.idea.guide", "strength": 3.0}
    assert build("toy", got, "model") == ("model", 3.0)


@pytest.mark.parametrize(
    "guide, message",
    [
        ("classifier_fre", "guide.name: no 'classifier_fre' in toy; did you mean 'classifier"),
        (
            "qqq",
            "guide.name: no 'qqq' in toy; it has unguided, classifier_free, autoguidance, "
            "Interval, open_ended, Machine, toy_train",
        ),
        ("_hidden", "guide.name: no '_hidden' in toy; "),
        ("LIMIT", "guide.name: no 'LIMIT' in toy; "),
        ("Path", "guide.name: no 'Path' in toy; "),  # imported there, not defined
        ("nowhere.guide", "cannot import 'nowhere' of 'nowhere.guide': No module named 'nowhere'"),
        ("mine.broken.guide", "No module named 'there_is_no_such_module'"),
        ("mine.idea.giude", "guide.name: module 'mine.idea' has no function or class 'giude'"),
        ("[a]", "guide must be a name in toy or a section {name: ...}, not ['a']"),
        ("{scale: 3}", "guide.name must be one of unguided, "),
        ("{name: 3}", "guide.name must be one of unguided, "),
        ("", "guide.name must be one of unguided, "),
        ("{name: classifier_free, model: 3}", "unknown key 'guide.model'; classifier_free has"),
        ("{name: classifier_free, scael: 3}", "'guide.scael'; did you mean 'guide.scale'?"),
        ("{name: classifier_free, scale: big}", "guide.scale must be float, not 'big'"),
        ("autoguidance", "guide.scale is missing: autoguidance needs it, float"),
    ],
)
def test_a_wrong_choice(guide, message):
    answer = refused(one, f"guide: {guide}")
    assert answer.startswith("x.yaml: ")
    assert message in answer


def test_all_decides_what_can_be_chosen(here):
    (here / "toy.py").write_text(TOY.replace("LIMIT = 3", "__all__ = ['unguided', 'Path']"))
    assert choices("toy") == ["unguided", "Path"]


def test_a_changed_name_refuses_the_keys_of_the_old_one():
    text = "guide: {name: classifier_free, scale: 2}"
    message = refused(one, text, "guide.name=unguided")
    assert message == "x.yaml: unknown key 'guide.scale'; unguided has no keys"
    assert read(one, text, "guide=unguided")["guide"] == {"name": "unguided"}
    assert read(one, text, "guide={name: unguided}")["guide"] == {"name": "unguided"}


def test_missing_section():
    assert refused(one, "weak: 3").startswith("x.yaml: guide is missing: one needs it")


def test_default_choice_is_kept_when_only_its_number_is_given():
    def verb(*, guide: Guide = {"name": "autoguidance", "scale": 2}):  # noqa: B006
        pass

    assert read(verb, "")["guide"] == {"name": "autoguidance", "scale": 2.0, "power": 2}
    got = read(verb, "", "guide.power=3")["guide"]
    assert got == {"name": "autoguidance", "scale": 2.0, "power": 3}
    assert read(verb, "guide: unguided")["guide"] == {"name": "unguided"}
    assert read(verb, "")["guide"]["power"] == 2  # the default itself was not changed


def test_a_given_table_of_choices_replaces_the_default_one():
    def verb(*, table: dict[str, Guide] = {"old": {"name": "unguided"}}):  # noqa: B006
        pass

    assert list(read(verb, "")["table"]) == ["old"]
    assert read(verb, "table: {new: unguided}")["table"] == {"new": {"name": "unguided"}}


# Keywords, nested verbs


def test_keywords_keep_only_what_is_given():
    def verb(*, trainer: Machine):
        pass

    assert read(verb, "")["trainer"] == {}
    assert read(verb, "trainer:")["trainer"] == {}
    assert read(verb, "trainer: {steps: 1e3, batches: 1.0, logger: false}")["trainer"] == {
        "steps": 1000,
        "batches": 1.0,
        "logger": False,
    }
    # in the Trainer 1.0 means all batches and 1 means one
    assert type(read(verb, "trainer: {batches: 1.0}")["trainer"]["batches"]) is float
    assert type(read(verb, "trainer: {batches: 1}")["trainer"]["batches"]) is int
    message = refused(verb, "", "trainer.stepz=3")
    assert message == "command line: unknown key 'trainer.stepz'; did you mean 'trainer.steps'?"
    assert refused(verb, "trainer: {fast: 3}") == "x.yaml: trainer.fast must be bool, not 3"
    assert "trainer.logger must be list of Path, bool or null, not 'csv'" in refused(
        verb, "trainer: {logger: csv}"
    )


def test_an_empty_section_of_keywords_imports_nothing():
    def verb(*, trainer: Annotated[dict, Keywords("no_such_module.Machine")]):
        pass

    assert read(verb, "trainer: {}")["trainer"] == {}
    assert "cannot import 'no_such_module'" in refused(verb, "trainer: {a: 1}")


def test_types_imported_for_type_checkers_only_leave_the_names_checked(here):
    (here / "mine" / "idea.py").write_text(
        "from __future__ import annotations\n"
        "def guide(model: Elsewhere, *, strength: float = 3.0): ...\n"
    )
    assert read(one, "guide: mine.idea.guide")["guide"]["strength"] == 3.0
    assert "did you mean 'guide.strength'?" in refused(
        one, "guide: {name: mine.idea.guide, strenght: 2}"
    )


def test_lightning_trainer_keys_are_checked():
    def verb(*, trainer: config.TrainerKeys):
        pass

    got = read(verb, "trainer: {max_steps: 400_000, precision: bf16-mixed, devices: 1}")["trainer"]
    assert got == {"max_steps": 400000, "precision": "bf16-mixed", "devices": 1}
    message = refused(verb, "trainer: {max_stepz: 3}")
    assert message == "x.yaml: unknown key 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"
    message = refused(verb, "trainer: {max_steps: many}")
    assert message == "x.yaml: trainer.max_steps must be int of at least 1, not 'many'"
    assert "trainer.precision must be" in refused(verb, "trainer: {precision: bf17}")


STUDY = """
seed: 4
fits:
  base: {steps: 10, lr: 1e-4}
  classifier:
    steps: ${fits.base.steps}
    guide: {name: classifier_free, scale: "${seed}"}
"""


def test_a_study_nests_verbs():
    got = read(study, STUDY)
    assert got["run_dir"] == "runs/x"
    assert got["fits"]["base"] == {
        "lr": 1e-4,
        "steps": 10,
        "guide": {"name": "classifier_free", "scale": 1.5, "interval": (0.0, 1.0)},
    }
    assert got["fits"]["classifier"]["steps"] == 10
    assert got["fits"]["classifier"]["guide"]["scale"] == 4.0
    assert type(got["fits"]["classifier"]["guide"]["scale"]) is float
    assert got["guide"] == {"name": "unguided"}
    assert got["list_of"] == []
    assert got["other"] is None
    assert read(study, STUDY, "run_dir=there")["run_dir"] == "there"


def test_overrides_and_interpolations_reach_into_nested_sections():
    got = read(study, STUDY, "fits.base.steps=20", "--seed=9", "fits.base.guide.scale=3")
    assert got["fits"]["classifier"]["steps"] == 20  # interpolated after the overrides
    assert got["fits"]["classifier"]["guide"]["scale"] == 9.0
    assert got["fits"]["base"]["guide"]["scale"] == 3.0


@pytest.mark.parametrize(
    "override, message",
    [
        ("fits.base.lrr=1", "unknown key 'fits.base.lrr'; did you mean 'fits.base.lr'?"),
        ("fits.base.seed=1", "unknown key 'fits.base.seed'; "),  # the study gives it
        ("fits.base.guide.scael=1", "'fits.base.guide.scael'; did you mean 'fits.base.guide.sca"),
        ("fits.base.lr=x", "fits.base.lr must be float, not 'x'"),
        ("fits.new.lr=1", "fits.new.steps is missing: toy_train needs it, int"),
        ("other.scale=1", "other.name must be one of unguided, "),
        ("other=classifier_fre", "other.name: no 'classifier_fre' in toy; did you mean"),
        ("list_of=[unguided, {name: x}]", "list_of[1].name: no 'x' in toy"),
    ],
)
def test_mistakes_in_nested_sections_have_their_full_path(override, message):
    answer = refused(study, STUDY, override)
    assert answer.startswith("command line: ")
    assert message in answer


def test_list_and_optional_sections():
    got = read(
        study, STUDY, "list_of=[unguided, {name: classifier_free, scale: 2}]", "other=unguided"
    )
    assert [section["name"] for section in got["list_of"]] == ["unguided", "classifier_free"]
    assert got["list_of"][1]["interval"] == (0.0, 1.0)
    assert got["other"] == {"name": "unguided"}


# Interpolation


def test_interpolation_refers_to_defaults_and_to_whole_sections(monkeypatch):
    monkeypatch.setenv("TOY_HOME", "/there")
    got = read(
        study,
        STUDY + "guide: ${fits.base.guide}\n"
        "list_of: [{name: classifier_free, scale: '${fits.base.guide.scale}'}]\n",
        "run_dir=${oc.env:TOY_HOME}/a",
    )
    assert got["guide"] == got["fits"]["base"]["guide"]
    assert got["list_of"][0]["scale"] == 1.5  # a default, which no file has
    assert got["run_dir"] == "/there/a"


def test_interpolated_name_and_type():
    text = "guide: {name: '${other}'}\nother: classifier_free\n"

    def verb(*, guide: Guide, other: str):
        pass

    assert read(verb, text)["guide"]["scale"] == 1.5
    message = refused(verb, text, "guide.scale=${other}")
    assert message == "command line: guide.scale must be float, not 'classifier_free'"


def of_many_kinds(
    *,
    scale: float | Annotated[Callable, Choice("toy")] = 1.0,
    steps: int = 1,
    marked: Annotated[float, "above 0"] | Annotated[Callable, Choice("toy")] = 1.0,
    size: int | Literal["auto"] = "auto",
    fast: bool | Literal["json"] = False,
    weights: str | int = "ema",
    name: str = "",
    several: list[float] = (),
):
    pass


@pytest.mark.parametrize(
    "key, text, kind",
    [
        ("scale", "2.5", "float or a name in toy or a section {name: ...}"),
        ("marked", "1e-3", "float or a name in toy or a section {name: ...}"),
        ("steps", "8", "int"),
        ("size", "8", "int or 'auto'"),
        ("fast", "true", "bool or 'json'"),
        ("several[0]", "-1", "float"),
    ],
)
def test_a_number_from_the_environment_is_told_as_what_it_is(monkeypatch, key, text, kind):
    monkeypatch.setenv("TOY_NUMBER", text)
    name, inside = key.removesuffix("[0]"), "[{}]" if "[" in key else "{}"
    line = f"{name}: " + inside.format("'${oc.env:TOY_NUMBER}'")
    assert refused(of_many_kinds, line) == (
        f"x.yaml: {key} must be {kind}, not the text '{text}': {NOT_A_TEXT}"
    )
    line = f"{name}: " + inside.format("'${oc.decode:${oc.env:TOY_NUMBER}}'")
    meant = {"2.5": 2.5, "1e-3": 0.001, "8": 8, "true": True, "-1": [-1.0]}[text]
    assert read(of_many_kinds, line)[name] == meant


@pytest.mark.parametrize(
    "key, text", [("weights", "8"), ("name", "8"), ("size", "auto"), ("fast", "json")]
)
def test_a_text_from_the_environment_is_one(monkeypatch, key, text):
    monkeypatch.setenv("TOY_TEXT", text)
    assert read(of_many_kinds, f"{key}: '${{oc.env:TOY_TEXT}}'")[key] == text


@pytest.mark.parametrize(
    "value, message",
    [
        ("${sed}", "text: Interpolation key 'sed' not found"),
        ("${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("${text}", "text: "),
        ("${nonsense:3}", "Unsupported interpolation type nonsense"),
        ("${sed", "text: no viable alternative"),
    ],
)
def test_a_broken_interpolation_names_its_key(value, message):
    answer = refused(numbers, f"text: {value}")
    assert answer.startswith("x.yaml: text: ")
    assert message in answer


# Files


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: [1\nc: 2\n", "x.yaml, line 3: not yaml: did not find expected ',' or ']'"),
        ("a: 1\na: 2\n", "x.yaml, line 2: not yaml: found duplicate key a"),
        ("\tsteps: 3", "x.yaml, line 1: not yaml: found character"),
        ("hello", "x.yaml: must be a mapping of keys to values, not 'hello'"),
        ("- 1\n- 2\n", "x.yaml: must be a mapping of keys to values, not [1, 2]"),
    ],
)
def test_a_broken_file(text, message):
    assert refused(numbers, text).startswith(message)


def test_unreadable_files(here):
    with pytest.raises(UserError, match=r"cannot read the config file 'no.yaml': No such file"):
        load(numbers, "no.yaml", [])
    with pytest.raises(UserError, match="directory"):
        load(numbers, str(here), [])
    (here / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        load(numbers, "bytes.yaml", [])


# What is written


def test_dump_loads_back(here):
    strings = ["1e-3", "null", "a\nb", "é", "on", "${not} one", "1_000", "", "2020-01-01"]
    given = read(numbers, "", "lr=1e-05", "steps=400_000", "table={a: 1e16}")
    given["free"] = {"strings": strings, "empty": {}, "list": [[1], []]}
    (here / "again.yaml").write_text(dump(given))
    again = load(numbers, "again.yaml", [])
    assert again == given
    assert repr(again) == repr(given)  # the types too: 1 is not 1.0
    assert yaml.safe_load(dump(given))["widths"] == [1.0]  # ordinary yaml, no tags


def test_dump_of_a_study_loads_back(here):
    given = read(study, STUDY)
    (here / "again.yaml").write_text(dump(given))
    assert load(study, "again.yaml", []) == given


def test_identity_difference():
    a = {"learner": {"lr": 1e-3, "name": "D"}, "shape": (1, 2), "seed": 0}
    assert identity_difference(a, {**a, "shape": [1, 2]}) is None
    b = {**a, "learner": {"lr": 3e-4, "name": "D"}}
    assert identity_difference(a, b) == "learner.lr: 0.001 there, 0.0003 here"
    assert identity_difference(a, {**a, "new": 0}) == "new: nothing there, 0 here"
    assert identity_difference({**a, "old": None}, {**a, "old": 0}) == "old: null there, 0 here"
    # a run of before there was a key `limit`, say, is the same with its default
    assert identity_difference(a, {**a, "new": None}) is None
    assert identity_difference({**a, "old": None}, a) is None
    assert identity_difference({**a, "old": {"x": 1}}, a) == "old: {'x': 1} there, nothing here"


# The command line


def run_main(monkeypatch, verb, *argv):
    monkeypatch.setattr(sys, "argv", ["verb", *argv])
    cli.main(verb)


def test_main_calls_the_verb_with_the_config(here, monkeypatch):
    calls = []

    def verb(*, run_dir: str, steps: int = 3):
        calls.append((run_dir, steps))

    (here / "toy_run.yaml").write_text("steps: 4\n")
    run_main(monkeypatch, verb, "--config", "toy_run.yaml")
    run_main(monkeypatch, verb, "steps=5", "--config=toy_run.yaml", "--run_dir=there")
    assert calls == [("runs/toy_run", 4), ("there", 5)]


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UserError("no\nsuch thing"), 2, "lightning_cfg: error: no such thing\n"),
        (Diverged("at step 3"), 1, "lightning_cfg: error: at step 3\n"),
        (KeyboardInterrupt(), 130, "lightning_cfg: interrupted\n"),
    ],
)
def test_main_answers_in_one_line(here, monkeypatch, capsys, error, status, line):
    def verb():
        raise error

    (here / "x.yaml").write_text("")
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, verb, "--config", "x.yaml")
    assert stopped.value.code == status
    assert capsys.readouterr().err == line


def test_print_config_prints_what_would_be_run(here, monkeypatch, capsys):
    (here / "x.yaml").write_text(STUDY)
    run_main(monkeypatch, study, "--config", "x.yaml", "--print-config", "seed=7")
    (here / "again.yaml").write_text(capsys.readouterr().out)
    assert load(study, "again.yaml", []) == load(study, "x.yaml", ["seed=7"])
    assert [path for path in here.iterdir() if path.name == "runs"] == []  # nothing was written


def test_help_lists_the_keys(here, monkeypatch, capsys):
    run_main(monkeypatch, numbers, "--help")
    out = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    usage = "usage: python -m lightning_cfg.numbers --config FILE"
    assert out.startswith(f"All kinds of numbers.\n\n{usage}")
    assert rows["lr"] == "float; default 0.1"
    assert rows["maybe"] == "int or null; default null"
    run_main(monkeypatch, study, "--help")
    out = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    assert rows["guide.name"].startswith("one of unguided, classifier_free, ")
    assert rows["trainer"] == "keys of toy.Machine; required"
    assert rows["fits.NAME.steps"] == "int; required"
    assert "fits.NAME.seed" not in rows
    assert "other.scale" not in rows
    (here / "x.yaml").write_text("other: classifier_free\n")
    run_main(monkeypatch, study, "--help", "--config", "x.yaml")
    out = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    assert rows["other.scale"] == "float; default 1.5"


VERBS = ("fit", "generate", "pair", "refine", "evaluate", "trace", "tune", "study")


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_cannot_be_read_is_told_before_torch_is_imported(here, verb):
    (here / "bad.yaml").write_text("steps: [4")
    (here / "good.yaml").write_text("steps: 4")
    code = f"""
import sys
from lightning_cfg import cli
for words in {EARLY!r}:
    try:
        cli.main({verb!r}, list(words))
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules, "numpy" in sys.modules)
"""
    root = str(Path(config.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.splitlines() == ["2 False False"] * len(EARLY)
    assert done.stderr.splitlines() == [f"lightning_cfg: error: {text}" for text in EARLY.values()]


EARLY = {
    ("--config", "no.yaml"): "cannot read the config file 'no.yaml': No such file or directory",
    ("--config", "bad.yaml"): "bad.yaml, line 1: not yaml: did not find expected ',' or ']'",
    ("--config", "good.yaml", "steps"): "command line: 'steps' is not an override; write key=value",
    ("--config",): "needs --config FILE",
    (): "needs --config FILE",
}


def test_the_file_may_be_a_pipe(here, monkeypatch, capsys):
    pipe = here / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("lr: 3\n",))
    writer.start()
    run_main(monkeypatch, numbers, "--config", str(pipe), "--print-config", "steps=7")
    writer.join()
    written = yaml.safe_load(capsys.readouterr().out)
    assert (written["lr"], written["steps"]) == (3.0, 7)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [
        "lightning_cfg",
        "lightning_cfg --version",
        "lightning_cfg.study --help",
        "lightning_cfg.study --config QUICK --print-config",
        "lightning_cfg study --config QUICK plan=true run_dir=run",
        "lightning_cfg.assets",
    ],
)
def test_a_reader_that_has_read_enough_ends_it_without_a_word(here, words, unbuffered):
    """As `study ... | head` does."""
    root = Path(config.__file__).parents[2]
    words = words.replace("QUICK", str(root / "conf/studies/fractal_quick.yaml"))
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", *words.split()],
        cwd=here,
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_somebody_else_is_not_taken_for_ones_own():
    with pytest.raises(BrokenPipeError, match="a worker's"), cli.answered():
        raise BrokenPipeError("a worker's")
