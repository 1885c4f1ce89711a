"""`lc.score`: the metrics of samples in memory, against real data or another set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cfg.api.networks import device_of
from lightning_cfg.api.samples import Held, Samples, as_samples
from lightning_cfg.config import Data, Features, Metric, asked
from lightning_cfg.data.build import build_data
from lightning_cfg.errors import UserError
from lightning_cfg.evaluation.build import check_set, gather_sets, scored, scorer_of, side_of
from lightning_cfg.evaluation.gather import ALONE
from lightning_cfg.evaluation.sample_sets import as_8_bit, held
from lightning_cfg.evaluation.tables import as_markdown, as_text
from lightning_cfg.interfaces import NULL, DataSet, Model, complete
from lightning_cfg.runs.progress import progress
from lightning_cfg.runs.run import content_of
from lightning_cfg.sampling.prepared import pick_device


@dataclass(frozen=True, repr=False)
class Scores:
    """A table of metrics, which a notebook shows.

    rows     one per set and class, {samples, class, n, metric: number, ...}
    numbers  one per number, with all that it depends on
    """

    rows: list[dict[str, Any]]
    numbers: list[dict[str, Any]]

    def __repr__(self) -> str:
        return as_text(self.rows)

    def _repr_markdown_(self) -> str:
        return as_markdown(self.rows, self.numbers)


class InMemory(DataSet):
    """Points in memory, which are both splits of what samples are compared with."""

    def __init__(self, points: Samples):
        labelled = bool((points.c != NULL).all())
        self.points, self.shape = points, tuple(points.x.shape[1:])
        self.num_classes = int(points.c.max()) + 1 if labelled else 0

    def real(self, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """All of them, or the first so many of each class: y (N, *shape), images as 8 bits have
        them, and c (N,)."""
        x, c = self.points.x, self.points.c.clamp(min=0)
        classes = range(max(1, self.num_classes))
        of_class = [(c == k).nonzero().flatten()[:per_class] for k in classes]
        rows = torch.cat(of_class)
        return as_8_bit(x[rows]), c[rows]


@torch.inference_mode(False)
def score(
    samples: Held | Mapping[str, Held],
    real: Any,
    *,
    metrics: Sequence[str | dict[str, Any] | Callable[..., dict]] | None = None,
    features: str | dict[str, Any] | None = None,
    classifier: Model | None = None,
    reference: str | Sequence[str] = "held_out",
    per_class: int | None = None,
    bank: int | None = None,
    by_class: bool | None = None,
    batch_size: int = 512,
    cache: bool = True,
    device: str | torch.device | None = None,
) -> Scores:
    """Score samples as `lc.verbs.evaluate` does: a row of metrics for every set and class.

    samples    what `lc.sample` gives, or a tensor (n, *shape), or both of x and c; or several sets,
               {label: samples}
    real       a data set, such as lc.data.Fractal(); a section, {name: ImageZip, path: ...}; or
               another set, as samples are given
    metrics    names or sections of lightning_cfg.metrics, or functions; left out, all that fit
    features   one feature space or several by label, for the metrics of features
    classifier  of clean samples, for class_accuracy and confidence
    reference  splits to compare with, held_out or bank
    per_class  points of each class of held_out, and `bank` of the bank; left out, all
    by_class   False scores all classes together; left out, where the samples say no classes
    cache      keep features of real data in the user's cache
    device     of feature networks; left out, where the classifier is, or a GPU where there is one
    UserError for what does not fit together.
    """
    named = samples if isinstance(samples, Mapping) else {"samples": samples}
    sets = {label: as_samples(some) for label, some in named.items()}
    data, known = _real(real)
    labelled = all(bool((some.c != NULL).all()) for some in sets.values())
    if by_class is None:
        by_class = (labelled and data.num_classes > 0) or data.truth is not None
    side = side_of(data, **known, real=per_class, bank=bank, by_class=by_class)
    if device is None:
        device = "auto" if classifier is None else device_of(classifier)
    place = pick_device(str(device))
    scorer = scorer_of(
        metrics=None if metrics is None else [_metric(metric) for metric in metrics],
        features=asked(Features | dict[str, Features] | None, features, "features"),
        statistics={},
        reference=[reference] if isinstance(reference, str) else list(reference),
        real=side,
        classifier=classifier,
        device=place,
        cache=cache,
        batch_size=batch_size,
    )
    scorer.check_columns()
    found = {}
    for label, some in sets.items():
        found[label] = held(some.x, some.c, {"source": "memory"}, seeds=some.seed)
        check_set(label, found[label], data, 1, needs_classes=by_class or classifier is not None)
    with progress(sum(map(len, sets.values())), " samples") as bar:
        pieces = gather_sets(found, dict.fromkeys(found, 1), scorer, ALONE, bar.update)
        rows, numbers, _ = scored(pieces, scorer, None)
        return Scores(rows, numbers)


def _real(real: Any) -> tuple[DataSet, dict[str, Any]]:
    """What samples are compared with, as a data set, and by what it is known."""
    if isinstance(real, Samples | Tensor | tuple):
        return InMemory(as_samples(real)), {"section": {}, "content": ()}
    if isinstance(real, str | dict):
        section = asked(Data, real, "real")
        return build_data(section), {"section": section, "content": content_of(section)[1]}
    if isinstance(real, Model):
        raise UserError(
            f"real is a data set, a section {{name: ...}} or samples, not a {type(real).__name__}"
        )
    data = complete(real, DataSet, "real", "shape", "num_classes", "real")
    return data, {"section": {}, "content": ()}


def _metric(metric: str | dict[str, Any] | Callable[..., dict]) -> Any:
    return metric if callable(metric) else asked(Metric, metric, "metrics")
