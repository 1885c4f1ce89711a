"""`python -m lightning_cfg.pair`: see `lightning_cfg.verbs.pair`."""

from lightning_cfg.cli import run

if __name__ == "__main__":
    run("pair")
