"""`python -m lightning_cfg.study`: see `lightning_cfg.verbs.study`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("study")
