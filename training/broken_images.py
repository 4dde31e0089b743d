"""Images that can't be read: passed over and counted, where a run wants that."""

import multiprocessing
import sys

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from training.distributed import World, all_reduce


class SkipBroken(Dataset):
    """A data set with None in the place of every image that can't be read; says which, and counts them.

    Args:
        dataset: Raises OSError for a broken image.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._count = multiprocessing.Value("q", 0)  # loading processes count here too

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except OSError as error:
            with self._count.get_lock():
                self._count.value += 1
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            return None

    def take_count(self, world: World) -> int:
        """How many images all processes skipped since this was asked last."""
        with self._count.get_lock():
            count, self._count.value = self._count.value, 0
        return int(all_reduce([float(count)], world)[0])


def collate_readable(samples: list) -> list[Tensor]:
    """A batch of the samples that are not None.

    Raises:
        OSError: There is none.
    """
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        raise OSError(f"--skip-bad-images: none of a batch's {len(samples)} images can be read")
    return default_collate(readable)
