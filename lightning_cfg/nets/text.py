"""Classes that are texts: a small transformer over the words of their names."""

import torch
from torch import Tensor, nn

from lightning_cfg.errors import UserError

LONGEST = 64  # words of a text
HEADS = 4


class TextEmbedding(nn.Module):
    """Vectors (B, out) of classes (B,), made of their names; NULL = -1 is the empty text.

    Words and their places are embedded, `layers` of a transformer (Vaswani et al. 2017, with the
    norms in front) go over them, and their mean is taken through a last layer. Words are what the
    names of a data set's classes have, so that one of other words is unknown.
    UserError from `take` for names of more than 64 words, and from `forward` without any.
    """

    tokens: Tensor

    def __init__(self, out: int, *, width: int, layers: int):
        super().__init__()
        if width % HEADS:
            raise UserError(f"a text's width must be divisible by {HEADS}, got {width}")
        self.width = width
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.leave = nn.Linear(width, out)

    def take(self, names: list[str]) -> None:
        """The classes' names, before anything is asked."""
        texts = [name.lower().split() for name in names]
        longest = max(map(len, texts))
        if longest > LONGEST:
            raise UserError(f"a class's name has {longest} words, more than {LONGEST}")
        number = {word: i for i, word in enumerate(sorted(set().union(*texts)), 1)}
        tokens = torch.zeros(len(texts) + 1, longest, dtype=torch.long)  # the last one: NULL
        for row, text in zip(tokens, texts, strict=False):
            row[: len(text)] = torch.tensor([number[word] for word in text])
        self.register_buffer("tokens", tokens, persistent=False)
        self.words = nn.Embedding(len(number) + 1, self.width)
        self.places = nn.Parameter(0.1 * torch.randn(longest, self.width))

    def forward(self, c: Tensor) -> Tensor:
        h = self.layers(self.words(self.tokens[c]) + self.places)
        return self.leave(h.mean(1))
