"""`python -m lightning_cfg.trace`: see `lightning_cfg.verbs.trace`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("trace")
