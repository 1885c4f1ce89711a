"""Pictures and texts brought together, so that a picture is read as one of any prompts."""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_cfg.config import NonNegative, Share
from lightning_cfg.diffusion.draws import Draws, onto
from lightning_cfg.diffusion.of_net import OfNet
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import expand_like


class Contrastive(OfNet):
    """log p(prompt | picture) of net `DualEncoder`, trained as CLIP is (Radford et al. 2021).

    loss_i = -1/2 log p(text i | picture i) - 1/2 log p(picture i | text i), softmaxes of the logits
    over the texts and over the pictures of the batch, of which those with one text are all right.
    So a prompt that no batch has is no wrong answer either, and pictures are read as it by its
    words. It reads finished pictures: its guidance is of D, at sigma 0.

    noise       largest deviation of noise added to pictures in training, uniform from 0 on, so that
                it also reads a D that is not finished
    paraphrase  cosine of two texts from which on they mean the same, and neither may be the
                reference of the other in GFCG; 1: none do
    The batch is that of a process: of several, each has its own. UserError for another network.
    """

    classifies, clean = True, True
    num_classes = 0  # not known, until it is built for data
    sigma_min = sigma_max = 0.0

    def __init__(
        self,
        net: nn.Module,
        *,
        noise: Annotated[float, NonNegative] = 0.0,
        paraphrase: Annotated[float, Share] = 0.95,
    ):
        super().__init__(net)
        if not hasattr(net, "texts"):
            raise UserError(f"Contrastive: net {type(net).__name__} has no texts, as DualEncoder")
        self.noise, self.paraphrase = noise, paraphrase

    @property
    def confusable(self) -> Tensor:  # type: ignore[override]
        """(K, K) bool: which prompts may be taken for which, all but paraphrases."""
        with torch.no_grad():
            texts = self.net.texts()
        far = texts @ texts.T < self.paraphrase if self.paraphrase < 1 else texts.new_ones(())
        return far.bool() & ~torch.eye(len(texts), dtype=torch.bool, device=texts.device)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K) of clean x (B, *shape); sigma is ignored."""
        return self.run(x, sigma, None)

    def cosines(self, x: Tensor) -> Tensor:
        """cos(picture, text) of clean x (B, *shape) with all prompts, (B, K)."""
        images = self.net.features(x.to(next(self.net.parameters()).dtype))
        return images @ self.net.texts().T

    def features(self, x: Tensor) -> Tensor:
        """Unit vectors of clean x, (B, d)."""
        return self.net.features(x.to(next(self.net.parameters()).dtype))

    def loss(self, y: Tensor, c: Tensor, draws: Draws) -> Tensor:
        """The mean of both cross-entropies per sample, (B,)."""
        if self.noise:
            deviation = expand_like(self.noise * onto(draws.uniform(), y.device).to(y), y)
            y = y + deviation * onto(draws.normal(*y.shape[1:]), y.device).to(y)
        return contrastive(self(y, y.new_zeros(len(y))).float()[:, c], c)


def contrastive(logits: Tensor, c: Tensor) -> Tensor:
    """The loss per sample, (b,), of logits (b, b) of pictures i for the texts of classes c_j."""
    wrong = c[:, None] != c
    right = logits.masked_fill(wrong, -torch.inf)
    of_texts = right.logsumexp(1) - logits.logsumexp(1)
    of_pictures = right.logsumexp(0) - logits.logsumexp(0)
    return -(of_texts + of_pictures) / 2
