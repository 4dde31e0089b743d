"""Skip images that can't be read, if a run asks for it."""

import sys

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class SkipBroken(Dataset):
    """Return None for every image of a data set that can't be read, and print which.

    Args:
        dataset: Raises OSError for a broken image.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except OSError as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            return None


def collate_readable(samples: list) -> list[Tensor]:
    """Return a batch of the samples that are not None; images [0] and labels [0] if all are None."""
    readable = [sample for sample in samples if sample is not None]
    return default_collate(readable) if readable else [torch.empty(0), torch.empty(0, dtype=torch.long)]
