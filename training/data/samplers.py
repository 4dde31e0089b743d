"""Choose which images each process sees, and in which order.

Both samplers put all indices in one global order, the same on every process, and process r of W takes every W-th index
from the r-th on. So the images of step k, over all processes, depend only on the global batch size and not on W.
"""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from training.runtime.randomness import Draw


class TrainSampler(Sampler):
    """Draw training images in an order seeded by (seed, epoch), equally many on every process.

    If the number of draws is not a multiple of `world_size`, the end is cut. If there are fewer draws than processes,
    the order wraps around so that each process has one.

    With `repeats` above 1 (repeated augmentation), an epoch draws ceil(num_samples / repeats) images `repeats` times
    each. `repeats` epochs share one permutation and each takes its own part, so that together they show every image.
    The copies of an image are neighbours in the global order, so that they go to different processes.

    Args:
        num_samples: Images in the data set.
        world_size: Number of processes.
        rank: This process's number, from 0.
        seed: Seed of the order.
        shuffle: False keeps the data set's order.
        repeats: How often an epoch draws each of its images.
        stage_of: Gives an epoch's stage, for a data set that augments by it; None for one that takes indices alone.

    Raises:
        ValueError: num_samples or repeats is below 1, or rank is not one of world_size processes.
    """

    def __init__(
        self,
        num_samples: int,
        world_size: int,
        rank: int,
        seed: int,
        shuffle: bool = True,
        repeats: int = 1,
        stage_of: Callable[[int], int] | None = None,
    ) -> None:
        if num_samples < 1 or repeats < 1:
            raise ValueError(f"num_samples and repeats must be at least 1, not {num_samples} and {repeats}")
        _check_rank(world_size, rank)
        self.num_samples = num_samples
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = repeats
        self.stage_of = stage_of
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch whose order comes next, and how many of this process's draws to skip at its start."""
        self.epoch, self.start = epoch, start

    @property
    def images_per_epoch(self) -> int:
        """Return how many different images an epoch draws, over all processes, before the end is cut."""
        return -(-self.num_samples // self.repeats)

    def __len__(self) -> int:
        return max(1, self.images_per_epoch * self.repeats // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        order = self._global_order()
        mine = np.arange(self.rank, len(self) * self.world_size, self.world_size)[self.start :]
        indices = order[mine % len(order)].tolist()
        stage = self.stage_of and self.stage_of(self.epoch)
        for index, place in zip(indices, mine.tolist(), strict=True):
            yield Draw(index if stage is None else (index, stage), (self.seed, self.epoch, place))

    def _global_order(self) -> np.ndarray:
        cycle, part = divmod(self.epoch, self.repeats)
        indices = np.arange(self.num_samples)
        if self.shuffle:
            indices = np.random.default_rng((self.seed, cycle)).permutation(indices)
        images = np.arange(part * self.images_per_epoch, (part + 1) * self.images_per_epoch)
        return indices[images % self.num_samples].repeat(self.repeats)  # modulo: the last part may wrap around


class EvalSampler(Sampler):
    """Go through the data set in its own order, each index on exactly one process; lengths may differ by one.

    Args:
        num_samples: Images in the data set.
        world_size: Number of processes.
        rank: This process's number, from 0.

    Raises:
        ValueError: rank is not one of world_size processes.
    """

    def __init__(self, num_samples: int, world_size: int, rank: int) -> None:
        _check_rank(world_size, rank)
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def drop_last(sampler: Sampler, batch_size: int) -> bool:
    """Return whether a training loader should drop its last, short batch: yes, unless it is the only batch."""
    return len(sampler) >= batch_size


def _check_rank(world_size: int, rank: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes")
