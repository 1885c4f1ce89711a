"""`python -m lightning_cfg.evaluate`: see `lightning_cfg.verbs.evaluate`."""

from lightning_cfg.cli import run

if __name__ == "__main__":
    run("evaluate")
