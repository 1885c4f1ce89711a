"""What a network of diffusers is told: nothing, classes, or prompts, of which "no class" is one."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_cfg.diffusers.folder import Folder, library
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import NULL
from lightning_cfg.runs.files import sha256
from lightning_cfg.runs.kept import cache_folder
from lightning_cfg.runs.tensors import save_tensors

Told = dict[str, Tensor]  # {name as `calls` has it: (B, ...)}
AT_ONCE = 16  # prompts that are encoded together
IN_MEMORY = 512  # rows; one of SD3 is 2.7 MB in half precision


class Conditions(Protocol):
    """The rows that a class may be; NULL is "no class"."""

    num_classes: int

    def rows(self, c: Tensor) -> Told:
        """What the network is told of classes (B,)."""
        ...


class Nothing:
    """An unconditional network."""

    num_classes = 0

    def rows(self, c: Tensor) -> Told:
        """No condition at all."""
        return {}


class Classes:
    """Classes by number; that of "no class" comes after them, where the network knows it."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def rows(self, c: Tensor) -> Told:
        """{class (B,)}."""
        return {"class": torch.where(c == NULL, self.num_classes, c)}


class Table:
    """Rows of a table, the last of which is "no class", so that NULL = -1 is its index.

    tables  {name: (K + 1, ...)}
    """

    def __init__(self, tables: Told):
        self.tables = tables
        self.num_classes = len(next(iter(tables.values()))) - 1

    def rows(self, c: Tensor) -> Told:
        """{name: (B, ...)}."""
        return {name: table.to(c.device)[c] for name, table in self.tables.items()}


class Prompts:
    """Prompts as a pipeline's text encoders have them, each encoded when it is first asked for.

    They are kept by the hashes of text and encoders in the cache (`runs.kept.cache_folder`),
    so that encoders are not even loaded for what has been asked before.
    """

    def __init__(self, folder: Folder, prompts: list[str], *, encode: "Encode | None" = None):
        self.prompts, self.num_classes = [*prompts, ""], len(prompts)
        self._encode = encode or Encoders(folder)
        self._place = cache_folder() / "prompts" / encoder_hash(folder)
        self._row = lru_cache(IN_MEMORY)(self._load)

    def rows(self, c: Tensor) -> Told:
        """{name: (B, ...)} float32; what is not kept yet is encoded."""
        wanted = [int(row) % len(self.prompts) for row in c.tolist()]
        self._encode_missing(sorted(set(wanted)))
        rows = [self._row(row) for row in wanted]
        return {name: torch.stack([row[name] for row in rows]).to(c.device) for name in rows[0]}

    def _encode_missing(self, rows: list[int]) -> None:
        absent = [row for row in rows if not self._file(row).is_file()]
        for first in range(0, len(absent), AT_ONCE):
            some = absent[first : first + AT_ONCE]
            told = self._encode([self.prompts[row] for row in some])
            for i, row in enumerate(some):
                save_tensors(self._file(row), **{name: x[i].clone() for name, x in told.items()})

    def _file(self, row: int) -> Any:
        text = hashlib.sha256(self.prompts[row].encode()).hexdigest()[:32]
        return self._place / f"{text}.safetensors"

    def _load(self, row: int) -> Told:
        return {name: x.float() for name, x in load_file(self._file(row)).items()}


Encode = Callable[[list[str]], Told]


def encoder_hash(folder: Folder) -> str:
    """By all files of the parts that turn text into tensors, and by the pipeline's class."""
    digest = hashlib.sha256(folder.index["_class_name"].encode())
    for part in sorted(folder.parts(folder.index)):
        if part.startswith(("text_encoder", "tokenizer")):
            for file in sorted(path for path in (folder.path / part).rglob("*") if path.is_file()):
                digest.update(file.relative_to(folder.path).as_posix().encode())
                digest.update(sha256(file).encode())
    return digest.hexdigest()[:32]


class Encoders:
    """A pipeline's own encode_prompt, of its tokenizers and text encoders alone."""

    def __init__(self, folder: Folder):
        self.folder, self._pipe = folder, None

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Told:
        """Texts as {prompt: (n, tokens, d), ...} on the CPU; the empty one as the pipeline's own
        guidance has it."""
        self._pipe = self._pipe or self._loaded()
        return encoded(self._pipe, texts)

    def _loaded(self) -> Any:
        parts = self.folder.parts(self.folder.index)
        texts = [name for name in parts if name.startswith(("text_encoder", "tokenizer"))]
        if not texts:
            raise UserError(f"{self.folder.path} holds no text encoder, which prompts need")
        name = self.folder.index["_class_name"]
        kind = getattr(library(), name, None)
        if kind is None:
            raise UserError(f"{self.folder.path}: diffusers has no pipeline {name}")
        absent = {part: None for part in parts if part not in texts and part != "scheduler"}
        absent |= {"safety_checker": None} if "safety_checker" in self.folder.index else {}
        try:
            return kind.from_pretrained(
                self.folder.path, use_safetensors=True, local_files_only=True, **absent
            )
        except Exception as error:  # whatever damaged files make of it
            raise UserError(
                f"the text encoders of {self.folder.path} cannot be read: {one_line(error)}"
            ) from error


def encoded(pipe: Any, texts: list[str]) -> Told:
    """Texts as a pipeline's own guidance has them, {prompt: (n, tokens, d), ...} on the CPU."""
    names = {
        "StableDiffusionPipeline": ("prompt", None),
        "StableDiffusionXLPipeline": ("prompt", None, "text_embeds", None),
        "StableDiffusion3Pipeline": ("prompt", None, "pooled", None),
        "FluxPipeline": ("prompt", "pooled", None),
    }
    kind = type(pipe).__name__
    if kind not in names:
        raise UserError(f"how a {kind} encodes prompts is not known; known are {', '.join(names)}")
    given: dict[str, Any] = {"prompt": texts, "device": pipe.device, "num_images_per_prompt": 1}
    if kind != "FluxPipeline":
        given["do_classifier_free_guidance"] = False
    if kind == "StableDiffusion3Pipeline":
        given |= {"prompt_2": None, "prompt_3": None}
    if kind == "FluxPipeline":
        given["prompt_2"] = None
    found = pipe.encode_prompt(**given)
    told = {name: x.cpu() for name, x in zip(names[kind], found, strict=True) if name is not None}
    if kind == "StableDiffusionXLPipeline" and pipe.config.force_zeros_for_empty_prompt:
        for i, text in enumerate(texts):
            if not text:
                told = {name: x.index_fill(0, torch.tensor([i]), 0.0) for name, x in told.items()}
    return told
