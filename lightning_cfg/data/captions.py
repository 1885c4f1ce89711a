"""Captions of two digits side by side: pictures whose prompts are classes."""

from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Place
from lightning_cfg.data.images import Images
from lightning_cfg.data.mnist import MNIST

WORDS = "zero one two three four five six seven eight nine".split()
WORDINGS = ("a {} left of a {}", "{} and then {}", "the digits {} {}", "a {} next to a {}")
PAIRS = 100  # of two digits
TRAINING, HELD_OUT = 600, 100  # pictures of each pair


class Captions(Images):
    """Two MNIST digits side by side, and what is said of them: prompts as classes.

    Shape (1, 28, 56); 400 prompts, class 100 w + 10 a + b saying in the w-th of 4 wordings that a
    stands left of b. Of each pair of digits there are 600 pictures of MNIST's training digits, the
    "bank", and 100 of its others, "held_out", a quarter with each wording; every digit comes about
    once on either side.
    root   holds MNIST/raw; where it is absent, it is downloaded
    pairs  shown: only the 80 pairs that are meant to be trained on; unseen: the other 20, in which
           each digit comes twice on each side; samples are drawn of their prompts alone
    What a prompt may be taken for (`confusable`) is any that says something else.
    """

    shape = (1, 28, 56)
    num_classes = len(WORDINGS) * PAIRS

    def __init__(
        self,
        *,
        root: Annotated[str, Place] = "data",
        pairs: Literal["all", "shown", "unseen"] = "all",
    ):
        self.root, self.pairs = root, pairs
        self.class_names = [text.format(a, b) for text in WORDINGS for a in WORDS for b in WORDS]
        pair = torch.arange(self.num_classes) % PAIRS
        self.parts = torch.stack([pair // 10, pair % 10], 1)
        self.confusable = pair[:, None] != pair
        self.drawn = None if pairs == "all" else _chosen(pairs)[pair].nonzero()[:, 0]

    @cached_property
    def _bank(self) -> tuple[Any, Tensor]:
        return self._side_by_side(train=True, each=TRAINING)

    @cached_property
    def _held_out(self) -> tuple[Any, Tensor]:
        return self._side_by_side(train=False, each=HELD_OUT)

    def _side_by_side(self, *, train: bool, each: int) -> tuple[Tensor, Tensor]:
        """Bytes (N, 1, 28, 56) and prompts (N,): so many pictures of each pair."""
        y, c = MNIST(root=self.root)._load(train=train)
        of_digit = [(c == digit).nonzero()[:, 0] for digit in range(10)]
        pictures, prompts = [], []
        for pair in _chosen(self.pairs).nonzero()[:, 0].tolist():
            a, b = pair // 10, pair % 10
            # the digits of a side go on from pair to pair, so that each comes about once
            left, right = of_digit[a], of_digit[b]
            j = torch.arange(each)
            left = left[(b * each + j) % len(left)]  # and two of one digit are two pictures
            right = right[(a * each + j + len(right) // 2) % len(right)]
            pictures.append(torch.cat([y[left], y[right]], 3))
            prompts.append(PAIRS * (j % len(WORDINGS)) + pair)
        return torch.cat(pictures), torch.cat(prompts)


def _chosen(pairs: str) -> Tensor:
    """Which pairs 10 a + b there are, (100,) bool."""
    a, b = torch.arange(PAIRS) // 10, torch.arange(PAIRS) % 10
    unseen = (b == (3 * a + 1) % 10) | (b == (7 * a + 4) % 10)
    return {"all": torch.ones_like(unseen), "shown": ~unseen, "unseen": unseen}[pairs]
