"""Random numbers that depend on the seed and the place in training alone: a restart finds the same ones again."""

import random
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset


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
        seed_all(*draw.key)
        return self.dataset[draw.index]


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators by a few numbers of at least 0; more of them are another seed."""
    # Their count goes first: NumPy takes a number for the same followed by zeros.
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed keeps a traceback for GPUs that are not in use yet: longer than reading a small image takes.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
