"""What an unfinished run has made, batch by batch: interrupted, it goes on where it was.

A batch is known by its name. Some of them stay in memory for a while and then go to a file in
`.parts/` of the run's directory, a rank's own; when the run has finished it is removed. What
was made by another number of ranks or on another device is made again, to the last bit.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_cfg.errors import NotWritten, UserError
from lightning_cfg.runs.files import PARTS, write
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.run import Run
from lightning_cfg.runs.tensors import fingerprint, save_rows

EVERY = 60.0  # seconds of work that are lost at most where a process is killed
HELD = 2**26  # bytes that are in memory at most, beside a batch


def room(size: float) -> float:
    """The bytes on a disk that a file of so many takes, beside the parts that it is made of."""
    return size + max(0.0, size - HELD)


class Parts:
    """The batches that this rank has made, on disk and in memory.

    how  what else the numbers depend on to the last bit: batch_size and device
    """

    def __init__(self, run: Run, ranks: Ranks, **how: Any):
        self.run, self.ranks = run, ranks
        self.folder = run.directory / PARTS
        own = json.dumps([run.identity, how, ranks.rank, ranks.size], sort_keys=True, default=str)
        self._of = hashlib.sha256(own.encode()).hexdigest()
        self._held: dict[str, dict[str, Tensor]] = {}
        self._files: dict[str, Any] = {}  # the file of each batch
        self._facts: dict[str, dict] = {}
        self._number, self._since = 0, time.monotonic()
        self._read()

    def _read(self) -> None:
        """Find what an earlier call has made; of files that are not whole, or others', nothing."""
        strange = 0
        for path in sorted(self.folder.glob(f"{self.ranks.rank:04d}_*.safetensors")):
            self._number = int(path.stem.partition("_")[2]) + 1
            try:
                with safe_open(path, "pt") as file:
                    of = file.metadata() or {}
                    content = fingerprint({name: file.get_tensor(name) for name in file.keys()})
            except (SafetensorError, OSError):
                of, content = {}, ""
            if self.run.again or (of.get("of"), of.get("content")) != (self._of, content):
                path.unlink()
                strange += 1
                continue
            facts = json.loads(of["facts"])
            self._facts |= facts
            self._files |= dict.fromkeys(facts, path)
        if strange and not self.run.again:
            self.run.say(
                "what was made on another device or by another number of ranks, or is damaged, is "
                "made again"
            )
        if self._files and self.ranks.first:
            self.run.begin()

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        """The tensors of a batch."""
        if name in self._held:
            return self._held[name]
        start = f"{name}:"
        with safe_open(self._files[name], "pt") as file:
            own = [key for key in file.keys() if key.startswith(start)]
            return {key.removeprefix(start): file.get_tensor(key) for key in own}

    def facts(self, name: str) -> dict:
        return self._facts[name]

    @property
    def rows(self) -> int:
        """Of all batches that there are."""
        return sum(facts["rows"] for facts in self._facts.values())

    def keep(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Have a batch: its tensors, and numbers that are known of it."""
        self._held[name] = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        self._facts[name] = facts
        size = sum(t.nbytes for own in self._held.values() for t in own.values())
        if size > HELD or time.monotonic() - self._since > EVERY:
            self.flush()

    def total(self) -> dict[str, float]:
        """The sums of the facts of all batches of this rank, but for their rows."""
        names = dict.fromkeys(name for facts in self._facts.values() for name in facts)
        return {
            name: sum(facts[name] for facts in self._facts.values())
            for name in names
            if name != "rows"
        }

    def in_order(self, batches: int, **none: Tensor) -> Iterator[dict[str, Tensor]]:
        """The rows of all ranks' batches 0, 1, ..., which are those of all in order, on the first.

        Every rank has to take as many; another rank than the first gets its own rows.
        none  tensors without a row, which stand for what a batch has not
        """
        for k in range(batches):
            own = self[str(k)] if str(k) in self else {}
            yield {key: self.ranks.gather_rows(own.get(key, empty)) for key, empty in none.items()}

    def joined(
        self, name: str, shapes: dict, blocks: Iterator[dict[str, Tensor]], **whole: Tensor
    ) -> Path:
        """The first rank's file of blocks in order and of whole tensors; others give their share.

        name    in the run's directory
        shapes  see `save_rows`
        """
        path = self.run.directory / name
        if self.ranks.first:
            return save_rows(path, shapes, chain(blocks, [whole]))
        for _ in blocks:
            pass
        return path

    def flush(self) -> None:
        """Write what is in memory."""
        if not self._held:
            return
        if self.ranks.first and not self._files:
            self.run.begin()
        held = dict(self._held)
        tensors = {f"{name}:{key}": t for name, own in held.items() for key, t in own.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        facts = json.dumps({name: self._facts[name] for name in held})
        about = {"of": self._of, "facts": facts, "content": fingerprint(tensors)}
        path = self.folder / f"{self.ranks.rank:04d}_{self._number:06d}.safetensors"

        def save(temporary: Any) -> None:
            try:
                save_file(tensors, temporary, about)
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(str(error)) from error

        write(path, save)
        self._files |= dict.fromkeys(held, path)
        self._held = {}
        self._number, self._since = self._number + 1, time.monotonic()

    @contextmanager
    def kept(self, total: int, what: str) -> Iterator[None]:
        """Around the work: whatever ends it, what was made is written, to be gone on from.

        But after a UserError, as of samples that diverge, nothing is: the same would come again.
        total  how many there will be, of `rows` that the facts of a batch say
        """
        try:
            yield
        except NotWritten:
            raise
        except UserError:
            self._withdraw()
            raise
        except BaseException:
            self.flush()
            if self.rows:
                share = (
                    f", of this rank's {total // self.ranks.size:,}" if self.ranks.size > 1 else ""
                )
                self.run.kept = f"with {self.rows:,} of {total:,} {what} kept{share}"
            raise

    def _withdraw(self) -> None:
        for path in self.folder.glob(f"{self.ranks.rank:04d}_*.safetensors"):
            path.unlink()
        if self.ranks.first and self._files:
            self.run.withdraw()
