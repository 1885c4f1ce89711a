"""`evaluate`: sample files become a table of metrics, class by class, beside real data."""

from lightning_cfg.config import Data, Features, build, check_arguments, main, resolve

check_arguments(__name__)  # a missing file answers before torch is imported

import csv  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from functools import lru_cache  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lightning_cfg import checkpoints  # noqa: E402
from lightning_cfg import metrics as known  # noqa: E402
from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.files import load_samples, output_of, write_text  # noqa: E402
from lightning_cfg.generate import SAMPLES  # noqa: E402
from lightning_cfg.runs import Run, content_of  # noqa: E402


def evaluate(
    *,
    samples: dict[str, str],
    data: Data,
    run_dir: str,
    metrics: list[str] | None = None,
    real: int | None = None,
    bank: int | None = None,
    features: Features | None = None,
    classifier: str | None = None,
    by_class: bool = True,
    fresh: int | None = None,
    seed: int = 0,
) -> Path:
    """Score sample files class by class; the run holds metrics/metrics.csv and .json.

    samples       {label: run of `generate` or `refine`, or a sample file}
    metrics       functions of lightning_cfg.metrics, or dotted paths; left out, all that fit
    real          held-out real points per class to compare with; left out, all of them
    bank          training points per class, for effective_targets; left out, all of them
    features      the space of frechet_features
    classifier    a run of `fit` of a clean classifier, for class_accuracy
    by_class      False scores all classes together, in one row named all
    fresh         real points per class that are scored too, as the floor of every metric; they are
                  a fresh draw, or are taken out of the held-out points. As many as samples: some
                  metrics depend on the number. Left out: no floor
    """
    files = {label: output_of(path, SAMPLES) for label, path in samples.items()}
    for taken in ("data", "held_out", "features", "classifier", "real"):
        if taken in samples:
            raise UserError(f"samples.{taken} is the name of something else here: choose another")
    inputs = dict(files)
    feature_path = None if features is None else features.get("path")
    if feature_path is not None:
        inputs["features"] = output_of(feature_path, checkpoints.LAST)
    if classifier is not None:
        inputs["classifier"] = output_of(classifier, checkpoints.LAST)
    settings = {
        "metrics": metrics,
        "real": real,
        "bank": bank,
        "by_class": by_class,
        "fresh": fresh,
    }
    section, read = content_of(data, build("lightning_cfg.data", data))
    inputs |= read
    settings |= {"data": section, "seed": seed}
    settings |= {"features": features and {k: v for k, v in features.items() if k != "path"}}
    free = {"samples": samples, "features": features, "classifier": classifier, "data": data}
    run = Run(run_dir, "evaluate", settings, inputs, free)
    if run.finished():
        print(f"{run_dir}: finished already")
        return run.directory

    content = tuple(run.inputs[name] for name in read)
    data_set, held_out, banks = _reference(json.dumps(data), content, real, bank, by_class)
    sets = {
        label: load_samples(file, data_set.shape, data_set.num_classes)
        for label, file in files.items()
    }
    if not by_class and data_set.truth is not None:
        raise UserError("by_class=false is for data without a known density: it is the classes'")
    space = None if features is None else build("lightning_cfg.features", features)
    reader = None if classifier is None else checkpoints.restore(classifier)
    for what in ("shape", "num_classes") if reader is not None else ():
        own, other = getattr(data_set, what), getattr(reader, what)
        if own != other:
            raise UserError(f"classifier {classifier} has {what} {other}, but the data have {own}")
    if reader is not None and data_set.num_classes == 0:
        raise UserError(f"classifier {classifier}: the data have no classes that it could confirm")
    truth = data_set.truth
    quantile = truth.quantile if truth is not None and truth.shape == (1,) else None
    given = {"truth": truth, "quantile": quantile, "features": space, "classifier": reader}
    chosen = _chosen(metrics, {name for name, value in given.items() if value is not None})

    if fresh is not None:
        sets["real"] = _fresh(data_set, real, fresh, by_class)
    rows = []
    jobs = [(label, group) for label in sets for group in range(len(held_out))]
    for label, group in tqdm(jobs, unit="row", disable=not sys.stderr.isatty()):
        held = sets[label]
        own = held["c"] == group if by_class else held["c"] >= 0
        if not own.any():
            raise UserError(f"{files.get(label, label)} holds no sample of class {group}")
        have = {
            **given,
            "x": held["x"][own],
            "y": held.get("y", held_out)[group],
            "bank": banks[group],
            "c": group if by_class else held["c"],
        }
        row = {"samples": label, "class": group if by_class else "all", "n": int(own.sum())}
        for metric in chosen:
            row |= metric(**{name: have[name] for name in known.needs(metric)})
        rows.append(row)
    run.begin()  # only now: other settings, after an error above, are not refused as another run's
    table = write_text(run.directory / "metrics/metrics.csv", as_csv(rows))
    record = write_text(run.directory / "metrics/metrics.json", json.dumps(rows, indent=1))
    run.finish(table, record, metrics=[metric.__name__ for metric in chosen])
    print(f"{run_dir}: {len(rows)} rows of {len(chosen)} metrics")
    return run.directory


def as_csv(rows: list[dict]) -> str:
    """Rows with the same columns as csv; numbers keep six digits, None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def _chosen(names: list[str] | None, have: set[str]) -> list:
    """The metric functions; those left to choose are all of the defaults whose needs are met."""
    if names is None:
        names = known.MIXTURE if "truth" in have else known.IMAGES
        return [m for m in (getattr(known, n) for n in names) if not _missing(m, have)]
    functions = [resolve("lightning_cfg.metrics", name) for name in names]
    for function in functions:
        if _missing(function, have):
            raise UserError(
                f"metric {function.__name__} needs {_missing(function, have)[0]}, "
                "which the config does not give"
            )
    return functions


def _missing(metric: object, have: set[str]) -> list[str]:
    return sorted(known.needs(metric) - have - {"x", "y", "bank", "c"})


@lru_cache(maxsize=2)
def _reference(
    data: str, content: tuple[str, ...], real: int | None, bank: int | None, by_class: bool
) -> tuple:
    """The data set with its held-out and its training points: a list of tensors each, by class.

    Kept from call to call, since the metrics keep what they work out of a tensor of real points.
    content  hashes of the data's files: with others in the same place, they are read again
    """
    data_set = build("lightning_cfg.data", json.loads(data))
    splits = []
    for y, c in (data_set.real("held_out", real), data_set.real("bank", bank)):
        classes = range(max(1, data_set.num_classes))
        splits.append([y[c == k] for k in classes] if by_class else [y])
    return data_set, *splits


def _fresh(data_set: object, real: int | None, per_class: int, by_class: bool) -> dict:
    """Real points to score: a fresh draw, or some held-out ones and the others as reference."""
    if data_set.truth is not None:
        x, c = data_set.real("fresh", per_class)
        return {"x": x, "c": c}
    y, y_c = data_set.real("held_out", real)
    of_class = [(y_c == k).nonzero().flatten() for k in range(max(1, data_set.num_classes))]
    if min(map(len, of_class)) <= per_class:
        raise UserError(f"fresh={per_class} leaves no held-out point of some class to compare with")
    chosen = torch.cat([own[:per_class] for own in of_class])
    others = [own[per_class:] for own in of_class]
    others = others if by_class else [torch.cat(others)]
    return {"x": y[chosen], "c": y_c[chosen], "y": [y[i] for i in others]}


if __name__ == "__main__":
    main(evaluate)
