"""`python -m lightning_cfg.export`: see `lightning_cfg.verbs.export`."""

from lightning_cfg.cli import main_of

if __name__ == "__main__":
    main_of("export")
