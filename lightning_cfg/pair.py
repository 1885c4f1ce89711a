"""`pair`: generated samples and their nearest real neighbours of the same class."""

from lightning_cfg.config import Data, Features, build, check_arguments, main

check_arguments(__name__)  # a missing file answers before torch is imported

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lightning_cfg.errors import UserError  # noqa: E402
from lightning_cfg.files import load_samples, output_of, save_tensors  # noqa: E402
from lightning_cfg.generate import SAMPLES  # noqa: E402
from lightning_cfg.neighbours import nearest, nearest_in_class  # noqa: E402
from lightning_cfg.runs import Run, content_of  # noqa: E402

PAIRS = "pairs/pairs.safetensors"


def pair(
    *,
    sources: list[str],
    data: Data,
    run_dir: str,
    n: int | None = None,
    k: int = 20,
    bank: int | None = None,
    features: Features = {"name": "pixels"},  # noqa: B006  a default section, never changed
    same_class: bool = True,
    seed: int = 0,
) -> Path:
    """Find the k nearest real points of every generated sample; the run holds pairs/.

    sources     runs of `generate` or sample files; several share n equally
    n           sources in all; left out, every sample of every file
    bank        real points per class of the training data; left out, all of them
    features    the space in which near is near (Zhao & Schwing 2025, sec. B.1)
    same_class  neighbours only among real points of the sample's class
    """
    if n is not None and n < 1:
        raise UserError(f"n={n} must be at least 1")
    if k < 1:
        raise UserError(f"k={k} must be at least 1")
    if not sources:
        raise UserError("sources must name at least one run of `generate` or sample file")
    files = [output_of(source, SAMPLES) for source in sources]
    inputs = {f"sources.{i}": file for i, file in enumerate(files)}
    settings = {"n": n, "k": k, "bank": bank, "features": features, "same_class": same_class}
    real = build("lightning_cfg.data", data)
    section, read = content_of(data, real)
    read.pop("held_out", None)  # only the bank is read
    inputs |= read
    settings |= {"data": section, "seed": seed}
    run = Run(run_dir, "pair", settings, inputs, {"sources": sources, "data": data})
    if run.finished():
        print(f"{run_dir}: finished already")
        return run.directory

    xs, cs = [], []
    for i, file in enumerate(files):
        samples = load_samples(file, real.shape, real.num_classes)
        share = None if n is None else n * (i + 1) // len(files) - n * i // len(files)
        if share is not None and share > len(samples["x"]):
            raise UserError(f"{file} holds {len(samples['x'])} samples, not the {share} wanted")
        xs.append(samples["x"][:share])
        cs.append(samples["c"][:share])
    x, c = torch.cat(xs), torch.cat(cs)
    targets, targets_c = real.real("bank", bank)
    space = build("lightning_cfg.features", features)
    queries, candidates = space(x), space(targets)
    groups = [c == label for label in c.unique()] if same_class else [c == c]
    distance, index = torch.empty(len(x), k).double(), torch.empty(len(x), k).long()
    with tqdm(total=len(x), unit="sample", disable=not sys.stderr.isatty()) as bar:
        for own in groups:
            if same_class:
                found = nearest_in_class(queries[own], c[own], candidates, targets_c, k=k)
            else:
                found = nearest(queries, candidates, k=k)
            distance[own], index[own] = found
            bar.update(int(own.sum()))

    run.begin()
    used, neighbours = index.unique(return_inverse=True)  # keep only somebody's targets
    out = save_tensors(
        run.directory / PAIRS,
        x=x,
        c=c,
        neighbours=neighbours,
        targets=targets[used],
        distance=distance.sqrt().float(),
        num_classes=torch.tensor(real.num_classes),
    )
    facts = {
        "pairs": len(x),
        "mean_distance": float(distance.sqrt().mean()),
        "distinct_targets": len(used),
    }
    run.finish(out, **facts)
    print(
        f"{run_dir}: {len(x)} samples, {k} of {len(targets)} real points each, "
        f"mean distance {facts['mean_distance']:.4g}"
    )
    return run.directory


if __name__ == "__main__":
    main(pair)
