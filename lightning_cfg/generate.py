"""`python -m lightning_cfg.generate`: see `lightning_cfg.verbs.generate`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("generate")
