"""`python -m lightning_cfg.generate`: see `lightning_cfg.verbs.generate`."""

from lightning_cfg.cli import run

if __name__ == "__main__":
    run("generate")
