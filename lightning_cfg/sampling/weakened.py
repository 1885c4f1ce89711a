"""A network made worse by itself: what stands as `weaken` of a network in `models`.

Each takes a restored model and changes it in place. What is random follows from `seed` and the
noise level alone, and is the same for all samples, so that no sample depends on its batch.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lightning_cfg.config import AtLeast, Between, Filled, NonNegative, Seed
from lightning_cfg.diffusion.draws import keyed
from lightning_cfg.diffusion.of_net import OfNet
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Model

__all__ = ["drop", "identity_attention", "inner", "skip"]  # what a config can name

Rate = Annotated[float, Between(0, 1, above=True, below=True)]


def drop(model: Model, *, rate: Rate = 0.1, seed: Seed = 0) -> None:
    """Dropout in sampling: of what each block adds, numbers are 0 with this probability.

    The others are divided by 1 - rate. A block is a module called ...Block whose answer has its
    input's shape; what it adds is the difference of the two.
    """

    def dropped(i: int, x: Tensor, out: Tensor, sigma: float) -> Tensor:
        g = keyed("drop", seed, i, sigma)
        kept = torch.rand(x.shape[1:], generator=g).to(x.device) >= rate
        return x + (out - x) * kept / (1 - rate)

    _change_blocks(model, dropped)


def skip(
    model: Model,
    *,
    blocks: Annotated[list[Annotated[int, NonNegative]], Filled] | None = None,
    number: Annotated[int, AtLeast(1)] = 1,
    seed: Seed = 0,
) -> None:
    """Blocks skipped: always the same ones, or others at every noise level (S^2, Chen et al. 2025).

    blocks  their numbers in the network's order; left out, `number` of them at random
    """

    def skipped(i: int, x: Tensor, out: Tensor, sigma: float) -> Tensor:
        chosen = blocks
        if chosen is None:
            order = torch.rand(total, generator=keyed("skip", seed, sigma)).argsort()
            chosen = order[:number].tolist()
        return x if i in chosen else out

    total = _change_blocks(model, skipped)
    if max(blocks or [number - 1]) >= total:
        what = f"blocks={blocks}" if blocks else f"number={number}"
        raise UserError(f"weaken.{what}: the network has {total} blocks that can be skipped")


def inner(model: Model) -> None:
    """The head inside the network in place of its last one: internal guidance (Zhou et al. 2025).

    D = D_i + w (D_f - D_i) is then `autoguidance`, and with CFG `self_guidance`. It goes as far as
    the head alone; in the paper both answers are of one pass, and here D_i is a part of another. Of
    the paper (arXiv 2512.24176) the abstract and accounts of its loss and sampling were read; where
    its heads are, how they are weighed and at which noise levels it guides we have not.
    UserError for a model whose network has none: see `inner_weight` of EDM.
    """
    if not isinstance(model, OfNet) or model.net.inside is None:
        raise UserError(
            "weaken=inner: the network has no head inside; train one by net.inner, of an MLP, and "
            "model.inner_weight, of EDM"
        )
    model.net.inside = True


def identity_attention(model: Model) -> None:
    """Attention of every position to itself alone: PAG's perturbed attention (Ahn et al. 2024)."""
    functional: Any = nn.functional  # where networks look attention up
    usual, called = functional.scaled_dot_product_attention, 0

    def itself(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        nonlocal called
        called += 1
        if q.shape != v.shape:  # such as a pool's, of one position to all
            return usual(q, k, v)
        return v

    def before(*_: object) -> None:
        functional.scaled_dot_product_attention = itself

    def after(*_: object) -> None:
        functional.scaled_dot_product_attention = usual
        if not called:
            raise UserError("weaken=identity_attention: the network has no attention")

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after, always_call=True)


def _change_blocks(model: Model, change: Callable[[int, Tensor, Tensor, float], Tensor]) -> int:
    """Have `change`(number, input, answer, sigma) stand for what blocks answer; how many there are.

    UserError where there is none.
    """
    level = 0.0

    def heard(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal level
        level = args[1].flatten()[0].item()

    def hook(i: int) -> Callable[..., Tensor]:
        return lambda _, args, out: change(i, args[0], out, level)

    blocks = _blocks(model)
    for i, block in enumerate(blocks):
        block.register_forward_hook(hook(i))
    model.register_forward_pre_hook(heard)
    return len(blocks)


def _blocks(model: Model) -> list[nn.Module]:
    """The modules called ...Block that answer in their input's shape, found by asking the model."""
    found: list[nn.Module] = []

    def seen(block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if out.shape == args[0].shape:
            found.append(block)

    named = [module for module in model.modules() if type(module).__name__.endswith("Block")]
    hooks = [block.register_forward_hook(seen) for block in named]
    x = torch.zeros(1, *model.shape)
    with torch.no_grad():
        model(x, torch.ones(1), torch.zeros(1, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    if not found:
        raise UserError(f"weaken: {type(model).__name__} has no blocks that could be skipped")
    return found
