"""`python -m lightning_cfg.assets`: see `lightning_cfg.verbs.assets`."""

from lightning_cfg.cli import main_of

if __name__ == "__main__":
    main_of("assets")
