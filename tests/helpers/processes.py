"""Several processes of one verb, as a launcher starts them, without its imports and its waits."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from lightning_cfg.cli import main

SRUN = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}  # fmt: skip


def as_rank(verb: Callable, folder: str, words: list[str], environment: dict[str, str]) -> None:
    """What each process does: the verb as from the command line, with what it says in files."""
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    rank = environment["RANK"]
    sys.argv = [verb.__name__, "--config", "config.yaml", *words]
    sys.stdout, sys.stderr = (open(f"{name}_{rank}", "w", buffering=1) for name in ("out", "err"))
    main(verb)


class Together:
    """Processes of one verb in a folder, with the environment that torchrun would give them."""

    def __init__(
        self, context: object, folder: Path, verb: Callable, config: dict, *words: object,
        ranks: int = 2, **environment: str,
    ):  # fmt: skip
        folder.mkdir(exist_ok=True)
        self.folder = folder
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = self.port = free.getsockname()[1]
        common = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "GROUP_WORLD_SIZE": "1",
                  "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks), **environment}  # fmt: skip
        self.processes = [
            context.Process(
                target=as_rank,
                args=(verb, str(folder), [*map(str, words)],
                      {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            )
            for rank in range(ranks)
        ]  # fmt: skip
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """The exit status of each; None for one that still ran, and is killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def said(self, what: str) -> list[str]:
        """What each has written to `out` or `err`; "" of one that was killed before."""
        files = [self.folder / f"{what}_{i}" for i in range(len(self.processes))]
        return [file.read_text() if file.exists() else "" for file in files]


def catches(pid: int, number: int, mask: str = "SigCgt") -> bool:
    """Whether a process has a handler for this signal, as Linux tells it; SigIgn: ignores it."""
    (line,) = (s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if mask in s)
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
