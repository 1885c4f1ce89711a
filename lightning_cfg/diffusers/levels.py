"""The noise levels that a pipeline's own scheduler takes, where it starts, and where it ends."""

import copy
from typing import Any

import numpy as np
import torch

from lightning_cfg.diffusers.predictions import LARGEST, FlowMatching, Prediction
from lightning_cfg.errors import UserError
from lightning_cfg.interfaces import Along


def along(scheduler: Any, prediction: Prediction, steps: int, positions: int) -> Along:
    """What the scheduler does in so many steps, for our samplers: `levels: model`.

    positions  of the latents that the network sees at once, by which some shift their levels
    UserError for what is not of the form x <- D + k (x - D), as a denoised sample that is clipped.
    """
    own = copy.deepcopy(scheduler)
    _refuse_clipping(own)
    _set(own, steps, positions)
    sigmas = getattr(own, "sigmas", None)
    if sigmas is None:  # such as DDIM's: levels by the table, and the last of them by a switch
        levels = prediction.level(torch.as_tensor(own.timesteps)).tolist()
        end = 0.0 if own.config.get("set_alpha_to_one", True) else prediction.sigma_min
        return Along(levels, (1 + levels[0] ** 2) ** 0.5 / levels[0], end, (1 + end**2) ** -0.5)
    *levels, end = sigmas.double().tolist()
    if isinstance(prediction, FlowMatching):
        levels = [min(LARGEST, s / (1 - s) if s < 1 else LARGEST) for s in levels]
        return Along(levels, 1 + 1 / levels[0], end / (1 - end), 1 - end)
    if type(own).__name__.startswith(ALREADY_OURS):  # their latents are x, not a x
        return Along(levels, float(own.init_noise_sigma) / levels[0], end)
    return Along(levels, (1 + levels[0] ** 2) ** 0.5 / levels[0], end, (1 + end**2) ** -0.5)


ALREADY_OURS = ("Euler", "LMS", "Heun", "KDPM2")


def _set(own: Any, steps: int, positions: int) -> None:
    """Its levels, as its pipeline sets them: Flux gives the times, and a shift by the size."""
    if own.config.get("use_dynamic_shifting"):
        times = np.linspace(1.0, 1 / steps, steps)
        given = {} if own.config.get("use_flow_sigmas") else {"sigmas": times}
        own.set_timesteps(steps, mu=_shift(own.config, positions), **given)
    else:
        own.set_timesteps(steps)


def _shift(config: Any, positions: int) -> float:
    """mu of exp(mu) sigma: linear in the positions between two of the config's."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return first + (last - first) * (positions - low) / (high - low)


def _refuse_clipping(scheduler: Any) -> None:
    for key in ("clip_sample", "thresholding"):
        if scheduler.config.get(key):
            raise UserError(
                f"sampler.levels=model: {type(scheduler).__name__} has {key}: true, which changes "
                "the denoised sample but not the direction, and is no step of our samplers: name "
                f"other levels, or set {key} to false in its scheduler_config.json"
            )
