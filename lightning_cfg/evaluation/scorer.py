"""The chosen metrics of a set of samples, against the same real side for every set."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_cfg import metrics as known
from lightning_cfg.config import resolve
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.gather import ALL, Gathered, gather
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import SampleSet
from lightning_cfg.interfaces import Classifier
from lightning_cfg.metrics.moments import Moments


class Scorer:
    """Scores sets of samples.

    metrics     names or sections {name, ...} of lightning_cfg.metrics; None: all that fit
    real        the real side; None where `statistics` are all of it
    spaces      feature spaces by label
    statistics  {label: (Moments, where from)}: the real side of that space's Fréchet distances,
                instead of the first reference's
    references  splits of the real data to compare with; columns of the second bear its name
    classifier  of clean samples, and the hash of its file
    how         device and batch size, for `gather`; cache, for `Real.gathered`
    Raises UserError for a metric that needs what is not there.
    """

    def __init__(
        self,
        metrics: list[dict] | None,
        *,
        real: Real | None,
        spaces: dict[str, Space],
        statistics: dict[str, tuple[Moments, str]] | None = None,
        references: list[str] = ("held_out",),
        classifier: Classifier | None = None,
        classifier_hash: str = "",
        cache: bool = True,
        **how: Any,
    ):
        self.real, self.spaces, self.statistics = real, spaces, statistics or {}
        self.references, self.classifier = list(references), classifier
        self.classifier_hash, self.how, self.cache = classifier_hash, how, cache
        truth = None if real is None else real.data.truth
        self.given = {"truth": truth} if truth is not None else {}
        if truth is not None and truth.shape == (1,):
            self.given["quantile"] = truth.quantile
        self.groups = [ALL] if real is None else real.groups
        self.metrics = self._chosen(metrics)
        asked = set().union(*(known.needs(metric) for metric, _ in self.metrics))
        self.wanted = asked & {"x", "logits", "head_logits"}
        self.wanted |= {what for what in ("features", "moments") if f"{what}_x" in asked}
        self._asked = asked

    def to(self, device: torch.device) -> "Scorer":
        """Its networks on this device, where it works from now on."""
        for space in self.spaces.values():
            space.to(device)
        if self.classifier is not None:
            self.classifier.to(device)
        self.how["device"] = device
        return self

    def gather(self, held: SampleSet, progress: Callable[[int], Any] = lambda n: None) -> Gathered:
        """One pass over a set, which keeps what these metrics want of it."""
        return gather(
            held, self.wanted, self.spaces, classifier=self.classifier, groups=self.groups,
            progress=progress, **self.how,
        )  # fmt: skip

    def score(
        self, found: Gathered, group: Any, real: Real | None = None
    ) -> tuple[dict[str, float], list[dict]]:
        """Columns of one group, and a record of each number with what it depends on.

        real  another real side than the usual one
        """
        own, row, numbers = found.of(group), {}, []
        base = {**self.given, "x": own.x, "logits": own.logits}
        base["c"] = own.c if group == ALL else group
        for metric, keys in self.metrics:
            needs = known.needs(metric)
            splits = self.references if needs & REFERENCE else self.references[:1]
            for i, split in enumerate(splits):
                for name in self._spaces_of(needs, own):
                    have = base | self._of_space(found, group, name)
                    about = {}
                    if i == 0 and "moments_y" in needs and name in self.statistics:
                        have["moments_y"], about["reference"] = self.statistics[name]
                    side, counts = self._real_side(needs - set(have), split, group, name, real)
                    have |= side
                    if counts and not about:
                        about = {"reference": " and ".join(counts)}
                        about["m"] = " and ".join(map(str, counts.values()))
                    if "logits" in needs:
                        about["classifier"] = self.classifier_hash
                    values = metric(**{need: have[need] for need in needs}, **keys)
                    if name is not None:
                        about |= self.spaces[name].about
                    for column, value in values.items():
                        if name is not None:
                            column = column_of(column, name, self.spaces[name], len(own.c))
                        column += f"_vs_{split}" if i else ""
                        row[column] = value
                        record = {"metric": column, "value": value, "n": len(own.c)}
                        numbers.append({**record, **about})
        return row, numbers

    def _chosen(self, sections: list[dict] | None) -> list[tuple[Callable, dict]]:
        """The metric functions with their numbers; left to choose, all of the defaults that fit."""
        have = {"x", "c", *self.given}
        have |= {"logits"} if self.classifier is not None else set()
        if self.real is not None:
            have |= {"y", "bank"}
        if self.spaces:
            have |= {"features_x", "moments_x"}
            if self.real is not None:
                have |= {f"features_{side}" for side in ("y", "held_out", "bank")} | {"moments_y"}
            elif set(self.statistics) == set(self.spaces):
                have |= {"moments_y"}
            if any(space.head is not None for space in self.spaces.values()):
                have |= {"head_logits"}
        if sections is None:
            names = known.MIXTURE if "truth" in self.given else known.IMAGES
            functions = [getattr(known, name) for name in names]
            return [(f, {}) for f in functions if known.needs(f) <= have]
        chosen = []
        for section in sections:
            section = {"name": section} if isinstance(section, str) else section
            function = resolve("lightning_cfg.metrics", section["name"])
            missing = sorted(known.needs(function) - have)
            if missing:
                raise UserError(
                    f"metric {function.__name__} needs {missing[0]}, "
                    f"which the config does not give{GIVEN_BY.get(missing[0], '')}"
                )
            chosen.append((function, {k: v for k, v in section.items() if k != "name"}))
        return chosen

    def _spaces_of(self, needs: set[str], own: Gathered) -> list[str | None]:
        """The spaces in which a metric is taken; [None] for one that asks for none."""
        if not needs & known.OF_A_SPACE:
            return [None]
        return [n for n in self.spaces if "head_logits" not in needs or n in own.head_logits]

    def _of_space(self, found: Gathered, group: Any, name: str | None) -> dict:
        own = found.of(group)
        whole = {"features_x": own.features, "head_logits": own.head_logits}
        have = {what: held[name] for what, held in whole.items() if name in held}
        if name in found.moments:
            have["moments_x"] = found.moments[name][group]
        return have

    def _real_side(
        self, needs: set[str], split: str, group: Any, name: str | None, real: Real | None
    ) -> tuple[dict, dict[str, int]]:
        """What a metric needs of the real side, and the splits it is of, with their sizes."""
        real, side, counts = real or self.real, {}, {}
        for need in sorted(needs & set(SIDE)):
            of, what = SIDE[need]
            of = of or split
            # everything that any metric asks of this split at once: the images are read once
            asked = (SIDE[name] for name in self._asked & set(SIDE))
            wanted = {kept for whose, kept in asked if (whose or split) == of}
            spaces = self.spaces
            if wanted <= {"moments"} and of == self.references[0]:
                spaces = {n: s for n, s in spaces.items() if n not in self.statistics}
            held = real.gathered(of, wanted, spaces, cache=self.cache, **self.how)
            part = held.of(group)
            if what == "moments":
                side[need] = held.moments[name][group]
            else:
                side[need] = part.x if what == "x" else part.features[name]
            counts[of] = len(part.c)
        return side, counts


SIDE = {  # what a metric may need of the real side: (split, or "" for the reference's, what of it)
    "y": ("", "x"),
    "bank": ("bank", "x"),
    "features_y": ("", "features"),
    "features_held_out": ("held_out", "features"),
    "features_bank": ("bank", "features"),
    "moments_y": ("", "moments"),
}
REFERENCE = {name for name, (split, _) in SIDE.items() if not split}
GIVEN_BY = {
    "logits": ": name a `classifier`",
    "head_logits": ": `features` with a classifier's head, such as inception",
    **{name: ": name `features`" for name in ("features_x", "moments_x")},
    **{name: ": `data`" for name in SIDE},
}


def column_of(column: str, label: str, space: Space, n: int) -> str:
    """A column of a metric in a feature space, as the literature calls it.

    fd in inception is fid, in dinov2 fd_dinov2; kd is kid. A space by another label bears it. Where
    published values are over more samples, the size is part of the name: fid_2k is not FID.
    """
    kind, _, rest = column.partition("_")
    usual = {"fd": space.frechet, "kd": space.kernel}.get(kind)
    if kind not in ("fd", "kd"):
        return f"{column}_{label}"
    name = f"{kind}_{label}" if usual is None else usual
    if usual is not None and label not in ("inception", "dinov2"):
        name = f"{usual}_{label}"
    name += f"_{rest}" if rest else ""
    if column == "fd" and n < space.standard:
        name += f"_{n // 1000}k" if n % 1000 == 0 else f"_{n}"
    return name
