"""What a classifier makes of samples: accuracy, confidence, Inception score."""

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from lightning_cfg.config import AtLeast
from lightning_cfg.errors import UserError
from lightning_cfg.metrics.meaning import better, percent


@better("higher", "share that a classifier reads as their class", format=percent)
def class_accuracy(logits: Tensor, c: Tensor | int) -> dict[str, float]:
    """Share of samples that a classifier reads as their class c, one or (n,).

    That is, no class is more probable: of prompts that say the same, each is right.
    """
    return {"class_accuracy": read_right(logits, c).double().mean().item()}


def read_right(logits: Tensor, c: Tensor | int) -> Tensor:
    """Of which samples no class is more probable than their own c, one or (n,): (n,) bool."""
    c = torch.as_tensor(c, device=logits.device).expand(len(logits))
    return logits.gather(1, c[:, None])[:, 0] >= logits.amax(1)


@better("higher", "mean probability that a classifier gives to their class", format=percent)
def confidence(logits: Tensor, c: Tensor | int) -> dict[str, float]:
    """Mean probability p(c|x) that a classifier gives the samples' class c, one or (n,)."""
    c = torch.as_tensor(c, device=logits.device).expand(len(logits))
    p = logits.double().softmax(1).gather(1, c[:, None])
    return {"confidence": p.mean().item()}


@better("higher", "mean cosine of a picture and its own prompt, by a classifier over prompts")
def text_alignment(cosine: Tensor) -> dict[str, float]:
    """Mean cosine of pictures and their own prompts, (n,), and its standard error.

    The error is the deviation over sqrt(n); of one picture there is none. By another CLIP than the
    one that guides: by that one it is how far the guidance has been followed.
    """
    found = {"text_alignment": cosine.double().mean().item()}
    if len(cosine) > 1:
        found["text_alignment_se"] = cosine.double().std().item() / len(cosine) ** 0.5
    return found


@better("higher", "Inception score by this space's own classifier", column="is")
def inception_score(
    head_logits: Tensor, *, splits: Annotated[int, AtLeast(1)] = 10
) -> dict[str, float]:
    """Inception score (Salimans et al. 2016), mean and deviation over splits of the samples.

        exp E_x KL(p(c|x) | p(c)),   p(c) = E_x p(c|x) within the split

    Between 1 and the number of classes, higher is better; rises with n. Shuffled as torch-fidelity
    does (seed 2020). Raises UserError for fewer samples than splits.
    """
    n = len(head_logits)
    if not 1 <= splits <= n:
        raise UserError(f"an Inception score over {splits=} needs as many samples, got {n}")
    order = torch.from_numpy(np.random.RandomState(2020).permutation(n)).to(head_logits.device)
    log_p, scores = head_logits[order].double().log_softmax(1), []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        terms = p * (part - p.mean(0).log())
        divergence = torch.where(p > 0, terms, 0).sum(1).mean()  # 0 log 0 = 0
        scores.append(divergence.exp().item())
    return {"is": float(np.mean(scores)), "is_std": float(np.std(scores))}
