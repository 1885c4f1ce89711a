"""How each kind of diffusers' networks is asked: its own names for sample, time and condition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# (network, a x (B, C, H, W), time (B,), {name: condition (B, ...)}) -> its answer (B, C, H, W)
GUIDANCE = 3.5  # what Flux-dev is told where nothing else is said
Call = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]


def unconditional(net: Any, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
    """UNet2DModel, with classes or without."""
    return net(x, t, class_labels=told.get("class")).sample


def unet(net: Any, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
    """UNet2DConditionModel: of Stable Diffusion, and with pooled text and sizes of SDXL."""
    added = {key: told[key] for key in ("text_embeds", "time_ids") if key in told}
    return net(x, t, encoder_hidden_states=told["prompt"], added_cond_kwargs=added or None).sample


def dit(net: Any, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
    """DiTTransformer2DModel, whose further channels are a learned variance."""
    return net(x, timestep=t, class_labels=told["class"]).sample[:, : x.shape[1]]


def sd3(net: Any, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
    """SD3Transformer2DModel."""
    prompt, pooled = told["prompt"], told["pooled"]
    return net(
        hidden_states=x, timestep=t, encoder_hidden_states=prompt, pooled_projections=pooled
    ).sample


def flux(guidance: float | None) -> Call:
    """FluxTransformer2DModel, which sees blocks of 2 x 2 and takes times from 0 to 1.

    guidance  the number that a network distilled from guided ones is told; None: it takes none
    """

    def call(net: Any, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        B, C, H, W = x.shape
        blocks = x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5)
        where = torch.zeros(H // 2, W // 2, 3, dtype=x.dtype, device=x.device)
        where[..., 1] += torch.arange(H // 2, device=x.device)[:, None]
        where[..., 2] += torch.arange(W // 2, device=x.device)
        prompt = told["prompt"]
        answer = net(
            hidden_states=blocks.reshape(B, H * W // 4, 4 * C),
            timestep=t / 1000,
            guidance=None if guidance is None else x.new_full((B,), guidance),
            pooled_projections=told["pooled"],
            encoder_hidden_states=prompt,
            txt_ids=x.new_zeros(prompt.shape[1], 3),
            img_ids=where.reshape(-1, 3),
        ).sample
        answer = answer.reshape(B, H // 2, W // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return answer.reshape(B, C, H, W)

    return call


def is_flux(net: Any) -> bool:
    """Whether its latents are packed, four numbers of 2 x 2 positions in one."""
    return type(net).__name__ == "FluxTransformer2DModel"


def call_of(net: Any, guidance: float | None = None) -> Call:
    """How this network is asked; `guidance` is for one that is told such a number."""
    if is_flux(net):
        told = GUIDANCE if guidance is None else guidance
        return flux(told if net.config.guidance_embeds else None)
    return {
        "UNet2DModel": unconditional,
        "UNet2DConditionModel": unet,
        "DiTTransformer2DModel": dit,
        "Transformer2DModel": dit,
        "SD3Transformer2DModel": sd3,
    }[type(net).__name__]
