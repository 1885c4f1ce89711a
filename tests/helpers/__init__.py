"""What several test modules share, beside the fixtures of conftest.py."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the checkout
