"""Make random numbers depend only on the seed and the place in training, so that a resumed run draws the same."""

import random
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset


class Draw(NamedTuple):
    """Name one image of an epoch and the seed of its augmentation.

    Attributes:
        index: The image's index in the data set, in a pair with the epoch's stage if the data set augments by it.
        key: The seed of its augmentation: the run's seed, the epoch and the place in the order of all processes.
    """

    index: int | tuple[int, int]
    key: tuple[int, ...]


class SeededImages(Dataset):
    """Seed a data set's random augmentation by the draw, so that neither the process nor earlier images matter.

    Args:
        dataset: Returns an image and a label for an index.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw):
        seed_all(*draw.key)
        return self.dataset[draw.index]


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch by some integers of at least 0; (1,) and (1, 0) differ."""
    # Their count comes first: NumPy gives a key the same seed as that key followed by zeros.
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed stores a traceback for GPUs not in use yet, which takes longer than reading a small image.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
