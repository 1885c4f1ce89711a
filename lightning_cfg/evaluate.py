"""`python -m lightning_cfg.evaluate`: see `lightning_cfg.verbs.evaluate`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("evaluate")
