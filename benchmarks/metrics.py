"""Our metrics against torchmetrics and torch-fidelity: seconds, memory, and that they agree.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --items frechet kid --n 10000 --repeats 5
    python benchmarks/metrics.py --items prc --n-prc 50000

frechet  of n x d features a side: their statistics, and the distance
kid      of the same, 100 subsets of 1000
prc      improved precision and recall, k = 3, of n-prc x d. torch-fidelity holds n x n distances:
         1.6 GB at 10,000. Above 20,000 it is asked to save memory, which costs it a product.
images   32 x 32 images -> Inception's features -> the statistics of one side
memory   the statistics of one side, in batches that are drawn as they are asked for: at n / 5 and n

Features are synthetic, non-negative with a common mean as Inception's are, and well conditioned.
Inception's weights are random, since nothing is downloaded: features are nearly the same for all
images, so that they are compared themselves rather than distances of them.

Each measurement is a process of its own, and implementations take turns, ours first: A B C A B C,
so that whatever else the machine does meets all. Seconds and peaks are medians; the ratio, of ours
to the faster alternative, is taken within each turn, and its median is the result. A peak is what
the resident set reached beyond imports and what was given. Subsets of KID are the same for all.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from unittest import mock

# What imports torch does so in the processes that are measured: one starts with the peak of the
# process it comes from.

OTHERS = ("torchmetrics", "torch-fidelity")
ITEMS = ("frechet", "kid", "prc", "images", "memory")
PARTS = ("moments of a side", "root")  # of frechet
RATES = ("float32", "float64")
BATCH = 1000  # features drawn at once
TARGET = 1.0


def batches(side: int, n: int, d: int) -> Iterator:
    """The n x d features of a side, of 16 dimensions and some noise, batch by batch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = 0.3 / 16**0.5 * torch.randn(16, d, generator=generator)
    for start in range(0, n, BATCH):
        generator.manual_seed(2 * start + side + 1)
        rows = min(BATCH, n - start)
        z = torch.randn(rows, 16, generator=generator)
        if side:
            z = 0.9 * z + 0.1
        noise = 0.1 * torch.randn(rows, d, generator=generator)
        yield torch.addmm(noise, z, weight).add_(0.4).relu_()


def given(asked: argparse.Namespace, n: int) -> tuple:
    import numpy as np
    import torch

    files = (asked.folder / f"{side}.float32" for side in range(2))
    flat = (np.fromfile(file, np.float32, count=n * asked.d) for file in files)
    return tuple(torch.from_numpy(features).reshape(n, asked.d) for features in flat)


def make(asked: argparse.Namespace) -> Callable:
    """The features, in files that processes read; Inception's weights; images."""
    import numpy as np
    import torch

    torch.set_grad_enabled(False)
    if {"frechet", "kid", "prc"} & set(asked.items):
        for side in range(2):
            with open(asked.folder / f"{side}.float32", "wb") as file:
                for batch in batches(side, max(asked.n, asked.n_prc), asked.d):
                    batch.numpy().tofile(file)
    if "images" in asked.items:
        from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3

        torch.manual_seed(0)
        net = inceptionv3.FeatureExtractorInceptionV3
        with (
            mock.patch.object(inceptionv3, "load_state_dict_from_url", return_value={}),
            mock.patch.object(net, "load_state_dict"),
        ):
            net = net("inception-v3-compat", ["2048"])
        for weight in net.parameters():
            if weight.ndim == 4:  # so that what tells images apart gets through all layers
                torch.nn.init.kaiming_normal_(weight)
        torch.save(net.state_dict(), asked.folder / "weights.pth")
        images = np.random.RandomState(0).randint(256, size=(asked.images, 3, 32, 32))
        np.save(asked.folder / "images.npy", images.astype(np.uint8))
    return dict


def frechet(who: str, asked: argparse.Namespace) -> Callable:
    x, y = given(asked, asked.n)
    clock = time.perf_counter

    def times(first: float, second: float, root: float) -> dict:
        return {"moments of a side": (second - first) / 2, "root": root - second}

    if who == "ours":
        from lightning_cfg.metrics.frechet import Moments, frechet_distance

        def run() -> dict:
            start = clock()
            sides = Moments().add(x), Moments().add(y)
            middle = clock()
            value = frechet_distance(*sides)
            return {"value": value, "parts": times(start, middle, clock())}

    elif who == "torchmetrics":
        from torch.nn import Identity
        from torchmetrics.image.fid import FrechetInceptionDistance

        identity = Identity()
        identity.num_features = asked.d
        metric = FrechetInceptionDistance(identity)

        def run() -> dict:
            start = clock()
            for features, real in ((x, False), (y, True)):
                for batch in features.split(8192):  # fast, and spares it a copy of all in float64
                    metric.update(batch, real)
            middle = clock()
            value = metric.compute().item()
            return {"value": value, "parts": times(start, middle, clock())}

    else:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        def run() -> dict:
            start = clock()
            sides = fid_features_to_statistics(x), fid_features_to_statistics(y)
            middle = clock()
            found = fid_statistics_to_metric(*sides, verbose=False)
            value = found["frechet_inception_distance"]
            return {"value": value, "parts": times(start, middle, clock())}

    return run


def kid(who: str, asked: argparse.Namespace) -> Callable:
    x, y = given(asked, asked.n)
    if who == "ours":
        from lightning_cfg.metrics.distances import kernel_distance

        return lambda: {"value": list(kernel_distance(x, y).values())}
    if who == "torchmetrics":
        import numpy as np
        import torch
        from torchmetrics.image.kid import KernelInceptionDistance

        metric = KernelInceptionDistance(torch.nn.Identity())
        random = np.random.RandomState(2020)  # the subsets of the others

        def some(n: int) -> torch.Tensor:
            return torch.from_numpy(random.choice(n, 1000, replace=False))

        def run() -> dict:
            metric.update(x, real=True)  # which it draws first
            metric.update(y, real=False)
            with mock.patch.object(torch, "randperm", some):
                return {"value": [value.item() for value in metric.compute()]}

        return run
    from torch_fidelity.metric_kid import kid_features_to_metric

    return lambda: {"value": list(kid_features_to_metric(x, y, verbose=False).values())}


def prc(who: str, asked: argparse.Namespace) -> Callable:
    x, y = given(asked, asked.n_prc)
    if who == "ours":
        import faiss  # noqa: F401  imported where it is used

        from lightning_cfg.metrics.manifold import precision_recall

        return lambda: {"value": list(precision_recall(x, y).values())}
    from torch_fidelity.metric_prc import prc_features_to_metric

    less = asked.n_prc > 20_000
    return lambda: {
        "value": list(prc_features_to_metric(x, y, verbose=False, save_cpu_ram=less).values())[:2]
    }


def images(who: str, asked: argparse.Namespace) -> Callable:
    import numpy as np
    import torch

    file, bytes_ = asked.folder / "weights.pth", np.load(asked.folder / "images.npy")
    bytes_ = torch.from_numpy(bytes_)
    if who == "ours":
        from lightning_cfg.evaluation.features import inception
        from lightning_cfg.metrics.frechet import Moments

        space, x = inception(weights=str(file)), bytes_.float() / 127.5 - 1

        def run() -> dict:
            features = space(x)
            Moments().add(features)
            return {"features": features}

    elif who == "torchmetrics":
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature_extractor_weights_path=str(file), antialias=False)
        parts = []
        metric.inception.register_forward_hook(lambda net, read, found: parts.append(found))

        def run() -> dict:
            for batch in bytes_.split(64):
                metric.update(batch, real=True)
            return {"features": torch.cat(parts)}

    else:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.metric_fid import fid_features_to_statistics
        from torch_fidelity.utils import get_featuresdict_from_dataset

        class Bytes(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(bytes_)

            def __getitem__(self, index: int) -> torch.Tensor:
                return bytes_[index]

        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))

        def run() -> dict:  # no workers: there is nothing to read
            found = get_featuresdict_from_dataset(
                Bytes(), net, batch_size=64, cuda=False, save_cpu_ram=True, verbose=False
            )
            fid_features_to_statistics(found["2048"])
            return {"features": found["2048"]}

    return run


def memory(who: str, asked: argparse.Namespace) -> Callable:
    features = batches(0, asked.n, asked.d)
    if who == "ours":
        from lightning_cfg.metrics.frechet import Moments

        moments = Moments()

        def run() -> dict:
            for batch in features:
                moments.add(batch)
            return {"value": moments.covariance.trace().item()}

    elif who == "torchmetrics":
        from torch.nn import Identity
        from torchmetrics.image.fid import FrechetInceptionDistance

        identity = Identity()
        identity.num_features = asked.d
        metric = FrechetInceptionDistance(identity)

        def run() -> dict:
            for batch in features:
                metric.update(batch, real=True)
            total = metric.real_features_cov_sum.trace()
            square = metric.real_features_sum.square().sum() / asked.n
            return {"value": ((total - square) / (asked.n - 1)).item()}

    else:
        import torch
        from torch_fidelity.metric_fid import fid_features_to_statistics

        def run() -> dict:
            found = fid_features_to_statistics(torch.cat(list(features)))
            return {"value": found["sigma"].trace().item()}

    return run


def rates(who: str, asked: argparse.Namespace) -> Callable:
    """Multiplications a second in a product of matrices, the better of numpy's and torch's."""
    import numpy as np
    import torch

    def rate(a: np.ndarray, b: np.ndarray) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a.T @ b
            times.append(time.perf_counter() - start)
        return len(a) * asked.d**2 / min(times)

    def run() -> dict:
        pairs = {t: np.random.RandomState(0).rand(2, 4096, asked.d).astype(t) for t in RATES}
        both = {t: max(rate(*pair), rate(*torch.from_numpy(pair))) for t, pair in pairs.items()}
        return {"value": both}

    return run


def child(item: str, who: str, asked: argparse.Namespace) -> None:
    """Measure one, and print it as a line of JSON."""
    import numpy
    import torch

    warnings.filterwarnings("ignore")
    prepare = {f.__name__: f for f in (frechet, kid, prc, images, memory, rates)}
    prepare["make"] = lambda who, asked: make(asked)
    run = prepare[item](who, asked)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before, used, total = peak_mib(), own_seconds(), busy_seconds()
    with torch.inference_mode() if item == "images" else nullcontext():
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
    found |= {"seconds": seconds, "peak": peak_mib() - before}
    others = busy_seconds() - total - (own_seconds() - used)
    found["others"] = max(0.0, others / seconds / os.cpu_count())
    if "features" in found:
        file = asked.folder / f"features of {who}.npy"
        numpy.save(file, found.pop("features").numpy())
    print(json.dumps(found))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_seconds() -> float:
    return time.process_time()


def busy_seconds() -> float:
    """Of all cores, whoever used them."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def measured(item: str, who: str, asked: argparse.Namespace, n: int | None = None) -> dict:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--items", *asked.items, "--child", item, who]
    command += ["--folder", str(asked.folder), "--n", str(n or asked.n), "--d", str(asked.d)]
    command += ["--n-prc", str(asked.n_prc), "--images", str(asked.images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{item} of {who} failed: {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def turns(item: str, asked: argparse.Namespace) -> dict[str, list[dict]]:
    """`repeats` measurements of each implementation, which take turns."""
    found = {who: [] for who in ("ours", *OTHERS)}
    if item == "prc":
        del found["torchmetrics"]  # which has none
    for _ in range(asked.repeats):
        for who, ones in found.items():
            ones.append(measured(item, who, asked))
    return found


def agree(item: str, found: dict[str, list[dict]], asked: argparse.Namespace) -> None:
    """Print what each found; AssertionError where they differ."""
    if item == "images":
        import numpy as np

        features = {who: np.load(asked.folder / f"features of {who}.npy") for who in found}
        ours = features.pop("ours")
        spread = np.linalg.norm(ours - ours.mean(0)) / np.linalg.norm(ours)
        print(f"images: features differ between images by {spread:.1e} of their norm; of ours to")
        for who, theirs in features.items():
            gap = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            print(f"    {who:15} {gap:.1e} of it")
            assert gap < 1e-5, f"features of {who} differ by {gap:.1e}"
        return
    values = {who: ones[0]["value"] for who, ones in found.items()}
    values = {who: v if isinstance(v, list) else [v] for who, v in values.items()}
    print(f"{item}:")
    for who, value in values.items():
        pairs = list(zip(value, values["ours"], strict=True))
        gap = max(abs(their - our) / abs(our) for their, our in pairs)
        print(f"    {who:15} {', '.join(f'{v:.8g}' for v in value):25}", end="")
        print("" if who == "ours" else f" relative to ours {gap:.1e}")
        if item == "prc":  # shares in float32
            n = asked.n_prc
            assert all(round(their * n) == round(our * n) for their, our in pairs), "prc differs"
        else:
            limit = 1e-5 if item == "frechet" else 1e-3
            assert gap < limit, f"{item} of {who} differs from ours by {gap:.1e}"


def table(results: dict[str, dict[str, list[dict]]]) -> bool:
    """Print a row for each implementation; returns whether a target was missed."""
    missed = False
    print("\nothers: share of the cores that other processes took, whoever's they are")
    line = f"{'item':8} {'implementation':15} {'seconds':>8} {'min ... max':>17} {'peak MiB':>9}"
    print(f"{line} {'others':>7}")
    for item, found in results.items():
        median = {who: median_of(ones, "seconds") for who, ones in found.items()}
        for who, ones in found.items():
            times = [one["seconds"] for one in ones]
            line = f"{item:8} {who:15} {median[who]:8.2f} "
            line += (
                f"{f'{min(times):.2f} ... {max(times):.2f}':>17} {median_of(ones, 'peak'):9.0f} "
            )
            line += f"{median_of(ones, 'others'):7.0%}"
            if who == "ours":
                rival = min((who for who in found if who != "ours"), key=median.get)
                pairs = zip(ones, found[rival], strict=True)
                ratios = [our["seconds"] / their["seconds"] for our, their in pairs]
                ratio = statistics.median(ratios)
                missed |= ratio > TARGET
                line += f"  ratio {ratio:.3f} to {rival} ({min(ratios):.3f} ... {max(ratios):.3f})"
                line += f", not slower: {'met' if ratio <= TARGET else 'MISSED'}"
            print(line)
    return missed


def median_of(ones: list[dict], key: str) -> float:
    return statistics.median(one[key] for one in ones)


def shares(found: dict[str, list[dict]]) -> None:
    print("\nof frechet")
    for who, ones in found.items():
        parts = {name: statistics.median(one["parts"][name] for one in ones) for name in PARTS}
        total = median_of(ones, "seconds")
        texts = (f"{name} {part:.2f} s ({part / total:.0%})" for name, part in parts.items())
        print(f"    {who:15} {', '.join(texts)}")


def limits(asked: argparse.Namespace, results: dict, found: list[dict]) -> None:
    """How far ours are from the products of matrices that they cannot do without."""
    rate = {dtype: max(one["value"][dtype] for one in found) for dtype in RATES}
    print(
        f"\nmeasured products of matrices: {2e-9 * rate['float32']:.0f} GFLOP/s in float32, "
        f"{2e-9 * rate['float64']:.0f} in float64. At that rate"
    )
    n, m, d = asked.n, asked.n_prc, asked.d
    needs = {  # multiplications; half of a product that is symmetric
        "frechet": ("one float64 Gram product, half of it", n * d**2 / 2, "float64"),
        "kid": ("three float32 products a subset, two of them by half", 100 * 2e6 * d, "float32"),
        "prc": ("three float32 products, two of them by half", 2 * m**2 * d, "float32"),
    }
    for item, (what, count, dtype) in needs.items():
        if item not in results:
            continue
        ones, limit = results[item]["ours"], count / rate[dtype]
        if item == "frechet":
            ones = [{"seconds": one["parts"]["moments of a side"]} for one in ones]
        took = median_of(ones, "seconds")
        print(f"    {item:8} {what}: {limit:.2f} s; ours {took:.2f} s, {took / limit:.2f} times")


def growth(asked: argparse.Namespace) -> None:
    """Peak memory of one side's statistics at two n, batches drawn as they are asked for."""
    sizes = asked.n // 5, asked.n
    print(f"\npeak MiB of the statistics of one side, in batches of {BATCH} from a generator")
    for who in ("ours", *OTHERS):
        found = [[measured("memory", who, asked, n) for n in sizes] for _ in range(asked.repeats)]
        peaks = [median_of(ones, "peak") for ones in zip(*found, strict=True)]
        texts = (f"n = {n}: {peak:.0f}" for n, peak in zip(sizes, peaks, strict=True))
        print(f"    {who:15} {', '.join(texts)}")
    texts = (f"{n * asked.d * 4 / 2**20:.0f}" for n in sizes)
    print(f"    (the features themselves would be {' and '.join(texts)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", choices=ITEMS, nargs="+", default=ITEMS)
    parser.add_argument("--n", type=int, default=50_000, help="features a side")
    parser.add_argument("--d", type=int, default=2048, help="their size")
    parser.add_argument("--n-prc", type=int, default=10_000, help="features a side, for prc")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(*asked.child, asked)
    names = ("torch", "numpy", *OTHERS)
    print(", ".join(f"{name} {version(name)}" for name in names), end="; ")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", end="")
    print(*(f", {k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("OPENBLAS_")))
    print("load at the start: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()))
    print(f"{asked.n} x {asked.d} features a side, {asked.n_prc} for prc; ", end="")
    print(f"{asked.images} images; {asked.repeats} turns")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        asked.folder = Path(folder)
        measured("make", "all", asked)
        results, products = {}, []
        for item in (item for item in asked.items if item != "memory"):
            products.append(measured("rates", "all", asked))
            results[item] = turns(item, asked)
            agree(item, results[item], asked)
        missed = bool(results) and table(results)
        if "frechet" in results:
            shares(results["frechet"])
        if results:
            limits(asked, results, products)
        if "memory" in asked.items:
            growth(asked)
    print("\nload at the end: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()), end="")
    print(f"; {time.perf_counter() - start:.0f} s in all")
    sys.exit(missed)


if __name__ == "__main__":
    main()
