"""`python -m lightning_cfg.pair`: see `lightning_cfg.verbs.pair`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("pair")
