"""How a training is made fast on its device: precision, compilation, memory layout."""

import torch
from torch import nn

from lightning_cfg.errors import UserError
from lightning_cfg.runs.ranks import launched


def speed_of(
    trainer: dict,
    shape: tuple[int, ...],
    *,
    compile: bool | str = "auto",
    channels_last: bool | str = "auto",
    matmul_precision: str = "auto",
) -> dict:
    """{precision, compile, channels_last, matmul_precision}: as asked, and what auto means here."""
    # points need all their digits, and their networks are small
    fast = on_cuda(trainer) and len(shape) == 3
    half = fast and torch.cuda.is_bf16_supported()
    auto = {
        "precision": "bf16-mixed" if half else "32-true",
        "compile": fast,
        "channels_last": fast,
        "matmul_precision": "high" if fast else "highest",
    }
    asked = {"precision": trainer.get("precision") or "auto", "compile": compile}
    asked |= {"channels_last": channels_last, "matmul_precision": matmul_precision}
    return {name: auto[name] if value == "auto" else value for name, value in asked.items()}


def prepare(model: nn.Module, speed: dict) -> None:
    """Lay out and compile a new model's network, in place: its names in a checkpoint stay."""
    if speed["channels_last"]:
        if all(p.ndim != 4 for p in model.parameters()):
            raise UserError("channels_last=true needs a network of images")
        model.to(memory_format=torch.channels_last)
    if speed["compile"]:
        getattr(model, "net", model).compile()


def device_of(trainer: dict) -> torch.device:
    """Where this process will train, as far as it is known before there is a Trainer."""
    if not on_cuda(trainer):
        return torch.device("cpu")
    return torch.device("cuda", launched().local_rank)


def on_cuda(trainer: dict) -> bool:
    """Whether the `trainer` section asks for a CUDA device, and there is one."""
    asked = trainer.get("accelerator") in (None, "auto", "gpu", "cuda")
    return torch.cuda.is_available() and asked
