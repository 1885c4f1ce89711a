"""`python -m lightning_cfg.tune`: see `lightning_cfg.verbs.tune`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("tune")
