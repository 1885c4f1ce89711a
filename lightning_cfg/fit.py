"""`python -m lightning_cfg.fit`: see `lightning_cfg.verbs.fit`."""

from lightning_cfg.cli import run

if __name__ == "__main__":
    run("fit")
