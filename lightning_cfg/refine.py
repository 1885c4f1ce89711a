"""`python -m lightning_cfg.refine`: see `lightning_cfg.verbs.refine`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("refine")
