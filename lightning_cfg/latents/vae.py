"""Stability's VAE and its kind, by diffusers: weights from a folder, in safetensors only."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_cfg.config import Filled, Input, Positive, Real
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.latents.decoder import Decoder
from lightning_cfg.latents.from_folder import first_of, network_of_folder
from lightning_cfg.runs.pngs import quantised, signed

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KINDS = ("AutoencoderKL", "AutoencoderTiny")
PUBLISHED = {  # by the folder's name: where it is published, and its config
    "sd-vae-ft-mse": (
        "stabilityai/sd-vae-ft-mse",
        {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
        },
    ),
    "taesd": ("madebyollin/taesd", {"_class_name": "AutoencoderTiny"}),
}

# of final latents, which then have about mean 0 and deviation 0.5 on ImageNet (EDM2)
RAW_MEAN, RAW_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
EDM2_SCALE = [0.5 / std for std in RAW_STD]
EDM2_BIAS = [-mean * 0.5 / std for mean, std in zip(RAW_MEAN, RAW_STD, strict=True)]

Scale = Annotated[list[Annotated[float, Positive]], Filled]
Bias = Annotated[list[Annotated[float, Real]], Filled]


def vae_folder(text: str) -> Path:
    """The folder of a VAE, by whose content a run knows it; UserError where it is none."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"{text}: no such folder; `{fetching(text)}` makes it")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{text} holds no {name}: it is no folder of a VAE of diffusers")
    return folder


def fetching(path: str) -> str:
    """The command that makes such a folder, of the name's repository where it has one."""
    repository, _ = PUBLISHED.get(Path(path).name, PUBLISHED["sd-vae-ft-mse"])
    return f"hf download {repository} --local-dir {path}"


VAEFolder = Annotated[str, Input(vae_folder)]


class OfDiffusers(Decoder):
    """AutoencoderKL or AutoencoderTiny of a folder; always in float32, as EDM2 runs it."""

    scale: Tensor
    bias: Tensor

    def __init__(self, path: str, scale: list[float], bias: list[float]):
        super().__init__()
        self.net = autoencoder(vae_folder(path))
        self.channels = int(self.net.config.latent_channels)
        self.tiny = type(self.net).__name__ == "AutoencoderTiny"
        levels = "decoder_block_out_channels" if self.tiny else "block_out_channels"
        self.factor = 2 ** (len(self.net.config[levels]) - 1)
        self.register_buffer("scale", per_channel("decode.scale", scale, self.channels))
        self.register_buffer("bias", per_channel("decode.bias", bias, self.channels))

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the image that latents of this shape stand for."""
        return 3, shape[1] * self.factor, shape[2] * self.factor

    def raw(self, z: Tensor) -> Tensor:
        """The network's output for latents z, in its own range, float32."""
        return self.net.decode((z.float() - self.bias) / self.scale).sample

    def moments(self, x: Tensor) -> Tensor:
        """Mean and deviation of the posterior of x in the network's own range; 0 of a tiny one."""
        if self.tiny:
            mean = self.net.encode(x).latents
            return torch.cat([mean, torch.zeros_like(mean)], 1)
        found = self.net.encode(x).latent_dist
        return torch.cat([found.mean, found.std], 1)


class EDM2VAE(OfDiffusers):
    """Latents as EDM2 has them: z = scale (mean + std n) + bias, of pixels in [0, 1].

    EDM2 gives the network pixels / 255, takes its output as such, and cuts it to 8 bits (Karras et
    al. 2024). A tiny autoencoder reads latents of another scale: divide `scale` by its own.
    path         a folder of diffusers' AutoencoderKL or AutoencoderTiny, with safetensors
    scale, bias  of each channel; the defaults are EDM2's for ImageNet-512
    UserError where diffusers or the folder is absent, or it holds something else.
    """

    def __init__(self, *, path: VAEFolder, scale: Scale = EDM2_SCALE, bias: Bias = EDM2_BIAS):
        super().__init__(path, scale, bias)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, c, h, w) as images (n, 3, H, W), [-1, 1] and beyond."""
        return (2 * self.raw(z) - 1).to(z.dtype)

    def bytes(self, z: Tensor) -> Tensor:
        """Clipped and cut, not rounded."""
        return (self.raw(z).clamp(0, 1) * 255).to(torch.uint8)

    def encode(self, y: Tensor) -> Tensor:
        """Images as bytes (n, 3, H, W): mean and deviation of raw latents, (n, 2 c, h, w)."""
        return self.moments(y.float() / 255)


class DiffusersVAE(OfDiffusers):
    """Latents as DiT's, Stable Diffusion's and diffusers' own: z = factor (z_raw - shift).

    Pixels are in [-1, 1], and rounded to 8 bits.
    path    a folder of diffusers' AutoencoderKL or AutoencoderTiny, with safetensors
    factor  left out, the scaling_factor of its config.json: 0.18215 of Stable Diffusion's
    shift   left out, its shift_factor, or 0
    UserError as `EDM2VAE` raises it.
    """

    def __init__(
        self,
        *,
        path: VAEFolder,
        factor: Annotated[float, Positive] | None = None,
        shift: Annotated[float, Real] | None = None,
    ):
        config = _config(vae_folder(path))
        factor = config.get("scaling_factor") or 1.0 if factor is None else factor
        shift = config.get("shift_factor") or 0.0 if shift is None else shift
        super().__init__(path, [factor], [-factor * shift])

    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, c, h, w) as images (n, 3, H, W), [-1, 1] and beyond."""
        return self.raw(z).to(z.dtype)

    def bytes(self, z: Tensor) -> Tensor:
        """Rounded, as diffusers' are."""
        return quantised(self.raw(z))

    def encode(self, y: Tensor) -> Tensor:
        """Images as bytes (n, 3, H, W): mean and deviation of raw latents, (n, 2 c, h, w)."""
        return self.moments(signed(y))


def per_channel(key: str, values: list[float], channels: int) -> Tensor:
    """One number a channel, shaped to multiply latents; UserError for another number of them."""
    if len(values) not in (1, channels):
        raise UserError(f"{key} has {len(values)} numbers, and the latents {channels} channels")
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def autoencoder(folder: Path) -> Any:
    """The network of a folder; UserError where diffusers is absent or the files do not fit."""
    kind = _class(folder, _config(folder))
    _check_size(folder)
    net = network_of_folder(kind, folder, "VAE", CONFIG, WEIGHTS)
    return net.float().eval().requires_grad_(False)


def _check_size(folder: Path) -> None:
    """UserError for a network of more numbers than its file can hold, before it takes memory."""
    try:
        with torch.device("meta"):
            asked = sum(weight.numel() for weight in untrained(folder).parameters())
    except UserError:
        raise
    except Exception as error:  # whatever numbers that nobody would write make a class raise
        raise UserError(f"{folder}: its {CONFIG} makes no network: {first_of(error)}") from error
    size = (folder / WEIGHTS).stat().st_size
    if asked > size:
        raise UserError(
            f"{folder}: {WEIGHTS} has {size:,} bytes, too few for the {asked:,} numbers of the "
            f"network of its {CONFIG}"
        )


def untrained(folder: Path) -> Any:
    """The network of a folder's config, or of one that has this name, without its weights.

    UserError where neither is known, or diffusers is absent.
    """
    name = folder.name
    config = PUBLISHED[name][1] if name in PUBLISHED and not folder.exists() else _config(folder)
    return _class(folder, config).from_config(config)


def _class(folder: Path, config: dict) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"decode: {folder} is read by diffusers, which is not here: "
            "pip install 'lightning_cfg[diffusers]'"
        ) from error
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise UserError(f"{folder}: its {CONFIG} is of {kind}, not of {' or '.join(KINDS)}")
    return getattr(diffusers, kind)


def _config(folder: Path) -> dict:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is damaged or no json: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / CONFIG} is damaged: it holds no mapping")
    return found
