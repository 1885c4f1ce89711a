"""CLIP as a classifier over prompts, of the image that a denoised sample stands for."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cfg.config import Decode, Input, Positive, Share
from lightning_cfg.diffusers.folder import existing_folder, library
from lightning_cfg.errors import UserError, one_line
from lightning_cfg.interfaces import DataSet, Model
from lightning_cfg.latents.decoder import at_once, build_decoder
from lightning_cfg.latents.from_folder import network_of_folder

AT_ONCE = 256  # prompts that are encoded together
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels that CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)


class clip(Model):
    """log p(prompt | image) of CLIP, zero-shot (Radford et al. 2021): s cos(image, prompt) / T.

    s is what CLIP has learned, about 100; images are resized to its own size, bicubic. It reads
    finished images: its guidance is of D, at sigma 0. Which prompts may be the reference of which
    is `confusable`: the data's, or all others but those whose texts are nearer than `paraphrase`.

    path         a folder of transformers' CLIPModel, with safetensors and its tokenizer
    decode       what makes images of latents; left out, samples are images in [-1, 1]
    temperature  T; above 1, the classifier is less certain
    paraphrase   cosine of two prompts from which on they mean the same; 1: none do
    UserError where transformers or the folder is absent, and without prompts as data.
    """

    classifies, clean = True, True
    mean: Tensor
    std: Tensor
    texts: Tensor

    def __init__(
        self,
        *,
        path: Annotated[str, Input(existing_folder)],
        decode: Decode | None = None,
        temperature: Annotated[float, Positive] = 1.0,
        paraphrase: Annotated[float, Share] = 0.95,
    ):
        super().__init__()
        library()  # for the message of an absent extra
        import transformers

        folder = existing_folder(path)
        net: Any = network_of_folder(
            transformers.CLIPModel, folder, "CLIPModel", "config.json", "model.safetensors"
        )
        self.net = net.float().eval().requires_grad_(False)
        try:
            self._tokens = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever damaged files make of it
            raise UserError(f"{folder} holds no tokenizer: {one_line(error)[:200]}") from error
        self.decoder = None if decode is None else build_decoder(decode)
        self.scale, self.paraphrase = net.logit_scale.exp().item() / temperature, paraphrase
        self.shape, self.num_classes = None, 0  # type: ignore[assignment]  # as the model's
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1))

    def take_data(self, data: DataSet | None) -> None:  # type: ignore[override]
        """The prompts, encoded; UserError without any."""
        names = None if data is None else data.class_names
        if data is None or not names:
            raise UserError("classifier clip takes prompts: data: {name: Prompts, path: ...}")
        self.take_texts(names, data.confusable)

    @torch.no_grad()
    def take_texts(self, names: list[str], confusable: Tensor | None = None) -> None:
        """The prompts that are its classes, and which may be the reference of which (K, K)."""
        parts = [self._of_texts(names[i : i + AT_ONCE]) for i in range(0, len(names), AT_ONCE)]
        self.register_buffer("texts", torch.cat(parts))
        self.num_classes, self.confusable = len(names), confusable
        if confusable is None:
            far = self.texts @ self.texts.T < self.paraphrase
            self.confusable = far & ~torch.eye(len(names), dtype=torch.bool, device=far.device)

    def _of_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (n, d) of texts."""
        given = self._tokens(texts, padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.net.text_projection(self.net.text_model(**given).pooler_output))

    def of_images(self, images: Tensor) -> Tensor:
        """Unit vectors (n, d) of images (n, C, H, W) in [-1, 1], grey or RGB."""
        side = self.net.config.vision_config.image_size
        y = ((images.float() + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
        if tuple(y.shape[2:]) != (side, side):
            y = F.interpolate(y, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        seen = self.net.vision_model(pixel_values=(y - self.mean) / self.std).pooler_output
        return F.normalize(self.net.visual_projection(seen))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K) of samples or latents x (B, C, H, W); gradients flow through."""
        return self.scale * self.cosines(x)

    def cosines(self, x: Tensor) -> Tensor:
        """cos(image, prompt) of samples or latents with all prompts, (B, K)."""
        if self.decoder is None:
            images = self.of_images(x)
        else:
            rows = at_once(self.decoder.image_shape(tuple(x.shape[1:])))
            images = torch.cat([self.of_images(self.decoder.decode(z)) for z in x.split(rows)])
        return images @ self.texts.T
