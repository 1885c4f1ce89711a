"""`python -m lightning_cfg.sweep`: see `lightning_cfg.verbs.sweep`."""

from lightning_cfg.cli import main_of

if __name__ == "__main__":
    main_of("sweep")
