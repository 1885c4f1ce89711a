"""`python -m lightning_cfg.assets`: see `lightning_cfg.verbs.assets`."""

from lightning_cfg.cli import run_own

if __name__ == "__main__":
    run_own("assets")
