"""What `evaluate` and the evaluation of a training are made of: its scorer and its real side."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch

from lightning_cfg.config import Input, build, identity_of
from lightning_cfg.data.build import build_data
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.decoded import Decoding
from lightning_cfg.evaluation.features import as_space
from lightning_cfg.evaluation.gather import ALL, Gathered, Kept
from lightning_cfg.evaluation.reference import Real, published
from lightning_cfg.evaluation.sample_sets import Generated, SampleSet, real_set
from lightning_cfg.evaluation.scorer import Scorer
from lightning_cfg.interfaces import DataSet, Model, check_same
from lightning_cfg.metrics.judged import read_right
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import output_of
from lightning_cfg.runs.manifests import MANIFEST, as_written, content_hash, read_manifest
from lightning_cfg.runs.parts import Parts
from lightning_cfg.runs.ranks import Ranks
from lightning_cfg.sampling.elsewhere import elsewhere
from lightning_cfg.sampling.network import Networks, said
from lightning_cfg.weights.catalogue import ASSETS
from lightning_cfg.weights.store import find

SPLITS = ("held_out", "bank")
Piece = tuple[str, dict, SampleSet, Gathered]  # of a set: its label, {draw}, itself, what is kept


def scorer_of(
    *,
    metrics: list | None,
    features: dict | None,
    statistics: dict[str, str],
    reference: list[str],
    real: Real | None,
    classifier: str | dict | Model | None,
    device: torch.device | str = "cpu",
    cache: bool = True,
    batch_size: int = 512,
) -> Scorer:
    """The scorer of these sections, with its networks; UserError for what does not go together."""
    if not reference:
        raise UserError(f"reference is an empty list: name one of {', '.join(SPLITS)}, or both")
    for split in reference:
        if split not in SPLITS:
            raise UserError(f"reference={split} is none of the splits {', '.join(SPLITS)}")
        if reference.count(split) > 1:
            raise UserError(f"reference names {split} twice")
    sections, files = (
        by_label(features),
        {k: statistics_file(path) for k, path in statistics.items()},
    )
    for name in statistics:
        if name not in sections:
            raise UserError(f"statistics.{name} is of no feature space, features has no {name}")
    spaces = {
        label: as_space(build("lightning_cfg.evaluation.features", section), section["name"]).to(
            device
        )
        for label, section in sections.items()
    }
    return Scorer(
        metrics,
        real=real,
        spaces=spaces,
        statistics={
            label: (published(file, spaces[label], label), f"{file.name} {content_hash(file)[:12]}")
            for label, file in files.items()
        },
        references=reference,
        classifier=judge(classifier, real, device),
        classifier_hash=_hash_of(classifier),
        cache=cache,
        device=device,
        batch_size=batch_size,
    )


def _hash_of(classifier: str | dict | Model | None) -> str:
    """Of its file, where it is not in memory; of a part, with the name of which it is said."""
    if isinstance(classifier, dict):
        of_keys = {k: v for k, v in classifier.items() if k not in ("name", "path")}
        hashes = (digest[:12] for digest in read_by(classifier).values())
        return " ".join([said(classifier), *(f"{k}={v}" for k, v in of_keys.items()), *hashes])
    if not isinstance(classifier, str):
        return ""
    return content_hash(output_of(classifier, checkpoints.LAST))


def read_by(classifier: str | dict) -> dict[str, str]:
    """Content hashes of the files that a classifier of `models` is made of, by key."""

    def of(*, models: Networks) -> None: ...

    found = identity_of(of, {"models": {"classifier": classifier}})
    return {key: content_hash(file) for key, file in found.inputs.items()}


def guided_by(run: str | Path, classifier: str | dict) -> bool:
    """Whether the samples of a run of `generate`, or what it refined, were guided by a classifier.

    It is known by its files, wherever they lie.
    """
    run = Path(run) if Path(run).is_dir() else Path(run).absolute().parent.parent
    with as_written(run / MANIFEST):
        manifest = read_manifest(run, "verb", "inputs")
        if manifest.get("verb") == "refine":
            return guided_by(manifest["free"]["samples"], classifier)
        inputs = manifest.get("inputs", {}).items()
        guiding = {digest for key, digest in inputs if key.startswith("models.classifier")}
    return bool(guiding & set(read_by(classifier).values()))


def by_label(features: dict | None) -> dict[str, dict]:
    """The feature spaces by label, which for a single one is its name."""
    if features is None:
        return {}
    if isinstance(features.get("name"), str):
        return {features["name"].rpartition(".")[2]: features}
    return features


def statistics_file(path: str) -> Path:
    """A file of reference statistics, which may be one that `lightning_cfg.assets` knows."""
    if path in ASSETS and not Path(path).exists():
        return find(path)
    return output_of(path, "")


Statistics = Annotated[str, Input(statistics_file)]  # which counts by its content


def judge(given: str | dict | Model | None, side: Real | None, place: torch.device | str) -> Any:
    """The classifier of clean samples, of a run, a part by its section, or in memory; UserError
    where it is none of them, or the data are none of its."""
    if given is None or side is None:
        return None
    if isinstance(given, dict):
        reader = elsewhere("classifier", given, side.data, classifies=True)
        path = said(given)
    else:
        reader = checkpoints.restore(given) if isinstance(given, str) else given
        path = given if isinstance(given, str) else type(given).__name__
    if not (reader.classifies and reader.clean):
        what = "noisy samples" if reader.classifies else "none, but generates them"
        raise UserError(
            f"classifier {path} must be one of clean samples, a run of `fit` of NoisyClassifier "
            f"with model.clean=true: this {type(reader).__name__} reads {what}"
        )
    if reader.shape is not None:  # or it reads pictures of any size
        check_same(f"classifier {path}", reader, "the data have", side.data)
    if side.data.num_classes == 0:
        raise UserError(f"classifier {path}: the data have no classes that it could confirm")
    return reader.to(place)


@lru_cache(maxsize=2)
def real_side(
    data: str,
    content: tuple[str, ...],
    real: int | None,
    bank: int | None,
    by_class: bool,
    decode: Decoding | None = None,
) -> Real:
    """The real side, kept from call to call since so much is worked out of it.

    content  hashes of the data's files: with others in the same place, they are read again
    decode   of latents, which are compared as images
    """
    section = json.loads(data)
    data_set = build_data(section)
    decode = decode if decode is not None and decode.takes(data_set.shape) else None
    data_set = data_set if decode is None else decode.data(data_set)
    known = {"content": content, "decode": () if decode is None else decode.known}
    return side_of(data_set, section, real=real, bank=bank, by_class=by_class, **known)


def side_of(
    data_set: DataSet,
    section: dict,
    *,
    real: int | None,
    bank: int | None,
    by_class: bool,
    **known: Any,
) -> Real:
    """A data set as the real side, with so many points of each class; see `Real` for the others."""
    if not by_class and data_set.truth is not None:
        raise UserError("by_class=false is for data without a known density: it is the classes'")
    counts: dict[str, int | None] = {"held_out": real, "bank": bank}
    groups = list(range(max(1, data_set.num_classes))) if by_class else [ALL]
    return Real(data_set, section=section, per_class=counts, groups=groups, **known)


def fresh_points(side: Real, per_class: int, seed: int = 0) -> tuple[SampleSet, Real | None]:
    """Real points to score: a fresh draw, or some held-out ones with the others as reference.

    seed  chooses which held-out ones: 0 the first of every stretch, another one of each by chance
    """
    if side.data.truth is not None:
        return real_set(side.data, "fresh", per_class), None
    held_out = side.split("held_out")
    classes = range(max(1, side.data.num_classes))
    if side.data.drawn is not None:  # there is nothing of the others
        classes = side.data.drawn.tolist()
    of_class = [(held_out.c == k).nonzero().flatten() for k in classes]
    if min(map(len, of_class)) <= per_class:
        raise UserError(f"fresh={per_class} leaves no held-out point of some class to compare with")
    # evenly spaced, as files have an order: the later half of MNIST's is by other writers
    taken = torch.zeros(len(held_out), dtype=torch.bool)
    for k, own in enumerate(of_class):
        starts = torch.arange(per_class + 1) * len(own) // per_class
        chance = torch.rand(per_class, generator=keyed("fresh", seed, k), dtype=torch.float64)
        within = (chance * starts.diff()).long() if seed else 0
        taken[own[starts[:-1] + within]] = True
    chosen, others = (held_out.chosen(mask.nonzero().flatten()) for mask in (taken, ~taken))
    return chosen, side.replaced("held_out", others)


def check_set(label: str, held: Any, data: Any, draws: int, *, needs_classes: bool) -> None:
    if data is not None and data.shape and held.shape != tuple(data.shape):
        raise UserError(f"{label} has samples of shape {held.shape}, not {tuple(data.shape)}")
    if needs_classes and not held.labelled:
        raise UserError(
            f"samples.{label}: {held.about['source']} says no classes: by_class=false, and no "
            "classifier, score it without"
        )
    if not isinstance(held, Generated) and len(held) % draws:
        raise UserError(f"samples.{label}: {len(held)} samples cannot be cut in {draws} draws")


def gather_sets(
    sets: dict[str, SampleSet],
    parts: dict[str, int],
    scorer: Scorer,
    ranks: Ranks,
    progress: Callable[[int], Any],
    made: Parts | None = None,
) -> Iterator[Piece]:
    """Every set's every draw, gathered by all ranks: (label, {draw}, the samples, all of them).

    made  what an interrupted call has gathered, and what this one does; None keeps nothing
    """
    for label, held in sets.items():
        for draw in range(parts[label]):
            some = held.part(draw, parts[label]) if parts[label] > 1 else held
            ranks.check(len(some), label)
            own = some.shared(ranks) if ranks.size > 1 else some
            kept = None if made is None else Kept(made, f"{label}/{draw}")
            found = ranks.raise_together(lambda own=own, k=kept: scorer.gather(own, progress, k))
            numbered = {"draw": draw + 1} if parts[label] > 1 else {}
            yield label, numbered, own, found.all_gather()


def scored(
    pieces: Iterable[Piece], scorer: Scorer, others: Real | None
) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows of the table and of the numbers, and of each class how many were read as it.

    others  what fresh real points are compared with, in place of all real points
    """
    rows, numbers, right = [], [], []
    for label, draw, some, found in pieces:
        for group in scorer.groups:
            n = len(found.of(group).c)
            if not n:
                source = some.about.get("source", label)
                raise UserError(f"{source} holds no sample of class {group}")
            row, records = scorer.score(found, group, others if label == "real" else None)
            front = {"samples": label, "class": group, **draw}
            rows.append({**front, "n": n, **row})
            numbers += [{**front, **record, **some.about} for record in records]
        right += [{"samples": label, **draw, **row} for row in _right_of_each(found)]
    return rows, numbers, right


def _right_of_each(found: Gathered) -> Iterator[dict]:
    """Of each class its samples, and how many a classifier reads as it; nothing without one."""
    if found.logits is None:
        return
    right = read_right(found.logits, found.c)
    for k in found.c.unique().tolist():
        own = found.c == k
        yield {"class": k, "n": int(own.sum()), "right": int(right[own].sum())}
