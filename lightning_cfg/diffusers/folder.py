"""The folder of a diffusers pipeline: which one it is, and its parts, read without its code."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from lightning_cfg.config import Input
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.latents.from_folder import first_of, network_of_folder, quietly

INDEX = "model_index.json"
NETWORKS = (  # of a pipeline's parts the one that denoises, by its class
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "Transformer2DModel",  # DiT's, as it was saved before it had a class of its own
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
)
LIBRARIES = ("diffusers", "transformers")  # whose classes a part may be of


def pipeline_folder(text: str) -> Path:
    """The folder of a pipeline, by whose content a run knows it; UserError where it is none."""
    folder = existing_folder(text)
    if not (folder / INDEX).is_file():
        raise UserError(f"{text} holds no {INDEX}: it is no folder of a pipeline of diffusers")
    return folder


def existing_folder(text: str) -> Path:
    """The folder of this path; UserError where there is none."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"{text}: no such folder; `hf download NAME --local-dir {text}` makes it")
    return folder


PipelineFolder = Annotated[str, Input(pipeline_folder)]


@dataclass(frozen=True)
class Folder:
    """A pipeline on disk. Only classes of diffusers and transformers are built, by their names,
    and only safetensors are read: no code that lies in the folder is run."""

    path: Path

    @cached_property
    def index(self) -> dict:
        """model_index.json: {part: [library, class]}, and the pipeline's class."""
        found = read_json(self.path / INDEX)
        if not isinstance(found.get("_class_name"), str):
            raise UserError(f"{self.path / INDEX} names code of its own, which is not run")
        for part, value in self.parts(found).items():
            if value[0] not in LIBRARIES:
                raise UserError(
                    f"{self.path / INDEX}: {part} is of '{value[0]}', code of its own, which is "
                    f"not run: parts are of {' and '.join(LIBRARIES)}"
                )
        return found

    @staticmethod
    def parts(index: dict) -> dict[str, list[str]]:
        """{part: [library, class]} of what the folder holds."""
        return {
            name: value
            for name, value in index.items()
            if not name.startswith("_") and isinstance(value, list) and value != [None, None]
            if len(value) == 2 and all(isinstance(word, str) for word in value)
            if name not in ("safety_checker", "feature_extractor", "image_encoder")
        }

    @cached_property
    def network(self) -> tuple[str, str]:
        """The part that denoises, and its class; UserError where none is known here."""
        for part, (_, name) in self.parts(self.index).items():
            if part in ("unet", "transformer"):
                if name not in NETWORKS:
                    raise UserError(
                        f"{self.path}: its {part} is a {name}; known are {', '.join(NETWORKS)}"
                    )
                return part, name
        raise UserError(
            f"{self.path}: {self.index['_class_name']} has neither unet nor transformer"
        )

    def denoiser(self, **settings: Any) -> Any:
        """The network that denoises, with all of its weights; `settings` of from_pretrained."""
        part, name = self.network
        kind, folder = self._kind(part, name)
        config, weights = "config.json", "diffusion_pytorch_model.safetensors"
        return network_of_folder(kind, folder, name, config, weights, **settings)

    def _kind(self, part: str, name: str) -> tuple[Any, Path]:
        kind, folder = getattr(library(), name, None), self.path / part
        if kind is None or not folder.is_dir():
            what = "no such folder" if kind else f"diffusers has no class {name}"
            raise UserError(f"{folder}: {what}")
        return kind, folder

    def scheduler(self) -> Any:
        """The pipeline's scheduler; UserError where its file is damaged."""
        parts = self.parts(self.index)
        if "scheduler" not in parts:
            raise UserError(f"{self.path} has no scheduler, which says its noise levels")
        kind, folder = self._kind("scheduler", parts["scheduler"][1])
        try:
            with quietly():
                return kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever damaged files or odd numbers make of it
            raise UserError(f"{folder} holds no scheduler: {first_of(error)}") from error

    @property
    def factor(self) -> int:
        """Pixels a latent stands for, along each side."""
        config = self.path / "vae/config.json"
        levels = read_json(config).get("block_out_channels", [0] * 4) if config.is_file() else [0]
        return 2 ** (len(levels) - 1)


def read_json(file: Path) -> dict:
    """A file's mapping; UserError where it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or no json: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it holds no mapping")
    return found


def library() -> Any:
    """diffusers; UserError where it is absent."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            "models of diffusers need diffusers and transformers, which are not here: "
            "pip install 'lightning_cfg[diffusers]'"
        ) from error
    return diffusers
