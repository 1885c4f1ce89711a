"""`python -m lightning_cfg.encode`: see `lightning_cfg.verbs.encode`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("encode")
