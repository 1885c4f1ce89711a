"""`python -m lightning_cfg.sweep`: see `lightning_cfg.verbs.sweep`."""

from lightning_cfg.cli import run_own

if __name__ == "__main__":
    run_own("sweep")
