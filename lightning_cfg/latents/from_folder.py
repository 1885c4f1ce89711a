"""A network of diffusers or transformers read from a folder, of safetensors only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_cfg.errors import UserError, one_line

SHOULD_BE_NONE = ("missing_keys", "unexpected_keys", "mismatched_keys")


def network_of_folder(
    kind: Any, folder: Path, what: str, config: str, weights: str, **settings: Any
) -> Any:
    """The network of class `kind` in a folder, with all of its weights and no others.

    what             it is called in errors
    config, weights  the names of its files, for errors
    settings         of from_pretrained
    UserError where the files are damaged, do not fit each other, or hold NaN or infinity.
    """
    try:
        with quietly():
            net, told = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
                output_loading_info=True, **settings,
            )  # fmt: skip
    except Exception as error:  # whatever damaged files or odd numbers make of it
        reason = first_of(error)
        raise UserError(f"{folder} holds no {what} that diffusers reads: {reason}") from error
    for wrong in filter(told.get, SHOULD_BE_NONE):
        first = f"{wrong.split('_')[0]} {next(iter(told[wrong]))}"
        raise UserError(f"{folder}: {weights} does not fit its {config}: {first}")
    if not all(value.isfinite().all() for value in net.state_dict().values()):
        raise UserError(f"{folder}: its weights hold NaN or infinity")
    return net


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of diffusers, whose causes are told as errors here."""
    log = logging.getLogger("diffusers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def first_of(error: Exception) -> str:
    """What an error says, as much of it as a line holds."""
    text = one_line(error)
    return text if len(text) <= 200 else text[:197] + "..."
