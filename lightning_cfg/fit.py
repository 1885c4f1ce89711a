"""`python -m lightning_cfg.fit`: see `lightning_cfg.verbs.fit`."""

from lightning_cfg.cli import main

if __name__ == "__main__":
    main("fit")
