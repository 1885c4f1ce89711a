"""One pass over a set of samples: all that its metrics need of it, in every feature space."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.sample_sets import SampleSet, all_of
from lightning_cfg.interfaces import Classifier
from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.runs.parts import Parts
from lightning_cfg.runs.ranks import Ranks

ALONE = Ranks()
ALL = "all"  # the group of all samples, where they are not scored class by class


@dataclass
class Gathered:
    """What was kept of n samples. What nobody asked for is absent, so that n may be large."""

    c: Tensor  # (n,)
    x: Tensor | None = None  # (n, *shape)
    logits: Tensor | None = None  # (n, K), a given classifier's
    cosine: Tensor | None = None  # (n,), of a picture and its own prompt
    features: dict[str, Tensor] = field(default_factory=dict)  # by space, (n, d)
    head_logits: dict[str, Tensor] = field(default_factory=dict)  # by space, (n, K)
    moments: dict[str, dict[Any, Moments]] = field(default_factory=dict)  # by space and group
    _groups: dict[Any, "Gathered"] = field(default_factory=dict)

    def of(self, group: Any) -> "Gathered":
        """The part of one class, or all: the same tensors each time, which metrics remember."""
        if group == ALL:
            return self
        if group not in self._groups:
            own = self.c == group

            def pick(value: Any) -> Any:
                if isinstance(value, dict):
                    return {name: item[own] for name, item in value.items()}
                return None if value is None else value[own]

            self._groups[group] = Gathered(*map(pick, self._kept), moments=self.moments)
        return self._groups[group]

    def all_gather(self) -> "Gathered":
        """What all processes have gathered of the same set, of which rank r had r, r + R, ...

        In the order of one process. Collectives that every process has to join; without a process
        group it is the same.
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self

        ranks = Ranks(distributed.get_rank(), distributed.get_world_size())

        def whole(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: whole(value[name]) for name in sorted(value)}
            return None if value is None else ranks.all_gather_rows(value)

        moments = {
            name: {group: held.all_reduce() for group, held in of_space.items()}
            for name, of_space in sorted(self.moments.items())
        }
        return Gathered(*map(whole, self._kept), moments=moments)

    @property
    def _kept(self) -> tuple:
        """What has a row of each sample."""
        return self.c, self.x, self.logits, self.cosine, self.features, self.head_logits


@dataclass
class Kept:
    """What an earlier call has found of a set's batches, and what this one finds, in `parts`.

    name  of the set among all that the run goes over
    """

    parts: Parts
    name: str

    def before(self, samples: SampleSet) -> Iterator[dict[str, Tensor]]:
        """The first batches, as far as they are there; the samples say what they have cost."""
        for k in itertools.count():
            if f"{self.name}/{k}" not in self.parts:
                return
            if spent := self.parts.facts(f"{self.name}/{k}")["spent"]:
                samples.spent = spent
            yield self.parts[f"{self.name}/{k}"]

    def add(self, k: int, found: dict[str, Tensor], samples: SampleSet) -> None:
        rows = len(found["c"])
        self.parts.keep(f"{self.name}/{k}", found, rows=rows, spent=samples.spent)


def gather(
    samples: SampleSet,
    wanted: set[str],
    spaces: dict[str, Space],
    *,
    classifier: Classifier | None = None,
    groups: Sequence = (ALL,),
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    progress: Callable[[int], Any] = lambda n: None,
    ranks: Ranks = ALONE,
    kept: Kept | None = None,
) -> Gathered:
    """Read the samples once and keep what is wanted: x, logits, cosine, features, moments,
    head_logits.

    The features of a batch are computed once for each space, whatever is made of them. Results lie
    on the CPU; only Moments are kept of what nobody else wants, so memory does not grow with n.
    ranks  share the embedding of samples that all of them have, and keep the same; without logits
    kept   of one process: batches that are there are not gone over again
    """
    parts: dict[str, list[Tensor]] = {}
    moments = {name: {group: Moments() for group in groups} for name in spaces}
    if not wanted & {"features", "moments", "head_logits"}:
        spaces = {}
    before = [] if kept is None else [len(found["c"]) for found in kept.before(samples)]

    def fresh() -> Iterator[dict[str, Tensor]]:
        read = embedded(
            samples, spaces, device=device, batch_size=batch_size, ranks=ranks,
            with_x="x" in wanted, first=len(before),
        )  # fmt: skip
        for k, (x, c, of_spaces) in enumerate(read, len(before)):
            found = _found(x, c, of_spaces, wanted, spaces, classifier, device)
            if kept is not None:
                kept.add(k, found, samples)
            progress(len(c))
            yield found

    already = [] if kept is None else kept.before(samples)
    for found in itertools.chain(already, fresh()):
        for name in spaces if "moments" in wanted else ():
            _add(moments[name], found[f"features/{name}"].to(device), found["c"])
        for key, value in found.items():
            if "features" in wanted or not key.startswith("features/"):
                parts.setdefault(key, []).append(value.cpu())
    whole = {key: torch.cat(values) for key, values in parts.items()}
    features, head_logits = (
        {name: whole[f"{what}/{name}"] for name in spaces if f"{what}/{name}" in whole}
        for what in ("features", "head_logits")
    )
    for by_group in moments.values():
        for held in by_group.values():
            held.cpu()
    return Gathered(
        whole["c"],
        whole.get("x"),
        whole.get("logits"),
        whole.get("cosine"),
        features,
        head_logits,
        moments if "moments" in wanted else {},
    )


def _found(
    x: Tensor,
    c: Tensor,
    of_spaces: dict[str, Tensor],
    wanted: set[str],
    spaces: dict[str, Space],
    classifier: Any,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """What is wanted of a batch: c, x, logits, cosine, features/SPACE, head_logits/SPACE."""
    found = {"c": c, "x": x} if "x" in wanted else {"c": c}
    if "logits" in wanted:
        found["logits"] = _logits(classifier, x.to(device))
    if "cosine" in wanted:
        with torch.no_grad():
            cosines = torch.cat([classifier.cosines(part) for part in x.to(device).split(512)])
        found["cosine"] = cosines.gather(1, c.to(device)[:, None])[:, 0]
    for name, space in spaces.items():
        f = of_spaces[name]
        if wanted & {"features", "moments"}:
            found[f"features/{name}"] = f
        if "head_logits" in wanted and space.head is not None:
            found[f"head_logits/{name}"] = space.head(f.to(space.device)).detach()
    return found


def embedded(
    samples: SampleSet,
    spaces: dict[str, Space],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    ranks: Ranks = ALONE,
    with_x: bool = False,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """x, classes and, on the device, features in each space, batch by batch.

    with_x  False: x may be of no samples, where other ranks read them
    first   batch of one process, where those before are known
    Of several ranks each embeds a batch in turn and tells the others. The batches are those of one
    process, so all get what it gets, to the last bit. All join, and a UserError of one is raised on
    all.
    """
    if ranks.size == 1:
        for x, c in samples.batches(batch_size, first):
            on_device = x.to(device)
            yield x, c, {name: space(on_device) for name, space in spaces.items()}
        return
    batches = torch.arange(len(samples)).split(batch_size)
    for first in range(0, len(batches), ranks.size):
        turn = [samples.chosen(rows) for rows in batches[first : first + ranks.size]]
        mine = turn[ranks.rank] if ranks.rank < len(turn) else None

        def own(mine: SampleSet | None = mine) -> dict[str, Tensor]:
            if mine is None or not spaces:
                return {}
            x = all_of(mine).to(device)
            return {name: space(x).cpu() for name, space in spaces.items()}

        found = ranks.raise_together(own)
        told = {name: ranks.one_after_another(found.get(name)).to(device) for name in spaces}
        parts = {name: f.split([*map(len, turn)]) for name, f in told.items()}
        for i, some in enumerate(turn):
            f = {name: of_each[i] for name, of_each in parts.items()}
            yield all_of(some) if with_x else torch.empty(0, *samples.shape), some.c, f


@torch.no_grad()
def _logits(classifier: Classifier, x: Tensor) -> Tensor:
    """Of clean samples, (B, K)."""
    return torch.cat([classifier(part, part.new_zeros(len(part))) for part in x.split(512)])


def _add(moments: dict[Any, Moments], f: Tensor, c: Tensor) -> None:
    """Features of a batch to the moments of each group."""
    for group, held in moments.items():
        own = f if group == ALL else f[(c == group).to(f.device)]
        if len(own):
            held.add(own)
