"""The real side of every metric: gathered once, and kept on disk where it took a network."""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.data.map_style import MapStyle
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.gather import ALL, ALONE, Gathered, embedded, gather
from lightning_cfg.evaluation.sample_sets import SampleSet, real_set
from lightning_cfg.metrics.frechet import Moments, load_statistics
from lightning_cfg.runs.files import write
from lightning_cfg.runs.kept import (
    cache_folder,
    check_keeps,
    check_sealed,
    read_rows,
    seal,
    write_rows,
)
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.runs.tensors import fingerprint

# keys of a data section that say which points, or what they are, beside the files
OF_POINTS = ("half", "limit", "scale", "bias", "size", "crop", "channels")


class Real:
    """The splits of a data set, gathered in feature spaces.

    content    hashes of the data set's files; none where it is in memory or a formula
    section    of the config, which names a formula
    per_class  {split: real points of each class; None for all}
    groups     classes, or ALL
    decode     what a decoder is known by that makes images of the data set's latents
    Features and moments in spaces of which the weights are known are kept under `cache_folder`,
    named by the hash of the data, the split, the extractor and its preprocessing, so that no run
    computes them twice; not so class by class, which is for small data.
    """

    def __init__(
        self,
        data: Any,
        *,
        section: dict,
        content: tuple[str, ...],
        per_class: dict[str, int | None],
        groups: list,
        decode: tuple[str, ...] = (),
    ):
        self.data, self.per_class, self.groups, self._decode = data, per_class, groups, decode
        # which items of somebody's Dataset are meant, no file says
        self._section, self._content = section, () if isinstance(data, MapStyle) else content
        self._sets: dict[str, SampleSet] = {}
        self._digests: dict[str, str] = {}
        self._x: dict[str, Tensor] = {}  # by split
        self._known: dict[tuple, Any] = {}  # by split, what, and the identity of the space
        self._gathered: dict[tuple, Gathered] = {}
        self._replaced: set[str] = set()  # splits that are other points than the data set's

    def split(self, name: str) -> SampleSet:
        """The real points of a split; read, or downloaded, when they are first asked for.

        All classes together come in the order of their files, on which random subsets depend.
        """
        if name not in self._sets:
            in_order = self.groups == [ALL]
            number = self.per_class.get(name)
            self._sets[name] = real_set(self.data, name, number, in_order=in_order)
        return self._sets[name]

    def gathered(
        self,
        split: str,
        wanted: set[str],
        spaces: dict[str, Space],
        *,
        cache: bool = True,
        ranks: Ranks = ALONE,
        **how: Any,
    ) -> Gathered:
        """What `gather` keeps of a split: x, features, moments; from memory or disk where known.

        ranks  that all call this, and share what takes a network; all have the result
        """
        samples, of_spaces = self.split(split), sorted(wanted & {"features", "moments"})
        about = (json.dumps(space.about, sort_keys=True) for space in spaces.values())
        key = (split, *sorted(wanted), *spaces, *about)
        if key in self._gathered:
            return self._gathered[key]  # the same tensors each time
        cache = cache and split not in self._replaced and self._identified(split)
        unknown = {
            name
            for name, space in spaces.items()
            if any(not self._find(split, what, space, cache) for what in of_spaces)
        }
        unknown = set().union(*ranks.all_gather_object(unknown))  # to one of them, so to all
        missing = {name: space for name, space in spaces.items() if name in unknown}
        if missing or ("x" in wanted and split not in self._x):
            fresh = gather(samples, wanted, missing, groups=self.groups, ranks=ranks, **how)
            if "x" in wanted:
                self._x.setdefault(split, fresh.x)
            for name, space in missing.items():
                for what in of_spaces:
                    value = getattr(fresh, what)[name]
                    self._known[self._key(split, what, space)] = value
                    if cache and ranks.first and "weights" in space.about:
                        _kept(partial(self._keep, split, what, space, value))
        found = Gathered(samples.c, self._x.get(split))
        for name, space in spaces.items():
            for what in of_spaces:
                getattr(found, what)[name] = self._known[self._key(split, what, space)]
        self._gathered[key] = found
        return found

    def features(
        self,
        split: str,
        space: Space,
        d: int,
        *,
        room: float,
        cache: bool,
        ranks: Ranks,
        **how: Any,
    ) -> tuple[Tensor | None, bool]:
        """Features of a split, (n, d), and whether they are mapped from disk; all ranks make them.

        Where they cannot be kept there, they are in memory; None if they take more than `room`
        bytes of it. how: as `embedded` takes it
        """
        keeps = cache and "weights" in space.about and self._identified(split)
        found = self._on_disk(split, space, ranks) if keeps else None
        if found is None and keeps and self._streamed(split, space, d, ranks, **how):
            found = self._on_disk(split, space, ranks)
        if found is not None or 4.0 * len(self.split(split)) * d > room:
            return found, True
        blocks = embedded(self.split(split), {"": space}, ranks=ranks, **how)
        return torch.cat([of_space[""].flatten(1).cpu() for _, _, of_space in blocks]), False

    def _on_disk(self, split: str, space: Space, ranks: Ranks) -> Tensor | None:
        """Features where every rank finds them."""
        found = self._read(split, "features", space, mapped=True)
        return found if all(ranks.all_gather_object(found is not None)) else None

    def _streamed(self, split: str, space: Space, d: int, ranks: Ranks, **how: Any) -> bool:
        """Write features to their file as they are embedded; whether all ranks can read it."""
        samples, path = self.split(split), self.place(split, "features", space)
        probe: list[Path] = []
        if ranks.first:
            _kept(lambda: probe.append(check_keeps(path, 4 * len(samples) * d)))
        told = ranks.all_gather_object(probe)[0]
        seen = ranks.all_gather_object(any(place.exists() for place in told))
        for place in probe:
            place.unlink(missing_ok=True)
        if not all(seen):
            return False
        blocks = embedded(samples, {"": space}, ranks=ranks, **how)
        rows = (of_space[""].flatten(1).cpu() for _, _, of_space in blocks)
        if ranks.first:
            done = _kept(lambda: write_rows(path, (len(samples), d), rows))
        else:
            done = all(len(some) for some in rows)  # which takes part in all of them
        return all(ranks.all_gather_object(done))

    def replaced(self, split: str, points: SampleSet) -> "Real":
        """The same real side with other points as one of its splits."""
        other = Real(
            self.data, section=self._section, content=self._content, per_class=self.per_class,
            groups=self.groups, decode=self._decode,
        )  # fmt: skip
        other._sets = {**self._sets, split: points}
        other._x = {of: x for of, x in self._x.items() if of != split}
        other._known = {key: value for key, value in self._known.items() if key[0] != split}
        other._replaced = {*self._replaced, split}
        return other

    def digest(self, split: str) -> str:
        """The hash of a split's content, however it is stored."""
        if split not in self._digests:
            whole = {"split": split, "per_class": self.per_class.get(split)}
            if self.groups == [ALL]:
                whole["order"] = "files"  # once it was by class, and so it lies in older caches
            whole |= {"decode": self._decode} if self._decode else {}
            if self._content:
                whole["files"] = self._content
                own = {key: self._section.get(key) for key in OF_POINTS}
                whole |= {key: value for key, value in own.items() if value}
            elif self.data.rows is not None:
                y, rows, c = self.data.rows(split, self.per_class.get(split))
                whole["images"] = fingerprint({"y": y, "rows": rows, "c": c})
            else:
                whole["data"] = self._section
            self._digests[split] = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
        return self._digests[split]

    def _identified(self, split: str) -> bool:
        """Whether `digest` is the content's, for all together: class by class is not kept."""
        own = self._content or self.data.truth is not None
        if not own and self.data.rows is not None and not self._decode:
            y = self.data.rows(split, self.per_class.get(split))[0]
            own = isinstance(y, Tensor)  # the bytes of images
        return bool(own) and self.groups == [ALL]

    def place(self, split: str, what: str, space: Space) -> Path:
        """The file in which features or moments of a split are kept."""
        text = json.dumps([self.digest(split), what, space.about, self.groups], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        return cache_folder() / f"{name}.{'npy' if what == 'features' else 'npz'}"

    def _find(self, split: str, what: str, space: Space, cache: bool) -> bool:
        """Whether this is known, or can be read from disk, which makes it so."""
        key = self._key(split, what, space)
        if key not in self._known and cache and "weights" in space.about:
            held = self._read(split, what, space)
            if held is not None:
                self._known[key] = held
        return key in self._known

    def _key(self, split: str, what: str, space: Space) -> tuple:
        return split, what, json.dumps(space.about, sort_keys=True)

    def _read(self, split: str, what: str, space: Space, *, mapped: bool = False) -> Any:
        path = self.place(split, what, space)
        if not path.is_file():
            return None
        try:
            if what == "features":
                return read_rows(path, mapped=mapped)
            check_sealed(path)
            return {ALL: load_statistics(path)[0]}
        except (UserError, OSError, ValueError) as error:
            print(f"lightning_cfg: computed again: {one_line(error)}", file=sys.stderr)
            return None

    def _keep(self, split: str, what: str, space: Space, value: Any) -> None:
        path = self.place(split, what, space)
        about = {"space": space.about, "data": type(self.data).__name__, "split": split}

        def save(temporary: Path) -> None:
            value[ALL].save(temporary, about)
            seal(temporary)

        if what == "features":
            write_rows(path, value.shape, [value])
        else:
            write(path, save)


def _kept(keep: Callable[[], object]) -> bool:
    """Whether it could be written: where not, that is told and costs no results."""
    try:
        keep()
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        told = f"{error}; features of real data are not kept: set LIGHTNING_CFG_CACHE to another "
        print(f"{told}folder, or cache=false", file=sys.stderr)
        return False
    return True


PUBLISHED = {2048: "fid", 1024: "fd_dinov2"}  # by features: what published statistics are for
NAMED = {2048: "Inception", 1024: "DINOv2"}


def published(path: str | Path, space: Space, name: str) -> Moments:
    """Reference statistics that somebody has written to a file, for this feature space.

    UserError where they are of another extractor, as far as the file says: one that says nothing,
    such as EDM's, is taken to be of the space that its number of features is of: 2048 of
    Inception's, 1024 of DINOv2's CLS token.
    """
    moments, about = load_statistics(path, space.frechet or "")
    own = space.about
    if about is None:
        d = len(moments.mean)
        if PUBLISHED.get(d) != (space.frechet or ""):
            raise UserError(
                f"{path} does not say which features its statistics are of; such a file is taken "
                f"to be of {d} features of {NAMED.get(d, 'nothing known')}, not of "
                f"features.{name} ({own['extractor']})"
            )
        return moments
    theirs = about.get("space", {})
    for key in {**own, **theirs}:
        if own.get(key) != theirs.get(key):
            raise UserError(
                f"{path} has statistics of another feature space than features.{name}: "
                f"{key} is {theirs.get(key)} there, {own.get(key)} here"
            )
    return moments
