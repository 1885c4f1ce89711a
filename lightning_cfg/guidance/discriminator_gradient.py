"""Discriminator guidance."""

import torch
from torch import Tensor

from lightning_cfg.diffusion.differentiable import differentiable
from lightning_cfg.guidance.composed import Changed, Of
from lightning_cfg.guidance.method import method
from lightning_cfg.guidance.scales import Scale, evaluate_where, scale_at
from lightning_cfg.guidance.unguided import unguided
from lightning_cfg.interfaces import Classifier, Denoiser, expand_like


@method
def discriminator_gradient(
    model: Denoiser, discriminator: Classifier, *, of: Of = unguided, scale: Scale = 2.0
) -> Denoiser:
    """D + (w - 1) sigma^2 grad log(d / (1 - d)), d(x; sigma) = p(real): Kim et al. (2023).

    With a perfect discriminator w = 2, the paper's weight 1, makes of the score of what the model
    generates that of the real data; w = 1 is the model itself, as everywhere here. The paper's
    discriminator knows the class; ours does not.

    discriminator  a noisy classifier of generated (0) and real (1), as `fit` trains on the data
                   set RealOrGenerated
    of             another method, on the model that is corrected so
    """

    def gradient(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        with differentiable(x, sigma) as (leaf, level):
            logits = discriminator(leaf, level)
            return torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), leaf)[0]

    def corrected(x: Tensor, sigma: Tensor, c: Tensor, **rows: Tensor) -> Tensor:
        w = scale_at(scale, sigma)
        D = model(x, sigma, c, **rows)
        if not isinstance(w, Tensor) and w == 1:
            return D
        weight = expand_like((w - 1) * sigma**2, x)
        return D + weight * evaluate_where(w != 1, gradient, x, sigma, c)

    return of(Changed(model, corrected))
