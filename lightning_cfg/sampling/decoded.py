"""A classifier of images beside a model of latents."""

import torch
from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Model
from lightning_cfg.latents.decoder import Decoder, at_once, build_decoder, decoded_shape


class OfDecoded(Model):
    """log p(c | image) of the image that latents stand for; gradients flow through the decoder.

    Decoded images are finished ones, whatever noise the latents have: it reads them at sigma = 0.
    """

    classifies, clean = True, True

    def __init__(self, classifier: Model, decoder: Decoder, shape: tuple[int, ...]):
        super().__init__()
        self.classifier, self.decoder, self.shape = classifier, decoder, shape
        self.num_classes, self.step = classifier.num_classes, classifier.step
        self._rows = at_once(tuple(classifier.shape))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K) of latents x (B, c, h, w)."""
        parts = (self.decoder.decode(part) for part in x.split(self._rows))
        return torch.cat([self.classifier(y, y.new_zeros(len(y))) for y in parts])


def of_decoded(role: str, classifier: Model, section: dict, model: Model) -> OfDecoded:
    """The classifier of the images of the model's latents; UserError where they do not fit it."""
    if role != "models.classifier":
        raise UserError(f"{role}.decode: only a classifier reads images of a model's latents")
    latents, decoder = tuple(model.shape), build_decoder(section)
    made = decoded_shape(decoder, latents)
    if made != tuple(classifier.shape):
        raise UserError(
            f"{role} reads shape {tuple(classifier.shape)}, but its decode makes {made} of the "
            f"latents {latents} of models.model"
        )
    return OfDecoded(classifier, decoder, latents)
