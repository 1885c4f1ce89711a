"""Random images in the files in which MNIST is published."""

import struct
from pathlib import Path

import numpy as np


def write(root: Path, *, labels: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Random images in MNIST's published format (idx: big-endian sizes, then bytes)."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(seed)
    images = {}
    for name, c in labels.items():
        y = images[name] = random.integers(0, 256, (len(c), 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, *y.shape) + y.tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, len(c)) + c.astype(np.uint8).tobytes()
        )
    return images
