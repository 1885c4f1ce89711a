"""`adopt`: a network that others have published becomes a run, which every verb works on.

    python -m lightning_cfg.adopt FILE run_dir=DIR [key=value ...]

FILE is theirs, or the name of one that `lightning_cfg.assets` knows. Nothing in it is executed.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_cfg.config import Between, Document, Filled, Input, Width, help_of, load, set_key
from lightning_cfg.errors import UserError, did_you_mean
from lightning_cfg.runs.checkpoints import check_fits
from lightning_cfg.runs.files import write
from lightning_cfg.runs.names import LAST
from lightning_cfg.runs.run import Run, verb
from lightning_cfg.weights.catalogue import ASSETS
from lightning_cfg.weights.foreign import read
from lightning_cfg.weights.published import UNSAID, Published
from lightning_cfg.weights.store import find

ONLY = 0  # the half-life that stands for a published average's, which no file tells


def foreign_file(text: str) -> Path:
    """The file of this path, or the one that `lightning_cfg.assets` knows by this name."""
    if text in ASSETS and not Path(text).exists():
        return find(text)
    if not Path(text).is_file():
        hint = did_you_mean(text, ASSETS, "`python -m lightning_cfg.assets` lists what has a name")
        raise UserError(f"{text}: no such file; {hint}")
    return Path(text)


@verb(one_process=True, short="file")
def adopt(
    run: Run,
    /,
    *,
    file: Annotated[str, Input(foreign_file)],
    run_dir: str,
    kind: Literal["edm", "edm2", "guided_diffusion", "otcfm", "dit", "torchvision"] | None = None,
    shape: Annotated[list[Annotated[int, Between(1, 16_384)]], Filled] | None = None,
    schedule: Literal["linear", "cosine"] | None = None,
    num_heads: Width | None = None,
    head_channels: Width | None = None,
    attention_order: Literal["legacy", "new"] | None = None,
    force: bool = False,
) -> Path:
    """Make a run of a network that others have published; it holds checkpoints/last.ckpt.

    file             EDM's or EDM2's .pkl, a state dict of guided-diffusion's, Tong et al.'s or
                     DiT's (.pt), of a ResNet of torchvision's (.pth), or its name in
                     lightning_cfg.assets, which knows the keys below
    kind             what the file is: left out, its content says so; names of Dhariwal & Nichol's
                     alone are taken for guided_diffusion, a DDPM: otcfm says that it is a flow
    force            does a finished run again

    What weights in Dhariwal & Nichol's names, a DiT's and a ResNet's do not tell of their network:
    shape            of a sample, such as [3, 64, 64]; of a ResNet, of the images that it is to read
    schedule         of guided_diffusion: of the noise levels
    num_heads        of attention, also of dit, or
    head_channels    of each of them
    attention_order  of guided_diffusion: new where it was made with use_new_attention_order
    """
    if run.finished_already():
        return run.directory
    path = foreign_file(file)
    said = {"shape": shape, "schedule": schedule, "num_heads": num_heads}
    said |= {"head_channels": head_channels, "attention_order": attention_order}
    found = read(path, kind, **_with_known(file, said))
    checkpoint = _checkpoint(found, {"file": path.name, "sha256": run.inputs["file"]})
    check_fits(path, checkpoint)
    run.begin()
    last = write(run.directory / LAST, lambda temporary: _save(checkpoint, temporary))
    n = sum(weight.numel() for weight in found.weights.values())
    run.finish(last, kind=found.kind, numbers=n, step=found.step)
    named = f"{found.kind}: {found.model['name']}, {found.net['name']}"
    run.say(f"{named}, shape {list(found.shape)}, {found.num_classes} classes, {n:,} numbers")
    return run.directory


def main(words: list[str]) -> int:
    """Run from the command line; the status. Raises UserError for a mistake."""
    if any(word in ("-h", "--help") for word in words):
        print(help_of(adopt, {}))
        return 0
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(files) != 1 or files[0].startswith("-"):
        raise UserError(
            "needs one FILE: python -m lightning_cfg.adopt FILE run_dir=DIR [key=value]"
        )
    document = Document(Path(files[0]), {"file": files[0]})
    for word in words:
        if word != files[0]:
            set_key(document, word)
    adopt(**load(adopt, document))
    return 0


def _with_known(file: str, said: dict) -> dict:
    """What is said of the network, or else is known of a file of this name."""
    known = (ASSETS[file].told or {}) if file in ASSETS and not Path(file).exists() else {}
    if said["num_heads"] is not None or said["head_channels"] is not None:
        known = {k: v for k, v in known.items() if k not in ("num_heads", "head_channels")}
    return {key: known.get(key) if said[key] is None else said[key] for key in UNSAID}


def _checkpoint(found: Published, origin: dict) -> dict:
    """What `fit` would have written of it, in the dtypes of the file."""
    weights = {name: _packed(weight) for name, weight in found.weights.items()}
    config = {"net": found.net, "model": found.model, "learner": {"name": found.learner}}
    return {
        "config": {**config, "adopted": {**origin, "kind": found.kind}},
        "shape": list(found.shape),
        "num_classes": found.num_classes,
        "state_dict": {f"model.{name}": weight for name, weight in weights.items()},
        "ema": {ONLY: weights},  # the same tensors, which the file then holds once
        "global_step": found.step,
    }


def _packed(weight: Tensor) -> Tensor:
    """The tensor alone, without what else its storage holds."""
    alone = weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    return weight if alone and weight.is_contiguous() else weight.contiguous().clone()


def _save(checkpoint: dict, path: Path) -> None:
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error
