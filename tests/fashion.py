"""Files of Fashion-MNIST's kind and names, with a few images of noise."""

from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_fashion(folder: Path, train: int, test: int, side: int = 28) -> Path:
    """Write both splits' images [count, side, side] and their labels, one class after the other; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        images = generator.integers(256, size=(count, side, side), dtype=np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(count) % 10).astype(np.uint8)))
    return folder
