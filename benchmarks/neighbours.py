"""Exact nearest neighbours against FAISS, scikit-learn and torch: seconds and memory.

    python benchmarks/neighbours.py                      50,000 against 50,000 in 3072 dimensions
    python benchmarks/neighbours.py --n 5000 --others sklearn torch

faiss    faiss.knn on the same float32 points: its order is that of float32, ours is exact
sklearn  brute force of scikit-learn, in the points' float32
torch    torch.cdist and topk, block by block

With --cpu, seconds are the process' CPU time, for machines whose cores are shared with others.

Points are synthetic, of 64 dimensions and some noise, in [-1, 1] as images are. Each measurement is
a process of its own, and implementations take turns, ours first. A peak is what the resident set
reached beyond imports, the points themselves included. The ratio is of ours to faiss.knn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TARGET, MOST_GIB = 1.1, 3.0


def points(n: int, d: int, seed: int):
    import torch

    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(64, d, generator=torch.Generator().manual_seed(0)) / 8
    x = torch.empty(n, d)
    for start in range(0, n, 1000):
        rows = min(1000, n - start)
        x[start : start + rows] = torch.randn(rows, 64, generator=generator) @ basis
        x[start : start + rows] += 0.3 * torch.randn(rows, d, generator=generator)
    return x.clamp_(-1, 1)


def child(name: str, n: int, d: int, k: int, clock: Callable[[], float]) -> None:
    """Measure one search in this process; a line of json."""
    import faiss
    import numpy as np
    import torch

    from lightning_cfg.refinement.neighbours import nearest

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queries, bank = points(n, d, 1), points(n, d, 2)
    start = clock()
    if name == "ours":
        index = nearest(queries, bank, k=k)[1].numpy()
    elif name == "faiss":
        index = faiss.knn(queries.numpy(), bank.numpy(), k)[1]
    elif name == "sklearn":
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank.numpy())
        index = search.kneighbors(queries.numpy(), return_distance=False)
    else:
        blocks = queries.split(1000)
        found = [torch.cdist(block, bank).topk(k, largest=False).indices for block in blocks]
        index = torch.cat(found).numpy()
    seconds = clock() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    first = np.asarray(index[:200]).tolist()
    print(json.dumps({"seconds": seconds, "gib": peak, "index": first}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=3072)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--others", nargs="*", choices=["sklearn", "torch"], default=[])
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall time")
    parser.add_argument("--child")
    asked = parser.parse_args()
    if asked.child:
        clock = time.process_time if asked.cpu else time.perf_counter
        child(asked.child, asked.n, asked.d, asked.k, clock)
        return
    names = ["ours", "faiss", *asked.others]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(asked.repeats):
        for name in names:
            size = ["--n", str(asked.n), "--d", str(asked.d), "--k", str(asked.k)]
            size += ["--cpu"] * asked.cpu
            command = [sys.executable, __file__, "--child", name, *size]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{asked.n:,} against {asked.n:,} points in {asked.d} dimensions, k = {asked.k}")
    for name in names:
        seconds = [run["seconds"] for run in runs[name]]
        same = sum(a == b for mine, theirs in zip(runs["ours"][0]["index"], runs[name][0]["index"],
                                                  strict=True)
                   for a, b in zip(mine, theirs, strict=True))  # fmt: skip
        total = len(runs["ours"][0]["index"]) * asked.k
        print(
            f"{name:8} {statistics.median(seconds):8.1f} s ({min(seconds):.1f} ... "
            f"{max(seconds):.1f}), peak {max(run['gib'] for run in runs[name]):.2f} GiB, "
            f"{same} of {total} neighbours as ours"
        )
    pairs = zip(runs["ours"], runs["faiss"], strict=True)
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
    peak = max(run["gib"] for run in runs["ours"])
    met = ratio <= TARGET and peak < MOST_GIB
    print(
        f"ratio {ratio:.3f} to faiss.knn, target {TARGET}; peak {peak:.2f} GiB, target "
        f"{MOST_GIB}: {'met' if met else 'MISSED'}"
    )
    sys.exit(not met)


if __name__ == "__main__":
    main()
