"""What a training changes of the whole process, and gives back. Imports no Lightning."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ASKED_FOR = (  # Lightning's loggers of what is printed only if `trainer` asks for it
    "lightning.pytorch.callbacks.model_summary",
    "lightning.pytorch.profilers.profiler",
)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give back what a training changes of the whole process: generators, determinism, loggers.

    In the meantime Lightning prints no advertising and no advice for other data loaders than ours.
    """
    started = torch.cuda.is_initialized()
    devices, seed = range(torch.cuda.device_count()) if started else [], torch.initial_seed()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", *ASKED_FOR)]
    levels = [logger.level for logger in loggers]
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        for advice in (".*srun.*", ".*LeafSpec.*", ".*GPU available.*", "IProgress.*"):
            warnings.filterwarnings("ignore", advice)
        for logger in loggers:
            logger.setLevel(logging.INFO if logger.name in ASKED_FOR else logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            if torch.cuda.is_initialized() and not started:
                torch.cuda.manual_seed_all(seed)  # as it would have been when it had started


@contextmanager
def cheap_device_checks(device: torch.device) -> Iterator[None]:
    """Off CUDA, take back what Lightning's import asks for: NVML loaded anew in every step.

    The optimiser asks at each step whether CUDA is there. The variable is for processes that fork
    before they use it.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = None if device.type == "cuda" else os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
