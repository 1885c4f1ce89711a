"""`python -m lightning_cfg.adopt`: see `lightning_cfg.verbs.adopt`."""

from lightning_cfg.cli import main_of

if __name__ == "__main__":
    main_of("adopt")
