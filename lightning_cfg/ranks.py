"""How many processes share the work, as their launcher says: torchrun, srun, or nobody.

Imports nothing heavy.
"""

import os
from dataclasses import dataclass

from lightning_cfg.errors import UserError


@dataclass(frozen=True)
class Launch:
    """The processes that were started together, and which of them this one is."""

    by: str = ""  # torchrun, srun, or "": nobody, or Lightning itself
    nodes: int = 1
    tasks: int = 1  # on each node
    rank: int = 0  # among all
    local_rank: int = 0  # on its node

    @property
    def size(self) -> int:
        return self.nodes * self.tasks


def launched() -> Launch:
    """What the launcher's environment variables say; UserError where tasks were not started."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # first: it may be inside of a SLURM job
        return Launch(
            "torchrun",
            int(env.get("GROUP_WORLD_SIZE", 1)),
            int(env["LOCAL_WORLD_SIZE"]),
            int(env["RANK"]),
            int(env["LOCAL_RANK"]),
        )
    if "LOCAL_RANK" in env:  # started by Lightning, for trainer.devices=2
        return Launch(rank=int(env["LOCAL_RANK"]), local_rank=int(env["LOCAL_RANK"]))
    if "SLURM_NTASKS" not in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return Launch()  # of an interactive job Lightning thinks the same
    size, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", 1))
    if size > 1 and "SLURM_NTASKS_PER_NODE" not in env:
        raise UserError(
            f"SLURM: the job has {size} tasks by --ntasks, which does not say how they are spread: "
            f"use --ntasks-per-node={size // nodes or 1}"
        )
    if size > 1 and "SLURM_STEP_ID" not in env:
        raise UserError(
            f"SLURM: the job has {size} tasks and this process is none of them: start it by srun"
        )
    return Launch("srun", nodes, size // nodes, int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]))


def with_launch(trainer: dict, launch: Launch) -> dict:
    """The `trainer` section with the launcher's nodes and devices where it names none.

    UserError where it names others: each device has a task of its own.
    """
    if not launch.by:
        return trainer
    asked = trainer.get("devices", "auto")
    devices = len(asked) if isinstance(asked, list) else asked
    option = "--ntasks-per-node" if launch.by == "srun" else "--nproc-per-node"
    if devices not in ("auto", -1, "-1") and str(devices) != str(launch.tasks):
        raise UserError(
            f"trainer.devices={asked}, but {launch.by} has started {launch.tasks} tasks on each "
            f"node: each device needs its own, so {option}={devices}, or leave trainer.devices out"
        )
    nodes = trainer.get("num_nodes", launch.nodes)
    if nodes != launch.nodes:
        raise UserError(
            f"trainer.num_nodes={nodes}, but {launch.by} has started tasks on {launch.nodes} "
            f"nodes: --nodes={nodes}, or leave trainer.num_nodes out"
        )
    chosen = asked if isinstance(asked, list) else launch.tasks
    return {**trainer, "devices": chosen, "num_nodes": launch.nodes}
