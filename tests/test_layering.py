"""Science knows nothing of Lightning: it can be read, tested and used without it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_cfg

PACKAGE = Path(lightning_cfg.__file__).parent
SCIENCE = [
    *(f"{name}.py" for name in ("interfaces", "network", "samplers", "models", "draws", "ema")),
    *(f"{name}.py" for name in ("frechet", "neighbours", "features", "errors", "files", "pngs")),
    *(f"{name}.py" for name in ("assets", "gather", "reference", "sample_sets", "scoring")),
    *("precision.py", "score_table.py"),
    *(f"{name}.py" for name in ("checkpoints", "claims", "figures", "trajectories")),
    *(f"{name}.py" for name in ("trajectory_figures", "trajectory_report")),
    *sorted(f"data/{p.name}" for p in (PACKAGE / "data").glob("*.py") if p.stem != "module"),
    *sorted(f"guidance/{path.name}" for path in (PACKAGE / "guidance").glob("*.py")),
    *sorted(f"metrics/{path.name}" for path in (PACKAGE / "metrics").glob("*.py")),
    *sorted(f"nets/{path.name}" for path in (PACKAGE / "nets").glob("*.py")),
]


def imported(source: str) -> set[str]:
    """Every module that the source imports, at the top, in a function, or by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__")):
                found.add(str(node.args[0].value))
    return found


def of_lightning(source: str) -> set[str]:
    tops = ("lightning", "pytorch_lightning", "lightning_fabric")
    return {module for module in imported(source) if module.split(".")[0] in tops}


@pytest.mark.parametrize("file", SCIENCE)
def test_science_does_not_import_lightning(file):
    assert of_lightning((PACKAGE / file).read_text()) == set()


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


def test_the_learners_are_seen_to_import_lightning():
    assert of_lightning((PACKAGE / "learners.py").read_text())


def test_importing_science_loads_no_lightning_and_no_search_library():
    modules = [
        "lightning_cfg." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in SCIENCE
    ]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
print([module for module in ("lightning", "faiss", "wandb") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
