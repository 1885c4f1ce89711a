"""Feature spaces: x in [-1, 1] -> (B, d) float32, for neighbours and for what is measured in them.

Networks lie in a `Space`, which is no module: they are in no state_dict, no average and no Trainer.
"""

import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_cfg.config import Input
from lightning_cfg.data.image_files import THREADS
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import Features
from lightning_cfg.runs import checkpoints
from lightning_cfg.runs.files import output_of, sha256
from lightning_cfg.runs.inputs import Checkpoint
from lightning_cfg.runs.manifests import content_hash
from lightning_cfg.runs.pngs import quantised
from lightning_cfg.runs.precision import matmul
from lightning_cfg.weights.store import find

__all__ = ["classifier", "dinov2", "inception", "pixels"]  # what a config can name


class Space:
    """A feature space that says what it is.

    about     what results carry and caches are keyed by: extractor, layer, resize, weights (sha256)
    head      the network's own classifier: features (n, d) -> logits (n, K); None where it has none
    frechet   what the Fréchet distance in this space is called in the literature
    kernel    the same of the kernel distance
    standard  samples that its published distances are taken over; fewer are named in the result
    step      of a training of ours, at which its network was saved
    free      whether features cost nothing, so that they are neither kept nor shared
    """

    step: int | None = None
    free = False

    def __init__(
        self,
        extract: Callable[[Tensor], Tensor],
        about: dict[str, str],
        *,
        net: nn.Module | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        at_once: tuple[int, int] = (512, 512),
        frechet: str | None = None,
        kernel: str | None = None,
        standard: int = 0,
    ):
        self.about, self.head, self.standard = about, head, standard
        self.frechet, self.kernel = frechet, kernel
        self._extract, self._net, self._at_once = extract, net, at_once
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "Space":
        """Its network on this device; features lie where the samples given to it do."""
        self.device = torch.device(device)
        if self._net is not None:
            self._net.to(self.device)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x (B, *shape) in [-1, 1] -> (B, d) float32, as many at once as are fast on the device.

        Without TF32, so that features are the same on every device to float32's rounding.
        """
        rows = self._at_once[self.device.type == "cuda"]
        with matmul("highest"):
            parts = [self._extract(part.to(self.device)).float() for part in x.split(rows)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.device)


def as_space(features: Features, name: str) -> Space:
    """Anyone's own features as a Space, which they may be already."""
    return features if isinstance(features, Space) else Space(features, {"extractor": name})


def pixels() -> Features:
    """x itself, flattened: coordinates or raw pixels."""
    whole = (sys.maxsize, sys.maxsize)  # all at once: they are not copied
    space = Space(lambda x: x.flatten(1), {"extractor": "pixels"}, at_once=whole)
    space.free = True
    return space


def classifier(*, path: Checkpoint) -> Features:
    """The penultimate layer of a trained classifier of clean samples.

    path  its run directory or checkpoint
    Raises UserError if its network has no such layer (`features`), or for x of another shape.
    """
    model = checkpoints.restore(path)
    net = dict(model.named_children()).get("net")
    if net is None or net.features is None:
        raise UserError(f"{path}: its network has no `features`, as net ConvNet has")

    def extract(x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != model.shape:
            raise UserError(f"{path} reads shape {model.shape}, not {tuple(x.shape[1:])}")
        return model.features(x)

    about = {
        "extractor": type(net).__name__,
        "layer": "penultimate",
        "weights": content_hash(output_of(path, checkpoints.LAST)),
    }
    space = Space(extract, about, net=model, head=net.head)
    space.step = model.step
    return space


def inception(
    *, weights: Annotated[str | None, Input(partial(find, "inception"))] = None
) -> Features:
    """Inception-v3's 2048 pooled features, in which FID is taken (Heusel et al. 2017).

    torch-fidelity's port of the network and weights of 2015, and of TensorFlow 1's bilinear resize
    to 299 x 299, on images of 8 bits.
    weights  torch-fidelity's file; left out, the one that `lightning_cfg.assets` has
    Raises UserError where the file is absent or another, or for what are no images.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = find("inception", weights)
    _state(file)  # it is tensors alone: torch-fidelity would run any code in it
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))
    except RuntimeError as error:
        raise UserError(f"{file} does not fit Inception-v3: {_first(error)}") from error
    net.to(memory_format=torch.channels_last)  # twice as fast on CPUs

    def extract(x: Tensor) -> Tensor:
        y = _rgb(x).contiguous(memory_format=torch.channels_last)
        return net(y)[0]

    def head(features: Tensor) -> Tensor:  # "unbiased": without the last layer's bias, as of old
        return features.to(net.fc.weight) @ net.fc.weight.T

    about = {
        "extractor": "Inception-v3 (2015)",
        "layer": "2048",
        "resize": "TF1 bilinear 299",
        "weights": sha256(file),
    }
    names = {"frechet": "fid", "kernel": "kid"}
    return Space(extract, about, net=net, head=head, at_once=(8, 128), standard=50_000, **names)


def dinov2(
    *,
    registers: bool = False,
    tokens: Literal["cls", "patch_mean"] = "cls",
    resize: Literal["torch", "pil"] = "torch",
    weights: Annotated[str | None, Input()] = None,
    code: Annotated[str | None, Input()] = None,
) -> Features:
    """DINOv2's ViT-L/14 (Oquab et al. 2024) on images of 8 bits at 224 x 224, (B, 1024).

    FD_DINOv2 (Stein et al. 2023) is taken in its CLS tokens.
    registers  the variant with register tokens (Darcet et al. 2024), for neighbours
    tokens     cls: the CLS token; patch_mean: the mean of the 256 patch tokens; both after the norm
    resize     torch: bicubic with antialiasing, as EDM2; pil: PIL's bicubic, as dgm-eval
    weights    Meta's file; left out, the one that `lightning_cfg.assets` has
    code       a checkout of github.com/facebookresearch/dinov2, whose hubconf.py is run; left out,
               the pinned one that `lightning_cfg.assets` has
    Raises UserError where a file is absent or another, or for what are no images.
    """
    name, asset = ("dinov2_vitl14", "dinov2")
    if registers:
        name, asset = "dinov2_vitl14_reg", "dinov2_registers"
    file, folder = find(asset, weights), find("dinov2_code", code)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*xFormers.*")
        try:
            net: Any = torch.hub.load(str(folder), name, source="local", pretrained=False)
            net.load_state_dict(_state(file))
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no checkout of DINOv2: {_first(error)}") from error
        except (ImportError, RuntimeError) as error:
            raise UserError(f"{file} or {folder}: no {name}: {_first(error)}") from error
    net.eval().requires_grad_(False)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)  # of ImageNet, in [0, 1]
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    bigger = {"torch": _torch_bicubic, "pil": _pil_bicubic}[resize]

    def extract(x: Tensor) -> Tensor:
        y = bigger(_rgb(x)) / 255
        found = net.forward_features((y - mean.to(y)) / std.to(y))
        if tokens == "cls":
            return found["x_norm_clstoken"]
        return found["x_norm_patchtokens"].mean(1)

    about = {
        "extractor": name,
        "layer": tokens,
        "resize": {"torch": "torch antialiased bicubic 224", "pil": "PIL bicubic 224"}[resize],
        "weights": sha256(file),
    }
    frechet = "fd_dinov2" if tokens == "cls" and not registers else None
    return Space(extract, about, net=net, at_once=(16, 128), frechet=frechet, standard=50_000)


def _torch_bicubic(y: Tensor) -> Tensor:
    return nn.functional.interpolate(y.float(), (224, 224), mode="bicubic", antialias=True)


def _pil_bicubic(y: Tensor) -> Tensor:
    """Each image by itself, rounded to 8 bits again."""

    def bigger(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(bigger, y.permute(0, 2, 3, 1).cpu().numpy()))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(y.device).float()


def _rgb(x: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1] as bytes (B, 3, H, W); UserError for anything else."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"a feature space of images needs samples of shape (1 or 3, H, W), not "
            f"{tuple(x.shape[1:])}"
        )
    return quantised(x).expand(-1, 3, -1, -1)


def _state(file: Path) -> dict[str, Tensor]:
    """The named tensors of a weight file, without running any code in it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the unpickler raise
        raise UserError(f"{file} is truncated or no file of weights: {_first(error)}") from error
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file} holds more than named tensors, so it is no file of weights")
    return state


def _first(error: Exception) -> str:
    """The beginning of an error, what one line can hold."""
    text = one_line(error)
    return text if len(text) <= 200 else text[:197] + "..."
