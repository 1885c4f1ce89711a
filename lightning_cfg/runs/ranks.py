"""The processes that share the work: as their launcher says, torchrun, srun, or nobody.

`fit` leaves them to Lightning. The other verbs share by `sharing`: each rank does its own rows, the
r-th, the (r + R)-th, ..., and all meet once at the end. Imports nothing heavy by itself.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_cfg.errors import RankLost, UserError
from lightning_cfg.runs.alive import watched
from lightning_cfg.runs.signals import nothing_lost
from lightning_cfg.runs.waiting import Waiting, limited

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


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
    if size == 1 and "SLURM_PROCID" not in env:
        return Launch()  # beside the one task, as in the shell of a named salloc
    if size > 1 and "SLURM_NTASKS_PER_NODE" not in env:
        raise UserError(
            f"SLURM: the job has {size} tasks by --ntasks, which does not say how they are spread: "
            f"use --ntasks-per-node={size // nodes or 1}"
        )
    # the shell of an interactive step is one task, whatever the job has
    if size > 1 and ("SLURM_STEP_ID" not in env or env.get("SLURM_STEP_NUM_TASKS") == "1"):
        raise UserError(
            f"SLURM: the job has {size} tasks and this process is none of them: start it by srun"
        )
    return Launch("srun", nodes, size // nodes, int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]))


def alone(verb: str) -> None:
    """UserError where several tasks were started of a verb that is one process's."""
    launch = launched()
    if launch.size > 1:
        raise UserError(
            f"{verb} runs in one process, and {launch.by} has started {launch.size}: give it one "
            "task (a study's stages share the work as jobs of their own, see launch/)"
        )


def with_launch(trainer: dict, launch: Launch) -> dict:
    """The `trainer` section with the launcher's nodes and devices where it names none.

    UserError where it names others: each device has a task of its own.
    """
    if not launch.by:
        nodes = trainer.get("num_nodes", 1)
        if nodes > 1 and "NODE_RANK" not in os.environ:  # by which Lightning is told by hand
            raise UserError(
                f"trainer.num_nodes={nodes}, but nobody has started the other nodes: start it by "
                "torchrun or srun (see launch/), which say the nodes by themselves"
            )
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


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work of a verb."""

    rank: int = 0
    size: int = 1
    waiting: Waiting | None = None  # None: nobody looks whether all come

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def check(self, n: int, what: str) -> None:
        """UserError where there is not one of them for every rank."""
        if n < self.size:
            raise UserError(f"{what}: {n} cannot be shared by {self.size} ranks")

    def share(self, rows: "Tensor") -> "Tensor":
        """This rank's own rows."""
        return rows[self.rank :: self.size]

    def all_gather_object(self, value: Any) -> list:
        """What every rank says, in their order."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with self._exchange():
            distributed.all_gather_object(values, value)
        return values

    def raise_together(self, work: Callable[[], T]) -> T:
        """work() on every rank; a UserError of one of them is raised on all, and none waits."""
        found: list[T] = []
        trouble = None
        try:
            found.append(work())
        except UserError as error:
            trouble = error
        for told in self.all_gather_object(trouble):
            if told is not None:
                raise told
        return found[0]

    def gather_rows(self, own: "Tensor") -> "Tensor":
        """All ranks' rows in order, (n, ...), on the first; the others keep their own."""
        whole = own if self.size == 1 else self._in_turn(own, everywhere=False)
        return own if whole is None else whole

    def all_gather_rows(self, own: "Tensor") -> "Tensor":
        """All rows in order, (n, ...), on every rank, of every rank's own."""
        whole = own if self.size == 1 else self._in_turn(own, everywhere=True)
        assert whole is not None
        return whole

    def one_after_another(self, own: "Tensor | None") -> "Tensor":
        """All ranks' rows, (n, ...), on every rank, those of one after those of the one before.

        None: it has none; not all of them.
        """
        if self.size == 1:
            assert own is not None
            return own
        import torch

        told = self.all_gather_object(None if own is None else (own.shape[1:], own.dtype))
        shape, dtype = next(one for one in told if one is not None)
        parts = self._parts(torch.empty(0, *shape, dtype=dtype) if own is None else own)
        assert parts is not None
        return torch.cat(parts)

    def _in_turn(self, own: "Tensor", *, everywhere: bool) -> "Tensor | None":
        """Rows of all ranks in turn; None on ranks but the first, unless `everywhere`."""
        parts = self._parts(own, everywhere=everywhere)
        if parts is None:
            return None
        out = own.new_empty(sum(map(len, parts)), *own.shape[1:])
        for rank, part in enumerate(parts):
            out[rank :: self.size] = part
        return out

    def _parts(self, own: "Tensor", *, everywhere: bool = True) -> "list[Tensor] | None":
        """Each rank's rows; None on ranks but the first, unless `everywhere`."""
        import torch
        from torch import distributed

        sizes = self.all_gather_object(len(own))
        cuda = distributed.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else own.device
        shape = (max(sizes), *own.shape[1:])
        padded = torch.zeros(shape, dtype=own.dtype, device=device)  # not all have as many
        padded[: len(own)] = own.to(device)
        wanted = everywhere or self.first
        parts = [torch.empty_like(padded) for _ in sizes] if wanted else []
        with self._exchange():
            if everywhere:
                distributed.all_gather(parts, padded)
            else:
                distributed.gather(padded, parts or None)
        if not wanted:
            return None
        return [part[:n].to(own.device) for part, n in zip(parts, sizes, strict=True)]

    def _exchange(self) -> AbstractContextManager:
        """Around an exchange of all: Ctrl-C ends it, and who does not come is told."""
        stack = ExitStack()
        if self.waiting is not None:
            stack.enter_context(nothing_lost("while it waited for other ranks"))
            stack.enter_context(self.waiting.meeting())
        return stack

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """The sums over all ranks, of which all have the same names."""
        told = self.all_gather_object(numbers)
        return {name: sum(one[name] for one in told) for name in numbers}


@contextmanager
def sharing() -> Iterator[Ranks]:
    """The ranks of this verb, joined for as long as it takes; RankLost where one ends early.

    They meet by gloo, on the CPU, which needs no device of its own. One that ends is heard of at
    once, also in the midst of the work (`runs.alive`); one that does not come, after an hour or as
    long as this one's own work took (`runs.waiting`).
    """
    launch = launched()
    if launch.size == 1:
        yield Ranks()
        return
    from torch import distributed

    address, port = meeting_place(launch)
    place = f"for the others to meet it at {address}:{port}"
    waiting = None
    try:
        with nothing_lost("while it waited for other ranks"), limited(launch.rank, place):
            distributed.init_process_group(
                "gloo",
                init_method=f"tcp://{address}:{port}",
                rank=launch.rank,
                world_size=launch.size,
                timeout=timedelta(days=1),  # that one is slower is no fault
            )
            joined = Ranks(launch.rank, launch.size)
            waiting = Waiting(launch.rank, launch.size, address, joined.all_gather_object)
        ranks = replace(joined, waiting=waiting)
        with watched(launch.rank, launch.size, address, ranks.all_gather_object):
            yield ranks
    except RuntimeError as error:
        if not lost(error):
            raise
        raise RankLost(told_lost(launch.rank, error)) from error
    finally:
        if waiting is not None:
            waiting.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def meeting_place(launch: Launch) -> tuple[str, int]:
    """The first rank's address and a port: the launcher's, otherwise of the job's nodes and id."""
    env = os.environ
    if launch.by == "srun" and "MASTER_ADDR" not in env:
        # n[3-5,8],m1 begins with n3
        first = re.sub(r"\[(\d+)[^]]*\].*", r"\1", env["SLURM_JOB_NODELIST"]).split(",")[0]
        return first, 15_000 + int(env["SLURM_JOB_ID"]) % 10_000
    return env["MASTER_ADDR"], int(env["MASTER_PORT"])


def lost(error: RuntimeError) -> bool:
    """Whether this is what torch says where a rank cannot be reached any more."""
    from torch import distributed

    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "TCPStore")
    return isinstance(error, distributed.DistError) or any(w in str(error) for w in words)


def told_lost(rank: int, error: RuntimeError) -> str:
    """What a rank says that has lost another."""
    return (
        f"rank {rank}: another rank has ended or cannot be reached, and says itself why "
        f"({str(error).splitlines()[0]})"
    )
