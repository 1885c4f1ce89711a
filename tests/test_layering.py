"""Folders import downwards only, and only training knows Lightning."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.layers import ORDER, VERBS

import lightning_cfg

PACKAGE = Path(lightning_cfg.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TRAINING = (
    "batches callbacks checkpointing each_step evaluate_samples grids learners loggers progress "
    "snapshots stop told train trainer"
)
MAY_IMPORT_LIGHTNING = {f"training/{name}.py" for name in TRAINING.split()}


def imported(source: str) -> set[str]:
    """Every module that the source imports, at the top, in a function, or by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__")):
                found.add(str(node.args[0].value))
    return found


def of_lightning(source: str) -> set[str]:
    tops = ("lightning", "pytorch_lightning", "lightning_fabric")
    return {module for module in imported(source) if module.split(".")[0] in tops}


def folders(source: str) -> set[str]:
    """What of the package the source imports: folders, or files that lie in none."""
    parts = [module.split(".") for module in imported(source)]
    return {part[1] for part in parts if part[0] == "lightning_cfg" and len(part) > 1}


def level(name: str) -> int:
    return next(i for i, names in enumerate(ORDER) if name in names)


def test_only_these_files_import_lightning():
    users = {file for file in FILES if of_lightning((PACKAGE / file).read_text())}
    assert users == MAY_IMPORT_LIGHTNING


@pytest.mark.parametrize(
    "source",
    [
        "import lightning as L",
        "from lightning.pytorch import Trainer",
        "def f():\n    import lightning.fabric",
        "import importlib\nimportlib.import_module('lightning')",
    ],
)
def test_an_import_of_lightning_would_be_seen(source):
    assert of_lightning(source)
    assert not of_lightning(source.replace("lightning", "lightning_cfg"))


def test_every_file_has_its_place_in_the_order():
    for file in FILES:
        level(file.split("/")[0].removesuffix(".py"))


def test_no_folder_is_called_like_a_verb():
    assert not [verb for verb in VERBS if (PACKAGE / verb).exists()]


def test_folders_import_downwards_only():
    upward = set()
    for file in FILES:
        own = level(file.split("/")[0].removesuffix(".py"))
        for name in folders((PACKAGE / file).read_text()):
            if any(name in names for names in ORDER) and level(name) > own:
                upward.add(f"{file} -> {name}")
    assert upward == set()


def modules() -> dict[str, set[str]]:
    """The package's modules, and those of it that each imports, in functions too."""
    names = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in FILES}
    found = {}
    for file in FILES:
        own = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        asked = {
            part.removeprefix("lightning_cfg.")
            for part in imported((PACKAGE / file).read_text())
            if part.startswith("lightning_cfg.")  # and not others' of the same name
        }
        named = asked | {part.rpartition(".")[0] for part in asked}
        found[own] = (named & names) - {own}
    return found


def test_there_is_no_circle_of_imports():
    graphlib.TopologicalSorter(modules()).prepare()  # CycleError names the circle


def test_no_two_folders_import_each_other():
    arrows = {
        (own.split(".")[0], other.split(".")[0])
        for own, others in modules().items()
        for other in others
    }
    assert not {(a, b) for a, b in arrows if a != b and (b, a) in arrows}


@pytest.mark.parametrize(
    "source", ["from lightning_cfg import verbs", "import lightning_cfg.verbs.fit"]
)
def test_an_upward_import_would_be_seen(source):
    assert folders(source) == {"verbs"}


@pytest.mark.parametrize("verb", ["evaluate", "pair"])
def test_verbs_that_score_load_no_torchmetrics(verb):
    """It takes seconds, and only `FrechetDistance` is one."""
    code = f"import sys, lightning_cfg.verbs.{verb}; print('torchmetrics' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_science_loads_no_lightning_and_no_search_library():
    science = ("fit.py", "study.py", "sweep.py", "assets.py", "adopt.py")
    modules = [
        f"lightning_cfg.{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in FILES
        if not file.startswith(("training/", "verbs/", "studies/", "__main__"))
        and file not in science
    ]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
print([module for module in ("lightning", "faiss", "wandb") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy_beside_torch():
    code = """
import importlib, sys
from lightning_cfg.config import help_of
for verb in ("fit", "generate", "pair", "refine", "evaluate", "trace", "tune", "study"):
    help_of(getattr(importlib.import_module(f"lightning_cfg.verbs.{verb}"), verb), {})
heavy = ("lightning", "torchmetrics", "torchvision", "scipy", "matplotlib", "pandas", "torchdiffeq")
heavy += ("faiss", "wandb", "torch_fidelity", "sympy")
print([module for module in heavy if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
