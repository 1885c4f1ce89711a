"""`python -m lightning_cfg.trace`: see `lightning_cfg.verbs.trace`."""

from lightning_cfg.cli import run

if __name__ == "__main__":
    run("trace")
