"""Measure how many training images a second are read, augmented and batched: no model can train on more.

    python scripts/bench_data.py --data-set CIFAR --data-path ./datasets --input-size 224 --batch-size 128
    python scripts/bench_data.py --data-set FOLDER --data-path ./photos --input-size 224 --json results/bench_data.json

Takes a command line of main.py and loads as that would, but trains nothing: once in the process itself, and then with
one loading process more each time, up to --num_workers or the cores there are. A log's images_per_second compares.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
from main import build_data, check_names
from training.build.model import build_model
from training.data.loaders import train_loader, usable_workers
from training.records.console import device_name, versions
from training.runtime.distributed import World
from training.settings.command_line import get_args_parser, parse_args
from training.settings.parser import above_zero, fail

PROGRAM = "bench_data.py"


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    parser.prog, parser.usage, parser.description = PROGRAM, None, __doc__.splitlines()[0]
    add = parser.add_argument_group("benchmark").add_argument
    add("--seconds", type=above_zero, default=20, metavar="S", help="how long to load with each number of processes")
    add("--json", metavar="FILE", help="also write the figures here")
    args, world = parse_args(argv, parser), World(torch.device("cpu"), 0, 1)
    args.eval = False  # which would leave the training images out
    try:
        check_names(args)
        datasets.check_indexed(args)
        build_model(args)  # settles the size of its images
        dataset, *_ = build_data(args, world)
    except (ValueError, OSError) as error:
        fail(error, program=PROGRAM)

    machine = device_name(torch.device("cpu"))
    print(f"{args.data_set}, {len(dataset):,} images to {args.input_size}, batch {args.batch_size}, {machine}")
    print("\n| loading processes | images/s |\n| --- | --- |")
    rates = {}
    for workers in range(usable_workers(args.num_workers) + 1):
        args.num_workers = workers
        loader = train_loader(dataset, args, world)
        rates[workers] = images_per_second(loader, args.seconds)
        print(f"| {workers or 'none'} | {rates[workers]:.0f} |", flush=True)
    if args.json:
        write(Path(args.json), args, rates, machine)


def images_per_second(loader: DataLoader, seconds: float) -> float:
    """The rate over so many seconds, once each process has given a batch."""
    batches = endless(loader)
    for _ in range(loader.num_workers + 1):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[1])
    return images / (time.perf_counter() - start)


def endless(loader: DataLoader) -> Iterator:
    """Epoch after epoch."""
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def write(path: Path, args: argparse.Namespace, rates: dict[int, float], machine: str) -> None:
    """Write the rates with what they depend on."""
    names = ("data_set", "input_size", "in_chans", "batch_size", "no_aug", "aa", "ThreeAugment", "src", "reprob")
    figures = {name: getattr(args, name) for name in names} | {"device": machine, **versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures | {"images_per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
