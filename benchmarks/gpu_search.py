"""Exact neighbours and feature networks for benchmarks/gpu.py."""

import copy
import tempfile
from pathlib import Path
from unittest import mock

import torch
from gpu_table import Found, Spread, now, timed
from roofline import Layer, layers
from torch import Tensor

from lightning_cfg.evaluation.features import Space, inception
from lightning_cfg.refinement.neighbours import nearest
from lightning_cfg.runs.pngs import quantised
from lightning_cfg.runs.precision import matmul

K = 20
MOST = 12.0  # seconds of a search that is done whole
AT_ONCE = 2048  # queries of the plain search


def points(n: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries and a bank, of 64 dimensions and some noise, in [-1, 1] as images are."""
    basis = torch.randn(64, d, device=device) / 8
    made = (torch.randn(n, 64, device=device) @ basis for _ in range(2))
    queries, bank = (x.add_(0.3 * torch.randn(n, d, device=device)).clamp_(-1, 1) for x in made)
    return queries, bank


def plain_search(queries: Tensor, bank: Tensor) -> Tensor:
    """torch.cdist and topk, block by block, in float32: rounding decides among near ones."""
    blocks = queries.split(AT_ONCE)
    return torch.cat([torch.cdist(q, bank).topk(K, largest=False).indices for q in blocks])


def searched(ours: bool, n: int, d: int, device: torch.device, rate: float | None) -> Found:
    """Seconds of n queries in a bank of n: of a tenth of the queries first, and of all where
    that says that they take less than MOST; else ten times the tenth's."""
    torch.manual_seed(0)
    queries, bank = points(n, d, device)
    limit = 2 * n * n * d / rate if rate else None

    def search(some: Tensor) -> Tensor:
        return nearest(some, bank, k=K)[1] if ours else plain_search(some, bank)

    few = queries[: max(1, n // 10)]
    with matmul("highest"):
        search(few[:64])
        start = now(device)
        found = search(few)
        seconds, note = now(device) - start, ""
        if 10 * seconds < MOST:
            start = now(device)
            search(queries)
            seconds = now(device) - start
        else:
            note = f"10 times the {seconds:.1f} s of {len(few)} queries"
            seconds *= 10
        other = plain_search(few[:256], bank)
    same = (found[:256] == other).float().mean().item()
    note = "; ".join(filter(None, [note, f"{same:.2%} of neighbours as torch.cdist's"]))
    value = Spread.of([seconds])
    return Found(value, "s", seconds, limit=limit, note=note)


def random_inception() -> Space:
    """Our feature space of Inception, its weights random."""
    from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3

    net = inceptionv3.FeatureExtractorInceptionV3
    with (
        mock.patch.object(inceptionv3, "load_state_dict_from_url", return_value={}),
        mock.patch.object(net, "load_state_dict"),
    ):
        made = net("inception-v3-compat", ["2048"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.pth")
        torch.save(made.state_dict(), file)
        return inception(weights=str(file))


def vit(*, tiny: bool) -> Space:
    """DINOv2's ViT-L/14 but for its layer scales, as our space runs it, its weights random."""
    from torchvision.models import VisionTransformer

    deep, wide = (1, 32) if tiny else (24, 1024)
    net = VisionTransformer(224, 14, deep, max(2, wide // 64), wide, 4 * wide, num_classes=1)
    net.heads = torch.nn.Identity()
    net.eval().requires_grad_(False)

    def extract(x: Tensor) -> Tensor:
        y = quantised(x).float()
        size = (224, 224)
        y = torch.nn.functional.interpolate(y, size, mode="bicubic", antialias=True) / 255
        return net(y)

    return Space(extract, {"extractor": "ViT-L/14"}, net=net, at_once=(16, 128))


def space_layers(space: Space, batch: int) -> list[Layer]:
    """What its network must do, of images that have its own size already."""
    net, side = space._net, 224
    if type(net).__name__ != "VisionTransformer":
        from torchvision.models import inception_v3

        # of the same layers; torch-fidelity's own resize reads numbers, which meta has not
        with torch.device("meta"):
            net, side = inception_v3(init_weights=False, aux_logits=False), 299
    net = copy.deepcopy(net).eval().to("meta")
    x = torch.empty(batch, 3, side, side, device="meta")
    return layers(lambda: net(x), size=4, training=False)


def extracted(
    space: Space, images: int, device: torch.device, *, how: str, limit: float | None
) -> Found:
    """Images a second: "ours" as `Space` does it, "plain" and "tf32" the network alone."""
    space.to(device)
    x = torch.rand(images, 3, 32, 32, device=device) * 2 - 1
    if how == "ours":
        seconds = timed(lambda: space(x), device, seconds=1.0, repeats=3, warm=1)
        return Found.rate(seconds, images, "images", limit=limit)
    laid_out = space.about["extractor"].startswith("Inception")
    space._net.to(memory_format=torch.contiguous_format)
    with torch.no_grad(), matmul("highest" if how == "plain" else "high"):
        seconds = timed(lambda: space._extract(x), device, seconds=1.0, repeats=3, warm=1)
    if laid_out:
        space._net.to(memory_format=torch.channels_last)
    return Found.rate(seconds, images, "images", limit=limit)
