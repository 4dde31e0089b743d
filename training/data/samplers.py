"""Which images each process sees, and in which order.

Both samplers lay all indices in one global order, the same on every process, and process r of W takes every W-th of
them from the r-th. So step k's images, all processes together, depend on the global batch size alone and not on W.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from training.runtime.randomness import Draw


class TrainSampler(Sampler):
    """Draws for training in an order seeded by (seed, epoch), equally many on every process.

    Where the number of draws is no multiple of `world_size`, the end is cut; where there are fewer draws than
    processes, the order wraps around so that each process has one.

    With `repeats` above 1 (repeated augmentation), an epoch draws ceil(num_samples / repeats) images `repeats` times
    each. One permutation serves `repeats` epochs, each of which takes its own part of it, so that these together show
    every image. The copies of an image lie side by side in the global order, so that they go to different processes.

    Args:
        num_samples: Images in the data set.
        world_size: Number of processes.
        rank: This process.
        seed: Seed of the order.
        shuffle: False keeps the data set's order.
        repeats: How often an epoch draws each of its images.

    Raises:
        ValueError: No images, no repeats, or a rank outside of the world.
    """

    def __init__(
        self, num_samples: int, world_size: int, rank: int, seed: int, shuffle: bool = True, repeats: int = 1
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
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of the next iteration, and how many of this process's draws to leave out at its start."""
        self.epoch, self.start = epoch, start

    @property
    def images_per_epoch(self) -> int:
        """How many different images an epoch draws, over all processes, before the end is cut."""
        return -(-self.num_samples // self.repeats)

    def __len__(self) -> int:
        return max(1, self.images_per_epoch * self.repeats // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        order = self._global_order()
        mine = np.arange(self.rank, len(self) * self.world_size, self.world_size)[self.start :]
        indices = order[mine % len(order)].tolist()
        for index, place in zip(indices, mine.tolist(), strict=True):
            yield Draw(index, (self.seed, self.epoch, place))

    def _global_order(self) -> np.ndarray:
        cycle, part = divmod(self.epoch, self.repeats)
        indices = np.arange(self.num_samples)
        if self.shuffle:
            indices = np.random.default_rng((self.seed, cycle)).permutation(indices)
        images = np.arange(part * self.images_per_epoch, (part + 1) * self.images_per_epoch)
        return indices[images % self.num_samples].repeat(self.repeats)  # modulo: the last part may have to start again


class EvalSampler(Sampler):
    """The data set's own order, each index on exactly one process; lengths may differ by one.

    Args:
        num_samples: Images in the data set.
        world_size: Number of processes.
        rank: This process.

    Raises:
        ValueError: A rank outside of the world.
    """

    def __init__(self, num_samples: int, world_size: int, rank: int) -> None:
        _check_rank(world_size, rank)
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def drop_last(sampler: Sampler, batch_size: int) -> bool:
    """Return whether a training loader should drop its last, short batch: unless it is the only one."""
    return len(sampler) >= batch_size


def _check_rank(world_size: int, rank: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes")
