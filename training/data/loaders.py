"""Loaders of training and test images."""

import argparse
import os

from torch.utils.data import DataLoader, Dataset, IterableDataset

from training.data.broken_images import collate_readable
from training.data.samplers import EvalSampler, TrainSampler, drop_last
from training.runtime.distributed import World
from training.runtime.randomness import SeededImages

REPEATS = 3  # how often repeated augmentation draws an image, as in DeiT


def usable_workers(wanted: int) -> int:
    """As many loading processes as wanted, but at most this process's share of the cores, and at least one of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    training_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min(wanted, max(1, cores // training_here))


def train_loader(dataset: Dataset, args: argparse.Namespace, world: World) -> DataLoader:
    """Shuffled batches of equal size, each for one step of the optimizer; less than one is one short batch."""
    batch_size = args.batch_size * args.grad_accum_steps
    if isinstance(dataset, IterableDataset):  # a stream shuffles and shares itself out
        return _loader(dataset, args, world, batch_size=batch_size, drop_last=True)
    repeats = REPEATS if args.repeated_aug else 1
    sampler = TrainSampler(len(dataset), world.size, world.rank, args.seed, repeats=repeats)
    full = drop_last(sampler, batch_size)
    return _loader(SeededImages(dataset), args, world, sampler=sampler, batch_size=batch_size, drop_last=full)


def images_per_batch(loader: DataLoader) -> int:
    """How many images each batch of a train_loader has, broken ones counted."""
    return min(loader.batch_size, len(loader.sampler))


def steps_per_epoch(dataset: Dataset, args: argparse.Namespace, world: World) -> int:
    """How many batches train_loader gives in an epoch; ValueError for a stream, which doesn't say."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"--sched-on-updates: --data-set {args.data_set} is a stream without known length")
    return len(train_loader(dataset, args, world))


def test_loader(dataset: Dataset, args: argparse.Namespace, world: World) -> DataLoader:
    """Every test image once: on every process, or with --dist-eval on one of them."""
    batch_size = int(1.5 * args.batch_size)  # no gradients: more images fit, as in DeiT
    if isinstance(dataset, IterableDataset):
        return _loader(dataset, args, world, batch_size=batch_size)
    size, rank = (world.size, world.rank) if args.dist_eval else (1, 0)
    return _loader(dataset, args, world, sampler=EvalSampler(len(dataset), size, rank), batch_size=batch_size)


def shared_out(dataset: Dataset, args: argparse.Namespace) -> bool:
    """Whether each process has its own part of the test images: with --dist-eval, and always of a stream."""
    return args.dist_eval or isinstance(dataset, IterableDataset)


def _loader(dataset: Dataset, args: argparse.Namespace, world: World, **kwargs) -> DataLoader:
    workers = usable_workers(args.num_workers)
    if hasattr(dataset, "set_loader_cfg"):
        dataset.set_loader_cfg(
            num_workers=workers
        )  # each process rounds its part of timm's streams up to whole batches
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=args.pin_mem and world.device.type == "cuda",
        collate_fn=collate_readable if args.skip_bad_images else None,
        **kwargs,
    )
