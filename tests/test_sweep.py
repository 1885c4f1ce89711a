"""A sweep file is W&B's, and its grid run here leaves a table, a plot, and nothing done twice."""

import csv
import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.toys import UNET

from lightning_cfg.cli import main
from lightning_cfg.config import load, resolve
from lightning_cfg.errors import UserError
from lightning_cfg.reports.sweep import against, axis, number, shortened
from lightning_cfg.runs import wandb_run
from lightning_cfg.runs.lock import Lock
from lightning_cfg.runs.names import SAMPLES
from lightning_cfg.verbs import sweep
from lightning_cfg.verbs.evaluate import evaluate
from lightning_cfg.verbs.fit import fit

FILES = sorted((ROOT / "launch").glob("sweep_*.yaml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, training) -> dict[str, str]:
    """A base model of small images and a judge of them."""
    root = tmp_path_factory.mktemp("trained")
    small = {
        "data": {"name": "helpers.toys.Halves"},
        "batch_size": 16,
        "trainer": {"max_steps": 20},
    }
    base = training(**small, net=UNET)
    judge = training(
        **small, net={"name": "ConvNet", "channels": 4}, model={"name": "NoisyClassifier"},
        learner={"name": "Classification", "ema_half_life": [50]},
    )  # fmt: skip
    return {
        name: str(fit(**config, run_dir=str(root / name)))
        for name, config in (("base", base), ("judge", judge))
    }


@pytest.fixture
def here(tmp_path, monkeypatch, trained) -> Path:
    """A folder with an `evaluate` config and a sweep of two scales and two models."""
    monkeypatch.chdir(tmp_path)
    config = {
        "generate": {"guided": {
            "models": {"model": trained["base"]}, "n": 40, "batch_size": 40, "device": "cpu",
            "guidance": {"name": "classifier_free", "scale": 1.0},
            "sampler": {"name": "heun", "steps": 2},
        }},
        "data": {"name": "helpers.toys.Halves"},
        "features": {"judge": {"name": "classifier", "path": trained["judge"]}},
        "metrics": [{"name": "frechet_features", "allow_few": True}],
        "by_class": False, "device": "cpu",
        "run_dir": "runs/${generate.guided.guidance.name}_${generate.guided.guidance.scale}",
    }  # fmt: skip
    del config["generate"]["guided"]["device"]
    Path("evaluate.yaml").write_text(yaml.safe_dump(config))
    write()
    return tmp_path


def write(**change: object) -> None:
    asked = {
        "command": ["${env}", "${interpreter}", "-m", "lightning_cfg.evaluate", "--config",
                    "evaluate.yaml", "logger=wandb", "${args_no_hyphens}"],
        "method": "grid",
        "parameters": {
            "generate.guided.guidance.name": {"values": ["classifier_free", "apg"]},
            "generate.guided.guidance.scale": {"values": [1.0, 2.0]},
            "seed": {"value": 0},
        },
    }  # fmt: skip
    Path("sweep.yaml").write_text(yaml.safe_dump({**asked, **change}, sort_keys=False))


@pytest.fixture
def within(monkeypatch) -> list[list[str]]:
    """Runs are made in this process, which spares their imports; the commands that there were."""
    commands = []

    def run(row: sweep.Row) -> None:
        commands.append(row.command)
        _, _, module, *words = row.command
        monkeypatch.setattr(sys, "argv", [module, *words])
        try:
            name = module.rpartition(".")[2]
            main(resolve("", f"lightning_cfg.verbs.{name}.{name}"))
        except SystemExit as stop:
            row.failed = stop.code

    monkeypatch.setattr(sweep, "run", run)
    return commands


def table() -> list[dict]:
    with open("runs/sweep/table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_table_and_one_plot(here, within, capsys):
    assert sweep.main(["sweep.yaml"]) == 0
    rows = [row for row in table() if row["samples"] == "guided"]
    swept = [(row["name"], float(row["scale"])) for row in rows]
    assert swept == [*itertools.product(["classifier_free", "apg"], [1.0, 2.0])]
    for row in rows:
        own = Path(f"runs/{row['name']}_{float(row['scale'])}/metrics/metrics.json")
        (scored,) = (r for r in json.loads(own.read_text()) if r["samples"] == "guided")
        assert float(row["fd_judge"]) == pytest.approx(scored["fd_judge"], rel=1e-5)
    assert len({row["fd_judge"] for row in rows}) == 3  # at scale 1 both are the same model
    assert Path("runs/sweep/against_scale.png").is_file()
    assert "| classifier_free | 2 |" in capsys.readouterr().out


def test_what_has_finished_is_not_done_again(here, within, monkeypatch, capsys):
    """Of the real side every run but the first asks the cache: no network sees it again."""
    from lightning_cfg.evaluation import reference
    from lightning_cfg.evaluation.build import real_side

    seen, gather = [], reference.gather
    monkeypatch.setattr(reference, "gather", lambda *a, **k: seen.append(a) or gather(*a, **k))
    monkeypatch.setenv("LIGHTNING_CFG_CACHE", str(here / "cache"))
    run = sweep.run

    def in_a_new_process(row: sweep.Row) -> None:
        real_side.cache_clear()  # what a process remembers of the one before it
        run(row)

    monkeypatch.setattr(sweep, "run", in_a_new_process)
    assert sweep.main(["sweep.yaml"]) == 0
    asked = [args for args in seen if args[2]]  # with a feature space
    assert len(within) == 4
    assert len(asked) == 1
    kept = {file: file.stat().st_mtime_ns for file in (here / "cache").iterdir()}
    assert len(kept) == 1
    manifests = {p: p.stat().st_mtime_ns for p in here.glob("runs/*/manifest.json")}
    first = table()
    capsys.readouterr()
    assert sweep.main(["sweep.yaml"]) == 0
    assert capsys.readouterr().out.count("finished already") == 4
    assert {p: p.stat().st_mtime_ns for p in here.glob("runs/*/manifest.json")} == manifests
    assert {file: file.stat().st_mtime_ns for file in (here / "cache").iterdir()} == kept
    assert table() == first


def test_results_of_other_settings_are_left_out(here, within, capsys):
    """A report of a file that has been changed since: it does not show the older numbers."""
    assert sweep.main(["sweep.yaml"]) == 0
    before = table()
    assert sweep.main(["sweep.yaml", "--report"]) == 0
    assert (table(), capsys.readouterr().err) == (before, "")
    changed = {"generate.guided.guidance.name": {"values": ["classifier_free", "apg"]}}
    changed |= {"generate.guided.guidance.scale": {"values": [1.0, 2.0]}, "seed": {"value": 1}}
    write(parameters=changed)
    assert sweep.main(["sweep.yaml", "--report"]) == 0
    out, err = capsys.readouterr()
    assert not any(row.get("fd_judge") for row in table())
    assert len(err.strip().splitlines()) == 4
    assert "left out, its result is of other settings (settings.seed: 0 there, 1 here)" in err
    assert "0 of 4 runs" in out


def test_a_sweep_that_another_process_runs_is_refused(here, within):
    lock = Lock(Path("runs/sweep"))
    lock.take()
    with pytest.raises(UserError, match="runs/sweep is being written by process"):
        sweep.main(["sweep.yaml"])
    lock.release()
    assert within == []


def test_two_files_of_one_name_do_not_share_a_table(here, within):
    rows = {"parameters": {"generate.guided.guidance.scale": {"value": 1.0}}}
    write(**rows)
    assert sweep.main(["sweep.yaml"]) == 0
    kept = Path("runs/sweep/table.csv").read_text()
    Path("other").mkdir()
    Path("sweep.yaml").rename("other/sweep.yaml")
    write(**rows)
    assert sweep.main(["sweep.yaml"]) == 0  # after a file was moved, its folder is free
    started = len(within)
    with pytest.raises(UserError, match=r"has the table of .*sweep.yaml: rename one of the two"):
        sweep.main(["other/sweep.yaml"])
    assert (len(within), Path("runs/sweep/table.csv").read_text()) == (started, kept)
    assert not Path("runs/sweep/.lock").exists()


def test_a_run_that_fails_does_not_stop_the_others(here, within, capsys):
    write(parameters={"generate.guided.models.model": {"values": ["nowhere", "also_nowhere"]},
                      "generate.guided.guidance.scale": {"values": [1.0]}})  # fmt: skip
    config = yaml.safe_load(Path("evaluate.yaml").read_text())
    Path("also_nowhere").symlink_to(config["generate"]["guided"]["models"]["model"])
    config["run_dir"] = "runs/${generate.guided.models.model}"
    Path("evaluate.yaml").write_text(yaml.safe_dump(config))
    assert sweep.main(["sweep.yaml"]) == 1
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("failed with status 2: ")
    assert "model=nowhere" in last
    assert len(within) == 2
    assert "| nowhere | 1 | not finished |" in out
    assert [row["fd_judge"] != "" for row in table()] == [False, True]


def test_the_commands_are_those_that_run(here, within, capsys):
    assert sweep.main(["sweep.yaml", "--print", "device=cpu"]) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert within == []
    assert sweep.main(["sweep.yaml", "--index", "2", "device=cpu"]) == 0
    assert within == [printed[2]]
    assert printed[2][-2:] == ["seed=0", "device=cpu"]
    assert "logger=csv" in printed[2]
    assert "logger=wandb" not in printed[2]
    assert not Path("runs/sweep").exists()
    assert Path("runs/apg_1.0/manifest.json").is_file()
    assert sweep.main(["sweep.yaml", "--report"]) == 0
    assert len(within) == 1
    assert [row["fd_judge"] != "" for row in table()] == [False, False, True, False]


def test_from_the_command_line(here):
    """A real process for the sweep and for its one run; then a mistake, in one line."""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "lightning_cfg.sweep", "sweep.yaml", "--index", "1"]
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("runs/classifier_free_2.0/manifest.json").is_file()
    done = subprocess.run(
        [*command[:-1], "9"], env={**os.environ, **path}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "lightning_cfg: error: --index 9: sweep.yaml has runs 0 ... 3\n"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"method": "bayes"}, "method bayes needs W&B's server"),
        ({"parameters": {"seed": {"min": 0, "max": 1}}}, "parameters.seed must have value or"),
        ({"parameters": {"seed": {"values": []}}}, "parameters.seed.values is empty"),
        ({"early_terminate": {"type": "hyperband"}}, "'early_terminate' is not run here"),
        ({"parameters": {"sed": {"values": [1]}}}, "did you mean 'seed'"),
        ({"parameters": {"seed": {"values": [1, 2]}}}, "would both write to run_dir"),
        ({"command": ["${env}", "python", "train.py"]}, "starts no verb of ours"),
        ({"command": ["${args_json}"]}, "${args_json} is not known here"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(here, within, change, words):
    write(**change)
    with pytest.raises(UserError) as caught:
        sweep.main(["sweep.yaml"])
    assert words in str(caught.value)
    assert within == []


def test_a_missing_file():
    with pytest.raises(UserError, match=r"cannot read the sweep file 'no\.yaml'"):
        sweep.main(["no.yaml"])


def test_the_best_run_is_told_and_no_more_are_done_than_asked(here, within, capsys):
    write(run_cap=3, metric={"name": "fd_judge", "goal": "minimize"})
    assert sweep.main(["sweep.yaml"]) == 0
    assert len(within) == 3
    told = capsys.readouterr().out.splitlines()[-1]
    rows = [row for row in table() if row["samples"] != "real" and row["fd_judge"]]
    best = min(rows, key=lambda row: float(row["fd_judge"]))
    assert told.startswith(f"best fd_judge, {float(best['fd_judge']):.6g}: ")
    assert f"guidance.name={best['name']}" in told
    assert f"guidance.scale={float(best['scale'])}" in told
    write(run_cap=3, metric={"name": "nothing", "goal": "maximize"})
    assert sweep.main(["sweep.yaml", "--report"]) == 0
    assert "no run has the metric nothing" in capsys.readouterr().out


def test_a_sweep_of_a_verb_without_a_logger(here, within, trained):
    """`generate`, which has no such key; the values as W&B's agents write them, null among them."""
    made = yaml.safe_load(Path("evaluate.yaml").read_text())["generate"]["guided"]
    made["run_dir"] = "runs/made_${guidance.scale}"
    Path("made.yaml").write_text(yaml.safe_dump(made))
    write(
        command=["${env}", "${interpreter}", "-m", "lightning_cfg.generate", "--config",
                 "made.yaml", "${args_no_equals}"],
        parameters={"guidance.scale": {"values": ["1e-1", 2.0]}, "class_label": {"value": None}},
    )  # fmt: skip
    assert sweep.main(["sweep.yaml"]) == 0
    assert not any("logger" in word for command in within for word in command)
    assert [command[-4:] for command in within] == [
        ["--guidance.scale", "1e-1", "--class_label", "None"],
        ["--guidance.scale", "2.0", "--class_label", "None"],
    ]
    for scale in (0.1, 2.0):
        run = yaml.safe_load(Path(f"runs/made_{scale}/config.yaml").read_text())
        assert run["guidance"]["scale"] == scale
        assert run["class_label"] is None


def test_methods_that_need_other_networks(here, within, trained, capsys):
    """One config names all of them, and each method takes its own; the samples are the same."""
    made = yaml.safe_load(Path("evaluate.yaml").read_text())["generate"]["guided"]
    made["models"] = {"model": trained["base"], "weak": trained["base"]}
    alone = {**made, "models": {"model": trained["base"]}, "run_dir": "alone"}
    made |= {"spare_models": True, "run_dir": "runs/made_${guidance.name}"}
    made["guidance"]["scale"] = 2.0
    alone["guidance"] = {"name": "classifier_free", "scale": 2.0}
    Path("made.yaml").write_text(yaml.safe_dump(made))
    Path("alone.yaml").write_text(yaml.safe_dump(alone))
    write(
        name="two methods", description="each with its networks",
        command=["${env}", "${interpreter}", "-m", "lightning_cfg.generate", "--config",
                 "made.yaml", "${args_no_hyphens}"],
        parameters={"guidance.name": {"values": ["classifier_free", "autoguidance"]}},
    )  # fmt: skip
    assert sweep.main(["sweep.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.count("models.weak is left out, guidance classifier_free does not use it") == 1
    assert (
        Path("runs/sweep/table.md")
        .read_text()
        .startswith("two methods: each with its networks\n\n|")
    )
    sys.argv = ["generate", "--config", "alone.yaml"]
    main(resolve("", "lightning_cfg.verbs.generate.generate"))
    same = [Path(run, SAMPLES).read_bytes() for run in ("alone", "runs/made_classifier_free")]
    assert same[0] == same[1]
    made["spare_models"] = False
    Path("made.yaml").write_text(yaml.safe_dump(made))
    assert sweep.main(["sweep.yaml"]) == 1
    assert "spare_models=true leaves it out" in capsys.readouterr().err


def test_a_number_that_yaml_takes_for_a_text():
    assert [number(value) for value in ("1e-4", "a", 2.0, None)] == [1e-4, "a", 2.0, None]


def test_a_files_own_logger_project_and_entity(here, within, monkeypatch):
    write(project="ours", entity="team", command=[
        "${env}", "${interpreter}", "-m", "lightning_cfg.evaluate", "--config", "evaluate.yaml",
        "logger=wandb", "${args_no_hyphens}"])  # fmt: skip
    rows = sweep.rows_of(sweep.read("sweep.yaml"), ["logger=wandb"])
    assert rows[0].config["logger"] == "wandb"  # asked for beside the file
    assert rows[0].environment == {"WANDB_PROJECT": "ours", "WANDB_ENTITY": "team"}
    assert sweep.rows_of(sweep.read("sweep.yaml"), [])[0].config["logger"] == "csv"
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert wandb_run.project() == "ours"
    monkeypatch.delenv("WANDB_PROJECT")
    assert wandb_run.project() == "lightning_cfg"


# What is W&B's


def schema() -> dict:
    """The schema that W&B's server checks with, of its package `sweeps`."""
    spec = importlib.util.find_spec("sweeps")
    if spec is None or importlib.util.find_spec("jsonschema") is None:
        pytest.skip("needs W&B's schema: pip install jsonschema; pip install --no-deps sweeps")
    file = Path(spec.submodule_search_locations[0], "config/schema.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_of_wandbs_schema(file):
    known = schema()
    import jsonschema

    asked = yaml.safe_load(file.read_text())
    # W&B's own property takes any text, but its client sends `project` and `entity` apart
    assert list(jsonschema.Draft7Validator(known).iter_errors(asked)) == []
    wrong = {**asked, "method": "every"}
    assert list(jsonschema.Draft7Validator(known).iter_errors(wrong)) != []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_wandbs_client_makes_the_same_of_a_file(file):
    """It takes the file as it is, and its agent's arguments are those of our commands."""
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    asked = sweep.read(file)
    assert _validate_config_and_fill_distribution(asked) == asked
    for values in sweep.grid(asked):
        args = {"args": {name: {"value": value} for name, value in values.items()}}
        theirs = create_sweep_command_args(args)
        words = ["${args_no_hyphens}", "${args}", "${args_no_equals}"]
        ours = sweep.command_of({**asked, "command": words}, values)
        assert ours == [
            *theirs["args_no_hyphens"], *theirs["args"], *theirs["args_no_equals"]
        ]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.filterwarnings("ignore")
def test_the_grid_is_that_of_wandbs_own_engine(file):
    """Run for run, though it takes the parameters in the order of their names."""
    reason = "needs W&B's engine: pip install --no-deps sweeps jsonref, and jsonschema"
    sweeps = pytest.importorskip("sweeps", reason=reason, exc_type=ImportError)
    asked, runs = sweep.read(file), []
    while (run := sweeps.next_run(asked, runs)) is not None:
        run.state = sweeps.RunState.finished
        runs.append(run)
    theirs = [{name: entry["value"] for name, entry in run.config.items()} for run in runs]
    ours = sweep.grid(asked)
    assert len(theirs) == len(ours)
    assert all(values in ours for values in theirs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_run_of_a_file_is_one_of_ours(file, monkeypatch):
    """Its arguments are checked as the verb would, and no two runs write to one directory."""
    monkeypatch.chdir(ROOT)
    asked = sweep.read(file)
    counts = [len(entry["values"]) for entry in asked["parameters"].values()]
    rows = sweep.rows_of(asked, [])
    assert len({row.directory for row in rows}) == len(rows) == counts[0] * counts[1]


def test_scores_reach_wandb_under_one_id(here, monkeypatch):
    import wandb

    wandb.teardown()  # what it remembers of this process's other runs
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    config = load(evaluate, "evaluate.yaml", ["logger=wandb", "run_dir=run"])
    evaluate(**config)
    wandb.teardown()  # its process writes the last of the file
    name = Path("run", wandb_run.ID).read_text().strip()
    (folder,) = Path("run/wandb").glob(f"offline-run-*-{name}")
    sent = next(folder.glob("*.wandb")).read_bytes()
    for word in (b"generate.guided.guidance.scale", b"fd_judge"):
        assert word in sent
    assert list(folder.glob("files/media/table/scores*.json"))
    assert wandb_run.run_id(Path("run")) == name
    monkeypatch.setenv("WANDB_RUN_ID", "of_an_agent")
    assert wandb_run.run_id(Path("run")) == "of_an_agent"


# The plot


def test_names_are_as_short_as_can_be_told_apart():
    assert shortened(["a.guidance.scale", "seed"]) == {"a.guidance.scale": "scale", "seed": "seed"}
    both = shortened(["a.scale", "b.scale", "scale"])
    assert both == {"a.scale": "a.scale", "b.scale": "b.scale", "scale": "scale"}


def test_the_plot_goes_along_the_scale():
    assert axis([{"name": n, "scale": s} for n in "abc" for s in (1, 2)]) == "scale"
    assert axis([{"lr": lr, "width": w} for lr in (1, 2, 3) for w in (4, 5)]) == "lr"
    assert axis([{}]) is None


def test_a_line_per_method_and_the_floor_dotted():
    rows = [
        {"name": name, "scale": scale, "samples": samples, "class": "all", "n": 9, "fid": scale}
        for name in ("cfg", "apg")
        for scale in (2.0, 1.0)
        for samples in ("guided", "real")
    ]
    figure = against(rows, "scale", ["name", "scale"], {"g.name": "name", "g.scale": "scale"})
    (panel,) = figure.axes
    cfg, apg, floor = panel.lines
    assert (cfg.get_label(), apg.get_label(), floor.get_label()) == ("cfg", "apg", "real")
    assert cfg.get_xdata().tolist() == [1.0, 2.0]
    assert floor.get_ydata() == [1.5, 1.5]
