"""How the verbs grow: time and peak memory against the number of samples and of classes.

    OMP_NUM_THREADS=1 python benchmarks/growth.py
    OMP_NUM_THREADS=1 python benchmarks/growth.py --sizes 1000 10000 100000 1000000 --verbs generate

A mixture of as many Gaussians as classes, in 2 dimensions unless --dimensions says so. Each verb is
a process of its own; its CPU time is told, since cores may be shared:

fit       200 steps on N points in memory
generate  N samples by 4 steps of Euler
pair      N samples, their 5 nearest of N real points of their class (the exact search)
evaluate  the Fréchet distance of N samples to N real points, class by class
metrics   the same with all metrics that fit, of which some search neighbours or compare all pairs

A slope is of what each size takes more than the one before, so that the start of a process does not
count: 1 is linear, 2 quadratic, - what drowns in the start. Peaks are of the resident set.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERBS = ("fit", "generate", "pair", "evaluate", "metrics")


def data(classes: int, d: int, limit: int) -> dict:
    """A mixture with its means on a spiral, so many points of each class to train on."""
    angles = [2.4 * k for k in range(classes)]
    means = [[0.2 * a**0.5 * (math.cos, math.sin)[i % 2](a) for i in range(d)] for a in angles]
    return {
        "name": "Mixture", "means": means, "stds": [0.05] * classes,
        "labels": list(range(classes)), "limit": limit,
    }  # fmt: skip


def settings(verb: str, n: int, classes: int, d: int, folder: Path) -> tuple[str, dict]:
    """The verb's own name, and its config."""
    each, run = n // classes, str(folder / f"{verb}_{n}_{classes}")
    section = data(classes, d, 10 if verb == "base" else each)
    base = str(folder / f"base_{classes}")
    samples = str(folder / f"generate_{n}_{classes}")
    if verb in ("fit", "base"):
        steps = 200 if verb == "fit" else 1
        run = base if verb == "base" else run
        return "fit", {
            "run_dir": run, "data": section, "net": {"name": "MLP", "width": 32, "blocks": 1},
            "model": {"name": "EDM"}, "learner": {"name": "Diffusion"}, "batch_size": 256,
            "trainer": {"max_steps": steps, "accelerator": "cpu"},
        }  # fmt: skip
    if verb == "generate":
        return "generate", {
            "run_dir": run, "models": {"model": base}, "guidance": {"name": "unguided"},
            "sampler": {"name": "euler", "steps": 4}, "n": n, "batch_size": 1000,
            "device": "cpu",
        }  # fmt: skip
    if verb == "pair":
        return "pair", {
            "run_dir": run, "sources": [samples], "data": section, "k": 5, "device": "cpu",
        }  # fmt: skip
    return "evaluate", {
        "run_dir": run, "samples": {"a": samples}, "data": section,
        "metrics": [{"name": "frechet", "allow_few": True}] if verb == "evaluate" else None,
        "real": each, "bank": each, "device": "cpu",
    }  # fmt: skip


def measured(verb: str, n: int, classes: int, d: int, folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of a process."""
    name, config = settings(verb, n, classes, d, folder)
    file = folder / "config.json"  # which is yaml too
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", f"lightning_cfg.{name}", "--config", str(file)]
    log = folder / "log.txt"
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{verb} of {n} in {classes} classes:\n{log.read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10


def slope(sizes: list[int], values: list[float]) -> str:
    """Of what each size takes more than the one before; - where that drowns in the start."""
    more = [b - a for a, b in itertools.pairwise(values)]
    if len(more) < 2 or min(more[-2:]) <= 0.02 * values[0]:
        return "-"
    steps = [b - a for a, b in itertools.pairwise(sizes)]
    return f"{math.log(more[-1] / more[-2]) / math.log(steps[-1] / steps[-2]):.2f}"


def table(what: str, points: list[tuple[int, int]], asked: argparse.Namespace) -> None:
    """A row per verb: seconds and MiB at each of the points (N, classes), and their slopes."""
    axis = [n if what == "N" else classes for n, classes in points]
    head = " | ".join(f"{what} = {x:,}" for x in axis)
    print(f"\n| verb | {head} | slope of time | of memory |\n|--|{'--:|' * (len(axis) + 2)}")
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), {verb: [] for verb in asked.verbs}
        for n, classes in points:
            for verb in ("base", "generate", *(v for v in asked.verbs if v != "generate")):
                cost = measured(verb, n, classes, asked.dimensions, folder)
                if verb in found:
                    found[verb].append(cost)
        for verb, costs in found.items():
            seconds, peaks = zip(*costs, strict=True)
            cells = " | ".join(f"{s:.1f} s, {m:.0f} MiB" for s, m in costs)
            print(f"| {verb} | {cells} | {slope(axis, seconds)} | {slope(axis, peaks)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--n", type=int, default=20_000, help="samples while the classes grow")
    asked = parser.parse_args()
    if asked.sizes:
        table("N", [(n, 10) for n in asked.sizes], asked)
    if asked.classes:
        table("classes", [(asked.n, k) for k in asked.classes], asked)


if __name__ == "__main__":
    main()
