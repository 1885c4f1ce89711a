"""A run directory's run of Weights & Biases: one id, kept in it, however often the run goes on."""

import os
import secrets
from pathlib import Path
from typing import Any

from lightning_cfg.runs.files import write_text

ID = "wandb_id"
PROJECT = "lightning_cfg"


def run_id(directory: Path) -> str:
    """The id that this run directory has, or a new one; an agent's own ($WANDB_RUN_ID) first."""
    kept = directory / ID
    given = os.environ.get("WANDB_RUN_ID")
    return given or (kept.read_text().strip() if kept.is_file() else secrets.token_hex(4))


def keep_id(directory: Path, name: str) -> None:
    """Write the id, once the directory is the run's own."""
    write_text(directory / ID, name + "\n")


def mode() -> str | None:
    """$WANDB_MODE, or offline where there is no key: files can be sent later by `wandb sync`."""
    import wandb

    return os.environ.get("WANDB_MODE") or (None if wandb.login(prompt=False) else "offline")


def dotted(config: dict, path: str = "") -> dict[str, Any]:
    """{model: {name: EDM}} as {model.name: EDM}, the keys that a sweep has too."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        here = f"{path}.{key}" if path else key
        out |= dotted(value, here) if isinstance(value, dict) and value else {here: value}
    return out


def log_scores(directory: Path, config: dict, rows: list[dict]) -> None:
    """A table of scores, and each of them by name, /set and /class where there are several."""
    import wandb

    labels, groups = ({row.get(key) for row in rows} for key in ("samples", "class"))
    scores = {}
    for row in rows:
        end = f"/{row['samples']}" if len(labels) > 1 else ""
        end += f"/{row['class']}" if len(groups) > 1 else ""
        end += f"/{row['draw']}" if "draw" in row else ""
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        scores |= {f"{name}{end}": value for name, value in numbers.items()}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = wandb.Table(columns, [[row.get(name) for name in columns] for row in rows])
    own = run_id(directory)
    with wandb.init(
        project=PROJECT, dir=directory.absolute(), name=directory.name, id=own, resume="allow",
        mode=mode(), config=dotted(config),
    ) as run:  # fmt: skip
        keep_id(directory, own)
        run.log({**scores, "scores": table})
