"""Tiny pipelines of diffusers with random weights, and their networks' conditions."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

K, TOKENS, WIDTH, POOLED = 5, 7, 12, 10  # prompts and, last, the empty one
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIZES = "text_time"


def awake(net: Any, seed: int) -> Any:
    """The network with nothing at zero, as it would be after training."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.abs().sum() == 0 or ("norm" not in name and p.ndim > 1):
                width = p[0].numel() if p.ndim > 1 else 4
                p.copy_(torch.randn(p.shape, generator=g) * 0.7 / max(1, width) ** 0.5)
    return net.eval().requires_grad_(False)


def prompts() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    rows = {"prompt": torch.randn(K + 1, TOKENS, WIDTH, generator=g)}
    return rows | {"pooled": torch.randn(K + 1, POOLED, generator=g)}


def unet(channels: int = 8, seed: int = 3, **extra: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    net = UNet2DConditionModel(
        block_out_channels=(channels, 2 * channels), layers_per_block=1, sample_size=8,
        in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=WIDTH,
        norm_num_groups=4, attention_head_dim=2, **extra,
    )  # fmt: skip
    return awake(net, seed)


def vae(**extra: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[8], norm_num_groups=4, latent_channels=4, **extra
    ).eval()


def sd(scheduler: Any, net: Any = None, **parts: Any) -> Any:
    """Stable Diffusion; its text encoder where `parts` has it."""
    from diffusers import StableDiffusionPipeline

    parts = {"text_encoder": None, "tokenizer": None} | parts
    pipe = StableDiffusionPipeline(
        vae=vae(), unet=net or unet(), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **parts,
    )  # fmt: skip
    return quiet(pipe)


def sdxl(scheduler: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    net = unet(addition_embed_type=SIZES, addition_time_embed_dim=4,
               projection_class_embeddings_input_dim=6 * 4 + POOLED)  # fmt: skip
    return quiet(StableDiffusionXLPipeline(
        vae=vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=net, scheduler=scheduler, add_watermarker=False,
    ))  # fmt: skip


def dit(scheduler: Any) -> Any:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(1)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        activation_fn="gelu-approximate", attention_bias=True, norm_elementwise_affine=False,
    )  # fmt: skip
    return quiet(DiTPipeline(transformer=awake(net, 0), vae=vae(), scheduler=scheduler))


def sd3(scheduler: Any) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(1)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WIDTH,
        caption_projection_dim=16, pooled_projection_dim=POOLED, pos_embed_max_size=8,
    )  # fmt: skip
    none = dict.fromkeys([f"{what}{i}" for what in ("text_encoder", "tokenizer")
                          for i in ("", "_2", "_3")])  # fmt: skip
    shifted = vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    return quiet(StableDiffusion3Pipeline(
        transformer=awake(net, 4), scheduler=scheduler, vae=shifted, **none
    ))  # fmt: skip


def flux(scheduler: Any) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(1)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=POOLED,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    none = dict.fromkeys([f"{what}{i}" for what in ("text_encoder", "tokenizer")
                          for i in ("", "_2")])  # fmt: skip
    shifted = vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    return quiet(FluxPipeline(transformer=awake(net, 6), scheduler=scheduler, vae=shifted, **none))


def pixels(scheduler: Any) -> Any:
    """An unconditional network of images."""
    from diffusers import DDIMPipeline, UNet2DModel

    torch.manual_seed(1)
    net = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    return quiet(DDIMPipeline(unet=awake(net, 8), scheduler=scheduler))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_parts(folder: Any) -> SimpleNamespace:
    """A CLIP text encoder of one layer and a tokenizer of letters."""
    import json

    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{a}</w>" for a in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS
    )
    torch.manual_seed(7)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=TOKENS, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    return SimpleNamespace(text_encoder=CLIPTextModel(config).eval(), tokenizer=tokenizer)
