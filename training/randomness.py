"""Random numbers that depend on the seed and the place in training alone: a restart finds the same ones again."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


class Draw(NamedTuple):
    """One image of an epoch.

    Attributes:
        index: Which image of the data set.
        key: What its augmentation follows: seed, epoch and the place in the order of all processes.
    """

    index: int
    key: tuple[int, ...]


class SeededImages(Dataset):
    """A data set whose random augmentation follows the draw, whichever process makes it and whatever it made before.

    Args:
        dataset: Gives an image and a label for an index.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw):
        if get_worker_info() is not None:  # in a loading process nothing else is random
            seed_all(*draw.key)
            return self.dataset[draw.index]
        with _generators_kept():
            seed_all(*draw.key)
            return self.dataset[draw.index]


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators by a few numbers of at least 0."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Let the CPU's generators go on afterwards as if nothing had been drawn inside this context."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
