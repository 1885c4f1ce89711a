"""Latents and the pixels that they stand for: what a section `decode` can name."""

from lightning_cfg.latents.vae import EDM2VAE, DiffusersVAE

__all__ = ["EDM2VAE", "DiffusersVAE"]
