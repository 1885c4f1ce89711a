"""A network of a diffusers pipeline as a denoiser D(x, sigma, c)."""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Between, Filled, Real
from lightning_cfg.diffusers.calls import Call, call_of, is_flux
from lightning_cfg.diffusers.conditions import Classes, Conditions, Nothing, Prompts, Told
from lightning_cfg.diffusers.folder import Folder, PipelineFolder, pipeline_folder
from lightning_cfg.diffusers.levels import along
from lightning_cfg.diffusers.predictions import Prediction, prediction_of
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Along, DataSet, Model, expand_like

ALWAYS = ("time_ids",)  # what is the same of every prompt, and is no part of its vector
Side = Annotated[int, Between(1, 4096)]


class DiffusersModel(Model):
    """D(x, sigma, c) of a network that gets x_t = a x at its own time; see `predictions`.

    net         a network of diffusers, float32 or another kind, which it runs in
    prediction  what its answers stand for
    call        how it is asked
    conditions  what its classes are
    Its answers are taken in the dtype of x, so that a sampler's float64 is kept beyond it.
    """

    def __init__(
        self,
        net: Any,
        prediction: Prediction,
        call: Call,
        conditions: Conditions,
        shape: tuple[int, ...],
    ):
        super().__init__()
        self.net, self.prediction, self.call = net.eval().requires_grad_(False), prediction, call
        self.conditions, self.shape = conditions, shape
        self.sigma_min, self.sigma_max = prediction.sigma_min, prediction.sigma_max

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Of its conditions: 0 of a network without any."""
        return self.conditions.num_classes

    @property
    def class_vectors(self) -> Any:
        """Of prompts: (B,) -> all that the network is told of them as vectors (B, d), which it
        also takes in their place; None of others."""
        return None if isinstance(self.conditions, (Nothing, Classes)) else self._vectors

    def _vectors(self, c: Tensor) -> Tensor:
        told = self.conditions.rows(c)
        self._always = {name: told.pop(name)[:1] for name in ALWAYS if name in told}
        self._shapes = {name: rows.shape[1:] for name, rows in told.items()}
        return torch.cat([rows.flatten(1) for rows in told.values()], 1)

    def _told(self, c: Tensor) -> Told:
        if not c.is_floating_point():
            return self.conditions.rows(c)
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), c.split(sizes, 1), strict=True)
        told = {name: part.reshape(-1, *shape) for (name, shape), part in parts}
        return told | {name: one.expand(len(c), -1) for name, one in self._always.items()}

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), sigma (B,), c (B,) or vectors (B, d) -> D (B, C, H, W)."""
        dtype = next(self.net.parameters()).dtype
        told = {n: v.to(dtype) if v.is_floating_point() else v for n, v in self._told(c).items()}
        given = (expand_like(self.prediction.scale(sigma), x) * x).to(dtype)
        call = self.call
        if self.autocast is not None:
            call = torch.autocast(x.device.type, self.autocast)(call)
        answer = call(self.net, given, self.prediction.time(sigma).to(dtype), told)
        return self.prediction.denoised(x, sigma, answer.to(x.dtype))


class diffusers(DiffusersModel):
    """The network of a pipeline's folder, with its classes or prompts.

    Prompts are those of `data`, as {name: Prompts, path: prompts.txt}; NULL is the empty one.
    path      a folder as `save_pretrained` and the hub have it, with safetensors
    latents   [rows, columns] of a sample; left out, the network's own
    guidance  the number that a guidance-distilled network is told, as Flux-dev; left out, 3.5
    dtype     of the network; its weights are converted as they are read
    UserError where diffusers is absent, for damaged folders, and for networks not known here.
    """

    def __init__(
        self,
        *,
        path: PipelineFolder,
        latents: Annotated[list[Side], Filled] | None = None,
        guidance: Annotated[float, Real] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ):
        self.folder = folder = Folder(pipeline_folder(path))
        scheduler = folder.scheduler()
        net = folder.denoiser(torch_dtype=getattr(torch, dtype))
        shape = shape_of(folder, net, latents)
        if guidance is not None and not net.config.get("guidance_embeds"):
            raise UserError(f"guidance={guidance:g}: the network of {path} is told no guidance")
        told, call = _classes(net), call_of(net, guidance)
        super().__init__(net, prediction_of(scheduler), call, told or Nothing(), shape)
        self.scheduler, self.takes_prompts = scheduler, told is None
        if type(net).__name__ == "UNet2DModel":
            self.label_dropout = 0.0  # of these none knows "no class"

    def take_data(self, data: DataSet | None) -> None:
        """Classes of the run's data, of a network that takes prompts; UserError without any."""
        if not self.takes_prompts:
            return
        texts = None if data is None else data.class_names
        if not texts:
            raise UserError(
                f"{self.folder.path} takes prompts: data: {{name: Prompts, path: prompts.txt}}"
            )
        prompts = Prompts(self.folder, texts)
        if self.net.config.get("addition_embed_type") != "text_time":
            self.conditions = prompts
            return
        rows, columns = (side * self.folder.factor for side in self.shape[1:])
        self.conditions = Sized(prompts, (rows, columns))

    def along(self, steps: int) -> Along:
        """What the pipeline's own scheduler does in so many steps, for `levels: model`."""
        return along(self.scheduler, self.prediction, steps, self.positions)

    @property
    def positions(self) -> int:
        """Of a sample that a transformer sees, by which some schedulers shift their levels."""
        patch = 2 if is_flux(self.net) else int(self.net.config.get("patch_size") or 1)
        return (self.shape[1] // patch) * (self.shape[2] // patch)


class Sized:
    """Prompts with the six sizes that SDXL is told: of a picture, its crop, and what is wanted."""

    def __init__(self, prompts: Conditions, size: tuple[int, int]):
        self.prompts, self.num_classes = prompts, prompts.num_classes
        self.sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)

    def rows(self, c: Tensor) -> Told:
        """The prompts', and time_ids (B, 6)."""
        return self.prompts.rows(c) | {"time_ids": self.sizes.to(c.device).expand(len(c), 6)}


def shape_of(folder: Folder, net: Any, latents: list[int] | None) -> tuple[int, ...]:
    """Of a sample; UserError where neither config nor key says its size."""
    channels, size = int(net.config.in_channels), net.config.get("sample_size")
    channels //= 4 if is_flux(net) else 1
    if latents is None and size is None:
        raise UserError(f"{folder.path} does not say its samples' size: latents: [rows, columns]")
    sides = latents if latents is not None else size if isinstance(size, list) else [size, size]
    if len(sides) != 2:
        raise UserError(f"latents must be two numbers, rows and columns, not {sides}")
    return channels, *sides


def _classes(net: Any) -> Conditions | None:
    """What a network's classes are; None where they are prompts."""
    name, config = type(net).__name__, net.config
    if name == "UNet2DModel":
        classes = config.get("num_class_embeds") or 0
        return Classes(classes) if classes else Nothing()
    if name in ("DiTTransformer2DModel", "Transformer2DModel"):
        return Classes(int(config.num_embeds_ada_norm))
    return None
