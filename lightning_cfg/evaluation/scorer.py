"""The chosen metrics of a set of samples, against the same real side for every set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_cfg.config import resolve
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.features import Space
from lightning_cfg.evaluation.gather import ALL, ALONE, Gathered, Kept, gather
from lightning_cfg.evaluation.reference import Real
from lightning_cfg.evaluation.sample_sets import SampleSet
from lightning_cfg.interfaces import Classifier
from lightning_cfg.metrics import IMAGES, MIXTURE
from lightning_cfg.metrics.frechet import Moments
from lightning_cfg.metrics.meaning import check_columns, is_ours, path_of
from lightning_cfg.metrics.needs import OF_A_SPACE, needs
from lightning_cfg.metrics.settings import settings_of, with_settings, words
from lightning_cfg.runs.ranks import Ranks


class Scorer:
    """Scores sets of samples.

    metrics     names or sections {name, ...} of lightning_cfg.metrics, or functions; None: all
                that fit
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
        metrics: Sequence[Any] | None,
        *,
        real: Real | None,
        spaces: dict[str, Space],
        statistics: dict[str, tuple[Moments, str]] | None = None,
        references: Sequence[str] = ("held_out",),
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
        if not self.metrics:
            why = "none fits what is given here" if metrics is None else "the list is empty"
            raise UserError(f"metrics: {why}, so there would be nothing but names in the table")
        self._needed = set().union(*(needs(metric) for metric, _ in self.metrics))
        self.wanted = self._needed & {
            "x",
            "logits",
            "cosine",
            "head_logits",
        }  # of a set, for `gather`
        self.wanted |= {what for what in ("features", "moments") if f"{what}_x" in self._needed}

    def to(self, device: torch.device) -> "Scorer":
        """Its networks on this device, where it works from now on."""
        for space in self.spaces.values():
            space.to(device)
        if self.classifier is not None:
            self.classifier.to(device)
        self.how["device"] = device
        return self

    @property
    def steps(self) -> dict[str, Any]:
        """At which step of its training each network that reads samples was saved."""
        spaces = {k: space.step for k, space in self.spaces.items() if space.step is not None}
        found = {"features": spaces} if spaces else {}
        return found if self.classifier is None else found | {"classifier": self.classifier.step}

    def gather(
        self,
        held: SampleSet,
        progress: Callable[[int], Any] = lambda n: None,
        kept: Kept | None = None,
    ) -> Gathered:
        """One pass over a set, which keeps what these metrics want of it."""
        return gather(
            held, self.wanted, self.spaces, classifier=self.classifier, groups=self.groups,
            progress=progress, kept=kept, **self.how,
        )  # fmt: skip

    def read_real(self, ranks: Ranks, real: Real | None = None) -> None:
        """Embed with all ranks together what `score` needs of the real side, which then has it.

        real  another real side than the usual one
        """
        for metric, _ in self.metrics:
            needed = needs(metric)
            for split in self.references if needed & REFERENCE else self.references[:1]:
                given = split == self.references[0] and set(self.spaces) <= set(self.statistics)
                for name in sorted(needed & set(SIDE) - ({"moments_y"} if given else set())):
                    self._real_split(real or self.real, SIDE[name][0] or split, split, ranks)

    def check_columns(self) -> None:
        """UserError, before any samples are made, for a metric with a column of another one's.

        Which columns one of one's own has is known once it was called: here with made-up numbers.
        """
        for metric, keys in self.metrics:
            if is_ours(path_of(metric)):
                continue
            with torch.random.fork_rng(devices=[]):
                made_up = self._made_up()
                try:
                    values = metric(**{name: made_up[name] for name in needs(metric)}, **keys)
                except Exception:  # it wants more than that, and is checked when it scores
                    continue
            if isinstance(values, dict):
                check_columns(metric, values)

    def score(
        self, found: Gathered, group: Any, real: Real | None = None
    ) -> tuple[dict[str, float], list[dict]]:
        """Columns of one group, and a record of each number with what it depends on.

        real  another real side than the usual one
        UserError where two metrics would share a column.
        """
        row, numbers, n = {}, [], len(found.of(group).c)
        for metric, keys in self.metrics:
            splits = self.references if needs(metric) & REFERENCE else self.references[:1]
            for i, split in enumerate(splits):
                for name in self._spaces_of(needs(metric), found.of(group)):
                    given, about = self._given(needs(metric), found, group, split, name, real)
                    values = metric(**given, **keys)
                    check_columns(metric, values)
                    about["settings"] = " ".join(words(settings_of(metric, keys), "="))
                    for column, value in values.items():
                        column = with_settings(column, metric, keys)
                        if name is not None:
                            column = column_of(column, name, self.spaces[name], n)
                        column += f"_vs_{split}" if i else ""
                        if column in row:
                            raise UserError(
                                f"metric {metric.__name__}: another one has a column {column} too: "
                                "call it otherwise"
                            )
                        row[column] = value
                        numbers.append({"metric": column, "value": value, "n": n, **about})
        return row, numbers

    def _chosen(self, sections: Sequence[Any] | None) -> list[tuple[Callable, dict]]:
        """The metric functions with their numbers; left to choose, all of the defaults that fit."""
        available = self._available()
        if sections is None:
            names = MIXTURE if "truth" in self.given else IMAGES
            functions = [resolve("lightning_cfg.metrics", name) for name in names]
            return [(f, {}) for f in functions if needs(f) <= available]
        chosen = []
        for section in sections:
            section = {"name": section} if isinstance(section, str) else section
            if isinstance(section, dict):
                function = resolve("lightning_cfg.metrics", section["name"])
                keys = {k: v for k, v in section.items() if k != "name"}
            else:
                function, keys = section, {}
            missing = sorted(needs(function) - available)
            if missing:
                raise UserError(
                    f"metric {function.__name__} needs {missing[0]}, "
                    f"which the config does not give{GIVEN_BY.get(missing[0], '')}"
                )
            known = ((f, settings_of(f, given)) for f, given in chosen)
            if (function, settings_of(function, keys)) not in known:  # named twice, scored once
                chosen.append((function, keys))
        return chosen

    def _made_up(self) -> dict[str, Any]:
        """Of all that a metric may be given, 64 rows of noise."""
        n, shape, classes = 64, (2,), 2
        if self.real is not None:
            shape, classes = tuple(self.real.data.shape), max(2, self.real.data.num_classes)
        noise = dict.fromkeys((*SIDE, "features_x"), torch.randn(n, 8))
        noise |= dict.fromkeys(("x", "y", "bank"), torch.randn(n, *shape).clamp(-1, 1))
        noise |= dict.fromkeys(("logits", "head_logits"), torch.randn(n, classes))
        noise["cosine"] = torch.rand(n)
        moments = Moments().add(torch.randn(n, 8))
        return {**self.given, **noise, "c": 0, "moments_x": moments, "moments_y": moments}

    def _available(self) -> set[str]:
        """Names of all that a metric can be given here."""
        out = {"x", "c", *self.given}
        if self.classifier is not None:
            out |= {"logits"} | ({"cosine"} if hasattr(self.classifier, "cosines") else set())
        if self.real is not None and self.real.data.has_points:
            out |= set(SIDE) if self.spaces else set(SIDE) - OF_A_SPACE
        if self.spaces:
            out |= {"features_x", "moments_x"}
            if set(self.statistics) == set(self.spaces):
                out |= {"moments_y"}
            if any(space.head is not None for space in self.spaces.values()):
                out |= {"head_logits"}
        return out

    def _spaces_of(self, needed: set[str], own: Gathered) -> list[str | None]:
        """The spaces in which a metric is taken; [None] for one that asks for none."""
        if not needed & OF_A_SPACE:
            return [None]
        return [n for n in self.spaces if "head_logits" not in needed or n in own.head_logits]

    def _given(
        self,
        needed: set[str],
        found: Gathered,
        group: Any,
        split: str,
        space: str | None,
        real: Real | None,
    ) -> tuple[dict, dict]:
        """What a metric is given by name, and of what its numbers depend."""
        own, about, counts = found.of(group), {}, {}
        given = {**self.given, "x": own.x, "logits": own.logits, "cosine": own.cosine}
        given["c"] = own.c if group == ALL else group
        if space is not None:
            given["features_x"] = own.features.get(space)
            given["head_logits"] = own.head_logits.get(space)
            given["moments_x"] = found.moments.get(space, {}).get(group)
            if split == self.references[0] and "moments_y" in needed and space in self.statistics:
                given["moments_y"], about["reference"] = self.statistics[space]
        for name in sorted((needed - set(given)) & set(SIDE)):
            of, what = SIDE[name][0] or split, SIDE[name][1]
            held = self._real_split(real or self.real, of, split)
            given[name], counts[of] = _part(held, what, group, space), len(held.of(group).c)
        if counts and not about:
            about = {
                "reference": " and ".join(counts),
                "m": " and ".join(map(str, counts.values())),
            }
        if needed & {"logits", "cosine"}:
            about["classifier"] = self.classifier_hash
        if space is not None:
            about |= self.spaces[space].about
        return {name: given[name] for name in needed}, about

    def _real_split(self, real: Any, of: str, split: str, ranks: Ranks = ALONE) -> Gathered:
        """All that any metric needs of a split of the real data, so that it is read once."""
        needed = (SIDE[name] for name in self._needed & set(SIDE))
        wanted = {what for whose, what in needed if (whose or split) == of}
        spaces = self.spaces
        if wanted <= {"moments"} and of == self.references[0]:  # given statistics stand for them
            spaces = {n: s for n, s in spaces.items() if n not in self.statistics}
        return real.gathered(of, wanted, spaces, cache=self.cache, ranks=ranks, **self.how)


def _part(held: Gathered, what: str, group: Any, space: Any) -> Any:
    """x, features or moments of one group."""
    if what == "moments":
        return held.moments[space][group]
    return held.of(group).x if what == "x" else held.of(group).features[space]


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
    "cosine": ": name a `classifier` over prompts, such as clip",
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
