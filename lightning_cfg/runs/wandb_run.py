"""A run directory's run of Weights & Biases: one id, kept in it, however often the run goes on."""

import os
import secrets
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_cfg.errors import UserError, one_line
from lightning_cfg.runs.files import write_text

ID = "wandb_id"
PROJECT = "lightning_cfg"
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # of $WANDB_MODE


def run_id(directory: Path) -> str:
    """The id that this run directory has, or a new one; an agent's own ($WANDB_RUN_ID) first."""
    kept = directory / ID
    given = os.environ.get("WANDB_RUN_ID")
    return given or (kept.read_text().strip() if kept.is_file() else secrets.token_hex(4))


def project() -> str:
    """$WANDB_PROJECT, which an agent sets too; otherwise the package's name."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


def keep_id(directory: Path, name: str) -> None:
    """Write the id, once the directory is the run's own."""
    write_text(directory / ID, name + "\n")


def mode() -> Any:
    """$WANDB_MODE, or offline where there is no key or no network, for `wandb sync` to send later.

    None is online. UserError for a mode that is none, or a key that W&B refuses.
    """
    import wandb

    asked = os.environ.get("WANDB_MODE")
    if asked:
        if asked not in MODES:
            raise UserError(f"WANDB_MODE={asked} must be one of {', '.join(MODES)}")
        return asked
    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    if not reachable(server):
        print(f"W&B: {server} cannot be reached: offline, `wandb sync` sends it", file=sys.stderr)
        return "offline"
    try:
        return None if wandb.login(prompt=False) else "offline"
    except wandb.Error as error:
        raise UserError(
            f"W&B: {one_line(error)} (WANDB_MODE=offline keeps the run here, logger=csv is without)"
        ) from error


def reachable(server: str, seconds: float = 5.0) -> bool:
    """Whether something answers there, or at the proxy that is to be used for it."""
    place = urlsplit(server)
    proxy = urllib.request.getproxies().get(place.scheme)
    if proxy and not urllib.request.proxy_bypass(place.hostname or ""):
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = place.port or {"https": 443}.get(place.scheme, 80)
    try:
        socket.create_connection((place.hostname, port), timeout=seconds).close()
    except OSError:
        return False
    return True


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
    try:
        with wandb.init(
            project=project(), dir=directory.absolute(), name=directory.name, id=own,
            resume="allow", mode=mode(), config=dotted(config),
        ) as run:  # fmt: skip
            keep_id(directory, own)
            run.log({**scores, "scores": table})
    except (wandb.Error, OSError) as error:  # the results are there, and the call can be repeated
        raise UserError(f"{directory} is scored, but not sent to W&B: {one_line(error)}") from error
