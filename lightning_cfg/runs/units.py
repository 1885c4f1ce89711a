"""Are the images of a sample file in [-1, 1], where 0 is grey?"""

import json
from pathlib import Path

from torch import Tensor

from lightning_cfg.errors import UserError
from lightning_cfg.runs.pngs import drawable
from lightning_cfg.runs.tensors import metadata
from lightning_cfg.runs.to_come import ToCome

BEYOND = (
    1.5  # a guided image overshoots [-1, 1] here and there, one in other units almost everywhere
)
SAID = {"values": "[-1, 1]"}  # in a file's metadata, where its images are all brighter than grey


def check_units(file: Path | ToCome, x: Tensor) -> None:
    """UserError for images x (N, C, H, W) of this file in other units: [0, 1], or bytes.

    Of a run of ours they are in the right ones, however bright, or far off after a few steps.
    """
    if not drawable(tuple(x.shape[1:])) or not len(x) or _ours(file):
        return
    low, high = x.min().item(), x.max().item()
    beyond = (x.abs() > BEYOND).float().mean().item()
    if beyond > 0.01:
        raise UserError(
            f"{file}: images must have values in [-1, 1], and these reach from {low:.4g} "
            f"to {high:.4g}"
        )
    if 0 <= low <= high <= 1 and not SAID.items() <= metadata(file).items():
        raise UserError(
            f"{file}: images must have values in [-1, 1], and these are all in [0, 1], from "
            f"{low:.4g} to {high:.4g}: save 2 * x - 1; or if they are so bright, say so in the "
            f"file: safetensors.torch.save_file(..., metadata={SAID})"
        )


def _ours(file: Path | ToCome) -> bool:
    """Whether the file lies in a run of `generate` or `refine`, or will."""
    if isinstance(file, ToCome):
        return True
    manifest = file.absolute().parent.parent / "manifest.json"
    if not manifest.is_file():
        return False
    return json.loads(manifest.read_text()).get("verb") in ("generate", "refine")
