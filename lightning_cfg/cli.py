"""Between a command line and a verb: its file is read before anything heavy is imported."""

import importlib
import sys

from lightning_cfg.config import _arguments, _stop, main
from lightning_cfg.errors import UserError


def run(verb: str) -> None:
    """`python -m lightning_cfg.VERB --config FILE ...`: status 2 at an unreadable file, at once."""
    try:
        _arguments(sys.argv[1:])
    except UserError as error:
        _stop(f"error: {error}", 2)
    if verb == "fit":  # a signal during the imports, of seconds, would kill the run
        from lightning_cfg.training import preemption

        preemption.watch_to_the_end()
    main(getattr(importlib.import_module(f"lightning_cfg.verbs.{verb}"), verb))


def run_own(verb: str) -> None:
    """A verb with a command line of its own: `assets` and `sweep`."""
    try:
        sys.exit(importlib.import_module(f"lightning_cfg.verbs.{verb}").main(sys.argv[1:]))
    except UserError as error:
        _stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)
