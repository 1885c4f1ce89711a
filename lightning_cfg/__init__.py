"""Guidance in diffusion models: train, guide, measure, refine."""

__version__ = "0.1.0"
