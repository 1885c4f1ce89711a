"""What image data sets share: bytes that are turned into [-1, 1] where they are used."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cfg.data.augment import AugmentPipe
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import DataSet
from lightning_cfg.runs.pngs import signed

Half = Literal["first", "second"] | None


class Images(DataSet):
    """What image data sets share: x = y / 127.5 - 1 in [-1, 1] for bytes y, and two splits.

    A subclass has shape (C, H, W), num_classes, and `_load(train=)` or `_bank` and `_held_out`:
    bytes y (N, *shape) uint8, indexed by a tensor of rows, and labels c (N,) long. Without classes
    num_classes is 0 and every c is 0.
    """

    flip = False
    pipe: AugmentPipe | None = None
    limit: int | None = None  # images per class that there are to train on; None: all
    half: Half = None  # every other image of each class, from the first or the second on

    @cached_property
    def _bank(self) -> tuple[Any, Tensor]:
        return self._load(train=True)

    @cached_property
    def _held_out(self) -> tuple[Any, Tensor]:
        return self._load(train=False)

    def _load(self, *, train: bool) -> tuple[Any, Tensor]:
        raise NotImplementedError

    @property
    def reads_files(self) -> bool:
        """Whether batches are decoded as they are asked for, as they do not fit in memory."""
        return not isinstance(self._bank[0], Tensor)

    def augmented(self, p: float) -> None:
        """Augment training images with probability p a kind from now on (EDM's is 0.12)."""
        self.pipe = AugmentPipe(p=p) if p else None
        self.augment_dim = AugmentPipe.labels if p else 0

    def to(self, device: torch.device | str) -> None:
        """Keep the training bytes on this device, if they are all in memory."""
        y, c = self._bank
        if isinstance(y, Tensor):
            self._bank = y.to(device), c.to(device)

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """This process' rows of a training batch: y (b, *shape) float32, c (b,) long.

        Where `flip` is set, each image is mirrored left to right with probability 1/2; where there
        is a `pipe`, images are augmented, and "augment" (b, 9) says how.
        """
        y, c = self._bank
        rows = self._chosen(draws, c)
        y = y[rows]
        if self.flip:
            mirrored = onto(draws.uniform() < 0.5, y.device)
            y = torch.where(mirrored[:, None, None, None], y.flip(3), y)
        batch = {"y": signed(y), "c": c[rows]}
        if self.pipe is not None:
            batch["y"], batch["augment"] = self.pipe(batch["y"], draws)
        return batch

    def _chosen(self, draws: Draws, c: Tensor) -> Tensor:
        """The rows of a training batch, (b,), where their classes lie."""
        if self.limit is None and self.half is None:
            return onto(draws.permuted(len(c)), c.device)
        rows = self._limited
        return onto(rows[onto(draws.permuted(len(rows)), rows.device)], c.device)

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """Real images y (N, *shape) float32 and labels c (N,) long, as `rows` chooses them."""
        y, rows, c = self.rows(split, per_class)
        return signed(y[rows]), c

    def rows(self, split: str, per_class: int | None = None) -> tuple[Any, Tensor, Tensor]:
        """Bytes that rows (N,) index, the rows of one class after another, and their classes (N,).

        split "bank" or "held_out"; the first per_class images of each class in the files' order,
        None for all. Of the bank, only those of the `half` and within `limit`. UserError for
        another split, or for more images than there are.
        """
        name = type(self).__name__
        if split not in ("bank", "held_out"):
            raise UserError(f"{name} has the splits bank and held_out, got {split!r}")
        y, c = self._bank if split == "bank" else self._held_out
        classes = range(max(1, self.num_classes)) if self.drawn is None else self.drawn.tolist()
        rows = [(c == k).nonzero()[:, 0] for k in classes]
        if split == "bank" and self.half is not None:
            rows = [r[("first", "second").index(self.half) :: 2] for r in rows]
        if split == "bank" and self.limit is not None:
            _at_least(self.limit, rows, f"{name}: data.limit", split, classes)
            rows = [r[: self.limit] for r in rows]
        if per_class is not None:
            _at_least(per_class, rows, f"{name}: per_class", split, classes)
            rows = [r[:per_class] for r in rows]
        rows = torch.cat(rows)
        return y, rows, c[rows]

    @cached_property
    def _limited(self) -> Tensor:
        """The rows of the bank that there are to train on."""
        return self.rows("bank")[1]


def _at_least(
    asked: int, rows: list[Tensor], what: str, split: str, classes: Sequence[int]
) -> None:
    """UserError unless every class has so many rows."""
    fewest = min(range(len(rows)), key=lambda k: len(rows[k]))
    if not 1 <= asked <= len(rows[fewest]):
        raise UserError(
            f"{what} must be between 1 and {len(rows[fewest])}, the images of class "
            f"{classes[fewest]} in split {split}, got {asked}"
        )


def download(
    who: str, folder: Path, names: Collection[str], inside: str, fetch: Callable[[str], object]
) -> None:
    """Download beside `folder`'s files and move in whole ones: a run that is killed leaves no half.

    fetch(fresh) puts the files of these names into fresh/inside. UserError where it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints each mirror
                fetch(fresh)
            for name in names:
                Path(fresh, inside, name).replace(folder / name)
    except (OSError, RuntimeError) as error:  # no network, no space, no permission
        cause = one_line(error)
        raise UserError(
            f"{who}: {folder} lacks some of {', '.join(names)}, and downloading failed: {cause}"
        ) from error
