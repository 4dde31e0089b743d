"""Build loaders of training and test images."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from training.data.broken_images import SkipBroken, collate_readable
from training.data.samplers import EvalSampler, TrainSampler, drop_last
from training.runtime.distributed import World
from training.runtime.randomness import SeededImages, seed_all
from training.runtime.threads import share_of_cores
from training.settings.images import DataSettings, LoadingSettings
from training.settings.run import ProcessSettings
from training.settings.settings import Settings
from training.settings.stages import stage_of

REPEATS = 3  # times that repeated augmentation draws an image, as in DeiT


def usable_workers(wanted: int) -> int:
    """Return the number of loading processes: as wanted, but at most one for each core in this process's share."""
    return min(wanted, share_of_cores())


def train_loader(dataset: Dataset, settings: Settings, world: World) -> DataLoader:
    """Build a loader of shuffled batches of equal size, one per step of the optimizer.

    If there are fewer images than a batch holds, they are one short batch. With --train-img-sizes the data set is one
    of `at_train_sizes`.
    """
    batch_size = settings.step_size
    if isinstance(dataset, IterableDataset):  # a stream shuffles and divides itself among processes
        return _loader(dataset, settings, world, batch_size=batch_size, drop_last=True)
    repeats = REPEATS if settings.repeated_aug else 1
    stages = partial(stage_of, settings=settings) if settings.train_img_sizes else None
    sampler = TrainSampler(len(dataset), world.size, world.rank, settings.seed, repeats=repeats, stage_of=stages)
    full = drop_last(sampler, batch_size)
    return _loader(SeededImages(dataset), settings, world, sampler=sampler, batch_size=batch_size, drop_last=full)


def images_per_batch(loader: DataLoader) -> int:
    """Return the number of images in each batch of a train_loader, including broken ones."""
    return min(loader.batch_size, len(loader.sampler))


def steps_per_epoch(batches: DataLoader, settings: DataSettings) -> int:
    """Return the number of batches in an epoch of a train_loader; raise ValueError for a stream of unknown length."""
    if isinstance(batches.dataset, IterableDataset):
        raise ValueError(f"--sched-on-updates: --data-set {settings.data_set} is a stream without known length")
    return len(batches)


def start_epoch(batches: DataLoader, epoch: int, steps: int, seed: int, rank: int) -> int:
    """Give an epoch its own order, skip the steps that are done, and return how many were skipped: 0 for a stream.

    Args:
        batches: A train_loader.
        epoch: The epoch's number.
        steps: Steps that were done before an interruption.
        seed, rank: Seed a stream's order, together with the epoch.
    """
    if isinstance(batches.sampler, TrainSampler):
        batches.sampler.set_epoch(epoch, start=steps * batches.batch_size)
        return steps
    batches.dataset.set_epoch(epoch)
    seed_all(seed, epoch, rank)  # otherwise each epoch would start from the state that evaluation left
    return 0


def augmented_images(batches: DataLoader, count: int = 16) -> Tensor:
    """Return the first training images of the epoch, augmented but not yet mixed: [count, C, H, W]."""
    samples = batches.dataset if isinstance(batches.dataset, IterableDataset) else _drawn(batches)
    return torch.stack([image for image, _ in itertools.islice(samples, count)])


def _drawn(batches: DataLoader) -> Iterator[tuple[Tensor, int]]:
    """Yield the samples that can be read, in the epoch's order; skip broken ones without a message."""
    batches.sampler.set_epoch(batches.sampler.epoch)  # from the epoch's start, even if training resumed in the middle
    dataset = batches.dataset.dataset
    seeded = SeededImages(dataset.dataset if isinstance(dataset, SkipBroken) else dataset)
    for draw in batches.sampler:
        with suppress(OSError):
            yield seeded[draw]


def test_loader(dataset: Dataset, settings: Settings, world: World) -> DataLoader:
    """Build a loader of every test image once: on every process, or with --dist-eval on one of them."""
    batch_size = int(1.5 * settings.batch_size)  # no gradients: more images fit, as in DeiT
    if isinstance(dataset, IterableDataset):
        return _loader(dataset, settings, world, batch_size=batch_size)
    size, rank = (world.size, world.rank) if settings.dist_eval else (1, 0)
    return _loader(dataset, settings, world, sampler=EvalSampler(len(dataset), size, rank), batch_size=batch_size)


def spread(dataset: Dataset, count: int | None) -> Dataset:
    """Return so many images, spread evenly over the data set; all of them if there are fewer, or for None."""
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, torch.linspace(0, len(dataset) - 1, count).long().tolist())


def shared_out(dataset: Dataset, settings: ProcessSettings) -> bool:
    """Return whether each process has its own part of the test images: with --dist-eval, and always for a stream."""
    return settings.dist_eval or isinstance(dataset, IterableDataset)


def say_nothing_to_nobody(worker: int = 0) -> None:
    """Print no traceback in a loading process because the main process, which has said why, is gone."""
    print_traceback = sys.excepthook

    def unless_it_is_gone(kind: type[BaseException], *details: object) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            print_traceback(kind, *details)

    sys.excepthook = unless_it_is_gone


def _loader(dataset: Dataset, settings: LoadingSettings, world: World, **kwargs) -> DataLoader:
    workers = usable_workers(settings.num_workers)
    if hasattr(dataset, "set_loader_cfg"):
        # Each process rounds its part of timm's streams up to whole batches.
        dataset.set_loader_cfg(num_workers=workers)
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=settings.pin_mem and world.device.type == "cuda",
        worker_init_fn=say_nothing_to_nobody,
        collate_fn=collate_readable if settings.skip_bad_images else None,
        **kwargs,
    )
